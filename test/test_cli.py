"""The command line, and the container's entry point with bad inputs: exit codes, one-line errors, and no output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from conftest import ChangedModel, valid_report
from pantherseg import __version__, cli
from pantherseg.cli import main as pantherseg
from pantherseg.grand_challenge import main as entry_point
from pantherseg.io import read_labels, write_volume
from pantherseg.models.bundle import open_bundle
from pantherseg.models.find import ModelFolder
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.volume import Grid, Volume
from volume_files import GRID, RAW, VOXELS, metaimage

SLUG = "abdominal-t1-mri"


def good(path: Path) -> Path:
    write_volume(Volume(VOXELS, GRID), path)
    return path


def empty(path: Path) -> None:
    path.touch()


def text(path: Path) -> None:
    path.write_text("no volume\nat all\n")


def truncated(path: Path) -> None:
    metaimage(path, RAW[:-20])


def negative_spacing(path: Path) -> None:
    metaimage(path, changes={"ElementSpacing": "1 1 -2"})


def not_a_number(path: Path) -> None:
    write_volume(Volume(np.full(GRID.shape, np.nan, np.float32), GRID), path)


def folder(path: Path) -> None:
    path.mkdir()


BAD_VOLUMES = [empty, text, truncated, negative_spacing, not_a_number]
MakesVolume = Callable[[Path], object]
RefuseJob = Callable[..., str]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    path.mkdir()
    return path


def run(*words: object) -> Result:
    """Run a command of pantherseg."""
    return CliRunner().invoke(pantherseg, [*map(str, words)])


def check_one_line(stderr: str, named: Path) -> None:
    lines = stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {named}: ")


def check_refused(result: Result, named: Path) -> None:
    """Check that a command ended with 1 and an error of one line that names the file or folder at fault."""
    assert (result.exit_code, result.stdout) == (1, "")
    check_one_line(result.stderr, named)


def job(tmp_path: Path, volume: MakesVolume | None, *, slug: str = SLUG) -> Path:
    """Make a job folder with the platform's layout. volume: writes the volume at a path."""
    path = tmp_path / "input"
    place = path / "images" / slug
    place.mkdir(parents=True)
    if volume:
        volume(place / "uuid.mha")
    socket = {"slug": slug, "relative_path": f"images/{slug}"}
    entry = {"socket": socket, "interface": socket, "image": {"pk": "uuid", "name": "orig.mha"}}
    (path / "inputs.json").write_text(json.dumps([entry]))
    return path


@pytest.fixture
def refuse_job(tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> RefuseJob:
    def check(path: Path, named: Path, recipe: Path = task_recipe(1)) -> str:  # noqa: B008 - the path of a file
        """Run a job that must end with 1, one line that names a path, and no output. Return the line."""
        output = tmp_path / "output"
        output.mkdir(exist_ok=True)
        code = entry_point(recipe, ["--input", str(path), "--output", str(output), "--model", str(models)])
        captured = capsys.readouterr()
        assert (code, captured.out, list(output.iterdir())) == (1, "", [])
        check_one_line(captured.err, named)
        return captured.err

    return check


@pytest.mark.parametrize("bad", BAD_VOLUMES)
def test_predict_refuses_a_bad_volume(tmp_path: Path, models: Path, bad: MakesVolume) -> None:
    path = tmp_path / "a.mha"
    bad(path)
    check_refused(run("predict", path, tmp_path / "out", "--task", 1, "--model", models), path)
    assert not (tmp_path / "out").exists()


def test_predict_refuses_a_missing_volume_and_an_empty_folder(tmp_path: Path, models: Path) -> None:
    for source in (tmp_path / "missing.mha", models):
        check_refused(run("predict", source, tmp_path / "out", "--task", 2, "--model", models), source)
    assert not (tmp_path / "out").exists()


def test_predict_names_a_bad_recipe_and_missing_models(tmp_path: Path, models: Path) -> None:
    path, recipe = good(tmp_path / "a.mha"), tmp_path / "r.toml"
    recipe.write_text("schema = 1")
    check_refused(run("predict", path, tmp_path / "out", "--recipe", recipe, "--model", models), recipe)
    check_refused(run("predict", path, tmp_path / "out", "--task", 1, "--model", models, "--device", "cpu"), models)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict"],
        ["predict", "a.mha", "out"],
        ["predict", "a.mha", "out", "--task", "3"],
        ["predict", "a.mha", "out", "--task", "1", "--recipe", "r.toml"],
        ["predict", "a.mha", "out", "--task", "1", "--mode", "magic"],
        ["predict", "a.mha", "out", "--task", "1", "--device", "tpu"],
        ["predict", "a.mha", "out", "--task", "1", "--colour"],
        ["predict", "a.mha", "out", "--task", "1", "--time-budget", "inf"],
        ["phantom", "out", "--task", "1", "--cases", "0", "--seed", "1"],
        ["evaluate", "a.mha"],
        ["pack"],
        ["pack", "model"],
        ["pack", "model", "bundle", "--task", "3"],
        ["pack", "model", "bundle", "--task", "1", "--recipe", "r.toml"],
        ["pack", "model", "bundle", "--task", "1", "--checkpoint", "checkpoint_best.pth"],
        ["pack", "model", "bundle", "--recipe", "r.toml", "--checkpoint", "checkpoint_best.pth"],
        ["pack", "model", "bundle", "--mode", "fast"],
        ["nothing"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_help_and_version() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert "Not for clinical use" in result.stdout
    assert __version__ in run("--version").stdout


@pytest.mark.parametrize("arguments", [["evaluate", "{0}", "{0}"], ["report", "{0}", "{0}", "{0}.png"]])
def test_other_commands_name_a_missing_file(tmp_path: Path, arguments: list[str]) -> None:
    missing = tmp_path / "missing.mha"
    check_refused(run(*(argument.format(missing) for argument in arguments)), missing)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("jobs", "the job's volume: {bad}", "an error that names the file, and no result")
@pytest.mark.parametrize("bad", BAD_VOLUMES)
def test_refuses_a_job_with_a_bad_volume(tmp_path: Path, refuse_job: RefuseJob, bad: MakesVolume) -> None:
    path = job(tmp_path, bad)
    refuse_job(path, path / "images" / SLUG / "uuid.mha")


@pytest.mark.fault("jobs", "a job {id}", "an error that names the place")
@pytest.mark.parametrize("volume", [None, folder], ids=["without its volume", "with a folder in place of its volume"])
def test_refuses_a_job_without_a_volume(tmp_path: Path, refuse_job: RefuseJob, volume: MakesVolume | None) -> None:
    path = job(tmp_path, volume)
    refuse_job(path, path / "images" / SLUG)


@pytest.mark.fault("jobs", "the job of the other task", "an error that says so, and no result")
def test_refuses_a_job_of_the_other_task(tmp_path: Path, refuse_job: RefuseJob) -> None:
    path = job(tmp_path, good, slug="abdominal-t2-mri")
    assert "each task has its own container" in refuse_job(path, path / "inputs.json")


@pytest.mark.fault("jobs", "no recipe; then no models", "an error that names where they were looked for, and no result")
def test_refuses_a_job_without_models_or_recipe(tmp_path: Path, models: Path, refuse_job: RefuseJob) -> None:
    path = job(tmp_path, good)
    refuse_job(path, tmp_path / "missing.toml", tmp_path / "missing.toml")
    refuse_job(path, models)


@pytest.mark.fault("jobs", "no input folder at all", "an error that names it, and no result")
def test_refuses_a_missing_job_folder(tmp_path: Path, refuse_job: RefuseJob) -> None:
    refuse_job(tmp_path / "missing", tmp_path / "missing")


def test_wrong_usage_of_the_entry_point(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        entry_point(task_recipe(1), ["--nothing"])
    assert caught.value.code == 2
    assert "unrecognized arguments: --nothing" in capsys.readouterr().err


@pytest.mark.fault("inputs", "the masks' folder is that of the volumes", "an error, and the volumes unchanged")
def test_masks_never_replace_their_volumes(tmp_path: Path) -> None:
    volume, links = good(tmp_path / "store" / "scan.mha"), tmp_path / "links"
    before = volume.read_bytes()
    links.mkdir()
    (links / "scan.mha").symlink_to(volume)
    for source, problem in (
        (volume, "the mask of scan.mha would overwrite the volume itself"),
        (volume.parent, "the masks would lie among the volumes"),
        (links / "scan.mha", "the mask of scan.mha would overwrite the volume itself"),
    ):
        result = run("predict", source, volume.parent, "--task", 1)
        assert result.exit_code == 1
        assert problem in result.stderr
    assert volume.read_bytes() == before


@pytest.mark.fault(
    "inputs",
    "a folder of four volumes, two of which cannot be used",
    "masks of the other two, and the errors of both in the end",
)
@pytest.mark.slow
def test_a_folder_goes_on_after_a_bad_volume_and_ends_with_1(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    noise = np.random.default_rng(0).normal(100, 20, (9, 40, 40)).astype(np.float32)
    usable = Volume(noise, Grid(noise.shape, (5.0, 5.0, 5.0)))
    vast = Volume(noise[:8, :20, :20], Grid((8, 20, 20), (900.0, 900.0, 900.0)))
    for name, volume in (("a_vast.mha", vast), ("b_good.MHA", usable), ("d_good.nii.gz", usable)):
        write_volume(volume, source / name.lower())
        (source / name.lower()).rename(source / name)
    (source / "c_text.mha").write_text("no volume")
    (source / "notes.txt").write_text("no volume either")
    (source / "slice.dcm").write_bytes(bytes(128) + b"DICM")
    result = run("predict", source, output, "--task", 1, "--device", "cpu")
    assert result.exit_code == 1
    assert f"{source}: not read, because they are not volumes: notes.txt, slice.dcm" in caplog.messages
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert errors[0].startswith(f"error: {source / 'a_vast.mha'}: expected at most 268435456 voxels")
    assert errors[1].startswith(f"error: {source / 'c_text.mha'}: expected ")
    written = {path.name for path in output.iterdir()}
    assert written == {"b_good.json", "b_good.mha", "d_good.json", "d_good.nii.gz"}


@pytest.mark.fault(
    "models", "the recipe wants a label that the model does not have", "an error that says which labels there are"
)
def test_a_label_that_the_model_does_not_have_is_an_error(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(task_recipe(1).read_text().replace("[sockets]", "tumour_label = 7\n\n[sockets]"))
    result = run("predict", good(tmp_path / "scan.mha"), tmp_path / "out", "--recipe", recipe)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].endswith("expected tumour_label between 1 and 2, found 7")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_pack_writes_a_bundle_and_prints_its_contents(changed_model: ChangedModel, tmp_path: Path) -> None:
    folder, target = changed_model(folds=2, checkpoint="checkpoint_best.pth"), tmp_path / "bundle"
    result = run("pack", folder, target)
    check_refused(result, folder / "fold_0" / "checkpoint_final.pth")
    assert "found checkpoint_best.pth in fold_0" in result.stderr
    result = run("pack", folder, target, "--checkpoint", "checkpoint_best.pth")
    assert result.exit_code == 0
    size = sum(path.stat().st_size for path in target.iterdir()) / 1e6
    labels = "labels 1 tumour, 2 pancreas"
    assert result.stdout == f"{target}: folds 0 1 of checkpoint_best.pth, {labels}, LPS, {size:.1f} MB\n"
    assert open_bundle(target).folds == ("0", "1")
    check_refused(run("pack", folder, target, "--checkpoint", "checkpoint_best.pth"), target)


@pytest.mark.parametrize("option", [["--task", "2"], ["--recipe", str(task_recipe(2))]])
def test_pack_with_a_recipe_packs_every_model(tmp_path: Path, option: list[str]) -> None:
    result = run("pack", DEMO_WEIGHTS, tmp_path / "bundles", *option)
    assert result.exit_code == 0
    assert [line.partition(":")[0] for line in result.stdout.splitlines()] == [
        str(tmp_path / "bundles" / role) for role in ("task2", "localizer")
    ]
    assert sorted(path.name for path in (tmp_path / "bundles").iterdir()) == ["calibration.json", "localizer", "task2"]


def test_pack_refuses_sources_that_are_not_model_folders(tmp_path: Path, models: Path) -> None:
    for source in (tmp_path / "missing", models, DEMO_WEIGHTS / "task1"):
        result = run("pack", source, tmp_path / "bundle")
        check_refused(result, source)
    assert "a bundle, which is packed already" in result.stderr
    check_refused(run("pack", models, tmp_path / "bundle", "--task", 1), models)
    assert sorted(tmp_path.iterdir()) == [models]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_predict_reports_its_precision(tmp_path: Path, pancreas: Volume, mode: str) -> None:
    scan, output = tmp_path / "scan.mha", tmp_path / "out"
    write_volume(pancreas, scan)
    result = run("predict", scan, output, "--task", 1, "--device", "cpu", "--mode", mode)
    assert result.exit_code == 0
    report = valid_report(output / "scan.json")
    codes = [event["code"] for event in report["events"]]
    assert report["device"] == "cpu"
    assert report["precision"] == ("bfloat16" if mode == "fast" and "no_bfloat16" not in codes else "float32")
    assert read_labels(output / "scan.mha").array.any()


@pytest.mark.slow
def test_an_nnunet_folder_is_packed_on_use_and_gives_the_bundles_mask(
    tmp_path: Path, demo_folder: ModelFolder, pancreas: Volume
) -> None:
    scan, temporary = tmp_path / "scan.mha", tmp_path / "temporary"
    write_volume(pancreas, scan)
    temporary.mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "task1").symlink_to(demo_folder.path)
    assert run("predict", scan, tmp_path / "bundle", "--task", 1, "--device", "cpu").exit_code == 0
    arguments = ["predict", scan, tmp_path / "folder", "--task", 1, "--device", "cpu", "--model", tmp_path / "models"]
    done = subprocess.run(
        [sys.executable, "-m", "pantherseg", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert done.returncode == 0, done.stderr
    masks = [read_labels(tmp_path / source / "scan.mha") for source in ("bundle", "folder")]
    assert masks[0].array.any()
    np.testing.assert_array_equal(masks[0].array, masks[1].array)
    assert list(temporary.iterdir()) == [], "the temporary bundle goes with the process"


def test_the_help_lists_every_command_with_its_first_line() -> None:
    listed = run("--help").stdout.partition("Commands:\n")[2].splitlines()
    names = [line.split()[0] for line in listed]
    modules = {path.stem for path in Path(cli.__file__).parent.glob("[!_]*.py")}
    assert set(names) == modules - {"options"}
    for name, line in zip(names, listed, strict=True):
        usage = run(name, "--help").stdout
        assert usage.split("\n\n")[1].strip() == line.strip().removeprefix(name).strip()


def test_the_help_imports_no_command() -> None:
    script = """
import sys
from pantherseg.cli import main
main(["--help"], standalone_mode=False)
print([name for name in ("numpy", "msgspec", "pantherseg.cli.predict") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("in_recipe", "options", "rescued"),
    [(True, [], True), (False, [], False), (True, ["--no-rescue"], False), (False, ["--rescue"], True)],
)
def test_predict_rescues_an_empty_mask_as_in_the_recipe_or_as_asked(
    tmp_path: Path, in_recipe: bool, options: list[str], rescued: bool
) -> None:
    text, table = task_recipe(1).read_text(), '[[postprocess]]\nkind = "rescue"\n'
    assert table in text
    recipe, scan = tmp_path / "recipe.toml", tmp_path / "scan.mha"
    recipe.write_text(text if in_recipe else "postprocess = []\n" + text.replace(table, ""))
    write_volume(Volume(np.zeros((9, 40, 40), np.int16), Grid((9, 40, 40), (5.0,) * 3)), scan)
    result = run("predict", scan, tmp_path / "out", "--recipe", recipe, "--device", "cpu", *options)
    assert result.exit_code == 0, result.stderr
    assert read_labels(tmp_path / "out" / "scan.mha").array.any() == rescued


@pytest.mark.fault("inputs", "a command would write over its own input: {command}", "an error; the input is unchanged")
@pytest.mark.parametrize("command", ["report a.mha b.mha b.mha", "evaluate a.mha b.mha --json b.mha"])
def test_other_commands_never_replace_their_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = [good(Path(name)).read_bytes() for name in ("a.mha", "b.mha")]
    result = CliRunner().invoke(pantherseg, command.split())
    assert result.exit_code == 1
    assert result.output == "error: b.mha: this file is an input of the command; write to another file\n"
    assert [Path(name).read_bytes() for name in ("a.mha", "b.mha")] == before


@pytest.mark.fault("inputs", "a command would write over {what}", "an error before any work; nothing is changed")
@pytest.mark.parametrize(
    ("options", "what", "reason"),
    [
        ("--json masks/a.mha", "a volume in its input folder", "masks/a.mha: this file is an input of the command"),
        ("--csv masks/a.json", "the report of a case in it", "masks/a.json: this file is an input of the command"),
        ("--json x --csv x", "its other result", "x: two results would be written to this file"),
        ("--json pipe", "a pipe or a device", "pipe: expected a file, or a name that is not taken, found a device"),
        ("--json more", "a folder", "more: expected a file, or a name that is not taken, found a folder"),
    ],
)
def test_results_never_replace_what_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, what: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = good(Path("masks/a.mha")), good(Path("references/a.mha")), Path("masks/a.json")
    kept[2].write_text("{}")
    os.mkfifo("pipe")
    Path("more").mkdir()
    before = [path.read_bytes() for path in kept]
    result = CliRunner().invoke(pantherseg, f"evaluate masks references {options}".split())
    assert result.exit_code == 1
    assert result.output.startswith(f"error: {reason}")
    assert len(result.output.splitlines()) == 1
    assert [path.read_bytes() for path in kept] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks", "more", "pipe", "references"]


def test_a_reader_that_ends_early_gets_no_traceback(tmp_path: Path) -> None:
    command = f"set -o pipefail; {sys.executable} -m pantherseg weights list | head -c 0"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
