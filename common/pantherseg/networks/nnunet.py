"""What nnU-Net's plans.json and dataset.json say about a network and its input, read with nnU-Net's own code."""

from __future__ import annotations

import contextlib
import io
import pydoc
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pantherseg.errors import ModelError
from pantherseg.models.bundle import DATASET, PLANS, Architecture, read_json
from pantherseg.networks.registry import NETWORK_PACKAGE, build_network
from pantherseg.preprocessing.preprocess import Normalization, Preprocessing
from pantherseg.preprocessing.resample import Resampling

if TYPE_CHECKING:
    from torch import nn

READERS = ("SimpleITKIO", "NibabelIO")
PREPROCESSOR = "DefaultPreprocessor"
INTENSITIES = ("mean", "std", "percentile_00_5", "percentile_99_5")


@dataclass(frozen=True)
class Plan:
    """One configuration of a model folder's plans. patch: the network's input, (z, y, x) or (y, x), in its own axes."""

    folder: Path
    architecture: Architecture
    preprocessing: Preprocessing
    patch: tuple[int, ...]
    labels: dict[str, int]

    @property
    def classes(self) -> int:
        """Number of classes, the background's included."""
        return len(self.labels)

    def network(self) -> nn.Module:
        """Return a new network in evaluation mode, without deep supervision. Raises ModelError."""
        return build_network(self.folder / PLANS, self.architecture, classes=self.classes)


def read_plan(folder: Path, configuration: str) -> Plan:
    """Read one configuration of a model folder's plans. Raises ModelError for what this package does not run."""
    plans, dataset = read_json(folder / PLANS), read_json(folder / DATASET)
    with contextlib.redirect_stdout(io.StringIO()):  # stdout belongs to results; nnU-Net greets there on import
        from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of plans in nnU-Net's older format, which it understands
            manager = PlansManager(plans)
            settings = manager.get_configuration(configuration)
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
        return Plan(
            folder,
            _architecture(settings),
            _preprocessing(settings.configuration, manager.plans),
            tuple(settings.patch_size),
            {str(name): int(value) for name, value in dataset["labels"].items()},
        )
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, AssertionError) as error:
        raise ModelError(
            folder, expected=f"plans.json and dataset.json with {configuration}", found=repr(error)
        ) from error


def _architecture(settings: Any) -> Architecture:
    """Return a configuration's network; its class is looked for where nnU-Net would find it."""
    import dynamic_network_architectures
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    name = str(settings.network_arch_class_name)
    # Plans of older versions name a module that is no more.
    if name.startswith(NETWORK_PACKAGE) and pydoc.locate(name) is None:
        package = f"{dynamic_network_architectures.__name__}.architectures"
        folder = str(Path(dynamic_network_architectures.__path__[0]) / "architectures")
        found = recursive_find_python_class(folder, name.rpartition(".")[2], package)
        name = f"{found.__module__}.{found.__name__}" if found is not None else name
    return Architecture(
        network=name,
        arguments=dict(settings.network_arch_init_kwargs),
        imported=tuple(settings.network_arch_init_kwargs_req_import),
    )


def _check_supported(folder: Path, properties: Mapping[str, Any]) -> None:
    wanted = {"channels": 1, "cascade": False, "regions": False, "ignore label": False, "preprocessor": PREPROCESSOR}
    odd = [f"{name} {properties[name]}" for name, value in wanted.items() if properties[name] != value]
    if properties["reader"] not in READERS:
        odd.append(f"reader {properties['reader']}")
    if odd:
        raise ModelError(
            folder, expected=f"one channel, one stage, labels, {PREPROCESSOR}, {READERS[0]}", found=", ".join(odd)
        )


def _preprocessing(configuration: Mapping[str, Any], plans: Mapping[str, Any]) -> Preprocessing:
    """Return how a volume is prepared. Raises KeyError, TypeError or ValueError for what is missing or unknown."""
    properties = plans["foreground_intensity_properties_per_channel"]["0"]
    scheme = configuration["normalization_schemes"][0]
    intensities = {name: float(properties[name]) for name in INTENSITIES} if scheme == "CTNormalization" else {}
    preprocessing = Preprocessing(
        spacing=tuple(float(mm) for mm in configuration["spacing"]),
        transpose=tuple(int(axis) for axis in plans["transpose_forward"]),  # type: ignore[arg-type]
        normalization=Normalization(scheme=scheme, use_mask=bool(configuration["use_mask_for_norm"][0]), **intensities),
        images=_resampling(configuration, "data"),
        logits=_resampling(configuration, "probabilities"),
    )
    try:
        # Values are checked only where a struct is made of something else.
        return msgspec.convert(msgspec.to_builtins(preprocessing), Preprocessing)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error


def _resampling(configuration: Mapping[str, Any], what: str) -> Resampling:
    name = f"resampling_fn_{what}"
    return Resampling.from_plans(configuration[name], configuration[f"{name}_kwargs"])
