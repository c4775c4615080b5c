"""The way of one case: localizer, crop, members, fusion, post-processing, uncrop."""

from __future__ import annotations

import json
import logging
import resource
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pantherseg import __version__
from pantherseg.errors import DeviceMemoryError, InputError, LostDeviceError, ModelError, OutputError
from pantherseg.events import Event
from pantherseg.files import write_text
from pantherseg.fusion import mean_logits
from pantherseg.inference.backends import Backend, Mode, choose_backend
from pantherseg.inference.predictor import Logits, Predictor
from pantherseg.io.itk import write_volume
from pantherseg.localize import localize, searched_whole
from pantherseg.logs import shown, stage
from pantherseg.machine.deadline import NEVER, Deadline
from pantherseg.models.bundle import Bundle, check_classes
from pantherseg.models.find import Models, check_labels, find_models
from pantherseg.packing.pack import Packer
from pantherseg.postprocess import tumour_mask
from pantherseg.preprocessing.preprocess import Prepared, Preprocessing
from pantherseg.recipe import Recipe
from pantherseg.volume import Box, Volume, uncrop

logger = logging.getLogger(__name__)

# The code of the event that says that a device need not be tried again.
DEVICE_FAILED = "device_failed"
# How much of the time the search for the pancreas may take.
LOCALIZER_SHARE = 1 / 3


@dataclass(frozen=True)
class System:
    """A recipe with its models loaded, ready for any number of cases."""

    recipe: Recipe
    models: Models
    backend: Backend
    members: tuple[Predictor, ...]
    localizer: Predictor | None

    def on_cpu(self) -> System:
        """Return the same system on the CPU, for when the device has failed."""
        backend = choose_backend("cpu", self.backend.mode)
        members = tuple(replace(member, backend=backend) for member in self.members)
        localizer = None if self.localizer is None else replace(self.localizer, backend=backend)
        return replace(self, backend=backend, members=members, localizer=localizer)

    @property
    def predictors(self) -> tuple[Predictor, ...]:
        """The members, then the localizer if there is one."""
        return self.members if self.localizer is None else (*self.members, self.localizer)


@dataclass(frozen=True)
class Segmentation:
    """A tumour mask (uint8, 1 = tumour) on the input's grid, and how it came about.

    box: where the members looked; seconds: per stage, in their order; precision: of the members' networks; folds: of
    each member, those that are in the mask.
    """

    mask: Volume
    box: Box
    events: tuple[Event, ...]
    seconds: dict[str, float]
    precision: str
    folds: tuple[tuple[str, ...], ...]
    system: System = field(repr=False)

    @property
    def tumour_ml(self) -> float:
        """Volume of the mask in ml."""
        return float(self.mask.array.sum()) * self.mask.grid.voxel_mm3 / 1000

    def as_dict(self) -> dict[str, Any]:
        """Return the report of the case for a JSON file."""
        system = self.system
        return {
            "pantherseg": __version__,
            "not_for_clinical_use": True,
            "recipe": system.recipe.name,
            "device": system.backend.device,
            "precision": self.precision,
            "models": [_model_report(one.bundle, folds) for one, folds in zip_longest(system.predictors, self.folds)],
            "tumour_ml": round(self.tumour_ml, 3),
            "box": {"start_zyx": self.box.start, "stop_zyx": self.box.stop},
            "events": [event.as_dict() for event in self.events],
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "seconds": {stage: round(seconds, 3) for stage, seconds in self.seconds.items()},
        }


def load_system(
    recipe: Recipe, root: Path, *, device: str = "auto", mode: Mode = "exact", device_memory_mb: int | None = None
) -> System:
    """Find a recipe's models below `root`; device and device_memory_mb: as choose_backend takes them.

    Raises ModelError, RecipeError, DeviceError.
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
            )
            for model, member in zip(models.members, recipe.members, strict=True)
        )
        for predictor, member in zip(members, recipe.members, strict=True):
            check_labels(member.model, predictor.bundle, recipe)
        check_classes([predictor.bundle for predictor in members])
        models, localizer = _load_localizer(models, recipe, packer, backend)
        remarks += [f"{shown(model.path)}: folds {' '.join(model.folds)}" for model in models.all]
        remarks.append(f"{backend.device} in {backend.precision}")
    return System(recipe, models, backend, members, localizer)


def _load_localizer(
    models: Models, recipe: Recipe, packer: Packer, backend: Backend
) -> tuple[Models, Predictor | None]:
    """Return the localizer, or None with the reason in the models: a case is searched whole rather than lost."""
    if models.localizer is None or recipe.localizer is None:
        return models, None
    try:
        localizer = Predictor(packer.bundle(models.localizer), backend, step=recipe.localizer.step)
    except (ModelError, DeviceMemoryError) as error:
        return replace(models, localizer=None, problem=str(error)), None
    check_labels(recipe.localizer.model, localizer.bundle, recipe)
    return models, localizer


def write_result(result: Segmentation, mask: Path, report: Path, about: dict[str, str]) -> None:
    """Write the mask and its report, which begins with `about`; where one fails, neither is left.

    Raises OutputError.
    """
    with stage("write") as remarks:
        report.unlink(missing_ok=True)  # an older report must not stand beside a new mask
        write_volume(result.mask, mask)
        try:
            write_text(report, json.dumps({**about, **result.as_dict()}, indent=2) + "\n")
        except OutputError:
            mask.unlink()
            raise
        remarks.append(shown(mask))


def segment(
    volume: Volume,
    system: System,
    *,
    rescue: bool | None = None,
    events: tuple[Event, ...] = (),
    deadline: Deadline = NEVER,
) -> Segmentation:
    """Segment the tumour in a volume (float32, z, y, x). Raises InputError, which names the place `volume`.

    rescue: fill an empty mask with the most probable component; without it as the recipe says. events: what happened
    before, such as on reading; they come first in the result's. deadline: when the mask must be written; what does not
    fit before it is left out. A device that fails on the way is left for the CPU.
    """
    networks = deadline.before(volume.array.size)
    try:
        return _segment(volume, system, rescue, events, networks)
    except (LostDeviceError, RuntimeError) as error:
        failure = system.backend.explained(error)
        if failure is None or system.backend.device == "cpu":
            raise
    # Outside of the handler and without the traceback, so that what the failed attempt held is free.
    failure = failure.at(failure.where)
    logger.warning("%s; the case begins anew on the CPU", failure)
    code = "device_full" if isinstance(failure, DeviceMemoryError) else DEVICE_FAILED
    fallback = Event(code, f"{failure}; the CPU was used")
    return _segment(volume, system.on_cpu(), rescue, (*events, fallback), networks)


def _segment(
    volume: Volume, system: System, rescue: bool | None, events: tuple[Event, ...], deadline: Deadline
) -> Segmentation:
    """Segment a volume on one device. deadline: of the networks."""
    recipe = system.recipe
    seconds: dict[str, float] = {}
    box, found = _search_box(volume, system, seconds, deadline)
    crop = volume.crop(box)
    with stage("members", seconds) as remarks:
        members = _member_logits(crop, system.members, deadline)
        logits, summed = mean_logits(members), tuple(event for member in members for event in member.events)
        folds = tuple(member.folds for member in members)
        remarks.append(f"{sum(map(len, folds))} folds on {'x'.join(map(str, crop.grid.shape))} voxels (z, y, x)")
    with stage("mask", seconds) as remarks:
        settings = recipe.postprocess
        inside, cleaned = tumour_mask(
            logits.labels() == recipe.tumour_label,
            lambda: logits.probability(recipe.tumour_label),
            volume.grid.voxel_mm3,
            settings,
            rescue=settings.rescue if rescue is None else rescue,
        )
        mask = Volume(uncrop(inside, box, volume.grid.shape), volume.grid)
        happened = system.backend.events + events + found + summed + cleaned
        precision = " and ".join(dict.fromkeys(member.precision for member in members))
        result = Segmentation(mask, box, happened, seconds, precision, folds, system)
        remarks.append(f"{result.tumour_ml:.1f} ml of tumour")
    for event in result.events:
        logger.warning("%s: %s", event.code, event.message)
    return result


def _member_logits(crop: Volume, members: tuple[Predictor, ...], deadline: Deadline) -> list[Logits]:
    """Return each member's logits; members that want the same preprocessing share it, and all share the time."""
    prepared: dict[Preprocessing, Prepared] = {}
    for member in members:
        if member.preprocessing not in prepared:
            prepared[member.preprocessing] = member.prepare(crop)
    work = [member.work(prepared[member.preprocessing]) for member in members]
    return [
        member.logits(prepared[member.preprocessing], deadline.share(work[number] / sum(work[number:])))
        for number, member in enumerate(members)
    ]


def _search_box(
    volume: Volume, system: System, seconds: dict[str, float], deadline: Deadline
) -> tuple[Box, tuple[Event, ...]]:
    """Return where the members look: around the pancreas, or the whole volume with an event that says why."""
    whole = Box.whole(volume.grid.shape)
    settings = system.recipe.localizer
    if settings is None:
        return whole, ()
    if system.localizer is None:
        code = "localizer_failed" if system.models.problem else "no_localizer"
        reason = system.models.problem or f"no model '{settings.model}' in {system.models.root}"
        return whole, (searched_whole(code, reason),)
    with stage("localizer", seconds) as remarks:
        try:
            box, events = localize(volume, system.localizer, settings, deadline.share(LOCALIZER_SHARE))
        except (ModelError, InputError, DeviceMemoryError, MemoryError) as error:
            if isinstance(error, DeviceMemoryError) and system.backend.device != "cpu":
                raise  # the CPU may have more
            reason = str(error) or "too little memory"
            box, events = None, (searched_whole("localizer_failed", reason),)
        remarks.append("no box" if box is None else f"box {box.start} to {box.stop} (z, y, x)")
    return box or whole, events


def _model_report(bundle: Bundle, folds: tuple[str, ...] | None) -> dict[str, Any]:
    """Return what a report says of a model; folds: without them, as of a localizer, all."""
    path, checkpoint = str(bundle.display_path), bundle.manifest.checkpoint
    return {"path": path, "folds": list(folds or bundle.folds), "checkpoint": checkpoint}
