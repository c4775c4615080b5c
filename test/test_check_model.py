"""The platform's rules for a model archive, and whether its models would run."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from pantherseg.cli import main
from pantherseg.errors import OutputError, UploadError
from pantherseg.grand_challenge.check_model import check_model
from pantherseg.grand_challenge.verdict import Verdict
from pantherseg.models.bundle import open_bundle, sha256_of
from pantherseg.models.find import ModelFolder
from pantherseg.paths import DEMO_WEIGHTS, ROOT, task_recipe
from pantherseg.recipe import load_recipe

TASK1, TASK2 = load_recipe(task_recipe(1)), load_recipe(task_recipe(2))
ARCHIVE = "a .tar.gz archive, complete"
INSIDE = "files and folders below the archive's own folder"
READABLE = "readable by any user"
EVERY_MODEL = "every model of the recipe task1"
RUNS = "task1 would run"
Change = Callable[[tarfile.TarFile], object]


def broken(verdicts: list[Verdict]) -> dict[str, str]:
    return {verdict.rule: verdict.found for verdict in verdicts if not verdict.kept}


def only_fault(verdicts: list[Verdict], rule: str) -> str:
    faults = broken(verdicts)
    assert list(faults) == [rule], faults
    assert len(faults[rule].splitlines()) == 1
    return faults[rule]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The folder of Task 1's demo model, which a test may change."""
    ignored = shutil.ignore_patterns("training.json")
    shutil.copytree(DEMO_WEIGHTS / "task1", tmp_path / "models" / "task1", ignore=ignored)
    return tmp_path / "models"


def packed(folder: Path, change: Change = lambda archive: None, *, name: str = "model.tar.gz") -> Path:
    """Return the archive of a folder's models, to which `change` may add members."""
    path = folder.parent / name
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for child in sorted(folder.iterdir()):
            archive.add(child, child.name)
        change(archive)
    return path


def test_accepts_a_good_archive_and_its_folder(models: Path) -> None:
    for path, rules in ((packed(models), 5), (models, 4)):
        verdicts = check_model(path, TASK1)
        assert broken(verdicts) == {}
        assert len(verdicts) == rules
        assert verdicts[-1].found == "a bundle, folds 0 1 2 3 4 match their checksums"


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


def test_accepts_the_archive_that_the_script_packs(tmp_path: Path) -> None:
    path = packed_by_the_script(tmp_path)
    assert broken(check_model(path, TASK1)) == {}


def packed_by_the_script(tmp_path: Path) -> Path:
    command = f"""source scripts/errors.sh; source scripts/containers.sh
        packer() {{ {sys.executable} -m pantherseg pack "$2" "$3/models" --task "${{1#task}}"; }}
        pack_model task1 {tmp_path}/model.tar.gz"""
    subprocess.run(["bash", "-euc", command], cwd=ROOT, check=True, capture_output=True)
    return tmp_path / "model.tar.gz"


def middle_changed(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    return bytes(changed)


def cut_between_members(content: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        place = archive.getmembers()[-2].offset
    return gzip.compress(gzip.decompress(content)[:place], 1)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(
            lambda content: content[:-1000],
            "a damaged or truncated archive",
            marks=pytest.mark.fault(
                "outputs", "a model archive cut short", "the rule that it breaks, before the upload"
            ),
            id="cut short",
        ),
        (lambda content: content[:1000], "a damaged or truncated archive"),
        (middle_changed, "a damaged or truncated archive"),
        (cut_between_members, "a damaged or truncated archive"),
        pytest.param(
            gzip.decompress,
            "no compression: the platform takes gzip only",
            marks=pytest.mark.fault(
                "outputs", "a model archive without compression", "the rule that it breaks, before the upload"
            ),
        ),
        (lambda content: bz2.compress(gzip.decompress(content)[:9000]), "bzip2: the platform takes gzip only"),
        (lambda content: b"", "no compression"),
        (lambda content: gzip.compress(b"text" * 1000), "a damaged or truncated archive"),
        (lambda content: gzip.compress(b""), "a damaged or truncated archive"),
        pytest.param(
            lambda content: gzip.compress(bytes(300 << 20), 1),
            "made to fill a disk",
            marks=pytest.mark.fault(
                "outputs",
                "a model archive of a few bytes that expands to 300 MB",
                "the rule that it breaks, before the upload",
            ),
            id="bomb",
        ),
    ],
)
def test_refuses_an_incomplete_archive(models: Path, spoil: Callable[[bytes], bytes], said: str) -> None:
    path = packed(models)
    path.write_bytes(spoil(path.read_bytes()))
    assert said in only_fault(check_model(path, TASK1), ARCHIVE)


def test_refuses_another_suffix(models: Path) -> None:
    found = only_fault(check_model(packed(models, name="model.tgz"), TASK1), ARCHIVE)
    assert found == "model.tgz: the platform takes no other name"


def test_refuses_too_many_members(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pantherseg.archives.MAX_MEMBERS", 5)
    assert "more than 5 members" in only_fault(check_model(packed(models), TASK1), ARCHIVE)


def member(name: str, kind: bytes = tarfile.REGTYPE, *, target: str = "", mode: int = 0o644, size: int = 0) -> Change:
    def add(archive: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.mode, info.size = kind, target, mode, size
        archive.addfile(info, io.BytesIO(bytes(size)))

    return add


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(
            member("../evil"),
            "../evil",
            marks=pytest.mark.fault(
                "outputs", "a file in a model archive that lands outside", "the rule that it breaks, before the upload"
            ),
            id="outside",
        ),
        (member("task1/../../evil"), "task1/../../evil"),
        (member("/etc/evil"), "/etc/evil"),
        pytest.param(
            member("task1/a", tarfile.SYMTYPE, target="/etc/passwd"),
            "task1/a (a link to /etc/passwd)",
            marks=pytest.mark.fault(
                "outputs",
                "a link in a model archive to a file of the machine",
                "the rule that it breaks, before the upload",
            ),
            id="link",
        ),
        (member("task1/a", tarfile.SYMTYPE, target="../../x"), "task1/a (a link to ../../x)"),
        (member("task1/a", tarfile.SYMTYPE, target="gone"), "task1/a (a link to gone)"),
        (member("task1/a", tarfile.SYMTYPE, target="."), "task1/a (a link to .)"),
        (member("task1/a", tarfile.LNKTYPE, target="/etc/passwd"), "task1/a (a link to /etc/passwd)"),
        (member("task1/a", tarfile.LNKTYPE, target="../x"), "task1/a (a link to ../x)"),
        pytest.param(
            member("task1/a", tarfile.CHRTYPE),
            "task1/a (a device or pipe)",
            marks=pytest.mark.fault(
                "outputs", "a device in a model archive", "the rule that it breaks, before the upload"
            ),
            id="device",
        ),
        (member("task1/a", tarfile.BLKTYPE), "task1/a (a device or pipe)"),
        (member("task1/a", tarfile.FIFOTYPE), "task1/a (a device or pipe)"),
    ],
)
def test_refuses_members_that_the_platform_does_not_unpack(models: Path, change: Change, said: str) -> None:
    path = packed(models, change)
    before = sorted(models.parent.rglob("*"))
    assert only_fault(check_model(path, TASK1), INSIDE) == said
    assert sorted(models.parent.rglob("*")) == before
    assert not Path("/etc/evil").exists()


def test_refuses_what_the_platforms_own_filter_refuses(models: Path) -> None:
    """The platform unpacks with Python's filter `data`, which alone accepts a link to a missing file."""
    names = {"../evil": None, "task1/a": "/etc/passwd", "task1/b": "../../x", "task1/c": "gone"}
    for name, target in names.items():
        kind = tarfile.REGTYPE if target is None else tarfile.SYMTYPE
        path = packed(models, member(name, kind, target=target or ""))
        assert INSIDE in broken(check_model(path, TASK1))
        with tarfile.open(path) as archive:
            if target == "gone":
                archive.extractall(models.parent / "there", filter="data")
                continue
            with pytest.raises(tarfile.FilterError):
                archive.extractall(models.parent / "there", filter="data")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_follows_links_to_files_of_the_archive(models: Path, kind: bytes) -> None:
    (models / "task1" / "fold_4.safetensors").rename(models / "weights")
    target = "../weights" if kind == tarfile.SYMTYPE else "weights"
    path = packed(models, member("task1/fold_4.safetensors", kind, target=target))
    assert broken(check_model(path, TASK1)) == {}


def test_refuses_a_name_of_a_file_and_of_a_folder(models: Path) -> None:
    assert "as a file and as a folder" in only_fault(check_model(packed(models, member("task1")), TASK1), ARCHIVE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(
            member("task1/notes", mode=0o600),
            "task1/notes (mode 0600)",
            marks=pytest.mark.fault(
                "outputs",
                "a file in a model archive that only its owner may read",
                "the rule that it breaks, before the upload",
            ),
            id="rights",
        ),
        (member("task1/notes", tarfile.DIRTYPE, mode=0o744), "task1/notes (mode 0744)"),
    ],
)
def test_refuses_permissions_for_the_owner_alone(models: Path, change: Change, said: str) -> None:
    assert only_fault(check_model(packed(models, change), TASK1), READABLE) == said


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


def not_a_number(task1: Path) -> None:
    path = task1 / "fold_2.safetensors"
    content = path.read_bytes()
    place = len(content) // 8 * 4
    path.write_bytes(content[:place] + b"\xff\xff\xff\x7f" + content[place + 4 :])
    manifest = json.loads((task1 / "manifest.json").read_text())
    manifest["sha256"][path.name] = sha256_of(path)
    (task1 / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("spoil", "rule", "said"),
    [
        (without("fold_3.safetensors"), EVERY_MODEL, "task1: expected folds 0 1 2 3 4, found no fold_3.safetensors"),
        (without("manifest.json"), EVERY_MODEL, "manifest.json: expected a bundle's manifest"),
        (without("graph.xml"), EVERY_MODEL, "graph.xml: expected a bundle's file"),
        (changed("plans.json"), RUNS, "plans.json: expected SHA-256"),
        (changed("manifest.json"), EVERY_MODEL, "manifest.json: expected a bundle's manifest"),
        (changed("fold_4.safetensors"), RUNS, "fold_4.safetensors: expected SHA-256"),
        (not_a_number, RUNS, "fold_2.safetensors: expected finite values"),
        (shutil.rmtree, EVERY_MODEL, "expected one bundle or nnU-Net model folder"),
        (lambda task1: shutil.copytree(task1, task1.parent / "other"), "", ""),
    ],
)
@pytest.mark.parametrize("form", ["archive", "folder"])
def test_refuses_models_that_would_not_run(
    models: Path, spoil: Callable[[Path], object], rule: str, said: str, form: str
) -> None:
    spoil(models / "task1")
    path = packed(models) if form == "archive" else models
    verdicts = check_model(path, TASK1)
    if not rule:
        assert broken(verdicts) == {}
        return
    found = only_fault(verdicts, rule)
    assert found.startswith(str(path))
    assert said in found


def test_checks_all_folds_of_members_that_share_a_model(models: Path, tmp_path: Path) -> None:
    member = '[[members]]\nmodel = "task1"\nfolds = [{}]\n'
    text = task_recipe(1).read_text()
    first, last = text.index("[[members]]"), text.index("[postprocess]")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text[:first] + member.format(3) + member.format("0, 1") + text[last:])
    changed("fold_3.safetensors")(models / "task1")
    assert "fold_3.safetensors: expected SHA-256" in only_fault(check_model(models, load_recipe(recipe)), RUNS)


@pytest.mark.fault(
    "outputs",
    "a model archive with another model in place of the localizer",
    "the rule that it breaks, before the upload",
)
def test_refuses_another_model_in_place_of_the_localizer(tmp_path: Path) -> None:
    shutil.copytree(DEMO_WEIGHTS / "task2", tmp_path / "models" / "task2")
    shutil.copytree(DEMO_WEIGHTS / "task1", tmp_path / "models" / "localizer")
    found = only_fault(check_model(packed(tmp_path / "models"), TASK2), "localizer would run")
    assert "expected label between 1 and 2, found 7" in found


def test_names_an_nnunet_folder(tmp_path: Path) -> None:
    from bench.unpack import unpack

    unpack(open_bundle(DEMO_WEIGHTS / "task1", folds=[0, 1]), tmp_path / "models" / "task1")
    verdicts = check_model(packed(tmp_path / "models"), TASK1)
    assert broken(verdicts) == {}
    assert verdicts[-1].found.startswith("an nnU-Net folder: only the image of the cuda runtime can run it")


def test_refuses_a_damaged_checkpoint_of_an_nnunet_folder(demo_folder: ModelFolder, tmp_path: Path) -> None:
    import torch

    shutil.copytree(demo_folder.path, tmp_path / "models" / "task1")
    path = tmp_path / "models" / "task1" / "fold_1" / "checkpoint_final.pth"
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for content, said in (
        (whole[:-5000], "expected a complete checkpoint, found a truncated one"),
        (b"", "expected a complete checkpoint"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "expected a complete checkpoint, found a truncated one, or another file",
        ),
        (flipped, "expected an nnU-Net checkpoint, found a damaged part"),
    ):
        path.write_bytes(content)
        assert f"fold_1/checkpoint_final.pth: {said}" in only_fault(check_model(tmp_path / "models", TASK1), RUNS)
    torch.save(torch.load(demo_folder.checkpoint_path("1")), path, _use_new_zipfile_serialization=False)
    assert broken(check_model(tmp_path / "models", TASK1)) == {}


def test_ignores_the_weights_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe may name the mrsegmentator package's own weights, which are missing on the platform's machines."""
    shutil.copytree(DEMO_WEIGHTS / "task2", tmp_path / "models" / "task2")
    shutil.copytree(DEMO_WEIGHTS / "localizer", tmp_path / "home")
    monkeypatch.setenv("MRSEG_WEIGHTS_PATH", str(tmp_path / "home"))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(task_recipe(2).read_text().replace('model = "localizer"', 'model = "mrsegmentator"'))
    verdicts = check_model(packed(tmp_path / "models"), load_recipe(recipe))
    assert broken(verdicts) == {}
    assert "no mrsegmentator: the whole volume would be searched" in verdicts[-2].found


@pytest.mark.fault("outputs", "no room to unpack a model archive", "an error that says so")
def test_names_a_full_disk(models: Path, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(small_disk(1 << 20)))
    with pytest.raises(OutputError, match="expected room to unpack 9 MB, found"):
        check_model(packed(models), TASK1)


def test_removes_what_it_unpacked(models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    check_model(packed(models), TASK1)
    check_model(packed(models, member("../evil")), TASK1)
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


def test_prints_one_line_for_each_rule_whatever_the_names(models: Path) -> None:
    path = packed(models, member("../two\nlines\udcff"))
    result = CliRunner().invoke(main, ["check", "model", str(path), "--task", "1"])
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 5
    assert "BROKEN  files and folders below the archive's own folder: ../two lines\\udcff" in result.stdout
