"""The five questions: what one repetition says about each, and which arms are compared in which metric.

Masks have the tumour where its mean probability is at least one half, and an empty mask is rescued, except where a
question says otherwise. Metrics are those of the leaderboards (`official`).
"""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.study.repetition import Network, Repetition
from pantherseg.evaluation.metrics import METRICS
from pantherseg.logs import show_log
from pantherseg.postprocess import Rescue
from pantherseg.selection.candidates import Candidate
from pantherseg.selection.cases import Case, Scorer, Scores
from pantherseg.selection.nested import MEAN_RANK
from pantherseg.selection.search import best_by_dice, mean_ranks, select, totals, uniform
from pantherseg.selection.tables import described

logger = logging.getLogger(__name__)

RESCUE = (Rescue(),)
KINDS = ("default", "strong")
ON_T2 = ("ct_t1_t2", "scratch_t2", "scratch_t2_long")
# The figures of an arm in one repetition: metrics and counts.
Arm = dict[str, float]


@dataclass(frozen=True)
class Contrast:
    """Arm b minus arm a. metrics: those that answer a question, if the contrast does; also: for insight."""

    b: str
    a: str
    metrics: tuple[str, ...] = ("dice",)
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """measure: returns the arms of a repetition, and what else is worth keeping; needs: stages, or single networks.

    contrasts: the first `primary` answer the question, the others are for insight.
    """

    needs: Sequence[str | Network]
    measure: Callable[[Repetition], dict[str, Any]]
    contrasts: Sequence[Contrast]
    primary: int = 1
    counts: Mapping[str, str] = field(default_factory=dict)
    """What is counted in an arm, and the count that it is a part of."""


def _arm(scores: Scores) -> Arm:
    """Return the five metrics over cases. scores: (case, metric)."""
    return dict(zip(METRICS, totals(scores).tolist(), strict=True))


def _arms(cases: tuple[Case, ...], arms: Mapping[str, Sequence[int]]) -> dict[str, Arm]:
    """Return the metrics of ensembles by name. arms: how often each member is taken."""
    candidates = [Candidate(tuple(counts)) for counts in arms.values()]
    scores = Scorer(cases, RESCUE).scores(candidates)
    return {name: _arm(of_arm) for name, of_arm in zip(arms, scores, strict=True)}


def _pool(repetition: Repetition) -> list[Network]:
    """Return the networks of both kinds."""
    return [network for kind in KINDS for network in repetition.folds_of(kind)]


def _alone(cases: tuple[Case, ...], names: Sequence[str]) -> dict[str, Arm]:
    """Return the metrics of each member alone."""
    return _arms(cases, dict(zip(names, np.eye(len(names), dtype=int).tolist(), strict=True)))


def cascade(repetition: Repetition) -> dict[str, Any]:
    """Compare networks on T2 that began with CT and T1 with those from scratch, and the same on T1 after CT."""
    on_t2 = _alone(
        repetition.unseen_cases([*map(Network, ON_T2)], "t2"),
        ["CT, T1, T2", "T2 from scratch", "T2 from scratch, 3 x as long"],
    )
    on_t1 = _alone(repetition.unseen_cases([Network("ct_t1"), Network("default")], "t1"), ["CT, T1", "T1 from scratch"])
    return {"arms": on_t2 | on_t1}


STUDENTS = ["student1", "student2", "continued1", "continued2"]


def student(repetition: Repetition) -> dict[str, Any]:
    """Compare students with networks that were trained on for as long without the pseudo-labelled cases."""
    networks = [*map(Network, STUDENTS), *repetition.folds_of("default")]
    single = np.eye(len(networks), dtype=int).tolist()
    names = [
        "student, round 1",
        "student, round 2",
        "trained on, round 1",
        "trained on, round 2",
        "teacher, one network",
    ]
    arms = dict(zip(names, single, strict=False))
    arms["teacher, five networks"] = [0] * len(STUDENTS) + [1] * (len(networks) - len(STUDENTS))
    return {"arms": _arms(repetition.unseen_cases(networks, "t1"), arms)}


def mixed(repetition: Repetition) -> dict[str, Any]:
    """Compare five networks of one kind with five of both, one for each fold, and with all ten."""
    folds = len(repetition.folds_of("default"))
    even = [1 - fold % 2 for fold in range(folds)]
    arms = {
        "five default": [1] * folds + [0] * folds,
        "five strong": [0] * folds + [1] * folds,
        "five mixed": even + [1 - one for one in even],
        "all ten": [1] * (2 * folds),
    }
    return {"arms": _arms(repetition.unseen_cases(_pool(repetition), "t1"), arms)}


def metric(repetition: Repetition) -> dict[str, Any]:
    """Choose on the out-of-fold probabilities of the labelled cases, by all metrics or by Dice, and apply to others."""
    known = Scorer(repetition.cases([repetition.training.probabilities(kind) for kind in KINDS], "t1"), RESCUE)
    unseen = Scorer(repetition.cases([repetition.fused(kind, "t1") for kind in KINDS], "test_t1"), RESCUE)
    procedures = {"by all metrics": select, "by Dice": best_by_dice, "both kinds, no choice": uniform}
    chosen = {name: procedure(known).candidate for name, procedure in procedures.items()}
    arms = {name: _arm(unseen.scores([candidate])[0]) for name, candidate in chosen.items()}
    ranks = mean_ranks(np.array([[arms[name][metric] for metric in METRICS] for name in ("by all metrics", "by Dice")]))
    arms["by all metrics"][MEAN_RANK], arms["by Dice"][MEAN_RANK] = ranks.tolist()
    return {"arms": arms, "chosen": {name: described(candidate, KINDS) for name, candidate in chosen.items()}}


def rescue(repetition: Repetition) -> dict[str, Any]:
    """Compare the masks of single networks and of ensembles without and with the rescue of an empty mask."""
    pool = _pool(repetition)
    on_t1 = repetition.unseen_cases(pool, "t1")
    on_t2 = repetition.unseen_cases([*map(Network, ON_T2)], "t2")
    groups = {
        "T1, single": (on_t1, np.eye(len(pool), dtype=int).tolist()),
        "T1, all ten": (on_t1, [[1] * len(pool)]),
        "T2, single": (on_t2, np.eye(len(ON_T2), dtype=int).tolist()),
    }
    arms: dict[str, Arm] = {}
    for name, (cases, counts) in groups.items():
        candidates = [Candidate(tuple(one)) for one in counts]
        empty = np.array([[not case.mask(one).any() for case in cases] for one in candidates])
        without, rescued = (Scorer(cases, steps).scores(candidates) for steps in ((), RESCUE))
        counted = {"masks": float(empty.size), "empty masks": float(empty.sum())}
        arms[f"{name}, as they are"] = _arm(without.reshape(-1, len(METRICS))) | counted
        # A rescued component that touches no tumour is a false mark in a case that has a tumour elsewhere. Where
        # nothing was marked, all metrics are as before.
        marked = (rescued != without).any(-1)
        false = int((marked & (rescued[..., 0] == 0)).sum())
        arms[f"{name}, rescued"] = _arm(rescued.reshape(-1, len(METRICS))) | counted | {"false marks": float(false)}
    return {"arms": arms}


DISTANCES = ("hd95_mm", "masd_mm")
QUESTIONS = {
    "cascade": Question(
        [*ON_T2, "ct_t1", Network("default")],
        cascade,
        [
            Contrast("CT, T1, T2", "T2 from scratch"),
            Contrast("CT, T1, T2", "T2 from scratch, 3 x as long"),
            Contrast("CT, T1", "T1 from scratch"),
        ],
        primary=2,
    ),
    "student": Question(
        [*STUDENTS, "default"],
        student,
        [
            Contrast("student, round 2", "trained on, round 2"),
            Contrast("student, round 1", "trained on, round 1"),
            Contrast("student, round 2", "student, round 1"),
            Contrast("student, round 2", "teacher, one network"),
            Contrast("student, round 2", "teacher, five networks"),
        ],
    ),
    "mixed": Question(
        KINDS,
        mixed,
        [
            Contrast("five mixed", "five default"),
            Contrast("five mixed", "five strong"),
            Contrast("all ten", "five mixed"),
            Contrast("five strong", "five default", ("dice", "masd_mm")),
        ],
        primary=2,
    ),
    "metric": Question(
        KINDS,
        metric,
        [
            Contrast("by all metrics", "by Dice", (MEAN_RANK,), tuple(METRICS)),
            Contrast("by all metrics", "both kinds, no choice", ("dice", *DISTANCES)),
        ],
    ),
    "rescue": Question(
        [*KINDS, *ON_T2],
        rescue,
        [
            Contrast("T2, single, rescued", "T2, single, as they are", DISTANCES, ("dice",)),
            Contrast("T1, single, rescued", "T1, single, as they are", DISTANCES, ("dice",)),
            Contrast("T1, all ten, rescued", "T1, all ten, as they are", DISTANCES, ("dice",)),
        ],
        primary=2,
        counts={"empty masks": "masks", "false marks": "empty masks"},
    ),
}


def measured(question: str, work: Path, size: str, number: int, device: str) -> dict[str, Any]:
    """Return the figures of one repetition."""
    show_log()
    repetition = Repetition(work, size, number, device)
    before = _cpu_seconds()
    wanted = QUESTIONS[question]
    seconds = repetition.train(wanted.needs)
    figures = {"repetition": number, "minutes": round(seconds / 60, 1), **wanted.measure(repetition)}
    minutes = (_cpu_seconds() - before) / 60
    logger.info("%s: repetition %d finished, %.1f CPU minutes in this run", question, number, minutes)
    return figures


def _cpu_seconds() -> float:
    """Return the time on all cores of this process, and of those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
