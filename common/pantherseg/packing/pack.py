"""Model folders into bundles."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from pantherseg import __version__
from pantherseg.errors import DeviceMemoryError, ModelError, OutputError, last_line
from pantherseg.files import temporary_folder
from pantherseg.machine.memory import MB, room_bytes, shortage
from pantherseg.models.bundle import (
    DATASET,
    GRAPH,
    GRAPH_CONSTANTS,
    MANIFEST,
    PLANS,
    SCHEMA,
    Bundle,
    Manifest,
    Provenance,
    check_classes,
    check_enough,
    needed,
    open_bundle,
    read_header,
    sha256_of,
    weights_name,
)
from pantherseg.models.find import Model, ModelFolder, by_role, check_labels, find_models
from pantherseg.packing.checkpoint import Checkpoint, check_fit, read_checkpoint
from pantherseg.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn

NEEDED = ("torch", "nnunetv2")
# What they take when they are imported, and how often a network's weights are in memory while it is packed.
IMPORTS_BYTES, COPIES = 1300 * MB, 8
VERSIONED = ("openvino", *NEEDED)


class Packer:
    """Makes bundles of models, of which several may want folds of one model folder: that is packed once."""

    def __init__(self, models: Iterable[Model]) -> None:
        self._models = [model for model in models if isinstance(model, ModelFolder)]
        self._packed: dict[tuple[Path, str], Bundle] = {}

    def bundle(self, model: Model, min_folds: int | None = None) -> Bundle:
        """Return one of the models as `as_bundle` does. Raises what that raises."""
        if isinstance(model, Bundle):
            return model
        source = model.path, model.checkpoint
        if source not in self._packed:
            alike = (other.folds for other in self._models if (other.path, other.checkpoint) == source)
            every = replace(model, folds=tuple(dict.fromkeys(fold for folds in alike for fold in folds)))
            self._packed[source] = as_bundle(every, needed(len(model.folds), min_folds))
        bundle = replace(self._packed[source], folds=model.folds)
        try:
            check_enough(bundle, min_folds)
        except ModelError:
            # The fold that the others had to be like may be one of another member's.
            return as_bundle(model, min_folds)
        return bundle


def as_bundle(model: Model, min_folds: int | None = None) -> Bundle:
    """Return a bundle as it is; pack a model folder into a temporary one, which goes when the process ends.

    min_folds: as `pack` takes it. Raises ModelError, also where the packages that packing needs are not installed;
    OutputError.
    """
    if isinstance(model, Bundle):
        return model
    try:
        folder = temporary_folder()
    except OSError as error:
        hint = f"or run `pantherseg pack {model.path} BUNDLE` beforehand"
        raise OutputError(
            "temporary folder", expected="room to pack a model", found=error.strerror or str(error), hint=hint
        ) from error
    # torch makes one as soon as a network runs, empty, and would leave it beside our folder.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "torch"))
    return replace(pack(model, folder / "bundle", min_folds=min_folds), origin=model.path)


def pack_models(root: Path, target: Path, recipe: Recipe) -> list[Bundle]:
    """Pack every model of a recipe that lies below `root` into <target>/<role>; bundles are checked and copied.

    What could not be run is refused here: ModelError; RecipeError where members want different checkpoints of one
    model or a label that it has not. Raises OutputError where the target is a folder that is not empty.
    """
    with _new_folder(target) as folder:
        roles = by_role(find_models(root, recipe), recipe)
        for role, model in roles.items():
            bundle = _copy(model, folder / role) if isinstance(model, Bundle) else pack(model, folder / role)
            check_labels(role, replace(bundle, path=model.path), recipe)
        check_classes([open_bundle(folder / member.model) for member in recipe.members])
    return [open_bundle(target / role) for role in roles]


def missing_packages() -> list[str]:
    """Return the packages that packing needs and that are not installed."""
    return [name for name in NEEDED if find_spec(name) is None]


def pack(model: ModelFolder, target: Path, *, min_folds: int | None = None) -> Bundle:
    """Pack a model folder's folds into the new folder `target`, which has the same bytes for the same checkpoints.

    min_folds: how many of them must be sound and alike; without it all. The others stay among the bundle's folds, to
    be named when their turn comes. Raises ModelError, also where the packages that packing needs are not installed;
    OutputError.
    """
    if missing := missing_packages():
        raise ModelError(
            model.path,
            expected="a bundle",
            found=f"nnU-Net's checkpoints, and no {' and '.join(missing)} to read them",
            hint=f"run `pantherseg pack {model.path} BUNDLE` where they are installed",
        )
    _check_room(IMPORTS_BYTES + 2 * max(map(_size, map(model.checkpoint_path, model.folds))), model)
    spare = len(model.folds) - needed(len(model.folds), min_folds)
    errors = []
    for first in model.folds[: spare + 1]:  # one of them is sound, if enough are
        others = (fold for fold in model.folds if fold != first)
        try:
            with _new_folder(target) as folder:
                manifest, unpacked = _write_bundle(replace(model, folds=(first, *others)), spare, folder)
                (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
        except ModelError as error:
            errors.append(error)
        else:
            return replace(open_bundle(target), folds=model.folds, unpacked=unpacked)
    raise errors[0]


def _check_room(wanted: int, model: ModelFolder) -> None:
    """Raise DeviceMemoryError where less memory is free: torch and what it imports may end the process without it."""
    if wanted > (free := room_bytes()):
        found, hint = f"{free // MB} MB free", f"run `pantherseg pack {model.path} BUNDLE` where there is more"
        expected = f"{wanted // MB} MB to read an nnU-Net folder"
        raise DeviceMemoryError("memory", expected=expected, found=found, hint=hint)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """Yield a hidden folder that becomes `target` when the block ends without an error. Raises OutputError.

    A target that is there and empty may be a mount or where someone stands: it is filled, with the manifest last.
    The hidden folder has a name of its own: others may be at work on the same target, and the first to end wins.
    """
    there = target.is_dir()
    name = f"{'' if there else f'.{target.name}'}.{secrets.token_hex(4)}.part"
    beside = target / name if there else target.with_name(name)
    try:
        _check_free(target)
        beside.mkdir(parents=True)
        yield beside
        _check_free(target)
        if there:
            for path in sorted(beside.iterdir(), key=lambda path: path.name == MANIFEST):
                path.rename(target / path.name)
        else:
            beside.rename(target)
    except (OSError, SafetensorError) as error:
        found = getattr(error, "strerror", None) or str(error)
        raise OutputError(target, expected="to write this bundle", found=found) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _check_free(target: Path) -> None:
    """Raise OutputError unless a target is nothing, or a folder with nothing but what others have not finished."""
    if target.is_dir():
        found = "one that holds something" if any(map(_counts, target.iterdir())) else ""
    else:
        found = "a file" if target.exists() else "a link" if target.is_symlink() else ""
    if found:
        raise OutputError(target, expected="a new folder for the bundle", found=found, hint="move it away")


def _counts(path: Path) -> bool:
    return not (path.name.startswith(".") and path.name.endswith(".part") and path.is_dir())


def _copy(bundle: Bundle, target: Path) -> Bundle:
    for fold in bundle.manifest.folds:
        bundle.verify(fold)
    with _new_folder(target) as folder:
        for name in (MANIFEST, *bundle.manifest.sha256):
            shutil.copyfile(bundle.path / name, folder / name)
    return open_bundle(target)


def _write_bundle(model: ModelFolder, spare: int, folder: Path) -> tuple[Manifest, dict[str, ModelError]]:
    """Write every file of a bundle but the manifest; return that, and why folds are not in it, at most `spare`.

    The first fold says what the others must be like.
    """
    from pantherseg.networks import read_plan
    from pantherseg.packing.activations import live_values
    from pantherseg.packing.graph import make_graph

    first = read_checkpoint(model.checkpoint_path(model.folds[0]))
    plan = read_plan(model.path, first.configuration)
    if not set(first.mirroring_axes) <= set(range(len(plan.patch))):
        expected = f"mirroring axes below {len(plan.patch)}, as a patch of {plan.patch} has"
        raise ModelError(model.checkpoint_path(model.folds[0]), expected=expected, found=str(first.mirroring_axes))
    network, shape = plan.network(), (1, 1, *plan.patch)
    try:
        values = live_values(network, shape)
        weights = sum(value.numel() for value in network.state_dict().values())
        _check_room((values + COPIES * weights) * np.dtype(np.float32).itemsize, model)
        graph = make_graph(network, shape)
    except (RuntimeError, ValueError, MemoryError) as error:
        if (short := shortage(error, f"packing {model.path}")) is not None:
            raise short from error
        expected = f"plans whose network takes a patch of {plan.patch}"
        found = last_line(error)
        raise ModelError(model.path, expected=expected, found=found) from error
    tensors, unpacked = _write_folds(model, spare, first, plan.network(), graph.constants, folder)
    folds = tuple(fold for fold in model.folds if fold not in unpacked)
    # Every fold's file has the same tensors, so the same header and offsets.
    header = read_header(folder / weights_name(folds[0]))
    offsets = {name: len(header) + entry["data_offsets"][0] for name, entry in json.loads(header[8:]).items()}
    (folder / GRAPH).write_text(graph.placed(offsets, offsets[GRAPH_CONSTANTS]), encoding="utf-8")
    for name in (PLANS, DATASET):
        shutil.copyfile(model.path / name, folder / name)
    manifest = Manifest(
        schema=SCHEMA,
        checkpoint=model.checkpoint,
        folds=folds,
        patch=plan.patch,
        classes=plan.classes,
        labels=plan.labels,
        mirroring_axes=first.mirroring_axes,
        preprocessing=plan.preprocessing,
        architecture=plan.architecture,
        tensors=tensors,
        live_values=values,
        header_sha256=hashlib.sha256(header).hexdigest(),
        sha256={path.name: sha256_of(path) for path in sorted(folder.iterdir())},
        provenance=Provenance(
            configuration=first.configuration,
            trainer=first.trainer,
            checkpoints_sha256={fold: sha256_of(model.checkpoint_path(fold)) for fold in folds},
            versions={"pantherseg": __version__, **{name: version(name) for name in VERSIONED}},
        ),
    )
    return manifest, unpacked


def _write_folds(
    model: ModelFolder, spare: int, first: Checkpoint, network: nn.Module, constants: NDArray[np.uint8], folder: Path
) -> tuple[dict[str, tuple[int, ...]], dict[str, ModelError]]:
    """Write the files of the folds; return the shapes of the tensors in all of them, and why folds have none."""
    tensors: dict[str, NDArray[np.float32]] = {}
    unpacked: dict[str, ModelError] = {}
    for fold in model.folds:
        path = model.checkpoint_path(fold)
        try:
            tensors = _tensors(path, first, model.folds[0], network)
        except ModelError as error:
            unpacked[fold] = error.at(path)
            if len(unpacked) > spare:
                raise
            continue
        save_file({**tensors, GRAPH_CONSTANTS: constants}, folder / weights_name(fold))
        (folder / weights_name(fold)).chmod(0o644)  # safetensors makes files that only their owner can read
    return {name: value.shape for name, value in tensors.items()}, unpacked


def _tensors(path: Path, first: Checkpoint, first_fold: str, network: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Return a checkpoint's tensors, which the network gets. Raises ModelError where it is not like the first."""
    from pantherseg.networks import distinct_tensors

    checkpoint = read_checkpoint(path)
    if (checkpoint.configuration, checkpoint.mirroring_axes) != (first.configuration, first.mirroring_axes):
        raise ModelError(
            path,
            expected=f"{first.configuration}, mirroring axes {first.mirroring_axes}, as fold {first_fold}",
            found=f"{checkpoint.configuration}, {checkpoint.mirroring_axes}",
        )
    check_fit(path, network.state_dict(), checkpoint.weights)
    network.load_state_dict(checkpoint.weights)
    return {name: _numbers(path, name, value) for name, value in distinct_tensors(network).items()}


def _numbers(path: Path, name: str, value: torch.Tensor) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = np.ascontiguousarray(value.numpy())
    if numbers.dtype != np.float32:
        raise ModelError(path, expected=f"float32 numbers in {name}", found=str(numbers.dtype))
    if not np.isfinite(numbers).all():
        raise ModelError(path, expected=f"finite numbers in {name}", found="NaN or infinite ones")
    return numbers
