"""The slices of a series as volumes: sorted along their normal, told apart where positions repeat, and checked.

Positions decide, never file names or instance numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pantherseg.errors import first_few
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
    there is a problem, which is a phrase that may follow "found".
    """

    slices: tuple[Slice, ...] = field(repr=False)
    label: str = ""
    grid: Grid | None = None
    problem: str = ""


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
    orientation, spacing = np.array(frame.orientation), np.array(frame.spacing)
    problem = ""
    if len(slices) < 2:
        problem = "1 slice"
    elif not (spacing > 0).all():
        problem = f"a pixel spacing of {spacing.tolist()} mm"
    elif not np.linalg.norm(_normal(frame)) > 0.5:
        problem = f"rows and columns that run in directions {tuple(frame.orientation or ())}"
    else:
        problem = _unevenness(slices, distances) or _shift(slices, distances, float(spacing.min()))
    if problem or size is None:
        return Stack(tuple(slices), label, problem=problem)
    columns = np.stack([orientation[:3], orientation[3:], _normal(frame)], axis=1)
    grid = Grid(
        shape=(len(slices), *size),
        spacing=as_triple([(distances[-1] - distances[0]) / (len(slices) - 1), *spacing]),
        origin=as_triple(frame.position or (0, 0, 0)),
        direction=as_matrix(columns),
    )
    return Stack(tuple(slices), label, grid)


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


def _shift(slices: Sequence[Slice], distances: NDArray[np.float64], pixel: float) -> str:
    """Return what is wrong where slices do not lie exactly above each other, such as with a tilted gantry."""
    positions = np.array([one.frame.position for one in slices])
    normal = _normal(slices[0].frame)
    straight = positions[0] + np.outer(distances - distances[0], normal / np.linalg.norm(normal))
    shift = float(np.linalg.norm(positions - straight, axis=1).max())
    return f"slices that are shifted sideways by up to {shift:.3g} mm" if shift > EVENNESS * pixel else ""
