"""Model folders into bundles."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from pantherseg import __version__
from pantherseg.errors import DeviceMemoryError, ModelError, OutputError, last_line, os_reason
from pantherseg.files import temporary_folder
from pantherseg.io.digest import sha256_of
from pantherseg.machine.memory import MB, room_bytes, shortage
from pantherseg.model_sources import PackableModel, source_of
from pantherseg.model_sources.checkpoint import check_fit
from pantherseg.model_sources.nnunet import NnunetSource
from pantherseg.models.bundle import (
    GRAPH,
    GRAPH_CONSTANTS,
    Bundle,
    check_enough_folds,
    needed,
    open_bundle,
    read_header,
    weights_name,
)
from pantherseg.models.calibration import copy_calibration, identity
from pantherseg.models.find import Model, ModelFolder, by_role, check_labels, find_models
from pantherseg.models.label_maps import fused_labels
from pantherseg.models.manifest import MANIFEST, SCHEMA, Manifest, Provenance
from pantherseg.networks import build_network, distinct_tensors
from pantherseg.orientation import Orientation
from pantherseg.packing.bundle_folder import new_bundle_folder
from pantherseg.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pantherseg.packing.graph import Graph

# Memory that importing torch and nnU-Net takes, and how often a network's weights are in memory during packing.
IMPORTS_BYTES, COPIES = 1300 * MB, 8


class Packer:
    """Makes bundles of models. Several models may use folds of the same model folder, which is packed only once."""

    def __init__(self, models: Iterable[Model]) -> None:
        self._models = [model for model in models if isinstance(model, ModelFolder)]
        self._packed: dict[tuple[Path, str], Bundle] = {}

    def bundle(self, model: Model, min_folds: int | None = None) -> Bundle:
        """Return the bundle of one of the models; parameters and errors as in `as_bundle`."""
        if isinstance(model, Bundle):
            return model
        key = model.path, model.checkpoint
        if key not in self._packed:
            sharing = (other.folds for other in self._models if (other.path, other.checkpoint) == key)
            union = replace(model, folds=tuple(dict.fromkeys(fold for folds in sharing for fold in folds)))
            self._packed[key] = as_bundle(union, needed(len(model.folds), min_folds))
        bundle = replace(self._packed[key], folds=model.folds)
        try:
            check_enough_folds(bundle, min_folds)
        except ModelError:
            # The fold that described the model may be another member's and differ from the folds of this one.
            return as_bundle(model, min_folds)
        return bundle


def as_bundle(model: Model, min_folds: int | None = None) -> Bundle:
    """Return a bundle unchanged; pack a model folder into a temporary bundle that is removed when the process ends.

    min_folds: as in `pack`. Raises ModelError, also if packages that packing needs are not installed; OutputError.
    """
    if isinstance(model, Bundle):
        return model
    try:
        folder = temporary_folder()
    except OSError as error:
        hint = f"make room there, or run `pantherseg pack {model.path} BUNDLE` beforehand"
        found = os_reason(error)
        raise OutputError("temporary folder", expected="room to pack a model", found=found, hint=hint) from error
    # torch creates an empty cache folder as soon as a network runs, and would leave it in the temporary directory.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "torch"))
    return replace(pack(model, folder / "bundle", min_folds=min_folds), packed_from=model.path)


def pack_models(root: Path, target: Path, recipe: Recipe) -> list[Bundle]:
    """Pack every model of a recipe that is found below `root` into <target>/<role>. Bundles are checked and copied.

    A calibration of these models is copied too. Refuses everything that could not run: raises ModelError, and
    RecipeError if members ask for different checkpoints of one model or for a label that no model has.
    Raises OutputError for a target that is not empty.
    """
    with new_bundle_folder(target) as folder:
        roles = by_role(find_models(root, recipe), recipe)
        for role, model in roles.items():
            if isinstance(model, Bundle):
                bundle = _copy(model, folder / role)
            else:
                bundle = pack(model, folder / role, orientation=_orientation_in(recipe, role))
            check_labels(role, replace(bundle, path=model.path), recipe)
        members = [open_bundle(folder / member.model, folds=member.folds) for member in recipe.members]
        fused_labels(members, recipe)
        localizer = recipe.localizer
        if localizer is not None and localizer.model in roles:
            members.append(open_bundle(folder / localizer.model, folds=localizer.folds))
        copy_calibration(root, folder, recipe.name, identity(members))
    return [open_bundle(target / role) for role in roles]


def _orientation_in(recipe: Recipe, role: str) -> Orientation | None:
    """Return the orientation that a recipe states for a role, None unless it is one and the same everywhere."""
    users = (*recipe.members, recipe.localizer)
    stated = {user.orientation for user in users if user is not None and user.model == role}
    return stated.pop() if len(stated) == 1 else None


def missing_packages(packages: Sequence[str] = NnunetSource.packages) -> list[str]:
    """Return those of the packages, by default of those that packing nnU-Net's folders needs, that are missing."""
    return [name for name in packages if find_spec(name) is None]


def pack(
    model: ModelFolder, target: Path, *, min_folds: int | None = None, orientation: Orientation | None = None
) -> Bundle:
    """Pack the folds of a model folder into the new folder `target`. The same checkpoints give the same bytes.

    orientation: of the training volumes, where the model folder does not say it. min_folds: number of folds that must
    be sound and belong together, by default all. The others stay among the folds of the returned bundle and raise
    their error when they are loaded. Raises ModelError, also if packages that packing needs are not installed;
    DeviceMemoryError; OutputError.
    """
    source = source_of(model.path)
    if missing := missing_packages(source.packages):
        raise ModelError(
            model.path,
            expected="a bundle",
            found=f"a model folder, and no {' and '.join(missing)} to read its checkpoints",
            hint=f"run `pantherseg pack {model.path} BUNDLE` where they are installed",
        )
    _check_memory(IMPORTS_BYTES + 2 * max(map(_size, map(model.checkpoint_path, model.folds))), model.path)
    spare = len(model.folds) - needed(len(model.folds), min_folds)
    errors = []
    for first in model.folds[: spare + 1]:  # at least one of these is sound if enough folds are
        folds = (first, *(fold for fold in model.folds if fold != first))
        try:
            with new_bundle_folder(target) as folder:
                packable = source.open(model.path, {fold: model.checkpoint_path(fold) for fold in folds})
                packable = _oriented(packable, orientation)
                fold_errors = _write_bundle(packable, source.packages, spare, folder)
        except ModelError as error:
            errors.append(error)
        else:
            return replace(open_bundle(target), folds=model.folds, fold_errors=fold_errors)
    raise errors[0]


def _oriented(model: PackableModel, orientation: Orientation | None) -> PackableModel:
    """Return a model with an orientation that was given for it. Raises ModelError if the model states another one."""
    if None not in (orientation, model.orientation) and orientation != model.orientation:
        expected = f"the orientation {model.orientation}, which the folder states"
        raise ModelError(model.folder, expected=expected, found=f"{orientation}, which was given")
    return replace(model, orientation=orientation or model.orientation)


def _check_memory(wanted: int, folder: Path) -> None:
    """Raise DeviceMemoryError if less memory is free: a library that runs out of memory may end the process."""
    if wanted > (free := room_bytes()):
        found, hint = f"{free // MB} MB free", f"run `pantherseg pack {folder} BUNDLE` on a machine with more memory"
        expected = f"{wanted // MB} MB to pack a model folder"
        raise DeviceMemoryError("memory", expected=expected, found=found, hint=hint)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _copy(bundle: Bundle, target: Path) -> Bundle:
    replace(bundle, folds=bundle.manifest.folds).verify_all()
    with new_bundle_folder(target) as folder:
        for name in (MANIFEST, *bundle.manifest.sha256, *bundle.manifest.provenance.files_sha256):
            shutil.copyfile(bundle.path / name, folder / name)
    return open_bundle(target)


def _write_bundle(model: PackableModel, packages: Sequence[str], spare: int, folder: Path) -> dict[str, ModelError]:
    """Write every file of a bundle. Return the errors of the folds that are not in it, at most `spare` of them."""
    if not set(model.mirroring_axes) <= set(range(len(model.patch))):
        expected = f"mirroring axes below {len(model.patch)} for a patch of {model.patch}"
        raise ModelError(model.checkpoints[model.folds[0]], expected=expected, found=str(model.mirroring_axes))
    graph, peak_activations = _graph(model)
    tensors, fold_errors = _write_folds(model, spare, graph.constants, folder)
    folds = tuple(fold for fold in model.folds if fold not in fold_errors)
    # Every fold's file has the same tensors, and so the same header and offsets.
    header = read_header(folder / weights_name(folds[0]))
    offsets = {name: len(header) + entry["data_offsets"][0] for name, entry in json.loads(header[8:]).items()}
    (folder / GRAPH).write_text(graph.as_text(offsets, offsets[GRAPH_CONSTANTS]), encoding="utf-8")
    sha256 = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    for path in model.files:
        shutil.copyfile(path, folder / path.name)
    manifest = Manifest(
        schema=SCHEMA,
        checkpoint=model.checkpoint,
        folds=folds,
        patch=model.patch,
        classes=model.classes,
        labels=model.labels,
        mirroring_axes=model.mirroring_axes,
        orientation=model.orientation,
        preprocessing=model.preprocessing,
        architecture=model.architecture,
        tensors=tensors,
        peak_activations=peak_activations,
        header_sha256=hashlib.sha256(header).hexdigest(),
        sha256=sha256,
        provenance=Provenance(
            record=model.record,
            checkpoints_sha256={fold: sha256_of(model.checkpoints[fold]) for fold in folds},
            files_sha256={path.name: sha256_of(folder / path.name) for path in model.files},
            versions={"pantherseg": __version__, **{name: version(name) for name in ("openvino", *packages)}},
        ),
    )
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
    return fold_errors


def _graph(model: PackableModel) -> tuple[Graph, int]:
    """Return the graph of a model's network, and the largest number of activations that exist at the same time."""
    from pantherseg.packing.activations import peak_activations
    from pantherseg.packing.graph import make_graph

    network = build_network(model.described_in, model.architecture, classes=model.classes)
    shape = (1, 1, *model.patch)
    try:
        peak = peak_activations(network, shape)
        weights = sum(value.numel() for value in network.state_dict().values())
        _check_memory((peak + COPIES * weights) * np.dtype(np.float32).itemsize, model.folder)
        return make_graph(network, shape), peak
    except (RuntimeError, ValueError, MemoryError) as error:
        if (short := shortage(error, f"packing {model.folder}")) is not None:
            raise short from error
        expected = f"a network that can be packed with a patch of {model.patch}"
        raise ModelError(model.folder, expected=expected, found=last_line(error)) from error


def _write_folds(
    model: PackableModel, spare: int, constants: NDArray[np.uint8], folder: Path
) -> tuple[dict[str, tuple[int, ...]], dict[str, ModelError]]:
    """Write the files of the folds. Return the shapes of the tensors, and the errors of the folds without a file."""
    shapes: dict[str, tuple[int, ...]] = {}
    fold_errors: dict[str, ModelError] = {}
    network = build_network(model.described_in, model.architecture, classes=model.classes, running_statistics=True)
    for fold, checkpoint in model.checkpoints.items():
        try:
            tensors = _tensors(model, fold, network)
        except ModelError as error:
            fold_errors[fold] = error.at(checkpoint)
            if len(fold_errors) > spare:
                raise
            continue
        path = folder / weights_name(fold)
        save_file({**tensors, GRAPH_CONSTANTS: constants}, path)
        path.chmod(0o644)  # safetensors creates files that only their owner can read
        shapes = {name: value.shape for name, value in tensors.items()}
    return shapes, fold_errors


def _tensors(model: PackableModel, fold: str, network: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Load a fold's weights into a copy of the network, and return the tensors of that copy for inference.

    Raises ModelError.
    """
    from pantherseg.networks.running_norm import running_norms, use_running_statistics

    path, weights = model.checkpoints[fold], model.weights(fold)
    check_fit(path, network.state_dict(), weights)
    trained = copy.deepcopy(network)
    trained.load_state_dict(weights)
    for name, norm in running_norms(trained).items():
        variance = norm.running_var
        if variance is None or not (variance >= 0).logical_and(variance.isfinite()).all():
            expected = f"finite variances of at least 0 in {name}.running_var"
            raise ModelError(path, expected=expected, found="NaN, infinite or negative values")
    inference = use_running_statistics(trained)
    return {name: _float32(path, name, value) for name, value in distinct_tensors(inference).items()}


def _float32(path: Path, name: str, value: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = np.ascontiguousarray(value.numpy())
    if array.dtype != np.float32:
        raise ModelError(path, expected=f"float32 values in {name}", found=str(array.dtype))
    if not np.isfinite(array).all():
        raise ModelError(path, expected=f"finite values in {name}", found="NaN or infinite values")
    return array
