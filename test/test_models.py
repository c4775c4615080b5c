"""Models are found in every supported place, and an incomplete model is an error."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import one_line_about
from pantherseg.errors import ModelError
from pantherseg.io.digest import sha256_of
from pantherseg.model_sources.nnunet import read_configuration
from pantherseg.models.bundle import GRAPH, Bundle, weights_name
from pantherseg.models.find import ModelFolder, choose_root, find_models, open_model
from pantherseg.models.manifest import MANIFEST
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.recipe import Localizer, Member, Recipe, Sockets

RESULTS = Path("Dataset901_X") / "nnUNetTrainer__nnUNetPlans__3d_fullres"
LOCALIZER = Localizer(model="localizer", label=7, margin_mm=30.0)


def recipe(*members: Member, localizer: Localizer | None = None) -> Recipe:
    sockets = Sockets(input="in", output="out")
    return Recipe(schema=1, name="r", sockets=sockets, members=list(members), localizer=localizer)


TASK2 = recipe(Member(model="task2"), localizer=LOCALIZER)


def model(folder: Path, *folds: str, checkpoint: str = "checkpoint_final.pth") -> Path:
    """Make an nnU-Net folder that looks complete until its checkpoints are read."""
    for fold in folds or ("0",):
        (folder / f"fold_{fold}").mkdir(parents=True)
        (folder / f"fold_{fold}" / checkpoint).write_bytes(b"weights")
    (folder / "plans.json").write_text(json.dumps({"plans_name": folder.name}))
    (folder / "dataset.json").write_text("{}")
    return folder


def bundle(folder: Path, *folds: str, checkpoint: str = "checkpoint_final.pth") -> Path:
    """Make a bundle that looks complete until its folds are loaded."""
    folder.mkdir(parents=True)
    folds = folds or ("0",)
    (folder / GRAPH).write_text("graph")
    for fold in folds:
        shutil.copyfile(DEMO_WEIGHTS / "task1" / weights_name("0"), folder / weights_name(fold))
    sums = {path.name: sha256_of(path) for path in folder.iterdir()}
    manifest = json.loads((DEMO_WEIGHTS / "task1" / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"folds": folds, "checkpoint": checkpoint, "sha256": sums}))
    return folder


Make = Callable[..., Path]
EITHER = pytest.mark.parametrize("make", [model, bundle])


def error_of(root: Path, wanted: Recipe) -> str:
    with pytest.raises(ModelError) as caught:
        find_models(root, wanted)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@EITHER
@pytest.mark.parametrize("below", [Path("task2"), "task2" / RESULTS, Path("task2/a/b/c/d")])
def test_finds_a_model_below_the_name_of_its_role(tmp_path: Path, below: Path, make: Make) -> None:
    expected = make(tmp_path / below)
    localizer = make(tmp_path / "localizer" / RESULTS)
    make(tmp_path / "task1")
    models = find_models(tmp_path, TASK2)
    (member,) = models.members
    assert (member.path, member.folds) == (expected, ("0",))
    assert isinstance(member, ModelFolder if make is model else Bundle)
    assert models.localizer
    assert models.localizer.path == localizer


@EITHER
def test_does_not_search_deeper_than_the_limit(tmp_path: Path, make: Make) -> None:
    make(tmp_path / "task2/a/b/c/d/e")
    assert "found none; put it in" in error_of(tmp_path, TASK2)


@EITHER
@pytest.mark.parametrize("below", [Path(), RESULTS, Path("my_model")])
def test_finds_the_only_model_of_the_root_for_a_single_member(tmp_path: Path, below: Path, make: Make) -> None:
    expected = make(tmp_path / "root" / below)
    models = find_models(tmp_path / "root", recipe(Member(model="task2")))
    assert [member.path for member in models.members] == [expected]
    assert models.localizer is None


@EITHER
def test_never_uses_the_localizer_as_the_only_member(tmp_path: Path, make: Make) -> None:
    make(tmp_path / "localizer" / RESULTS)
    assert "for 'task2', found none; put it in" in error_of(tmp_path, TASK2)
    expected = make(tmp_path / RESULTS)
    models = find_models(tmp_path, TASK2)
    assert models.members[0].path == expected
    assert models.localizer
    assert models.localizer.path == tmp_path / "localizer" / RESULTS


def test_several_members_need_folders_with_their_names(tmp_path: Path) -> None:
    two = recipe(Member(model="a"), Member(model="b"))
    a = model(tmp_path / "a")
    assert "for 'b', found none" in error_of(tmp_path, two)
    b = bundle(tmp_path / "b")
    assert [member.path for member in find_models(tmp_path, two).members] == [a, b]


@pytest.mark.fault("models", "two models where one is expected", "an error that names both")
def test_refuses_several_models_for_one_member(tmp_path: Path) -> None:
    model(tmp_path / "one")
    bundle(tmp_path / "other")
    assert "for 'task2', found one, other; put it in" in error_of(tmp_path, TASK2)
    model(tmp_path / "task2" / "x")
    model(tmp_path / "task2" / "y")
    assert "found task2/x, task2/y" in error_of(tmp_path, TASK2)


def test_refuses_several_localizers_and_accepts_none(tmp_path: Path) -> None:
    model(tmp_path / "task2")
    assert find_models(tmp_path, TASK2).localizer is None
    model(tmp_path / "localizer" / "x")
    model(tmp_path / "localizer" / "y")
    assert "localizer: expected one model folder, found localizer/x, localizer/y" in error_of(tmp_path, TASK2)


@pytest.mark.fault("models", "the folder of models is missing or a file", "an error that names it")
def test_refuses_a_root_that_is_not_a_folder(tmp_path: Path) -> None:
    assert "expected a folder of models, found no such folder" in error_of(tmp_path / "missing", TASK2)
    (tmp_path / "file").touch()
    assert "expected a folder of models, found a file" in error_of(tmp_path / "file", TASK2)


@pytest.mark.fault("models", "a raw nnU-Net folder without {missing}", "an error that names it")
@pytest.mark.parametrize("missing", ["plans.json", "dataset.json"])
def test_names_a_missing_file_of_a_model_folder(tmp_path: Path, missing: str) -> None:
    folder = model(tmp_path / "task2")
    (folder / missing).unlink()
    text = error_of(tmp_path, TASK2)
    assert text.startswith(f"{folder}: ")
    assert text.endswith(f"found no {missing}")


def test_a_folder_with_only_folds_is_an_incomplete_model(tmp_path: Path) -> None:
    folder = model(tmp_path / "task2")
    (folder / "plans.json").unlink()
    (folder / "dataset.json").unlink()
    assert error_of(tmp_path, TASK2).endswith("found no plans.json")


@pytest.mark.fault("models", "a checkpoint or every fold of a raw nnU-Net folder is missing", "an error that names it")
def test_names_missing_checkpoints_and_folds(tmp_path: Path) -> None:
    folder = model(tmp_path / "task2", "0", "1")
    best = folder / "fold_1" / "checkpoint_best.pth"
    (folder / "fold_1" / "checkpoint_final.pth").rename(best)
    text = error_of(tmp_path, TASK2)
    assert "fold_1/checkpoint_final.pth: expected a checkpoint, found checkpoint_best.pth in fold_1" in text
    best.unlink()
    assert "found nothing in fold_1" in error_of(tmp_path, TASK2)
    assert find_models(tmp_path, recipe(Member(model="task2", folds=[0]))).members[0].folds == ("0",)
    (folder / "fold_1").rmdir()
    (folder / "fold_0" / "checkpoint_final.pth").unlink()
    (folder / "fold_0").rmdir()
    assert "expected at least one fold_<k>, found none" in error_of(tmp_path, TASK2)


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": \x00}', b"[]", b"3", b"\xff\xfe\x00"])
@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
def test_refuses_damaged_json(tmp_path: Path, name: str, content: bytes) -> None:
    folder = model(tmp_path / "task2")
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_configuration(folder, "3d_fullres")
    assert ": expected " in one_line_about(folder / name, caught.value)


def test_opens_folds_in_numerical_or_in_the_given_order(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", "0", "1", "2", "3", "4", "10")
    assert open_model(folder).folds == ("0", "1", "2", "3", "4", "10")
    assert open_model(folder, folds=[10, 2]).folds == ("10", "2")
    opened = open_model(folder)
    assert isinstance(opened, ModelFolder)
    assert opened.checkpoint_path("10") == folder / "fold_10" / "checkpoint_final.pth"
    with pytest.raises(ModelError, match=r"fold_5/checkpoint_final\.pth: expected a checkpoint, found nothing"):
        open_model(folder, folds=[5])
    with pytest.raises(ModelError, match="at least one fold"):
        open_model(folder, folds=[])


def test_enough_checkpoints_must_exist(tmp_path: Path) -> None:
    folder = model(tmp_path / "task2", "0", "1", "2", "3", "4")
    (folder / "fold_0" / "checkpoint_final.pth").unlink()
    shutil.rmtree(folder / "fold_3")
    every = recipe(Member(model="task2", folds=[0, 1, 2, 3, 4]))
    assert find_models(tmp_path, every, complete=False).members[0].folds == ("0", "1", "2", "3", "4")
    assert find_models(tmp_path, TASK2, complete=False).members[0].folds == ("0", "1", "2", "4")
    assert "fold_0/checkpoint_final.pth: expected a checkpoint, found nothing in fold_0" in error_of(tmp_path, every)
    (folder / "fold_4" / "checkpoint_final.pth").rename(folder / "fold_4" / "checkpoint_best.pth")
    for wanted in (every, TASK2):
        with pytest.raises(ModelError, match=r"fold_0/checkpoint_final\.pth: expected a checkpoint, found nothing"):
            find_models(tmp_path, wanted, complete=False)


def test_uses_fold_all_only_without_numbered_folds(tmp_path: Path) -> None:
    assert open_model(model(tmp_path / "m", "all")).folds == ("all",)
    assert open_model(model(tmp_path / "n", "all", "2", "2_backup")).folds == ("2",)


def test_finds_a_checkpoint_with_another_name(tmp_path: Path) -> None:
    folder = model(tmp_path / "task2", "0", "1", checkpoint="checkpoint_best.pth")
    (found,) = find_models(tmp_path, recipe(Member(model="task2", checkpoint="checkpoint_best.pth"))).members
    assert isinstance(found, ModelFolder)
    assert [found.checkpoint_path(fold) for fold in found.folds] == sorted(folder.rglob("checkpoint_best.pth"))


def test_opens_folds_of_a_bundle_in_the_order_of_the_manifest_or_the_recipe(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "task2", "0", "1", "2", "10")
    assert open_model(folder).folds == ("0", "1", "2", "10")
    assert find_models(tmp_path, recipe(Member(model="task2", folds=[10, 2]))).members[0].folds == ("10", "2")
    with pytest.raises(ModelError, match=r"task2: expected folds 0 5, found no fold_5\.safetensors"):
        open_model(folder, folds=[0, 5])
    with pytest.raises(ModelError, match="expected at least one fold, found none"):
        open_model(folder, folds=[])
    (folder / "fold_2.safetensors").unlink()
    assert "expected folds 0 1 2 10, found no fold_2.safetensors" in error_of(tmp_path, TASK2)
    assert open_model(folder, folds=[1]).folds == ("1",)


def test_never_uses_a_fold_that_the_manifest_does_not_name(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "task2")
    (folder / "fold_1.safetensors").write_text("another model's")
    assert open_model(folder).folds == ("0",)
    with pytest.raises(ModelError, match=r"expected folds 1, found no fold_1\.safetensors"):
        open_model(folder, folds=[1])


@pytest.mark.fault(
    "models", "a bundle of other checkpoints than the recipe names", "an error that says how to repack it"
)
def test_refuses_a_bundle_of_other_checkpoints_than_the_recipe(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "task2", checkpoint="checkpoint_best.pth")
    text = error_of(tmp_path, recipe(Member(model="task2", checkpoint="checkpoint_final.pth")))
    assert f"{folder}: expected a bundle of checkpoint_final.pth, found a bundle of checkpoint_best.pth" in text
    assert "--checkpoint" in text
    for checkpoint in ("checkpoint_best.pth", None):
        found = find_models(tmp_path, recipe(Member(model="task2", checkpoint=checkpoint))).members[0]
        assert found.path == folder, "a recipe without a checkpoint accepts any bundle"


@EITHER
def test_ignores_hidden_unfinished_models(tmp_path: Path, make: Make) -> None:
    make(tmp_path / "task2" / ".fetch" / "made")
    make(tmp_path / ".task2.part")
    assert "found none" in error_of(tmp_path, TASK2)
    expected = make(tmp_path / "task2" / "model")
    assert find_models(tmp_path, TASK2).members[0].path == expected


@EITHER
@pytest.mark.parametrize("other", ["task1", "localizer"])
def test_never_uses_the_model_of_another_role(tmp_path: Path, make: Make, other: str) -> None:
    make(tmp_path / other / "model")
    assert "found none" in error_of(tmp_path, recipe(Member(model="task2")))


@EITHER
def test_never_uses_a_model_that_was_fetched_for_another_role(tmp_path: Path, make: Make) -> None:
    wanted = recipe(Member(model="task1"))
    folder = make(tmp_path / "multitalent-v2" / "model")
    assert find_models(tmp_path, wanted).members[0].path == folder
    (tmp_path / "multitalent-v2.fetched.json").touch()
    assert "found none" in error_of(tmp_path, wanted)
    expected = make(tmp_path / "task1")
    (tmp_path / "task1.fetched.json").touch()
    for root in (tmp_path, expected):
        assert find_models(root, wanted).members[0].path == expected


def test_chooses_the_upload_if_it_contains_a_file(tmp_path: Path) -> None:
    uploaded, shipped = tmp_path / "uploaded", tmp_path / "shipped"
    assert choose_root(uploaded, shipped) == shipped
    (uploaded / "empty" / "folders").mkdir(parents=True)
    assert choose_root(uploaded, shipped) == shipped
    (uploaded / "empty" / "folders" / "anything").touch()
    assert choose_root(uploaded, shipped) == uploaded


@pytest.mark.fault("models", "uploaded models that their user may not read", "an error, not a mask of the demo models")
def test_refuses_an_upload_that_this_user_may_not_read(tmp_path: Path) -> None:
    model(tmp_path / "uploaded" / "task1")
    (tmp_path / "uploaded" / "task1").chmod(0o000)
    for parent in (tmp_path, *tmp_path.parents):
        if not parent.stat().st_mode & 0o001:  # pytest's own folders
            parent.chmod(0o755)
    os.seteuid(os.geteuid() or 65534)  # because root may read everything
    try:
        for look in (
            lambda: choose_root(tmp_path / "uploaded", DEMO_WEIGHTS),
            lambda: find_models(tmp_path / "uploaded", recipe(Member(model="task1"))),
        ):
            with pytest.raises(ModelError, match=r"uploaded/task1: expected a folder that this user may read, found"):
                look()
    finally:
        os.seteuid(os.getuid())
        (tmp_path / "uploaded" / "task1").chmod(0o755)
