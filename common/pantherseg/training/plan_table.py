"""The plan of a training as text: every step, what is finished, and what the rest is expected to take."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pantherseg.evaluation.tables import aligned
from pantherseg.training.assumed import PUBLISHED_NETWORK, StageCosts
from pantherseg.training.estimate import GB, measured_speed, speed_in_table
from pantherseg.training.run import Training

HEADING = ("step", "status", "patch (z, y, x)", "batch", "epochs", "memory GB", "hours")


def plan_table(training: Training, devices: Sequence[str], *, measure: bool) -> str:
    """Return the plan of a training.

    measure: measure the speed of the device, which takes about two seconds, instead of taking it from a table.
    Raises RecipeError for a plan that is not possible.
    """
    device = devices[0]
    trains = any(step.kind == "fold" for step in training.unfinished)
    speed = measured_speed(device) if measure and trains else speed_in_table(device)
    stages = {step.subject for step in map(training.steps.by_name.get, training.chosen) if step and step.kind == "fold"}
    reckoned = StageCosts(training.work, training.planned)
    costs = {stage: reckoned.of(stage) for stage in stages}
    rows: list[tuple[str, ...]] = [HEADING]
    hours_of: dict[str, list[float]] = {stage: [] for stage in stages}
    for name in training.chosen:
        step, verdict = training.steps.by_name[name], training.verdicts[name]
        status = f"{verdict.status} ({verdict.reason})" if verdict.reason else verdict.status
        cells: tuple[str, ...] = ("",) * 5
        if step.kind == "fold":
            cost, patch, batch_size = costs[step.subject]
            schedule = training.graph.stage[step.subject].length
            hours = cost.seconds(schedule, speed) / 3600
            memory = cost.memory(schedule, device) / GB
            sizes = "x".join(map(str, patch)), str(batch_size), str(schedule.epochs)
            cells = (*sizes, f"{memory:.1f}", _hours(hours))
            if verdict.status != "finished":
                hours_of[step.subject].append(hours)
        rows.append((name, status, *cells))
    total = sum(map(sum, hours_of.values()))
    lines = [aligned(rows)]
    if trains:
        source = "as just measured" if measure else "from a table"
        together = len(set(devices))  # folds that share a device have its speed together
        rounds = sum(max(hours) * math.ceil(len(hours) / together) for hours in hours_of.values() if hours)
        beside = f", {_hours(rounds)} on {together}, where the folds of a stage run together" if together > 1 else ""
        kind = "GPU" if device.startswith("cuda") else "CPU"
        lines.append(
            f"Expected training: {_hours(total)} hours on one {kind} at {speed / 1e9:.0f} billion operations per "
            f"second ({source}){beside}; validation and preprocessing not included."
        )
    if any(training.graph.stage[stage].lightning is None for stage in stages - training.planned):
        lines.append(
            "Patches of stages that are not planned yet are those for the data that the training file assumes."
        )
    lines += [
        f"Stage {stage} starts from weights that are not there yet: its network is assumed to be nnU-Net's "
        f"{PUBLISHED_NETWORK}."
        for stage in sorted(reckoned.assumed_networks)
    ]
    left = len(training.unfinished)
    lines.append(f"{len(training.chosen) - left} of {len(training.chosen)} steps are finished. Not for clinical use.")
    return "\n".join(lines)


def _hours(value: float) -> str:
    """Return hours with three digits where these are at most two decimals, or whole hours."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"
