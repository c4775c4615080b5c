"""Reading any file at all gives a valid volume, or an error, in little time and memory."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from bench.fuzz import kept_files, outcome
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from faults import refused
from pantherseg.errors import InputError
from pantherseg.io import case_name, find_sources, mask_name, read_grid, read_image, write_volume
from pantherseg.io.itk import from_itk, to_itk
from pantherseg.io.limits import MAX_SIDE_VOXELS, MAX_SPACING_MM, MIN_SPACING_MM
from pantherseg.paths import ROOT
from pantherseg.volume import Grid, Volume
from volume_files import RAW, compressed, metaimage, nifti, nrrd, refusal

pytestmark = pytest.mark.usefixtures("quiet_itk")

# Processor time of this process, whatever else the machine does.
SECONDS = 10
# Beside the voxels themselves: chunks and headers, and what Python needs to read them.
MEMORY_BYTES = 32 << 20
TYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]
SUFFIXES = [".mha", ".nii", ".nii.gz", ".nrrd"]


@pytest.mark.parametrize(
    ("name", "case", "mask"),
    [
        ("a.b.nii.gz", "a.b", "a.b.nii.gz"),
        ("A.MHA", "A", "A.mha"),
        ("a.nii", "a", "a.nii"),
        ("a.mhd", "a", "a.mha"),
        ("a.nrrd", "a", "a.nrrd"),
    ],
)
def test_names_the_case_and_the_mask_of_a_file(tmp_path: Path, name: str, case: str, mask: str) -> None:
    assert (case_name(tmp_path / name), mask_name(tmp_path / name)) == (case, mask)
    assert find_sources(tmp_path / name) == []
    (tmp_path / name).touch()
    assert find_sources(tmp_path / name) == find_sources(tmp_path) == [tmp_path / name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_reads_the_grid_of_a_file_by_its_header_alone(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    turned = Rotation.from_euler("xyz", (20, -10, 5), degrees=True).as_matrix()
    image = to_itk(Volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5), Grid((3, 4, 5), (2.5, 1.0, 0.5))))
    image.SetDirection(turned.ravel().tolist())
    sitk.WriteImage(image, str(path))
    grid = read_grid(path)
    assert grid is not None
    assert grid.difference(read_image(path)[0].grid) == ""
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError):
        read_grid(path)
    assert read_grid(tmp_path) is None


def test_finds_only_volumes_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.mha").mkdir()
    for name in ("b.nrrd", "a.mha", "a.raw", ".7.hidden.mha"):
        (tmp_path / name).touch()
    (tmp_path / "dangling.mha").symlink_to(tmp_path / "missing.mha")
    assert find_sources(tmp_path) == [tmp_path / "a.mha", tmp_path / "b.nrrd"]
    # A volume that was moved away must not go unnoticed.
    assert find_sources(tmp_path, dangling=True) == [
        *(tmp_path / name for name in ("a.mha", "b.nrrd", "dangling.mha")),
    ]
    assert find_sources(tmp_path / "missing") == find_sources(tmp_path / "a.raw") == []
    with pytest.raises(InputError, match=r"a\.raw: expected a volume in one of the formats .*, found the suffix \.raw"):
        case_name(tmp_path / "a.raw")


def bounded_outcome(path: Path, *, voxel_bytes: int = 0) -> str:
    """Return the outcome, reached in a bounded time and memory."""
    tracemalloc.start()
    began = time.process_time()
    try:
        result = outcome(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < SECONDS
    assert peak < MEMORY_BYTES + 4 * voxel_bytes
    return result


def bounded_refusal(path: Path) -> str:
    """Return why a file is refused, in a bounded time and memory."""
    assert bounded_outcome(path) == "error"
    return refusal(path)


@pytest.mark.parametrize("path", kept_files(), ids=lambda path: path.name)
def test_handles_every_file_of_the_fuzzer(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bounded_outcome(path)
    assert capfd.readouterr().err.isascii()  # the platform requires UTF-8


@pytest.mark.slow
def test_fuzzing_for_some_seconds_finds_no_fault() -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this machine")
    done = subprocess.run(
        [sys.executable, "-m", "bench.fuzz", "--seconds", "12"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = re.search(r"(\d+) inputs, 0 faults, .*\n(\d+) of (\d+) lines of the readers", done.stdout)
    assert figures is not None, done.stdout
    inputs, reached, lines = map(int, figures.groups())
    assert inputs > 100
    assert reached > 0.7 * lines, "the fuzzer does not reach the readers' code"


# Any rotation, with any reflection.
directions = st.builds(
    lambda seed, signs: Rotation.random(rng=seed).as_matrix() @ np.diag(signs),
    st.integers(0, 2**32 - 1),
    st.tuples(*[st.sampled_from([1.0, -1.0])] * 3),
) | st.just(np.eye(3))
lengths = st.one_of(st.just(1), st.integers(1, 9))
# Slightly within the limits: NIfTI stores float32.
spacings = st.floats(np.log(MIN_SPACING_MM) + 1e-6, np.log(MAX_SPACING_MM) - 1e-6).map(lambda log: float(np.exp(log)))


@pytest.mark.slow
@pytest.mark.fault(
    "inputs",
    "any size down to one voxel, spacing, origin, rotation or reflection, type and format",
    "the same voxels on the same grid",
)
@settings(deadline=None, max_examples=80)
@given(
    st.tuples(lengths, lengths, lengths),
    st.tuples(spacings, spacings, spacings),
    st.tuples(*[st.floats(-1e4, 1e4)] * 3),
    directions,
    st.sampled_from(TYPES),
    st.sampled_from(SUFFIXES),
    st.booleans(),
)
def test_reads_back_a_volume_of_any_geometry(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    origin: tuple[float, float, float],
    direction: NDArray[np.float64],
    dtype: str,
    suffix: str,
    packed: bool,
) -> None:
    path = tmp_path_factory.mktemp("any") / f"a{suffix}"
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    sitk.WriteImage(to_itk(Volume(array, Grid(shape, spacing, origin, tuple(direction)))), str(path), packed)
    volume, _ = read_image(path)
    assert np.array_equal(volume.array, array.astype(np.float32))
    assert volume.grid == from_itk(sitk.ReadImage(str(path))).grid
    assert np.allclose(volume.grid.spacing, spacing, rtol=1e-5)
    assert np.allclose(volume.grid.direction, direction, rtol=0, atol=1e-5)


NUMBERS = "0 -0 1 -1 1e30 1e-30 1e400 nan inf -inf 1_0 0x10 1e 1. .5 ² ٣ 4294967296 9223372036854775808 1000000000 x"
NUMERIC = """NDims DimSize ElementSpacing ElementSize Offset Origin TransformMatrix Rotation CenterOfRotation HeaderSize
CompressedDataSize ElementNumberOfChannels ElementNBits SequenceID ElementMin ElementToIntensityFunctionSlope"""
LOGICAL = "CompressedData BinaryData BinaryDataByteOrderMSB ElementByteOrderMSB"
DATA_FILES = (
    """LIST,LIST 3,LIST 1,local,%s,%s%n%s,a%d.raw,a%03d.raw 0 9 1,%999999d 0 2 1,../a,/etc/passwd,.,..,a.mha,"""
)
NAMED_TYPES = "MET_DOUBLE MET_CHAR MET_FLOAT_ARRAY MET_OTHER MET_STRING"
number_texts = st.one_of(st.sampled_from(NUMBERS.split()), st.floats().map(str), st.integers(-3, 12).map(str))
fields = st.one_of(
    st.tuples(st.sampled_from(NUMERIC.split()), st.lists(number_texts, max_size=10).map(" ".join)),
    st.tuples(st.sampled_from(LOGICAL.split()), st.sampled_from(["True", "False", "1", "t", "", "maybe"])),
    st.tuples(st.just("ElementType"), st.sampled_from(NAMED_TYPES.split())),
    st.tuples(st.just("ElementDataFile"), st.sampled_from(DATA_FILES.split(","))),
    st.tuples(st.text(max_size=20), st.text(max_size=40)),
)


@pytest.mark.slow
@pytest.mark.fault(
    "inputs", "a header with any fields, numbers and encodings in it", "a valid volume, or an error of one line"
)
@settings(deadline=None, max_examples=400)
@given(st.lists(fields, min_size=1, max_size=4), st.binary(max_size=64), st.booleans())
def test_handles_a_header_with_any_fields(
    tmp_path_factory: pytest.TempPathFactory, changed: list[tuple[str, str]], data: bytes, packed: bool
) -> None:
    write = compressed if packed else metaimage
    content = (zlib.compress(RAW) if packed else RAW) + data
    path = write(tmp_path_factory.getbasetemp() / "a.mha", content, dict(changed))
    assert outcome(path) in ("volume", "error")


special = st.one_of(
    st.floats(width=64, allow_subnormal=True),
    st.sampled_from([np.nan, np.inf, -np.inf, 5e-324, 1e-45, 1e-13, 1.0, 1e13, 1e15, 1.7e308]),
)


@pytest.mark.slow
@pytest.mark.fault(
    "inputs",
    "voxels of any value: infinite, denormal, up to 1e308, mostly the same",
    "a volume of finite values, or an error of one line",
)
@settings(deadline=None, max_examples=100)
@given(
    st.lists(special, min_size=1, max_size=6), special, st.integers(1, 3000), st.sampled_from(["float32", "float64"])
)
def test_handles_voxels_of_any_value(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], background: float, size: int, dtype: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "values.mha"
    with np.errstate(over="ignore"):
        array = np.full((1, 1, size + len(values)), background).astype(dtype)
        array[0, 0, : len(values)] = values
    sitk.WriteImage(to_itk(Volume(array, Grid(array.shape, (1.0, 1.0, 1.0)))), str(path))
    usable = np.abs(array) < 1e15
    bad, nan = int((~usable).sum()), int(np.isnan(array).sum())
    result = outcome(path)
    assert result == ("error" if bad - nan > 0.01 * array.size or bad > 0.99 * array.size else "volume")
    if result == "volume":
        image = read_image(path)[0].array
        assert np.isfinite(np.square(image, dtype=np.float32).sum(dtype=np.float32))
        assert np.array_equal(image[usable], array[usable].astype(np.float32))


BOMB = bytes(200 << 20)


def metaimage_bomb(folder: Path) -> Path:
    data = zlib.compress(BOMB)
    return compressed(folder / "a.mha", data, size=len(data))


def nifti_bomb(folder: Path) -> Path:
    (folder / "a.nii.gz").write_bytes(gzip.compress(BOMB))
    return folder / "a.nii.gz"


def nrrd_bomb(folder: Path) -> Path:
    path = nrrd(folder / "a.nrrd", b"encoding: raw", b"encoding: gzip")
    path.write_bytes(path.read_bytes().removesuffix(RAW) + gzip.compress(BOMB))
    return path


def nifti_with_a_long_end(folder: Path) -> Path:
    (folder / "a.nii.gz").write_bytes(gzip.compress(nifti(folder / "b.nii").read_bytes() + BOMB))
    return folder / "a.nii.gz"


@pytest.mark.slow
@pytest.mark.fault("inputs", "{write}: a few bytes expand to 200 MB", "an error, in little time and memory")
@pytest.mark.parametrize("write", [metaimage_bomb, nifti_bomb, nrrd_bomb, nifti_with_a_long_end])
def test_refuses_data_that_expand_far_beyond_the_volume(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    assert re.search(r"expected \d+ bytes of|the mark b'n\+1'", bounded_refusal(write(tmp_path)))


@refused("a header in another encoding ({encoding})")
@pytest.mark.parametrize("encoding", ["utf-16", "cp037"])
def test_refuses_a_header_in_another_encoding(tmp_path: Path, encoding: str) -> None:
    path = metaimage(tmp_path / "a.mha")
    head, mark, data = path.read_bytes().partition(b"LOCAL\n")
    path.write_bytes((head + mark).decode().encode(encoding) + data)
    assert bounded_refusal(path)


@pytest.mark.slow
@pytest.mark.fault("inputs", "a volume of 10,000x10,000x1 voxels, one of them bright", "the volume")
def test_reads_the_flattest_volume_within_the_limits(tmp_path: Path) -> None:
    shape = (1, MAX_SIDE_VOXELS, MAX_SIDE_VOXELS)
    array = np.zeros(shape, np.uint8)
    array[0, 5000, 5000] = 1
    write_volume(Volume(array, Grid(shape, (1.0, 1.0, 1.0))), tmp_path / "a.mha")
    began = time.process_time()
    volume, _ = read_image(tmp_path / "a.mha")
    assert volume.array.sum() == 1
    assert time.process_time() - began < SECONDS


def test_reading_takes_at_most_four_times_the_memory_of_the_voxels(tmp_path: Path) -> None:
    changes = {"DimSize": "1024 1024 16", "ElementType": "MET_INT"}
    path = metaimage(tmp_path / "a.mha", bytes(64 << 20), changes)
    assert bounded_outcome(path, voxel_bytes=64 << 20) == "volume"


@refused("a picture, a text or another format under a volume's name")
def test_refuses_another_format_under_the_name_of_a_volume(tmp_path: Path) -> None:
    # ITK alone would choose the format by the content, and read one that was not checked.
    contents = [b"dear reader,\nthis is no volume\n", bytes(range(256)) * 8, b"a = b", b"\xff\n\n="]
    for suffix in (".png", ".tif", ".nrrd"):
        sitk.WriteImage(sitk.Image([5, 4], sitk.sitkUInt8), str(tmp_path / f"other{suffix}"))
        contents.append((tmp_path / f"other{suffix}").read_bytes())
    for content in contents:
        for suffix in (".mha", ".mhd", ".nii", ".nii.gz", ".nrrd"):
            path = tmp_path / f"a{suffix}"
            path.write_bytes(content)
            assert bounded_refusal(path)
            path.unlink()


@pytest.mark.fault("inputs", "a file name {id}", "an error of one line")
@pytest.mark.parametrize("name", ["x" * 300 + ".mha", "a\0b.mha"], ids=["longer than is possible", "with a zero byte"])
def test_refuses_an_impossible_file_name(tmp_path: Path, name: str) -> None:
    assert "expected" in bounded_refusal(tmp_path / name)


@pytest.mark.fault(
    "inputs", "file names with line ends, escape codes and bytes that are not text", "an error of one printable line"
)
def test_an_error_is_one_printable_line_whatever_the_file_name(tmp_path: Path) -> None:
    for name in ("a\nb.mha", "\x1b[31m.mha", "ü\u202e.mha", "\udcff.mha"):
        path = tmp_path / name
        path.write_bytes(b"\x1b]0;owned\x07 = \xff\n")
        assert bounded_refusal(path).isprintable()
