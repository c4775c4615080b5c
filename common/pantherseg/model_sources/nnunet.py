"""nnU-Net's model folders: plans.json, dataset.json and fold_<k>/checkpoint_final.pth, read with nnU-Net's own code."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import pydoc
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pantherseg.errors import InputError, ModelError
from pantherseg.io import find_sources, read_labels
from pantherseg.model_sources.checkpoint import Checkpoint, read_checkpoint
from pantherseg.model_sources.mrsegmentator import TURNED_TO, VERSION, is_mrsegmentator
from pantherseg.model_sources.packable import PackableModel
from pantherseg.networks import build_network
from pantherseg.networks.nnunet import NETWORK_PACKAGE, NnunetNetwork
from pantherseg.orientation import DEFAULT_ORIENTATION, ORIENTATIONS, Orientation
from pantherseg.preprocessing.intensity import IntensityScheme
from pantherseg.preprocessing.preprocess import Preprocessing
from pantherseg.preprocessing.resample import Resampling
from pantherseg.tables import decode_registered

if TYPE_CHECKING:
    import torch
    from torch import nn

logger = logging.getLogger(__name__)

PLANS, DATASET = "plans.json", "dataset.json"
# Where `pantherseg train` says how a model was trained, and how good it is; other model folders do not have it.
RECORD = "training.json"
CHECKPOINT = "checkpoint_final.pth"
LAYOUT = f"{PLANS}, {DATASET} and fold_0, fold_1, ..."
# nnU-Net's readers, and the orientation to which they turn volumes; None where voxels stay in the order of the file.
READERS: dict[str, Orientation | None] = {
    **dict.fromkeys(("SimpleITKIO", "NibabelIO")),
    **dict.fromkeys(("SimpleITKIOWithReorient", "NibabelIOWithReorient"), "RAS"),
}
# A key of dataset.json that nnU-Net ignores and `pantherseg train` writes.
ORIENTATION_KEY = "orientation"
PREPROCESSOR = "DefaultPreprocessor"
FOREGROUND = ("mean", "std", "percentile_00_5", "percentile_99_5")


class NnunetSource:
    """nnU-Net's model folders."""

    files: tuple[str, ...] = (PLANS, DATASET)
    checkpoint = CHECKPOINT
    packages: tuple[str, ...] = ("torch", "nnunetv2")

    def accepts(self, folder: Path) -> bool:
        """See `Source.accepts`."""
        return any((folder / name).is_file() for name in self.files) or any(folder.glob("fold_*/*.pth"))

    def open(self, folder: Path, checkpoints: Mapping[str, Path]) -> PackableModel:
        """See `Source.open`. The first checkpoint names the configuration of the plans and the mirroring axes."""
        fold, path = next(iter(checkpoints.items()))
        first = read_checkpoint(path)
        wanted = first.configuration, first.mirroring_axes
        configuration = read_configuration(folder, first.configuration)

        def weights(name: str) -> dict[str, torch.Tensor]:
            checkpoint = read_checkpoint(checkpoints[name])
            if (found := (checkpoint.configuration, checkpoint.mirroring_axes)) != wanted:
                expected = f"{wanted[0]}, mirroring axes {wanted[1]}, as fold {fold}"
                raise ModelError(checkpoints[name], expected=expected, found=f"{found[0]}, {found[1]}")
            return checkpoint.weights

        return PackableModel(
            folder=folder,
            described_in=folder / PLANS,
            checkpoints=checkpoints,
            patch=configuration.patch,
            labels=configuration.labels,
            mirroring_axes=first.mirroring_axes,
            orientation=configuration.orientation,
            preprocessing=configuration.preprocessing,
            architecture=_with_trained_norm(first, configuration),
            files=tuple(path for name in (*self.files, RECORD, VERSION) if (path := folder / name).is_file()),
            record={"configuration": first.configuration, "trainer": first.trainer},
            weights=weights,
        )


@dataclass(frozen=True)
class Configuration:
    """One configuration of nnU-Net's plans, such as 3d_fullres.

    plans: the file. patch: the network's input, (z, y, x) or (y, x), in its own axes. labels: number by name.
    orientation: of the training volumes, None where nothing tells it.
    """

    plans: Path
    architecture: dict[str, Any]
    preprocessing: Preprocessing
    patch: tuple[int, ...]
    labels: dict[str, int]
    orientation: Orientation | None

    def network(self) -> nn.Module:
        """Return a new network as it is trained, in evaluation mode and without deep supervision. Raises ModelError."""
        return build_network(self.plans, self.architecture, classes=len(self.labels), running_statistics=True)


def read_configuration(folder: Path, name: str) -> Configuration:
    """Read one configuration from the plans of a model folder.

    Raises ModelError for damaged plans, and for a model that this package cannot run.
    """
    plans, dataset = read_json(folder / PLANS), read_json(folder / DATASET)
    with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net prints a greeting on import, and stdout is for results
        from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about plans in nnU-Net's older format, which it understands
            manager = PlansManager(plans)
            settings = manager.get_configuration(name)
            labels = manager.get_label_manager(dataset)
        properties = {
            "channels": determine_num_input_channels(manager, settings, dataset),
            "cascade": settings.previous_stage_name is not None,
            "regions": labels.has_regions,
            "ignore label": labels.has_ignore_label,
            "reader": manager.plans["image_reader_writer"],
            "preprocessor": settings.preprocessor_name,
        }
        _check_supported(folder, properties)
        return Configuration(
            folder / PLANS,
            _architecture(settings),
            _preprocessing(settings.configuration, manager.plans),
            tuple(settings.patch_size),
            {str(label): int(value) for label, value in dataset["labels"].items()},
            _orientation(folder, properties["reader"], dataset),
        )
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, AssertionError) as error:
        expected = f"{PLANS} and {DATASET} with a valid configuration {name}"
        raise ModelError(folder, expected=expected, found=repr(error)) from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file such as plans.json. Raises ModelError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(path, expected="valid JSON", found=str(error) or type(error).__name__) from error
    if not isinstance(content, dict):
        raise ModelError(path, expected="a JSON object", found=f"a value of type {type(content).__name__}")
    return content


def _orientation(folder: Path, reader: str, dataset: Mapping[str, Any]) -> Orientation | None:
    """Return the orientation of the training volumes, None where nothing tells it.

    A reader that turns volumes decides, then the masks that nnU-Net wrote for validation, then dataset.json. Raises
    ValueError for a statement that is no orientation.
    """
    if is_mrsegmentator(folder):
        return TURNED_TO
    if (turned := READERS[reader]) is not None:
        return turned
    stated = dataset.get(ORIENTATION_KEY)
    if stated is not None and stated not in ORIENTATIONS:
        raise ValueError(f"orientation {stated!r} instead of a code such as {DEFAULT_ORIENTATION}")
    found = _orientations_of_validation(folder)
    if len(found) > 1 or (found and stated not in (None, *found)):
        said = f", {DATASET} says {stated}" if stated else ""
        logger.warning("%s: its validation masks lie in %s%s", folder, " and ".join(sorted(found)), said)
    return found.pop() if len(found) == 1 else stated


def _orientations_of_validation(folder: Path) -> set[Orientation]:
    """Return the orientations of masks that nnU-Net wrote for validation, which lie as the training volumes do.

    Of each fold, the first, middle and last mask are read; those that cannot be read are skipped.
    """
    found: set[Orientation] = set()
    for validation in sorted(folder.glob("fold_*/validation")):
        with contextlib.suppress(InputError):
            masks = find_sources(validation)
            for mask in {masks[0], masks[len(masks) // 2], masks[-1]} if masks else ():
                found.add(read_labels(mask).grid.orientation)
    return found


def _architecture(settings: Any) -> dict[str, Any]:
    """Return the network of a configuration. Its class is searched where nnU-Net would search it."""
    import dynamic_network_architectures
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    name = str(settings.network_arch_class_name)
    # Plans of older versions name a module that no longer exists.
    if name.startswith(NETWORK_PACKAGE) and pydoc.locate(name) is None:
        package = f"{dynamic_network_architectures.__name__}.architectures"
        folder = str(Path(dynamic_network_architectures.__path__[0]) / "architectures")
        found = recursive_find_python_class(folder, name.rpartition(".")[2], package)
        name = f"{found.__module__}.{found.__name__}" if found is not None else name
    network = NnunetNetwork(
        network=name,
        arguments=dict(settings.network_arch_init_kwargs),
        imported=tuple(settings.network_arch_init_kwargs_req_import),
    )
    data: dict[str, Any] = msgspec.to_builtins(network)
    return data


def _with_trained_norm(checkpoint: Checkpoint, configuration: Configuration) -> dict[str, Any]:
    """Return the network of a checkpoint: that of the plans, or what nnU-Net's nnUNetTrainerBN makes of it.

    That trainer replaces instance norm by batch norm, and the plans do not say so. Batch norm keeps running statistics.
    """
    arguments = configuration.architecture["arguments"]
    tracked = bool((arguments.get("norm_op_kwargs") or {}).get("track_running_stats"))
    has_statistics = any(key.endswith(".running_mean") for key in checkpoint.weights)
    if tracked or not has_statistics or "InstanceNorm" not in str(arguments.get("norm_op")):
        return configuration.architecture
    batch_norm = f"torch.nn.modules.batchnorm.BatchNorm{len(configuration.patch)}d"
    changed = arguments | {"norm_op": batch_norm, "norm_op_kwargs": {"eps": 1e-5, "affine": True}}
    return configuration.architecture | {"arguments": changed}


def _check_supported(folder: Path, properties: Mapping[str, Any]) -> None:
    wanted = {"channels": 1, "cascade": False, "regions": False, "ignore label": False, "preprocessor": PREPROCESSOR}
    wrong = [f"{name} {properties[name]}" for name, value in wanted.items() if properties[name] != value]
    if properties["reader"] not in READERS and not is_mrsegmentator(folder):
        wrong.append(f"reader {properties['reader']}")
    if wrong:
        expected = f"one channel, one stage, labels, {PREPROCESSOR}, {' or '.join(READERS)}"
        raise ModelError(folder, expected=expected, found=", ".join(wrong))


def _preprocessing(configuration: Mapping[str, Any], plans: Mapping[str, Any]) -> Preprocessing:
    """Return how a volume is prepared. Raises KeyError, TypeError or ValueError for missing or unknown settings."""
    scheme = configuration["normalization_schemes"][0]
    settings: dict[str, Any] = {}
    if scheme == "CTNormalization":
        properties = plans["foreground_intensity_properties_per_channel"]["0"]
        settings = {name: float(properties[name]) for name in FOREGROUND}
    elif scheme == "ZScoreNormalization":
        settings = {"use_mask": bool(configuration["use_mask_for_norm"][0])}
    preprocessing = Preprocessing(
        spacing=tuple(float(mm) for mm in configuration["spacing"]),
        transpose=tuple(int(axis) for axis in plans["transpose_forward"]),  # type: ignore[arg-type]
        normalization=IntensityScheme.registry.decode({"scheme": scheme, **settings}),
        images=_resampling(configuration, "data"),
        logits=_resampling(configuration, "probabilities"),
    )
    # msgspec checks values only when it converts, not when a struct is constructed.
    return msgspec.convert(msgspec.to_builtins(preprocessing), Preprocessing, dec_hook=decode_registered)


def _resampling(configuration: Mapping[str, Any], what: str) -> Resampling:
    name = f"resampling_fn_{what}"
    return Resampling.from_plans(configuration[name], configuration[f"{name}_kwargs"])
