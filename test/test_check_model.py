"""The platform's rules for a model archive, and whether its models would run."""

from __future__ import annotations

import bz2
import gzip
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from archive_files import entry, without_last_member
from conftest import CopiedBundle, flip_a_bit
from pantherseg.cli import main
from pantherseg.errors import OutputError, UploadError
from pantherseg.grand_challenge.check_model import check_model
from pantherseg.io.digest import sha256_of
from pantherseg.models.find import ModelFolder
from pantherseg.paths import DEMO_WEIGHTS, ROOT, task_recipe
from pantherseg.recipe import Member, load_recipe
from verdicts import broken, only_fault, upload_case, upload_fault

TASK1, TASK2 = load_recipe(task_recipe(1)), load_recipe(task_recipe(2))
ARCHIVE = "a .tar.gz archive, complete"
INSIDE = "files and folders below the archive's own folder"
READABLE = "readable by any user"
EVERY_MODEL = "every model of the recipe task1"
RUNS = "task1 would run"


@pytest.fixture
def models(copied_bundle: CopiedBundle) -> Path:
    """A folder with two folds of Task 1's demo model, which a test may change."""
    for path in copied_bundle.path.glob("fold_[234].safetensors"):
        path.unlink()
    copied_bundle.change(folds=["0", "1"])
    return copied_bundle.path.parent


def packed(folder: Path, *entries: tarfile.TarInfo, name: str = "model.tar.gz") -> Path:
    """Return the archive of a folder's models and of further entries."""
    path = folder.parent / name
    with tarfile.open(path, "w:gz", compresslevel=0) as archive:
        for child in sorted(folder.iterdir()):
            archive.add(child, child.name)
        for info in entries:
            archive.addfile(info)
    return path


def test_accepts_a_good_archive_and_its_folder(models: Path) -> None:
    for path, rules in ((packed(models), 5), (models, 4)):
        verdicts = check_model(path, TASK1)
        assert broken(verdicts) == {}
        assert len(verdicts) == rules
        assert verdicts[-1].found == "a bundle, folds 0 1 match their checksums"


def test_accepts_a_recipe_of_two_models_and_a_missing_localizer(tmp_path: Path) -> None:
    for role in ("task2", "localizer"):
        shutil.copytree(DEMO_WEIGHTS / role, tmp_path / "models" / role)
    verdicts = check_model(packed(tmp_path / "models"), TASK2)
    assert broken(verdicts) == {}
    assert [verdict.rule for verdict in verdicts][-2:] == ["task2 would run", "localizer would run"]
    shutil.rmtree(tmp_path / "models" / "localizer")
    verdicts = check_model(packed(tmp_path / "models"), TASK2)
    assert broken(verdicts) == {}
    assert "no localizer: the whole volume would be searched" in verdicts[-2].found


@pytest.mark.slow
def test_accepts_the_archive_that_the_script_packs(tmp_path: Path) -> None:
    command = f"""source scripts/errors.sh; source scripts/containers.sh
        packer() {{ {sys.executable} -m pantherseg pack "$2" "$3/models" --task "${{1#task}}"; }}
        pack_model task1 {tmp_path}/model.tar.gz"""
    subprocess.run(["bash", "-euc", command], cwd=ROOT, check=True, capture_output=True)
    assert broken(check_model(tmp_path / "model.tar.gz", TASK1)) == {}


DAMAGED = "a damaged or truncated archive"


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        upload_case("a model archive cut short", lambda content: content[:-1000], DAMAGED),
        (lambda content: gzip.compress(without_last_member(gzip.decompress(content)), 1), DAMAGED),
        upload_case(
            "a model archive without compression", gzip.decompress, "no compression: the platform takes gzip only"
        ),
        (lambda content: bz2.compress(gzip.decompress(content)[:9000]), "bzip2: the platform takes gzip only"),
        (lambda content: b"", "no compression"),
        (lambda content: gzip.compress(b"text" * 1000), DAMAGED),
        upload_case(
            "a model archive of a few bytes that expands to 100 MB",
            lambda content: gzip.compress(bytes(100 << 20), 1),
            "made to fill a disk",
        ),
    ],
)
def test_refuses_an_incomplete_archive(models: Path, damage: Callable[[bytes], bytes], found: str) -> None:
    path = packed(models)
    path.write_bytes(damage(path.read_bytes()))
    assert found in only_fault(check_model(path, TASK1), ARCHIVE)


def test_refuses_another_suffix(models: Path) -> None:
    found = only_fault(check_model(packed(models, name="model.tgz"), TASK1), ARCHIVE)
    assert found == "model.tgz: the platform takes no other name"


def link(target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    return entry("task1/a", kind, target=target)


@pytest.mark.parametrize(
    ("info", "found"),
    [
        upload_case("a file in a model archive that lands outside", entry("../evil"), "../evil"),
        (entry("task1/../../evil"), "task1/../../evil"),
        (entry("/etc/evil"), "/etc/evil"),
        upload_case(
            "a link in a model archive to a file of the machine",
            link("/etc/passwd"),
            "task1/a (a link to /etc/passwd)",
        ),
        *((link(target), f"task1/a (a link to {target})") for target in ("../../x", "gone", ".")),
        *((link(target, tarfile.LNKTYPE), f"task1/a (a link to {target})") for target in ("/etc/passwd", "../x")),
        upload_case("a device in a model archive", entry("task1/a", tarfile.CHRTYPE), "task1/a (a device or pipe)"),
        *((entry("task1/a", kind), "task1/a (a device or pipe)") for kind in (tarfile.BLKTYPE, tarfile.FIFOTYPE)),
    ],
)
def test_refuses_members_that_the_platform_does_not_unpack(models: Path, info: tarfile.TarInfo, found: str) -> None:
    path = packed(models, info)
    before = sorted(models.parent.rglob("*"))
    assert only_fault(check_model(path, TASK1), INSIDE) == found
    assert sorted(models.parent.rglob("*")) == before
    assert not Path("/etc/evil").exists()


@pytest.mark.parametrize(("kind", "target"), [(tarfile.SYMTYPE, "../weights"), (tarfile.LNKTYPE, "weights")])
def test_follows_links_to_files_of_the_archive(models: Path, kind: bytes, target: str) -> None:
    (models / "task1" / "fold_1.safetensors").rename(models / "weights")
    path = packed(models, entry("task1/fold_1.safetensors", kind, target=target))
    assert broken(check_model(path, TASK1)) == {}


@upload_fault("a file in a model archive that only its owner may read")
def test_refuses_permissions_for_the_owner_alone(models: Path) -> None:
    for kind, mode in ((tarfile.REGTYPE, 0o600), (tarfile.DIRTYPE, 0o744)):
        path = packed(models, entry("task1/notes", kind, mode=mode))
        assert only_fault(check_model(path, TASK1), READABLE) == f"task1/notes (mode {mode:04o})"


def test_refuses_permissions_and_links_in_a_folder(models: Path) -> None:
    (models / "task1" / "plans.json").chmod(0o600)
    assert only_fault(check_model(models, TASK1), READABLE) == "task1/plans.json (mode 0600)"
    (models / "task1" / "plans.json").chmod(0o644)
    (models / "out").symlink_to("/etc/passwd")
    rule = "no links that lead out of the folder"
    assert only_fault(check_model(models, TASK1), rule) == "out (a link to /etc/passwd)"


def without(name: str) -> Callable[[Path], object]:
    return lambda task1: (task1 / name).unlink()


def changed(name: str) -> Callable[[Path], object]:
    return lambda task1: (task1 / name).write_bytes((task1 / name).read_bytes()[:-1] + b"?")


def with_nan(task1: Path) -> None:
    path = task1 / "fold_1.safetensors"
    content = path.read_bytes()
    middle = len(content) // 8 * 4
    path.write_bytes(content[:middle] + b"\xff\xff\xff\x7f" + content[middle + 4 :])
    manifest = json.loads((task1 / "manifest.json").read_text())
    manifest["sha256"][path.name] = sha256_of(path)
    (task1 / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "rule", "found"),
    [
        (without("fold_1.safetensors"), EVERY_MODEL, "task1: expected folds 0 1, found no fold_1.safetensors"),
        (without("manifest.json"), EVERY_MODEL, "manifest.json: expected a bundle's manifest"),
        (without("graph.xml"), EVERY_MODEL, "graph.xml: expected a bundle's file"),
        (changed("plans.json"), RUNS, "plans.json: expected SHA-256"),
        (changed("manifest.json"), EVERY_MODEL, "manifest.json: expected a bundle's manifest"),
        (changed("fold_1.safetensors"), RUNS, "fold_1.safetensors: expected SHA-256"),
        (with_nan, RUNS, "fold_1.safetensors: expected finite values"),
        (shutil.rmtree, EVERY_MODEL, "expected one bundle or nnU-Net model folder"),
    ],
)
@pytest.mark.parametrize("pack", [packed, Path], ids=["archive", "folder"])
def test_refuses_models_that_would_not_run(
    models: Path, damage: Callable[[Path], object], rule: str, found: str, pack: Callable[[Path], Path]
) -> None:
    damage(models / "task1")
    path = pack(models)
    text = only_fault(check_model(path, TASK1), rule)
    assert text.startswith(str(path))
    assert found in text


def test_accepts_a_model_that_the_recipe_does_not_name(models: Path) -> None:
    shutil.copytree(models / "task1", models / "other")
    assert broken(check_model(models, TASK1)) == {}


def test_checks_all_folds_of_members_that_share_a_model(models: Path) -> None:
    recipe = msgspec.structs.replace(
        TASK1, members=[Member(model="task1", folds=[1]), Member(model="task1", folds=[0])]
    )
    changed("fold_1.safetensors")(models / "task1")
    assert "fold_1.safetensors: expected SHA-256" in only_fault(check_model(models, recipe), RUNS)


@upload_fault("a model archive with another model instead of the localizer")
def test_refuses_another_model_in_place_of_the_localizer(tmp_path: Path) -> None:
    shutil.copytree(DEMO_WEIGHTS / "task2", tmp_path / "models" / "task2")
    shutil.copytree(DEMO_WEIGHTS / "task1", tmp_path / "models" / "localizer")
    found = only_fault(check_model(packed(tmp_path / "models"), TASK2), "localizer would run")
    assert "expected label between 1 and 2, found 7" in found


def test_names_an_nnunet_folder(demo_folder: ModelFolder, tmp_path: Path) -> None:
    shutil.copytree(demo_folder.path, tmp_path / "models" / "task1")
    verdicts = check_model(tmp_path / "models", TASK1)
    assert broken(verdicts) == {}
    assert verdicts[-1].found.startswith("an nnU-Net folder: only the image of the cuda runtime can run it")


def test_refuses_a_damaged_checkpoint_of_an_nnunet_folder(demo_folder: ModelFolder, tmp_path: Path) -> None:
    import torch

    shutil.copytree(demo_folder.path, tmp_path / "models" / "task1")
    path = tmp_path / "models" / "task1" / "fold_1" / "checkpoint_final.pth"
    whole = path.read_bytes()
    flip_a_bit(path)
    for content, found in (
        (path.read_bytes(), "expected an nnU-Net checkpoint, found a damaged part"),
        (whole[:-5000], "expected a complete checkpoint, found a truncated one"),
        (b"", "expected a complete checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\n", "expected a complete checkpoint, found a truncated one, or "),
    ):
        path.write_bytes(content)
        assert f"fold_1/checkpoint_final.pth: {found}" in only_fault(check_model(tmp_path / "models", TASK1), RUNS)
    torch.save(torch.load(demo_folder.checkpoint_path("1")), path, _use_new_zipfile_serialization=False)
    assert broken(check_model(tmp_path / "models", TASK1)) == {}


def test_ignores_the_weights_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe may name the mrsegmentator package's own weights, which are missing on the platform's machines."""
    shutil.copytree(DEMO_WEIGHTS / "task2", tmp_path / "models" / "task2")
    monkeypatch.setenv("MRSEG_WEIGHTS_PATH", str(DEMO_WEIGHTS / "localizer"))
    assert TASK2.localizer is not None
    localizer = msgspec.structs.replace(TASK2.localizer, model="mrsegmentator")
    verdicts = check_model(packed(tmp_path / "models"), msgspec.structs.replace(TASK2, localizer=localizer))
    assert broken(verdicts) == {}
    assert "no mrsegmentator: the whole volume would be searched" in verdicts[-2].found


@pytest.mark.fault("outputs", "no room to unpack a model archive", "an error that says so")
def test_names_a_full_disk(models: Path, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(small_disk(1 << 20)))
    with pytest.raises(OutputError, match="expected room to unpack 4 MB, found"):
        check_model(packed(models), TASK1)


def test_removes_what_it_unpacked(models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    check_model(packed(models), TASK1)
    check_model(packed(models, entry("../evil")), TASK1)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_the_command(models: Path, tmp_path: Path) -> None:
    path = str(packed(models))
    for choice in (["--task", "1"], ["--recipe", str(task_recipe(1))]):
        good = CliRunner().invoke(main, ["check", "model", path, *choice])
        assert good.exit_code == 0, good.output
        assert [line.split()[0] for line in good.stdout.splitlines()] == ["ok"] * 5
    bad = CliRunner().invoke(main, ["check", "model", path, "--task", "2", "--json"])
    assert bad.exit_code == 1
    assert [verdict["kept"] for verdict in json.loads(bad.stdout)] == [True, True, True, False]
    for choice in ([], ["--task", "1", "--recipe", "r.toml"]):
        assert CliRunner().invoke(main, ["check", "model", path, *choice]).exit_code == 2
    with pytest.raises(UploadError, match="found no such file or folder"):
        check_model(tmp_path / "gone", TASK1)


def test_prints_one_line_for_each_rule_even_for_odd_names(models: Path) -> None:
    path = packed(models, entry("../two\nlines\udcff"))
    result = CliRunner().invoke(main, ["check", "model", str(path), "--task", "1"])
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 5
    assert "BROKEN  files and folders below the archive's own folder: ../two lines\\udcff" in result.stdout
