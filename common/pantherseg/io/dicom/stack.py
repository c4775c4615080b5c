"""The slices of a series as volumes: sorted along their normal, told apart where positions repeat, and checked.

Positions decide, never file names or instance numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pantherseg.errors import first_few
from pantherseg.events import Event, EventCode
from pantherseg.io.dicom.instance import DISCRIMINATORS, Frame, Instance
from pantherseg.io.direction import as_matrix
from pantherseg.volume import Grid, as_triple

# Slices of one volume have directions and a pixel spacing that differ by less than these; absolute, and relative.
DIRECTION_TOLERANCE, SPACING_TOLERANCE = 1e-3, 1e-3
# Slices that are nearer to each other are at the same position.
SAME_POSITION_MM = 0.01
# How far a slice may lie from where it would be if all were evenly spaced: a share of the slices' distance along the
# normal, and of the pixel spacing across it.
EVENNESS = 0.05
# Distances that are whole multiples of the usual one, by this share of it, mean that slices are missing.
MULTIPLE_TOLERANCE = 0.1
# A stated distance that is smaller than the actual one by more than this is no distance.
MAX_TIMES = 10
# Slices that are so many times as far apart as they are thick may be every second one.
FAR_APART = 1.9
# How far a direction cosine of two decimals may be off.
ROUNDING = 0.005
ROUNDED = (
    "the directions of rows and columns are rounded to two decimals, by which slices would be shifted sideways by up "
    "to {shift:.3g} mm; the nearest ones at right angles to the line of the slices were used"
)


@dataclass(frozen=True)
class Slice:
    """A frame and its file."""

    instance: Instance = field(repr=False)
    frame: Frame

    def __str__(self) -> str:
        """Return the file's name, and the frame's number as DICOM counts where there are several."""
        name = self.instance.place.name
        return f"{name} frame {self.frame.number + 1}" if len(self.instance.frames) > 1 else name


@dataclass(frozen=True)
class Stack:
    """Slices of a series that may be a volume, in their order along the normal.

    label: what tells them from other slices at the same positions, such as `temporal position 2`. grid: None where
    there is a problem, which is a phrase that may follow "found". events: what is odd about a stack with a grid.
    """

    slices: tuple[Slice, ...] = field(repr=False)
    label: str = ""
    grid: Grid | None = None
    problem: str = ""
    events: tuple[Event, ...] = ()


def stacks_of(instances: Sequence[Instance]) -> tuple[Stack, ...]:
    """Return the volumes of a series: by frame of reference, size, spacing and orientation, then by what repeats."""
    every = [Slice(instance, frame) for instance in instances for frame in instance.frames]
    unplaced = [one for one in every if None in (one.frame.position, one.frame.orientation, one.frame.spacing)]
    if unplaced:
        return (Stack(tuple(every), problem=_without_positions(unplaced, len(every))),)
    groups: list[list[Slice]] = []
    for one in every:
        group = next((group for group in groups if _fits(group[0], one)), None)
        if group is None:
            groups.append([one])
        else:
            group.append(one)
    return tuple(stack for group in groups for stack in _told_apart(group, tuple(DISCRIMINATORS)))


def _without_positions(unplaced: Sequence[Slice], count: int) -> str:
    lacking = unplaced[0].frame
    values = {"position": lacking.position, "orientation": lacking.orientation, "pixel spacing": lacking.spacing}
    what = " and no ".join(name for name, value in values.items() if value is None)
    return f"no {what} in {len(unplaced)} of {count} slices ({first_few(map(str, unplaced), 2)})"


def _fits(first: Slice, other: Slice) -> bool:
    a, b = first.frame, other.frame
    same = (first.instance.frame_of_reference, first.instance.size) == (
        other.instance.frame_of_reference,
        other.instance.size,
    )
    return (
        same
        and np.allclose(a.orientation or 0, b.orientation or 0, rtol=0, atol=DIRECTION_TOLERANCE)
        and np.allclose(a.spacing or 0, b.spacing or 0, rtol=SPACING_TOLERANCE, atol=0)
    )


def _told_apart(slices: Sequence[Slice], keys: Sequence[str], label: str = "") -> list[Stack]:
    """Return a stack for each value of the first tag by which slices at the same position differ."""
    ordered, distances = _sorted(slices)
    most = _most_at_one_position(distances)
    if most == 1:
        return [_checked(ordered, distances, label)]
    splits = {key: split for key in keys if 1 < len(split := _by_tag(slices, key)) <= most}
    whole = [key for key, split in splits.items() if all(_is_single(part) for part in split.values())]
    for key in (whole or list(splits))[:1]:
        rest = [other for other in keys if other != key]
        return [
            stack
            for value, part in splits[key].items()
            for stack in _told_apart(part, rest, ", ".join(filter(None, (label, f"{DISCRIMINATORS[key]} {value}"))))
        ]
    again = np.flatnonzero(np.diff(distances) < SAME_POSITION_MM)
    same = f"{ordered[again[0]]} and {ordered[again[0] + 1]}"
    problem = f"several slices at {len(again)} of the positions ({same}), which no tag tells apart"
    return [Stack(tuple(ordered), label, problem=problem)]


def _by_tag(slices: Sequence[Slice], key: str) -> dict[str, list[Slice]]:
    """Return slices by the value of a tag, sorted by it; empty where one of them lacks it."""
    parts: dict[str, list[Slice]] = {}
    for one in slices:
        value = one.frame.tags.get(key)
        if value is None:
            return {}
        parts.setdefault(value, []).append(one)
    return dict(sorted(parts.items(), key=lambda part: _number_or_text(part[0])))


def _number_or_text(value: str) -> tuple[bool, float, str]:
    try:
        return False, float(value), ""
    except ValueError:
        return True, 0.0, value


def _is_single(slices: Sequence[Slice]) -> bool:
    return _most_at_one_position(_sorted(slices)[1]) == 1


def _most_at_one_position(distances: NDArray[np.float64]) -> int:
    starts = np.flatnonzero(np.diff(distances, prepend=-np.inf) >= SAME_POSITION_MM)
    return int(np.diff(starts, append=len(distances)).max())


def _normal(frame: Frame) -> NDArray[np.float64]:
    rows, columns = np.array(frame.orientation).reshape(2, 3)
    return np.cross(rows, columns)


def _sorted(slices: Sequence[Slice]) -> tuple[list[Slice], NDArray[np.float64]]:
    """Return slices in their order along the normal of the first, and their distances along it in mm."""
    normal = _normal(slices[0].frame)
    length = max(float(np.linalg.norm(normal)), np.finfo(float).tiny)  # 0 for directions that are not valid
    distances = np.array([one.frame.position for one in slices]) @ (normal / length)
    order = np.argsort(distances, kind="stable")
    return [slices[k] for k in order], distances[order]


def _checked(slices: Sequence[Slice], distances: NDArray[np.float64], label: str) -> Stack:
    """Return slices as a stack with its grid, or with what is wrong about their positions."""
    frame, size = slices[0].frame, slices[0].instance.size
    problem = _impossible(slices) or _unevenness(slices, distances)
    if problem or size is None:
        return Stack(tuple(slices), label, problem=problem)
    orientation, spacing = np.array(frame.orientation), np.array(frame.spacing)
    positions = np.array([one.frame.position for one in slices])
    columns = np.stack([orientation[:3], orientation[3:], _normal(frame)], axis=1)
    events: tuple[Event, ...] = ()
    if (shift := _shift(positions, columns[:, 2])) > EVENNESS * spacing.min():
        along = _along(positions, columns, EVENNESS * spacing.min())
        if along is None:
            return Stack(tuple(slices), label, problem=f"slices that are shifted sideways by up to {shift:.3g} mm")
        columns = along
        events = (Event(EventCode.DIRECTION_CORRECTED, ROUNDED.format(shift=shift)),)
    unit = columns[:, 2] / np.linalg.norm(columns[:, 2])
    step = float((positions[-1] - positions[0]) @ unit) / (len(slices) - 1)
    problem, more = _thinned(slices, step)
    if problem:
        return Stack(tuple(slices), label, problem=problem)
    grid = Grid(
        shape=(len(slices), *size),
        spacing=as_triple([step, *spacing]),
        origin=as_triple(frame.position or (0, 0, 0)),
        direction=as_matrix(columns),
    )
    return Stack(tuple(slices), label, grid, events=events + more)


def _impossible(slices: Sequence[Slice]) -> str:
    """Return why slices cannot be a volume wherever they lie."""
    frame = slices[0].frame
    if len(slices) < 2:
        return "1 slice"
    if not min(frame.spacing or (0,)) > 0:
        return f"a pixel spacing of {list(frame.spacing or ())} mm"
    if not np.linalg.norm(_normal(frame)) > 0.5:
        return f"rows and columns that run in directions {tuple(frame.orientation or ())}"
    return ""


def _unevenness(slices: Sequence[Slice], distances: NDArray[np.float64]) -> str:
    steps = np.diff(distances)
    even = np.linspace(distances[0], distances[-1], len(slices))
    if np.abs(distances - even).max() <= EVENNESS * np.median(steps):
        return ""
    usual = float(np.median(steps))
    multiples = np.rint(steps / usual).astype(int)
    if (multiples >= 1).all() and np.abs(steps / usual - multiples).max() <= MULTIPLE_TOLERANCE:
        gaps = [
            f"{multiples[k] - 1} between {slices[k]} and {slices[k + 1]}"
            for k in np.flatnonzero(multiples > 1).tolist()
        ]
        missing = int((multiples - 1).sum())
        return f"{len(slices)} slices {usual:.4g} mm apart and {missing} missing, {first_few(gaps, 3)}"
    return f"slices that are {steps.min():.4g} to {steps.max():.4g} mm apart"


def _shift(positions: NDArray[np.float64], normal: NDArray[np.float64]) -> float:
    """Return by how many mm slices do not lie exactly above each other, such as with a tilted gantry."""
    unit = normal / np.linalg.norm(normal)
    sideways = positions - positions[0] - np.outer((positions - positions[0]) @ unit, unit)
    return float(np.linalg.norm(sideways, axis=1).max())


def _along(
    positions: NDArray[np.float64], columns: NDArray[np.float64], tolerance: float
) -> NDArray[np.float64] | None:
    """Return directions whose normal is the line on which slices lie, and whose rows and columns are the nearest ones.

    None where rounding to two decimals does not explain that the stated directions differ from them, or where the
    positions are not on a line.
    """
    line = (positions[-1] - positions[0]) / np.linalg.norm(positions[-1] - positions[0])
    stated = columns[:, :2]
    left, _, right = np.linalg.svd(stated - np.outer(line, line @ stated), full_matrices=False)
    nearest = left @ right
    is_rounded = np.allclose(stated, np.round(stated, 2), rtol=0, atol=1e-6)
    explained = np.linalg.norm(nearest - stated) <= ROUNDING * np.sqrt(stated.size)
    if not (is_rounded and explained and _shift(positions, line) <= tolerance):
        return None
    return np.column_stack([nearest, line])


def _thinned(slices: Sequence[Slice], step: float) -> tuple[str, tuple[Event, ...]]:
    """Return what is wrong where slices are missing in a regular way, which leaves all distances even.

    A problem where the header of original images says so, and an event where it may be so. step: their distance in mm.
    """
    frame = slices[0].frame
    stated, thickness = frame.distance or 0.0, frame.thickness or 0.0
    times = round(step / stated) if stated * MAX_TIMES > step else 0
    is_gap = stated < thickness and abs(stated + thickness - step) <= MULTIPLE_TOLERANCE * step  # as some write there
    if times and not is_gap and abs(step / stated - times) <= MULTIPLE_TOLERANCE:
        if times == 1:
            return "", ()
        said = f"the header says {stated:.4g} mm (SpacingBetweenSlices)"
        if frame.tags.get("ImageType", "").startswith("ORIGINAL"):
            missing = f"{times - 1} of every {times} {'is' if times == 2 else 'are'} missing"
            return f"{len(slices)} slices {step:.4g} mm apart where {said}, so that {missing}", ()
    elif 0 < thickness * FAR_APART <= step:
        said = f"they are {thickness:.4g} mm thick (SliceThickness)"
    else:
        return "", ()
    message = f"the slices are {step:.4g} mm apart, and {said}; see whether slices between them are missing"
    return "", (Event(EventCode.SLICES_FAR_APART, message),)
