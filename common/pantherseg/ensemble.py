"""The models of a recipe, ready on a device: the members and the localizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pantherseg.errors import DeviceMemoryError, ModelError, printable
from pantherseg.events import Event, EventCode
from pantherseg.inference.backends import Backend, Mode, choose_backend
from pantherseg.inference.predictor import Predictor
from pantherseg.labels import localizer_label_warning, tumour_label_warning
from pantherseg.localize import localizer_predictor
from pantherseg.logs import shown, stage
from pantherseg.models.bundle import Bundle
from pantherseg.models.calibration import Calibration, find_calibration, identity
from pantherseg.models.find import Models, find_models, usable_members
from pantherseg.models.label_maps import LabelMap, fused_labels
from pantherseg.orientation import DEFAULT_ORIENTATION, Orientation
from pantherseg.packing.pack import Packer
from pantherseg.recipe import Recipe, check_recipe


@dataclass(frozen=True)
class Ensemble:
    """A recipe's models on a device.

    labels: in which the members are fused; localizer: None where the recipe has none, or where it is missing or cannot
    be used, for which localizer_problem is the reason; min_members: how many must be usable, None for all; calibration:
    of these models, None without one; events: about the models and the device; every case of the session reports them.
    """

    backend: Backend
    members: tuple[Predictor, ...]
    labels: LabelMap
    localizer: Predictor | None
    min_members: int | None = None
    localizer_problem: str = ""
    calibration: Calibration | None = None
    events: tuple[Event, ...] = ()

    def on_cpu(self) -> Ensemble:
        """Return the same models on the CPU, for when the device has failed."""
        backend = choose_backend("cpu", self.backend.mode, bfloat16=self.members[0].fast.bfloat16)
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
    check_recipe(recipe, f"recipe {recipe.name}")
    backend = choose_backend(device, mode, bfloat16=recipe.fast.bfloat16, device_memory_mb=device_memory_mb)
    with stage("models") as remarks:
        models = find_models(root, recipe, complete=False)
        packer = Packer(models.all)
        recipe, bundles, left_out = _usable_bundles(recipe, models, packer)
        members, labels = _predictors(recipe, bundles, backend, keep_networks=keep_networks)
        localizer, problem = _load_localizer(models, recipe, packer, backend, keep_networks=keep_networks)
        used = (*bundles, *(() if localizer is None else (localizer.bundle,)))
        remarks += [f"{shown(bundle.display_path)}: folds {' '.join(bundle.folds)}" for bundle in used]
        remarks.append(f"{backend.device} in {backend.precision}")
    ensemble = Ensemble(backend, members, labels, localizer, recipe.min_members, problem)
    events = (
        *left_out,
        *_assumed_orientations(ensemble.predictors),
        *_label_warnings(members, recipe),
        *_localizer_warning(localizer, recipe),
    )
    calibration = find_calibration(root, recipe.name, identity(one.bundle for one in ensemble.predictors))
    return replace(ensemble, events=events, calibration=calibration)


def member_left_out(name: str | None, reason: str | ModelError) -> Event:
    """Return an event for a member that does not take part."""
    return Event(EventCode.MEMBER_LEFT_OUT, f"the member '{name}' was left out: {reason}")


def _usable_bundles(
    recipe: Recipe, models: Models, packer: Packer
) -> tuple[Recipe, tuple[Bundle, ...], tuple[Event, ...]]:
    """Return the recipe with the members that are usable, their bundles, and an event for each other member.

    Raises the ModelError of a member where more are needed.
    """
    found = recipe.with_members([name for name in recipe.member_names if name not in models.unusable])

    def bundle(number: int) -> Bundle:
        return packer.bundle(models.members[number], found.members[number].min_folds)

    bundles, damaged = usable_members(found, bundle, min_members=recipe.min_members)
    usable = found.with_members([name for name in found.member_names if name not in damaged])
    left_out = {**models.unusable, **damaged}
    return usable, bundles, tuple(member_left_out(name, error) for name, error in left_out.items())


def _predictors(
    recipe: Recipe, bundles: Sequence[Bundle], backend: Backend, *, keep_networks: bool
) -> tuple[tuple[Predictor, ...], LabelMap]:
    """Return the members on a device, and the label map in which they are fused."""
    labels = fused_labels(bundles, recipe)
    members = tuple(
        Predictor(
            bundle,
            backend,
            name=name,
            step=member.step,
            mirroring=member.mirroring,
            min_folds=member.min_folds,
            keep_networks=keep_networks,
            allow_bfloat16=recipe.allow_bfloat16,
            fast=recipe.fast,
            orientation=member.orientation,
            compared_label=own.tumour,
            weight=member.weight,
            threshold=member.threshold,
            class_order=own.order_as(labels.common),
            finds_pancreas=own.pancreas is not None,
        )
        for bundle, name, member, own in zip(bundles, recipe.member_names, recipe.members, labels.members, strict=True)
    )
    return members, labels.common


def _assumed_orientations(predictors: Sequence[Predictor]) -> tuple[Event, ...]:
    """Return an event for each model whose orientation is not known."""
    models = dict.fromkeys(shown(one.bundle.display_path) for one in predictors if not one.knows_orientation)
    assumed = f"the orientation of the training volumes is not known, so {DEFAULT_ORIENTATION} was assumed"
    hint = "if that is wrong, set `orientation` in the recipe"
    return tuple(Event(EventCode.ORIENTATION_ASSUMED, f"{model}: {assumed}; {hint}") for model in models)


def _label_warnings(members: tuple[Predictor, ...], recipe: Recipe) -> tuple[Event, ...]:
    """Return an event for each model that calls its tumour label pancreas."""
    events = []
    for member, predictor in zip(recipe.members, members, strict=True):
        labels = predictor.bundle.manifest.labels
        if warning := printable(tumour_label_warning(labels, recipe.tumour_label_of(member))):
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
