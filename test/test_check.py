"""Checks of job and output folders by the platform's rules."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from click.testing import CliRunner

from pantherseg.cli import main
from pantherseg.grand_challenge.check import check_job, check_output
from pantherseg.io import write_volume
from pantherseg.recipe import Sockets
from pantherseg.verdict import Verdict
from pantherseg.volume import Grid, Volume

SOCKETS = Sockets(input="abdominal-t1-mri", output="pancreatic-tumor-segmentation")
GRID = Grid((3, 4, 5), (3.0, 1.5, 1.5), origin=(1.0, -2.0, 3.0))
NAME = "case.mha"
READABLE = "a readable 3-D image"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    image = np.arange(60, dtype=np.int16).reshape(GRID.shape)
    write_volume(Volume(image, GRID), image_path(tmp_path / "job", SOCKETS.input))
    return tmp_path / "job"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    mask = np.zeros(GRID.shape, np.uint8)
    mask[1, 1:3, 2] = 1
    write_volume(Volume(mask, GRID), image_path(tmp_path / "output", SOCKETS.output))
    return tmp_path / "output"


def image_path(folder: Path, socket: str) -> Path:
    return folder / "images" / socket / NAME


def broken(verdicts: list[Verdict]) -> list[str]:
    return [verdict.rule for verdict in verdicts if not verdict.kept]


def mask_of(folder: Path) -> Path:
    return image_path(folder, SOCKETS.output)


def rewrite(folder: Path, array: np.ndarray, grid: Grid = GRID) -> None:
    write_volume(Volume(array, grid), mask_of(folder))


def as_nifti(folder: Path) -> None:
    mask_of(folder).rename(mask_of(folder).with_suffix(".nii.gz"))
    sitk.WriteImage(sitk.Image(5, 4, 3, sitk.sitkUInt8), str(mask_of(folder).with_suffix(".nii.gz")))


def truncated(folder: Path) -> None:
    content = mask_of(folder).read_bytes()
    mask_of(folder).write_bytes(content[:-12])


def as_tiff(folder: Path) -> None:
    sitk.WriteImage(sitk.Image(5, 4, 3, sitk.sitkUInt8), str(mask_of(folder).with_suffix(".tif")))
    mask_of(folder).with_suffix(".tif").rename(mask_of(folder))


def in_header(folder: Path, old: bytes, new: bytes) -> None:
    content = mask_of(folder).read_bytes()
    assert old in content
    mask_of(folder).write_bytes(content.replace(old, new, 1))


def other_grid(folder: Path) -> None:
    rewrite(folder, np.ones(GRID.shape, np.uint8), Grid(GRID.shape, (3.0, 1.5, 1.6), origin=GRID.origin))


def two_channels(folder: Path) -> None:
    sitk.WriteImage(sitk.Image([5, 4, 3], sitk.sitkVectorUInt8, 2), str(mask_of(folder)))


def single_slice(folder: Path) -> None:
    sitk.WriteImage(sitk.Image(5, 4, sitk.sitkUInt8), str(mask_of(folder)))


def renamed(folder: Path) -> None:
    mask_of(folder).rename(mask_of(folder).with_name("x.mha"))


FAULTS: list[tuple[str, Callable[[Path], object], str]] = [
    ("no mask", lambda f: mask_of(f).unlink(), "exactly one file"),
    ("a second file", lambda f: (mask_of(f).parent / "b.mha").write_bytes(b""), "exactly one file"),
    ("a NIfTI", as_nifti, "MetaImage or TIFF"),
    ("a text file", lambda f: mask_of(f).write_text("mask"), "MetaImage or TIFF"),
    ("a truncated mask", truncated, READABLE),
    ("two channels", two_channels, "a readable"),
    ("a single slice", single_slice, READABLE),
    ("a TIFF", as_tiff, READABLE),
    ("a mask without voxels", lambda f: in_header(f, b"DimSize = 5", b"DimSize = 0"), READABLE),
    ("a field that is not a number", lambda f: in_header(f, b"NDims", b"WindowCenter = x\nNDims"), READABLE),
    ("a header that is not UTF-8", lambda f: in_header(f, b"NDims", b"Comment = \xe9\nNDims"), "MetaImage or TIFF"),
    ("16-bit labels", lambda f: rewrite(f, np.ones(GRID.shape, np.int16)), "type int8 or uint8"),
    ("labels as float", lambda f: rewrite(f, np.ones(GRID.shape, np.float32)), "type int8 or uint8"),
    ("a label other than 0 and 1", lambda f: rewrite(f, np.full(GRID.shape, 2, np.uint8)), "values (0, 1)"),
    ("a mask on another grid", other_grid, "the input's name and grid"),
    ("a mask under another name", renamed, "the input's name and grid"),
    ("a dangling link", lambda f: (f / "gone").symlink_to("/nowhere"), "no dangling or folder links"),
]


def test_a_valid_output_keeps_every_rule(job: Path, output: Path) -> None:
    verdicts = check_output(output, SOCKETS, job=job)
    assert broken(verdicts) == []
    assert len(verdicts) == 7


@pytest.mark.fault("outputs", "an output folder with {id}", "the rule that it breaks, before the upload")
@pytest.mark.parametrize(("spoil", "rule"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
def test_names_the_rule_that_a_fault_breaks(
    job: Path, output: Path, spoil: Callable[[Path], object], rule: str
) -> None:
    spoil(output)
    rules = broken(check_output(output, SOCKETS, job=job))
    assert len(rules) == 1
    assert rules[0].startswith(rule)


@pytest.mark.fault("outputs", "a job folder without its volume", "the rule that it breaks")
def test_names_the_rule_that_a_job_without_a_volume_breaks(job: Path) -> None:
    assert broken(check_job(job, SOCKETS)) == []
    image_path(job, SOCKETS.input).unlink()
    assert len(broken(check_job(job, SOCKETS))) == 1


def test_the_command_prints_one_line_per_rule_and_exits_with_1_for_a_broken_one(job: Path, output: Path) -> None:
    arguments = ["check", "output", str(output), "--task", "1", "--job", str(job)]
    good = CliRunner().invoke(main, arguments)
    assert good.exit_code == 0
    assert [line.split()[0] for line in good.stdout.splitlines()] == ["ok"] * 7
    mask_of(output).unlink()
    bad = CliRunner().invoke(main, [*arguments, "--json"])
    assert bad.exit_code == 1
    assert [verdict["kept"] for verdict in json.loads(bad.stdout)] == [True, False]
