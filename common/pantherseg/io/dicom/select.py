"""Chooses one volume of a source by a `SeriesChoice`. Where several may be meant, they are named and none is taken."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pantherseg.errors import InputError, OptionError, first_few
from pantherseg.events import Event, EventCode
from pantherseg.io.dicom.choice import SeriesChoice
from pantherseg.io.dicom.series import Scan, Series, plane_of, refuse_without_images, scan
from pantherseg.io.dicom.stack import Stack
from pantherseg.volume import Grid

NAMES_SHOWN = 3
HINT = "choose one with --series UID; `pantherseg dicom list` shows them all"


@dataclass(frozen=True)
class Candidate:
    """A volume of a series. uid: by which it is chosen. left_out: why it cannot be meant, or an empty text."""

    series: Series
    stack: Stack
    uid: str
    left_out: str = ""

    def __str__(self) -> str:
        """Return it as an error line names it."""
        count = len(self.stack.slices) or len(self.series.instances)
        slices = f"{count} slice{'s' * (count > 1)}"
        return f"{self.uid} ({', '.join(filter(None, (self.series.description, self.stack.label, slices)))})"


@dataclass(frozen=True)
class Survey:
    """All volumes of a source. plausible: those that may be meant; taken: the only one, or None."""

    scan: Scan
    candidates: tuple[Candidate, ...]
    plausible: tuple[Candidate, ...]
    taken: Candidate | None


def survey(source: Path, choice: SeriesChoice) -> Survey:
    """Return what a source contains, and what a choice takes of it. Raises InputError and OSError."""
    found = scan(source)
    candidates = tuple(candidate for one in found.series for candidate in _candidates(one, choice))
    plausible = _plausible(candidates, choice)
    one_patient = len(found.patients(choice.uid)) < 2
    taken = plausible[0] if len(plausible) == 1 and one_patient and not found.damaged else None
    return Survey(found, candidates, plausible, taken)


def select(source: Path, choice: SeriesChoice) -> tuple[Candidate, Grid, tuple[Event, ...]]:
    """Return the one volume that a choice means, its grid, and events: if there were others, and what is odd about it.

    Raises InputError and OSError.
    """
    result = survey(source, choice)
    refuse_without_images(source, result.scan)
    patients = result.scan.patients(choice.uid)
    if len(patients) > 1:
        one, other = patients[:2]
        found = f"{len(patients)} patients, such as those of {one.place.name} and {other.place.name}"
        hint = "give the folder of one of them" + (
            ", with their files alone" if choice.uid else ", or choose a series with --series UID"
        )
        raise InputError(source, expected="the series of one patient", found=found, hint=hint)
    if result.taken is None:
        raise _undecided(source, result, choice)
    stack = result.taken.stack
    if stack.grid is None:
        expected = "MR slices of one volume at even distances" if stack.slices else "an MR series"
        found = f"{stack.problem} (series {result.taken.uid})"
        hint = "export the complete series again, or choose another with --series UID"
        raise InputError(source, expected=expected, found=found, hint=hint)
    others = len(result.candidates) - 1
    if not others:
        return result.taken, stack.grid, stack.events
    number = result.taken.series.number
    which = "without a number" if number is None else f"with the number {number}"
    left = "1 other was not" if others == 1 else f"{others} others were not"
    message = f"the series {which}, of {len(stack.slices)} slices, was taken; {left}"
    return result.taken, stack.grid, (Event(EventCode.SERIES_CHOSEN, message), *stack.events)


def _undecided(source: Path, result: Survey, choice: SeriesChoice) -> InputError:
    if result.plausible:
        found = f"{len(result.plausible)} that may be meant: {first_few(map(str, result.plausible), NAMES_SHOWN)}"
        return OptionError(source, expected="one series", found=found, hint=HINT)
    if choice.uid:
        uids = first_few((candidate.uid for candidate in result.candidates), NAMES_SHOWN)
        return OptionError(source, expected=f"the series {choice.uid}", found=f"only {uids}")
    reasons = first_few((f"{one}: {one.left_out}" for one in result.candidates), NAMES_SHOWN)
    is_there = any(one.stack.grid is not None for one in result.candidates)
    kind, hint = (OptionError, HINT) if is_there else (InputError, "")
    return kind(source, expected=_wanted(choice), found=f"none but {reasons}", hint=hint)


def _wanted(choice: SeriesChoice) -> str:
    wanted = filter(None, (choice.weighting, choice.plane, f"at least {choice.min_slices} slices"))
    return f"an MR series ({', '.join(wanted)})"


def _plausible(candidates: tuple[Candidate, ...], choice: SeriesChoice) -> tuple[Candidate, ...]:
    left = tuple(candidate for candidate in candidates if not candidate.left_out)
    if choice.uid or len(left) < 2:
        return left
    named = tuple(candidate for candidate in left if candidate.series.has_word(choice.words))
    return named or left


def _candidates(series: Series, choice: SeriesChoice) -> list[Candidate]:
    stacks = series.stacks
    several = len(stacks) > 1
    uids = [f"{series.uid}/{number}" if several else series.uid for number in range(1, len(stacks) + 1)]
    return [
        Candidate(series, stack, uid, _left_out(series, stack, uid, choice))
        for uid, stack in zip(uids, stacks, strict=True)
    ]


def _left_out(series: Series, stack: Stack, uid: str, choice: SeriesChoice) -> str:
    """Return why a choice cannot mean a volume. Missing slices are no reason: another would be taken in its place."""
    if choice.uid:
        return "" if choice.uid in (uid, series.uid) else "another series was chosen"
    if not stack.slices:
        return stack.problem
    if len(stack.slices) < choice.min_slices:
        return f"fewer than {choice.min_slices} slices"
    if choice.weighting is not None and series.weighting not in (None, choice.weighting):
        return f"{series.weighting} contrast"
    plane = plane_of(stack)
    if choice.plane is not None and plane not in (None, choice.plane):
        return f"{plane} slices"
    return ""
