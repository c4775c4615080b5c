"""MRSegmentator's weights: their folders as they are downloaded, and the package's own masks."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import dice, one_line_about, run_python
from pantherseg.errors import ModelError
from pantherseg.inference.backends.openvino_backend import OpenVinoBackend
from pantherseg.inference.predictor import Predictor
from pantherseg.io import read_labels, read_volume, write_volume
from pantherseg.localize import copy_to_search, localize
from pantherseg.model_sources.mrsegmentator import BASE_CLASSES, VERSION, VERSION_KEY, is_mrsegmentator
from pantherseg.model_sources.nnunet import CHECKPOINT, DATASET, PLANS
from pantherseg.models.bundle import Bundle
from pantherseg.models.find import Model, ModelFolder, find_localizer, open_model_folder
from pantherseg.orientation import Orientation
from pantherseg.packing.pack import pack
from pantherseg.paths import task_recipe
from pantherseg.phantom import make_phantom
from pantherseg.recipe import Localizer, load_recipe
from pantherseg.volume import Box, Volume

PANCREAS = 7
# As the recipes name it, and by the package's own name.
LOCALIZER = Localizer(model="localizer", label=PANCREAS, margin_mm=30.0)
INSTALLED = Localizer(model="mrsegmentator", label=PANCREAS, margin_mm=30.0)
# LPS is what the package turns to; RAS is the order of most NIfTI files; SRA moves every axis.
ORDERS: tuple[Orientation, ...] = ("LPS", "RAS", "SRA")
COARSE = Localizer(model="localizer", label=PANCREAS, margin_mm=30.0, spacing=(6.0, 3.0, 3.0))
HALF = Localizer(model="localizer", label=PANCREAS, margin_mm=30.0, half_resolution=True)
INFER = """
import json, sys, warnings
from mrsegmentator.inference import infer
if __name__ == "__main__":
    images, out, folds, fast = json.loads(sys.argv[1])
    infer(images, out, folds=folds, fast=fast, cpu_only=True, nproc=1, nproc_export=1, allow_tqdm=False)
"""


def weights_folder(folder: Path, *folds: int, labels: int = BASE_CLASSES, version: float = 1.2) -> Path:
    """Make a folder that looks like downloaded weights until its checkpoints are read."""
    for fold in folds or range(5):
        (folder / f"fold_{fold}").mkdir(parents=True)
        (folder / f"fold_{fold}" / CHECKPOINT).write_bytes(b"weights")
    (folder / PLANS).write_text("{}")
    (folder / DATASET).write_text(json.dumps({"labels": {str(number): number for number in range(labels)}}))
    (folder / VERSION).write_text(json.dumps({VERSION_KEY: version}))
    return folder


def home_folder(folder: Path) -> Path:
    """Make the folder of version 2.0, which has two models, and return the one with the pancreas."""
    weights_folder(folder / "body_comp", labels=11, version=1.0)
    return weights_folder(folder / "base")


# Where the weights are


@pytest.mark.parametrize("below", ["localizer", "localizer/weights", "localizer/mrsegmentator"])
def test_finds_the_downloaded_folder_of_either_version(tmp_path: Path, below: str) -> None:
    expected = {"one": weights_folder(tmp_path / "one" / below), "two": home_folder(tmp_path / "two" / below)}
    for version, folder in expected.items():
        found = find_localizer(tmp_path / version, LOCALIZER)
        assert found is not None
        assert (found.path.resolve(), found.folds) == (folder.resolve(), ("0", "1", "2", "3", "4"))


def test_takes_every_fold_or_one(tmp_path: Path) -> None:
    weights_folder(tmp_path / "localizer", 0)
    found = find_localizer(tmp_path, LOCALIZER)
    assert found is not None
    assert found.folds == ("0",)
    weights_folder(tmp_path / "all" / "localizer")
    one = Localizer(model="localizer", label=PANCREAS, margin_mm=30.0, folds=[3])
    found = find_localizer(tmp_path / "all", one)
    assert found is not None
    assert found.folds == ("3",)


def installed(tmp_path: Path) -> Model | None:
    (tmp_path / "root").mkdir(exist_ok=True)
    return find_localizer(tmp_path / "root", INSTALLED)


@pytest.mark.parametrize("below", [".", "base"])
def test_finds_the_weights_that_the_variable_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str) -> None:
    monkeypatch.setenv("MRSEG_WEIGHTS_PATH", str(tmp_path / "weights"))
    assert installed(tmp_path) is None
    expected = weights_folder(tmp_path / "weights" / below, 0, 1)
    found = installed(tmp_path)
    assert found is not None
    assert (found.path, found.folds) == (expected, ("0", "1"))
    assert find_localizer(tmp_path / "root", LOCALIZER) is None, "other names are not searched there"
    in_root = weights_folder(tmp_path / "root" / "mrsegmentator")
    found = installed(tmp_path)
    assert found is not None
    assert found.path == in_root, "a model in the root comes first"


def test_finds_the_weights_where_the_package_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the home folder (2.0) before those in the package's own folder (1.2)."""
    monkeypatch.delenv("MRSEG_WEIGHTS_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    package = tmp_path / "site" / "mrsegmentator"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "mrsegmentator", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert installed(tmp_path) is None
    old = weights_folder(package / "weights")
    found = installed(tmp_path)
    assert found is not None
    assert found.path == old
    new = home_folder(tmp_path / "home" / ".mrsegmentator")
    found = installed(tmp_path)
    assert found is not None
    assert found.path == new
    assert "mrsegmentator" not in sys.modules, "it would import torch"


@pytest.mark.fault(
    "localizer", "the localizer is MRSegmentator's `body_comp`, which has no pancreas", "an error that says so"
)
def test_refuses_the_model_without_a_pancreas(tmp_path: Path) -> None:
    folder = weights_folder(tmp_path / "localizer", labels=11, version=1.0)
    with pytest.raises(ModelError) as caught:
        find_localizer(tmp_path, LOCALIZER)
    text = one_line_about(folder / DATASET, caught.value)
    assert "41 labels, background included, found 11 labels; `body_comp` has no pancreas" in text
    (folder / DATASET).write_text("{}")
    with pytest.raises(ModelError, match="found no labels"):
        find_localizer(tmp_path, LOCALIZER)


def test_names_two_models_of_which_neither_is_the_one(tmp_path: Path) -> None:
    weights_folder(tmp_path / "localizer" / "first")
    weights_folder(tmp_path / "localizer" / "second")
    with pytest.raises(ModelError, match="expected one model folder, found localizer/first, localizer/second"):
        find_localizer(tmp_path, LOCALIZER)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": 1.2}', "\xff"])
def test_another_version_file_does_not_make_it_mrsegmentator(tmp_path: Path, content: str) -> None:
    (tmp_path / VERSION).write_text(content, encoding="latin-1")
    assert not is_mrsegmentator(tmp_path)


# The package's own masks


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A network of 40 structures that was trained on phantoms, two folds, in the layout of the weights."""
    from bench.small_mrsegmentator import make_weights

    return make_weights(tmp_path_factory.mktemp("mrsegmentator") / "base")


@pytest.fixture(scope="module")
def bundle(weights: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return pack(weights, tmp_path_factory.mktemp("packed") / "localizer")


@pytest.fixture(scope="module")
def abdomen() -> tuple[Volume, NDArray[np.bool_]]:
    """An unseen phantom, cut to odd sizes, and where its pancreas is."""
    phantom = make_phantom(3500, task=2, size="small")
    odd = Box((1, 1, 1), phantom.image.grid.shape)
    image = Volume(phantom.image.array.astype(np.float32), phantom.image.grid)
    return image.crop(odd), phantom.organs.array[odd.slices] == PANCREAS


def inferred(weights: ModelFolder, images: Sequence[Path], out: Path, folds: Sequence[int], *, fast: bool) -> None:
    """Run the package on some images; its masks are `<name>_seg<suffix>` in a folder."""
    import os

    script = out.with_suffix(".py")
    script.write_text(INFER)
    arguments = json.dumps([[str(path) for path in images], str(out), list(folds), fast])
    environment = {**os.environ, "MRSEG_WEIGHTS_PATH": str(weights.path.parent)}
    done = run_python(script, arguments, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


def assert_same_pancreas(mask: Path, image: Path, predictor: Predictor) -> NDArray[np.bool_]:
    """Compare the voxels of label 7 with those of the package's mask, and return them."""
    expected = read_labels(mask).array == PANCREAS
    ours: NDArray[np.bool_] = predictor.predict(read_volume(image)).mask(PANCREAS)
    assert expected.any()
    assert (ours != expected).sum() == 0, f"{image.name}: {(ours != expected).sum()} of {expected.sum()} voxels"
    return ours


@pytest.mark.fault(
    "localizer",
    "MRSegmentator's folder for volumes in three voxel orders, at their spacing, at 3x3x6 mm and at half resolution",
    "the package's own voxels of the pancreas, 0 differ",
)
@pytest.mark.slow
def test_gives_the_voxels_of_the_package(
    weights: ModelFolder, bundle: Bundle, abdomen: tuple[Volume, NDArray[np.bool_]], tmp_path: Path
) -> None:
    """Two folds and mirroring along three axes, as the package does by default."""
    volume, pancreas = abdomen
    assert all(size % 2 for size in volume.grid.shape)
    seen = {
        **{f"{code}.nii.gz": volume.turned_to(code) for code in ORDERS},
        "coarse.mha": copy_to_search(volume, COARSE),
        "half.nrrd": copy_to_search(volume, HALF),
    }
    images = [tmp_path / name for name in seen]
    for path, one in zip(images, seen.values(), strict=True):
        write_volume(one, path)
    inferred(weights, images, tmp_path / "masks", (0, 1), fast=False)
    predictor = Predictor(bundle, OpenVinoBackend(), mirroring=True)
    assert predictor.trained_orientation == "LPS"
    for path in images:
        name, _, suffix = path.name.partition(".")
        found = assert_same_pancreas(tmp_path / "masks" / f"{name}_seg.{suffix}", path, predictor)
        if name == "LPS":
            assert dice(found, pancreas) > 0.4, "the network is a trained one"


@pytest.mark.slow
def test_gives_the_voxels_of_the_package_in_its_fast_mode(
    weights: ModelFolder, bundle: Bundle, abdomen: tuple[Volume, NDArray[np.bool_]], tmp_path: Path
) -> None:
    image = tmp_path / "scan.nii.gz"
    write_volume(abdomen[0].turned_to("RAS"), image)
    inferred(weights, [image], tmp_path / "masks", (0,), fast=True)
    one = Bundle(bundle.path, bundle.manifest, ("0",))
    assert_same_pancreas(tmp_path / "masks" / "scan_seg.nii.gz", image, Predictor(one, OpenVinoBackend(), step=0.8))


@pytest.mark.slow
def test_the_recipes_localizer_takes_the_folder_as_it_is(
    bundle: Bundle, abdomen: tuple[Volume, NDArray[np.bool_]]
) -> None:
    volume, pancreas = abdomen
    settings = load_recipe(task_recipe(2)).localizer
    assert settings is not None
    located = localize(volume, Predictor(bundle, OpenVinoBackend()), settings)
    around = Box.around(pancreas)
    assert located.box is not None
    assert located.pancreas is not None
    assert around is not None
    assert located.box.joined(around) == located.box
    index = np.argwhere(pancreas).mean(axis=0)[::-1] * volume.grid.spacing[::-1]
    centre = np.array(volume.grid.origin) + np.array(volume.grid.direction) @ index
    assert np.linalg.norm(centre - located.pancreas.centre_mm) < 25, "in mm"


@pytest.mark.slow
def test_the_reader_of_the_plans_does_not_matter(weights: ModelFolder, tmp_path: Path) -> None:
    """The package reads volumes itself, so its plans may name any reader."""
    shutil.copytree(weights.path, tmp_path / "base", ignore=shutil.ignore_patterns("fold_1"))
    plans = json.loads((tmp_path / "base" / PLANS).read_text())
    for reader in ("NibabelIOWithReorient", "SomeOtherReader"):
        (tmp_path / "base" / PLANS).write_text(json.dumps(plans | {"image_reader_writer": reader}))
        packed = pack(open_model_folder(tmp_path / "base"), tmp_path / reader)
        assert packed.manifest.orientation == "LPS"
        assert (packed.path / VERSION).is_file(), "kept as provenance"
    (tmp_path / "base" / VERSION).unlink()
    with pytest.raises(ModelError, match="found reader SomeOtherReader"):
        pack(open_model_folder(tmp_path / "base"), tmp_path / "other")
