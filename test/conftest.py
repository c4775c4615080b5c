"""Fixtures that several test modules use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jsonschema
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from pantherseg.inference.backends import openvino_backend
from pantherseg.io.digest import sha256_of
from pantherseg.model_sources.nnunet import CHECKPOINT, DATASET, PLANS
from pantherseg.models.bundle import GRAPH, Bundle, open_bundle
from pantherseg.models.find import ModelFolder, open_model_folder
from pantherseg.models.manifest import MANIFEST
from pantherseg.paths import DEMO_WEIGHTS, ROOT, task_recipe
from pantherseg.phantom import make_phantom
from pantherseg.recipe import Recipe, load_recipe
from pantherseg.session import Session
from pantherseg.volume import Box, Volume
from served import FileServer

pytest_plugins = ["faults", "published", "volume_files"]

RealData = Callable[[str], Path]
SmallDisk = Callable[[int], Path]
SetFree = Callable[[int], None]
NnunetMask = Callable[..., NDArray[Any]]


class ChangedModel(Protocol):
    """Makes a copy of the demo's nnU-Net folder; see `changed_model`."""

    def __call__(self, *, folds: int = 1, checkpoint: str = CHECKPOINT, **changes: object) -> Path: ...


def one_line_about(where: object, error: Exception) -> str:
    """Return an error's text, which must be one line that begins with the file, folder, URL or option at fault."""
    text = str(error)
    assert text.startswith(f"{where}: ")
    assert len(text.splitlines()) == 1
    return text


def dice(mask: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float:
    """Return the Dice of two masks of any shape, at least one of which is not empty."""
    return 2 * float((mask & reference).sum()) / float(mask.sum() + reference.sum())


def valid_report(path: Path) -> dict[str, Any]:
    """Return the report of a case, which must follow the published schema."""
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    schema = json.loads((ROOT / "docs" / "results.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(report)
    return report


def pretend_to_have_a_gpu(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the session's OpenVINO backend call itself a GPU, so that a case can fall back to the CPU."""
    session.load().backend.device = "cuda"
    monkeypatch.setattr(openvino_backend.OpenVinoBackend, "explain", lambda _, error: error)


def flip_a_bit(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def run_python(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run this Python with arguments in the project's folder. options: those of `subprocess.run`."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)


@pytest.fixture
def server() -> Iterator[FileServer]:
    """A server of files on this machine that may be told to fail."""
    with FileServer() as served:
        yield served


@pytest.fixture
def real_data() -> RealData:
    """Return the path of a real volume by its name in the data folder; skip the test where it is absent.

    The folder is what the environment variable PANTHERSEG_TEST_DATA names.
    """
    folder = os.environ.get("PANTHERSEG_TEST_DATA")

    def find(name: str) -> Path:
        path = Path(folder or "", name)
        if folder is None or not path.exists():
            pytest.skip(f"no real data: PANTHERSEG_TEST_DATA names no folder with {name}")
        return path

    return find


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """The nnU-Net folder that Task 1's demo bundle was packed of."""
    from bench.unpack import unpack

    return unpack(open_bundle(DEMO_WEIGHTS / "task1"), tmp_path_factory.mktemp("demo") / "task1")


@pytest.fixture(scope="session")
def demo() -> Bundle:
    """Two folds of Task 1's demo bundle."""
    return open_bundle(DEMO_WEIGHTS / "task1", folds=[0, 1])


@pytest.fixture
def set_free(monkeypatch: pytest.MonkeyPatch) -> SetFree:
    """Return a function that sets the free memory that the OpenVINO backend sees, in bytes."""
    return lambda size: monkeypatch.setattr(openvino_backend, "room_bytes", lambda: size)


@pytest.fixture
def changed_model(demo_folder: ModelFolder, tmp_path: Path) -> ChangedModel:
    """Copy the demo's nnU-Net folder with other folds, another name and other entries in its checkpoints."""
    import torch

    def copy(*, folds: int = 1, checkpoint: str = CHECKPOINT, **changes: object) -> Path:
        target = tmp_path / "model"
        target.mkdir()
        for name in (PLANS, DATASET):
            shutil.copy(demo_folder.path / name, target / name)
        for fold in range(folds):
            content = torch.load(demo_folder.checkpoint_path(str(fold % 5)), weights_only=True)
            (target / f"fold_{fold}").mkdir()
            torch.save({**content, **changes}, target / f"fold_{fold}" / checkpoint)
        return target

    return copy


@pytest.fixture(scope="session")
def tiled_folder(demo_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """Two folds of the demo with a patch that is small enough for `pancreas` to take many tiles."""
    target = tmp_path_factory.mktemp("tiled") / "task1"
    shutil.copytree(demo_folder.path, target, ignore=shutil.ignore_patterns("fold_[234]"))
    plans = json.loads((target / PLANS).read_text())
    plans["configurations"]["3d_fullres"]["patch_size"] = [24, 32, 48]
    (target / PLANS).write_text(json.dumps(plans))
    return open_model_folder(target)


@pytest.fixture(scope="session")
def tiled_bundle(tiled_folder: ModelFolder) -> Bundle:
    """The same as a bundle."""
    from pantherseg.packing.pack import as_bundle

    return as_bundle(tiled_folder)


class CopiedBundle:
    """A copy of a demo bundle that a test may damage."""

    def __init__(self, path: Path) -> None:
        self.path = path
        shutil.copytree(DEMO_WEIGHTS / "task1", path)

    def change(self, **entries: object) -> None:
        """Change entries of the manifest."""
        manifest = json.loads((self.path / MANIFEST).read_text())
        (self.path / MANIFEST).write_text(json.dumps(manifest | entries))

    def seal(self) -> None:
        """Write the checksums of the graph and the folds, as they are now, to the manifest."""
        paths = [self.path / GRAPH, *self.path.glob("fold_*.safetensors")]
        self.change(sha256={path.name: sha256_of(path) for path in paths})


@pytest.fixture
def copied_bundle(tmp_path: Path) -> CopiedBundle:
    return CopiedBundle(tmp_path / "copy" / "task1")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Give a disk of its own a size in bytes, and return where it is mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(size: int) -> Path:
        options = f"{'remount,' if folder.is_mount() else ''}size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("this user may not mount a small disk")
        return folder

    yield resize
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def one_fold() -> Recipe:
    """Task 1's recipe with one fold."""
    recipe = load_recipe(task_recipe(1))
    return msgspec.structs.replace(recipe, members=[msgspec.structs.replace(recipe.members[0], folds=[0])])


@pytest.fixture(scope="session")
def labelled_pancreas() -> tuple[Volume, Volume]:
    """A phantom's pancreas and what lies around it, and its labels."""
    phantom = make_phantom(5001, task=1, size="small")
    box = Box.around(phantom.labels.array > 0)
    assert box is not None
    box = box.expanded(30.0, phantom.labels.grid)
    image = Volume(phantom.image.array.astype(np.float32), phantom.image.grid)
    return image.crop(box), phantom.labels.crop(box)


@pytest.fixture(scope="session")
def pancreas(labelled_pancreas: tuple[Volume, Volume]) -> Volume:
    """The image of `labelled_pancreas`."""
    return labelled_pancreas[0]


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny networks are computed fastest by one of torch's threads, above all where other processes run."""
    import torch

    from pantherseg.machine.allocator import keep_freed_memory

    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def nnunet_mask() -> NnunetMask:
    """Return the label map (z, y, x) that nnU-Net itself makes of a volume."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from pantherseg.training.folders import trainer_environment

    def mask(model: ModelFolder, volume: Volume, mirroring_axes: tuple[int, ...] = ()) -> NDArray[Any]:
        predictor = nnUNetPredictor(
            device=torch.device("cpu"),
            use_mirroring=bool(mirroring_axes),
            perform_everything_on_device=False,
            allow_tqdm=False,
        )
        # nnU-Net looks for the class of the trainer that the checkpoint names.
        with trainer_environment():
            predictor.initialize_from_trained_model_folder(str(model.path), model.folds, model.checkpoint)
        predictor.allowed_mirroring_axes = mirroring_axes
        labels: NDArray[Any] = predictor.predict_single_npy_array(
            volume.array[None], {"spacing": list(volume.grid.spacing)}
        )
        return labels

    return mask
