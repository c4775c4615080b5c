"""Segments one volume: localizer, crop, members, fusion, post-processing, uncrop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pantherseg import __version__
from pantherseg.confidence.estimate import estimate
from pantherseg.ensemble import Ensemble, member_left_out
from pantherseg.errors import DeviceMemoryError, Float16Error, InputError, LostDeviceError, ModelError
from pantherseg.events import Event, EventCode
from pantherseg.inference.predictor import Logits, Predictor
from pantherseg.inference.schedule import localizer_deadline, member_deadline, networks_deadline
from pantherseg.localize import Located, Pancreas, localize, searched_whole
from pantherseg.logs import stage
from pantherseg.machine.deadline import NEVER, Deadline
from pantherseg.machine.memory import peak_mb
from pantherseg.models.bundle import needed
from pantherseg.orientation import Orientation
from pantherseg.postprocess import Mask, PancreasOf, Prediction
from pantherseg.preprocessing.preprocess import Prepared, Preprocessing
from pantherseg.recipe import Recipe
from pantherseg.results import SCHEMA, CaseReport, Confidence, LocatedPancreas, ModelUse, VoxelBox
from pantherseg.session import Session
from pantherseg.volume import Box, Volume, uncrop

logger = logging.getLogger(__name__)

# Failures on a GPU after which it is tried again for the next case.
OF_ONE_CASE = {DeviceMemoryError: EventCode.DEVICE_FULL, Float16Error: EventCode.FLOAT16_TOO_SMALL}


@dataclass(frozen=True)
class Segmentation:
    """A tumour mask (uint8, 1 = tumour) on the input's grid, and how it came about.

    box: where the members looked; pancreas: what the localizer found, None where its box was not used; events: of the
    case; seconds: for each stage, in their order; recipe: its name; device, precision: where and how the members'
    networks ran; models: the members, then the localizer; confidence: how sure they are, before post-processing;
    peak_memory_mb: the most that the process has taken, since `run_case` began where the kernel can tell; probability:
    that of the tumour before post-processing (float32, on the input's grid), if it was asked for; pancreas_mask: the
    pancreas without the tumour (uint8, on the input's grid), if it was asked for and the members mark it.
    """

    mask: Volume
    box: Box
    pancreas: Pancreas | None
    events: tuple[Event, ...]
    seconds: dict[str, float]
    recipe: str
    device: str
    precision: str
    models: tuple[ModelUse, ...]
    confidence: Confidence
    peak_memory_mb: int
    probability: Volume | None = None
    pancreas_mask: Volume | None = None

    @property
    def tumour_ml(self) -> float:
        """Volume of the tumour."""
        return float(self.mask.array.sum()) * self.mask.grid.voxel_mm3 / 1000

    def report(self, *, input_name: str, mask_path: str, probability_path: str | None = None) -> CaseReport:
        """Return the report of the case. mask_path, probability_path: relative to the folder of the report."""
        return CaseReport(
            schema=SCHEMA,
            input=input_name,
            mask=mask_path,
            probability=msgspec.UNSET if probability_path is None else probability_path,
            pantherseg=__version__,
            not_for_clinical_use=True,
            recipe=self.recipe,
            device=self.device,
            precision=self.precision,
            models=self.models,
            tumour_ml=round(self.tumour_ml, 3),
            confidence=self.confidence,
            box=VoxelBox(start_zyx=self.box.start, stop_zyx=self.box.stop),
            pancreas=None if self.pancreas is None else _reported(self.pancreas),
            events=self.events,
            peak_memory_mb=self.peak_memory_mb,
            seconds={stage: round(seconds, 3) for stage, seconds in self.seconds.items()},
        )


def segment(
    volume: Volume,
    session: Session,
    *,
    events: tuple[Event, ...] = (),
    deadline: Deadline = NEVER,
    keep_probability: bool = False,
    keep_pancreas: bool = False,
) -> Segmentation:
    """Segment the tumour in a volume (float32, z, y, x) of any orientation. Raises InputError about "volume".

    events: what happened before, such as on reading; the result lists them after those about device and models.
    deadline: when the mask must be written; what does not fit before it is left out. keep_probability: return that of
    the tumour, too; keep_pancreas: return the mask of the pancreas, too. Where a GPU fails, or its memory or float16 is
    too small, the case starts again on the CPU; after a failure the session stays there.
    """
    turn = volume.grid.turn_to(session.load().orientation)
    options = _Options(events, networks_deadline(deadline, volume.array.size), keep_probability, keep_pancreas)
    turned = _segment_on_a_device(volume.turned(turn), session, options)

    def back(other: Volume) -> Volume:
        return Volume(np.ascontiguousarray(turn.inverse.view(other.array)), volume.grid)

    def back_if_any(other: Volume | None) -> Volume | None:
        return None if other is None else back(other)

    return replace(
        turned,
        mask=back(turned.mask),
        box=turned.box.turned(turn.inverse, turned.mask.grid.shape),
        pancreas=turned.pancreas and turned.pancreas.turned(turn.inverse, turned.mask.grid.shape),
        probability=back_if_any(turned.probability),
        pancreas_mask=back_if_any(turned.pancreas_mask),
    )


@dataclass(frozen=True)
class _Options:
    """What else `segment` was asked for. events: what happened before; deadline: of the networks."""

    events: tuple[Event, ...]
    deadline: Deadline
    keep_probability: bool
    keep_pancreas: bool


def _segment_on_a_device(volume: Volume, session: Session, options: _Options) -> Segmentation:
    """Segment a volume in the orientation of the ensemble, on the CPU where the GPU fails."""
    ensemble = session.load()
    try:
        return _segment(volume, session.recipe, ensemble, options)
    except (LostDeviceError, RuntimeError) as error:
        failure = ensemble.backend.explain(error)
        if failure is None or ensemble.backend.device == "cpu":
            raise
    # Outside of the handler and without the traceback, so that the memory of the failed attempt is free.
    failure = failure.at(failure.where)
    logger.warning("%s; the case starts again on the CPU", failure)
    happened = f"{failure}; the CPU was used"
    if code := OF_ONE_CASE.get(type(failure)):
        options = replace(options, events=(*options.events, Event(code, happened)))
        return _segment(volume, session.recipe, ensemble.on_cpu(), options)
    session.use_cpu(Event(EventCode.DEVICE_FAILED, happened))
    return _segment(volume, session.recipe, session.load(), options)


def _segment(volume: Volume, recipe: Recipe, ensemble: Ensemble, options: _Options) -> Segmentation:
    """Segment a volume on one device."""
    seconds: dict[str, float] = {}
    located = _located(volume, recipe, ensemble, seconds, options.deadline)
    cropped = recipe.localizer is not None and recipe.localizer.crop
    box = (located.box if cropped else None) or Box.whole(volume.grid.shape)
    crop = volume.crop(box)
    with stage("members", seconds) as remarks:
        used, of_members = _member_logits(crop, ensemble, recipe, options.deadline)
        logits = [member for _, member in used]
        folds = sum(len(member.folds) for member in logits)
        remarks.append(f"{folds} folds on {'x'.join(map(str, crop.grid.shape))} voxels (z, y, x)")
    with stage("mask", seconds) as remarks:
        prediction = _prediction(logits, crop, recipe, ensemble, located)
        tumour = ensemble.labels.tumour
        confidence = estimate(logits, prediction.mask, fusion=recipe.fusion, label=tumour, grid=crop.grid)
        models = _models_used(ensemble, used)
        # A calibration is of folds that ran all tiles.
        if ensemble.calibration is not None and all(member.tile_share == 1 for member in logits):
            confidence = ensemble.calibration.applied(confidence, tuple(model.sha256 for model in models))
        probability = prediction.probability() if options.keep_probability else None
        for step in recipe.postprocess:
            prediction = step.apply(prediction)
        if not prediction.mask.any():
            prediction = prediction.changed(prediction.mask, Event(EventCode.EMPTY_MASK, "no tumour was found"))
        remarks.append(f"{prediction.tumour_mm3 / 1000:.1f} ml of tumour")
    happened = (
        *ensemble.backend.events,
        *ensemble.events,
        *options.events,
        *located.events,
        *of_members,
        *prediction.events,
    )
    for event in happened:
        logger.warning("%s", event)
    pancreas = prediction.pancreas() if options.keep_pancreas else None

    def whole(array: NDArray[Any]) -> Volume:
        return Volume(uncrop(array, box, volume.grid.shape), volume.grid)

    return Segmentation(
        mask=whole(prediction.mask.astype("uint8")),
        box=box,
        pancreas=located.pancreas,
        events=happened,
        seconds=seconds,
        recipe=recipe.name,
        device=ensemble.backend.device,
        precision=" and ".join(dict.fromkeys(member.precision for member in logits)),
        models=models,
        confidence=confidence,
        peak_memory_mb=peak_mb(),
        probability=None if probability is None else whole(probability),
        pancreas_mask=None if pancreas is None else whole((pancreas & ~prediction.mask).astype("uint8")),
    )


def _prediction(logits: list[Logits], crop: Volume, recipe: Recipe, ensemble: Ensemble, located: Located) -> Prediction:
    """Return the prediction of the members. Each step that asks for a probability or a pancreas gets the same array."""
    labels, fused = ensemble.labels, recipe.fusion.fuse(logits)
    pancreases: dict[PancreasOf, Callable[[], Mask]] = {}
    finding = [member for member in logits if member.finds_pancreas]
    if finding and labels.pancreas is not None:
        found = fused if len(finding) == len(logits) else recipe.fusion.fuse(finding)
        pancreases["members"] = cache(partial(found.mask, labels.pancreas))
    if located.marked is not None:
        pancreases["localizer"] = cache(partial(located.pancreas_on, crop.grid))
    return Prediction(
        mask=fused.mask(labels.tumour),
        grid=crop.grid,
        probability=cache(partial(fused.probability, labels.tumour)),
        pancreases=pancreases,
    )


def _member_logits(
    crop: Volume, ensemble: Ensemble, recipe: Recipe, deadline: Deadline
) -> tuple[list[tuple[Predictor, Logits]], tuple[Event, ...]]:
    """Return the members that can be used with their logits, and events.

    Members with equal preprocessing and orientation share the prepared volume. Raises ModelError where fewer can be
    used than the recipe needs.
    """
    members = ensemble.members
    shared: dict[tuple[Orientation, Preprocessing], Prepared] = {}
    inputs: list[Prepared] = []
    for member in members:
        key = member.trained_orientation, member.preprocessing
        if key not in shared:
            shared[key] = member.prepare(crop)
        inputs.append(shared[key])
    work = [member.work(prepared) for member, prepared in zip(members, inputs, strict=True)]
    used: list[tuple[Predictor, Logits]] = []
    events: list[Event] = []
    for number, (member, prepared) in enumerate(zip(members, inputs, strict=True)):
        try:
            used.append((member, member.logits(prepared, member_deadline(deadline, work, number))))
        except ModelError as error:
            if len(members) - len(events) - 1 < needed(len(members), ensemble.min_members):
                raise
            events.append(member_left_out(member.name, error))
    return used, (*(event for _, logits in used for event in logits.events), *events)


def _located(
    volume: Volume, recipe: Recipe, ensemble: Ensemble, seconds: dict[str, float], deadline: Deadline
) -> Located:
    """Return where the members look: around the pancreas, or without a box, and with an event that says why."""
    settings = recipe.localizer
    if settings is None:
        return Located(None, ())
    if ensemble.localizer is None:
        if ensemble.localizer_problem:
            return Located(None, (searched_whole(EventCode.LOCALIZER_FAILED, ensemble.localizer_problem),))
        reason = f"the folder of models has no '{settings.model}'"
        return Located(None, (searched_whole(EventCode.NO_LOCALIZER, reason),))
    with stage("localizer", seconds) as remarks:
        try:
            located = localize(volume, ensemble.localizer, settings, localizer_deadline(deadline))
        except (ModelError, InputError, DeviceMemoryError, MemoryError) as error:
            if isinstance(error, DeviceMemoryError) and ensemble.backend.device != "cpu":
                raise  # the CPU may have more
            reason = str(error) or "there was too little memory"
            located = Located(None, (searched_whole(EventCode.LOCALIZER_FAILED, reason),))
        if located.pancreas is not None:
            remarks.append(f"{located.pancreas.ml:.0f} ml of pancreas")
        box = located.box
        remarks.append("no box" if box is None else f"box {box.start} to {box.stop} (z, y, x)")
    return located


def _reported(pancreas: Pancreas) -> LocatedPancreas:
    x, y, z = (round(mm, 2) for mm in pancreas.centre_mm)
    return LocatedPancreas(
        ml=round(pancreas.ml, 3),
        left_out_ml=round(pancreas.left_out_ml, 3),
        centre_xyz_mm=(x, y, z),
        box=VoxelBox(start_zyx=pancreas.box.start, stop_zyx=pancreas.box.stop),
    )


def _models_used(ensemble: Ensemble, members: list[tuple[Predictor, Logits]]) -> tuple[ModelUse, ...]:
    used = [member.use("member", logits.folds, round(logits.tile_share, 4)) for member, logits in members]
    if ensemble.localizer is not None:
        used.append(ensemble.localizer.use("localizer", ensemble.localizer.bundle.folds))
    return tuple(used)
