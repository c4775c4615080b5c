"""The models of a recipe, ready on a device: the members and the localizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pantherseg.errors import DeviceMemoryError, ModelError, printable
from pantherseg.events import Event, EventCode
from pantherseg.inference.backends import Backend, Mode, choose_backend
from pantherseg.inference.predictor import Predictor
from pantherseg.labels import PANCREAS_NAME, find_label, localizer_label_warning
from pantherseg.localize import localizer_predictor
from pantherseg.logs import shown, stage
from pantherseg.models.bundle import check_classes
from pantherseg.models.calibration import Calibration, find_calibration, identity
from pantherseg.models.find import Models, check_labels, find_models, label_warning
from pantherseg.orientation import DEFAULT_ORIENTATION, Orientation
from pantherseg.packing.pack import Packer
from pantherseg.recipe import Recipe


@dataclass(frozen=True)
class Ensemble:
    """A recipe's models on a device.

    localizer: None where the recipe has none, or where it is missing or cannot be used, for which localizer_problem is
    the reason. calibration: of these models, None without one. events: about the models and the device; every case of
    the session reports them.
    """

    backend: Backend
    members: tuple[Predictor, ...]
    localizer: Predictor | None
    localizer_problem: str = ""
    calibration: Calibration | None = None
    events: tuple[Event, ...] = ()

    def on_cpu(self) -> Ensemble:
        """Return the same models on the CPU, for when the device has failed."""
        backend = choose_backend("cpu", self.backend.mode)
        members = tuple(replace(member, backend=backend) for member in self.members)
        localizer = None if self.localizer is None else replace(self.localizer, backend=backend)
        return replace(self, backend=backend, members=members, localizer=localizer)

    @property
    def predictors(self) -> tuple[Predictor, ...]:
        """The members, then the localizer if there is one."""
        return self.members if self.localizer is None else (*self.members, self.localizer)

    @property
    def orientation(self) -> Orientation:
        """The orientation in which volumes are segmented: that of the first member."""
        return self.members[0].trained_orientation

    @property
    def pancreas_label(self) -> int | None:
        """The pancreas in the label map of the members, None where they have no such label, or no common map."""
        if len({member.bundle.manifest.classes for member in self.members}) > 1:
            return None
        return find_label(self.members[0].bundle.manifest.labels, PANCREAS_NAME)


def load_ensemble(
    recipe: Recipe,
    root: Path,
    *,
    device: str = "auto",
    mode: Mode = "exact",
    device_memory_mb: int | None = None,
    keep_networks: bool = False,
) -> Ensemble:
    """Find a recipe's models below `root` and make them ready.

    device, mode, device_memory_mb: as choose_backend takes them; keep_networks: keep compiled networks for the next
    case where memory allows. Raises ModelError, RecipeError, DeviceError.
    """
    backend = choose_backend(device, mode, device_memory_mb=device_memory_mb)
    with stage("models") as remarks:
        models = find_models(root, recipe, complete=False)
        packer = Packer(models.all)
        members = tuple(
            Predictor(
                packer.bundle(model, member.min_folds),
                backend,
                step=member.step,
                mirroring=member.mirroring,
                min_folds=member.min_folds,
                keep_networks=keep_networks,
                allow_bfloat16=recipe.allow_bfloat16,
                orientation=member.orientation,
                compared_label=recipe.tumour_label,
                weight=member.weight,
            )
            for model, member in zip(models.members, recipe.members, strict=True)
        )
        for predictor, member in zip(members, recipe.members, strict=True):
            check_labels(member.model, predictor.bundle, recipe)
        if recipe.fusion.same_classes:
            check_classes([predictor.bundle for predictor in members])
        localizer, problem = _load_localizer(models, recipe, packer, backend, keep_networks=keep_networks)
        used = models.all if localizer is not None else models.members
        remarks += [f"{shown(model.path)}: folds {' '.join(model.folds)}" for model in used]
        remarks.append(f"{backend.device} in {backend.precision}")
    ensemble = Ensemble(backend, members, localizer, problem)
    events = (
        *_assumed_orientations(ensemble.predictors),
        *_label_warnings(members, recipe),
        *_localizer_warning(localizer, recipe),
    )
    calibration = find_calibration(root, recipe.name, identity(one.bundle for one in ensemble.predictors))
    return replace(ensemble, events=events, calibration=calibration)


def _assumed_orientations(predictors: Sequence[Predictor]) -> tuple[Event, ...]:
    """Return an event for each model whose orientation is not known."""
    models = dict.fromkeys(shown(one.bundle.display_path) for one in predictors if not one.knows_orientation)
    assumed = f"the orientation of the training volumes is not known, so {DEFAULT_ORIENTATION} was assumed"
    hint = "if that is wrong, set `orientation` in the recipe"
    return tuple(Event(EventCode.ORIENTATION_ASSUMED, f"{model}: {assumed}; {hint}") for model in models)


def _label_warnings(members: tuple[Predictor, ...], recipe: Recipe) -> tuple[Event, ...]:
    """Return an event for each model that calls the recipe's tumour label pancreas."""
    events = []
    for member, predictor in zip(recipe.members, members, strict=True):
        if warning := label_warning(member.model, predictor.bundle.manifest.labels, recipe):
            message = f"{shown(predictor.bundle.display_path)}: {warning}"
            events.append(Event(EventCode.TUMOUR_LABEL_NAMED_PANCREAS, message))
    return tuple(dict.fromkeys(events))  # several members may use the same model


def _localizer_warning(localizer: Predictor | None, recipe: Recipe) -> tuple[Event, ...]:
    """Return an event if the localizer calls another label pancreas than the recipe."""
    if localizer is None or recipe.localizer is None:
        return ()
    warning = printable(localizer_label_warning(localizer.bundle.manifest.labels, recipe.localizer.label))
    message = f"{shown(localizer.bundle.display_path)}: {warning}"
    return (Event(EventCode.LOCALIZER_LABEL_NOT_PANCREAS, message),) if warning else ()


def _load_localizer(
    models: Models, recipe: Recipe, packer: Packer, backend: Backend, *, keep_networks: bool
) -> tuple[Predictor | None, str]:
    """Return the localizer, or None and the reason: the whole volume is searched rather than the case lost."""
    if models.localizer is None or recipe.localizer is None:
        return None, models.problem
    try:
        localizer = localizer_predictor(
            models.localizer,
            recipe.localizer,
            packer,
            backend,
            keep_networks=keep_networks,
            allow_bfloat16=recipe.allow_bfloat16,
        )
    except (ModelError, DeviceMemoryError) as error:
        return None, str(error)
    return localizer, ""
