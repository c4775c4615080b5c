"""What a deadline leaves out, in which order, and the events that say so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from pantherseg.cli import main
from pantherseg.errors import ModelError
from pantherseg.inference.accumulate import Network, Sweep
from pantherseg.inference.predictor import Logits, Predictor
from pantherseg.inference.schedule import Next, Schedule, SweepSettings, localizer_deadline, networks_deadline
from pantherseg.inference.tiles import tiles
from pantherseg.machine.deadline import NEVER, Deadline
from pantherseg.models.bundle import Bundle, open_bundle
from pantherseg.paths import DEMO_WEIGHTS, ROOT, task_recipe
from pantherseg.pipeline import segment
from pantherseg.preprocessing.preprocess import CERTAIN, Prepared
from pantherseg.recipe import load_recipe
from pantherseg.session import Session
from pantherseg.volume import Volume
from slow_backend import Clock, SlowBackend

SHAPE, PATCH = (10, 30, 30), (8, 16, 16)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """Five folds with two classes and two mirroring axes, which makes four forward passes per tile."""
    demo = open_bundle(DEMO_WEIGHTS / "task1")
    manifest = msgspec.structs.replace(demo.manifest, patch=PATCH, classes=2, mirroring_axes=(1, 2))
    return replace(demo, manifest=manifest)


def predictor_of(
    bundle: Bundle, backend: SlowBackend, *, mirroring: bool = False, step: float = 0.5, label: int | None = None
) -> Predictor:
    """Return a predictor. label: by which tiles are chosen, None for whole folds."""
    return Predictor(bundle, backend, mirroring=mirroring, step=step, compared_label=label)  # type: ignore[arg-type]


def run(predictor: Predictor, seconds: float = np.inf) -> Logits:
    array = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    prepared = Prepared(array[None], predictor.preprocessing.run(np.ones(SHAPE, np.float32), (3.0, 2.4, 2.4)).back)
    clock = predictor.backend.clock  # type: ignore[attr-defined]
    return predictor.logits(prepared, NEVER if np.isinf(seconds) else Deadline.after(seconds, clock))


def codes(logits: Logits) -> list[str]:
    return [event.code for event in logits.events]


TILES = len(tiles(SHAPE, PATCH, 0.5))


@pytest.mark.fault("time", "there is time for {id}", "what there is time for, and an event for what was left out")
@pytest.mark.parametrize(
    ("mirroring", "seconds", "left_out", "spent", "mean"),
    [
        (True, 5 * 4 * TILES - 1, ["mirroring_left_out"], 5 * TILES + 1, 2),
        (False, 3.5 * TILES, ["folds_left_out"], 3 * TILES, 1),
        (True, 3.5 * TILES, ["mirroring_left_out", "folds_left_out"], 3 * TILES + 1, 1),
    ],
    ids=["all five folds, but not for mirroring", "three of five folds", "three folds without mirroring"],
)
def test_leaves_out_mirroring_before_the_last_folds(
    bundle: Bundle, mirroring: bool, seconds: float, left_out: list[str], spent: int, mean: float
) -> None:
    """Without mirroring, one extra pass is timed first. mean: the mean of the numbers of the folds."""
    backend = SlowBackend(Clock())
    logits = run(predictor_of(bundle, backend, mirroring=mirroring), seconds)
    assert codes(logits) == left_out
    assert backend.clock.now == spent
    np.testing.assert_allclose(logits.values[0], mean, rtol=0, atol=2e-3)
    if "folds_left_out" in left_out:
        assert "folds 3 4 were left out" in logits.events[-1].message


@pytest.mark.fault(
    "time",
    "there is time for {folds} of five folds, and the tumour's label is known",
    "the first fold, of the others the tiles that matter most, and an event",
)
@pytest.mark.parametrize("folds", [4.5, 3, 1.5, 1.1])
def test_later_folds_run_the_tiles_that_matter_most(bundle: Bundle, folds: float) -> None:
    """The margins are those of noise, so all tiles matter."""
    backend = SlowBackend(Clock())
    logits = run(predictor_of(bundle, backend, label=1), folds * TILES)
    ran = [backend.forwards.count(fold) for fold in bundle.folds]
    used = len(logits.folds)
    assert ran[0] == TILES
    assert ran[1] == max(1, int((folds - 1) * TILES / 4))
    assert ran[1:used] == sorted(ran[1:used]), "what is left over by rounding goes to the last folds"
    assert folds * TILES - 1 < sum(ran) <= folds * TILES
    shortened = [fold for fold, count in zip(bundle.folds, ran, strict=True) if 0 < count < TILES]
    assert logits.events[0].message.startswith(f"folds {' '.join(shortened)} ran only a part of their tiles: ")
    assert codes(logits) == ["folds_shortened", *(["folds_left_out"] if used < 5 else [])]
    assert logits.tile_share == sum(ran) / (5 * TILES)
    assert logits.is_complete


@pytest.mark.parametrize("seconds", [4.05, 5.2])
def test_fast_does_not_spend_the_time_of_later_folds_on_mirroring(bundle: Bundle, seconds: float) -> None:
    backend = SlowBackend(Clock(), mode="fast")
    logits = run(predictor_of(bundle, backend, mirroring=True, label=1), seconds * TILES)
    assert logits.folds == bundle.folds
    assert logits.events[0].message.startswith("inputs were not mirrored: ")
    assert backend.clock.now <= seconds * TILES


@pytest.mark.fault(
    "time", "there is not even time for one fold with overlapping tiles", "one fold with less overlap, and events"
)
def test_leaves_out_the_overlap_of_tiles(bundle: Bundle) -> None:
    backend = SlowBackend(Clock())
    seconds = TILES - 2.0
    logits = run(predictor_of(bundle, backend), seconds)
    assert codes(logits) == ["overlap_left_out", "folds_left_out"]
    assert set(backend.forwards) == {"0"}
    assert backend.clock.now <= seconds
    array = np.random.default_rng(0).normal(size=SHAPE)
    # At the edges of tiles, where weights are small, float16 sums are little more precise than integers.
    np.testing.assert_allclose(logits.values[1], array, rtol=0, atol=0.51)


@pytest.mark.fault(
    "time",
    "there is not even time for one fold without overlap",
    "one fold with the tiles nearest to the middle of the body, and events",
)
def test_leaves_out_the_tiles_far_from_the_middle_of_the_body(bundle: Bundle) -> None:
    backend = SlowBackend(Clock())
    logits = run(predictor_of(bundle, backend), 4.0)
    assert codes(logits) == ["overlap_left_out", "tiles_left_out", "folds_left_out"]
    assert backend.clock.now <= 4.0
    seen = logits.values[0] != CERTAIN
    assert 0 < seen.mean() < 1
    assert seen[5, 15, 15]
    np.testing.assert_array_equal(logits.values[1][~seen], 0)


@pytest.mark.fault("time", "no time is left once the network is loaded", "one tile, and events")
def test_runs_one_tile_when_no_time_is_left(bundle: Bundle) -> None:
    backend = SlowBackend(Clock(), load_s=3.0)
    logits = run(predictor_of(bundle, backend), 1.0)
    assert "tiles_left_out" in codes(logits)
    assert backend.clock.now == 5.0, "loading, one pass that is timed, and one tile"


@pytest.mark.fault(
    "time", "any time limit and any speed", "an end at most one tile too late, and events for everything left out"
)
@settings(max_examples=200, deadline=None)
@given(
    seconds=st.floats(0.5, 500),
    forward_s=st.floats(0.01, 5),
    load_s=st.floats(0, 5),
    mirroring=st.booleans(),
    step=st.sampled_from([0.3, 0.5, 1.0]),
    label=st.sampled_from([None, 1]),
)
@pytest.mark.slow
def test_is_at_most_one_tile_late(
    bundle: Bundle, seconds: float, forward_s: float, load_s: float, mirroring: bool, step: float, label: int | None
) -> None:
    backend = SlowBackend(Clock(), forward_s, load_s)
    logits = run(predictor_of(bundle, backend, mirroring=mirroring, step=step, label=label), seconds)
    least = load_s + 2 * forward_s
    assert backend.clock.now <= max(seconds, least) + 4 * forward_s
    assert np.isfinite(logits.values).all()
    every = len(tiles(SHAPE, PATCH, step)) * 5 * (4 if mirroring else 1)
    assert (len(backend.forwards) == every) == (logits.events == ())


def test_a_fold_that_was_not_used_did_not_run_a_part_of_its_tiles(bundle: Bundle) -> None:
    class Damaged(SlowBackend):
        def network(self, bundle: Bundle, fold: str, upcoming: str | None = None, *, keep: bool = False) -> Network:
            if fold == "1":
                raise ModelError(bundle.weights_path(fold), "the file is damaged")
            return super().network(bundle, fold, upcoming)

    predictor = replace(predictor_of(bundle, Damaged(Clock()), label=1), min_folds=4)
    logits = run(predictor, 3 * TILES)
    assert codes(logits) == ["fold_left_out", "folds_shortened"]
    assert logits.events[-1].message.startswith("folds 2 3 4 ran only a part of their tiles: ")


def test_folds_that_are_left_out_are_not_said_to_be_without_mirroring(bundle: Bundle) -> None:
    class Stuck(SlowBackend):
        def network(self, bundle: Bundle, fold: str, upcoming: str | None = None, *, keep: bool = False) -> Network:
            self.forward_s = 1.0 if fold == "0" else 1000.0
            return super().network(bundle, fold, upcoming)

    logits = run(predictor_of(bundle, Stuck(Clock()), mirroring=True, label=1), 20 * TILES)
    assert codes(logits) == ["folds_shortened", "folds_left_out"]


@pytest.mark.fault("time", "the network becomes slower with each fold", "fewer folds, and an event")
def test_notices_a_network_that_becomes_slower(bundle: Bundle) -> None:
    class Slowing(SlowBackend):
        def network(self, bundle: Bundle, fold: str, upcoming: str | None = None, *, keep: bool = False) -> Network:
            self.forward_s = 1.0 + 2 * int(fold)
            return super().network(bundle, fold, upcoming)

    for label in (None, 1):
        backend = Slowing(Clock())
        logits = run(predictor_of(bundle, backend, label=label), 5 * TILES)
        assert codes(logits) == ([] if label is None else ["folds_shortened"]) + ["folds_left_out"]
        assert backend.clock.now <= 5 * TILES + 5


def schedule_of(deadline: Deadline) -> Schedule:
    """Return a schedule of two folds with ten tiles each, or one tile without overlap."""
    settings = SweepSettings(mirroring=False, step=0.5)
    return Schedule(deadline, settings, folds=("0", "1"), flips=1, tiles=lambda step: 10 if step < 1 else 1)


def test_times_no_passes_once_there_is_clearly_enough_time() -> None:
    assert not schedule_of(NEVER).is_timing
    clock = Clock()
    schedule = schedule_of(Deadline.after(1e6, clock))
    schedule.start_passes()
    for expected in (True, True, False):
        clock.now += 1
        assert schedule.pass_done(tile_done=True) is Next.CONTINUE
        assert schedule.is_timing == expected


def test_restarts_a_fold_after_its_first_pass_only() -> None:
    clock = Clock()
    schedule = schedule_of(Deadline.after(9.5, clock))
    schedule.start_passes()
    clock.now += 1
    assert schedule.pass_done(tile_done=True) is Next.RESTART
    assert schedule.settings == SweepSettings(mirroring=False, step=1.0)
    schedule.start_passes()
    clock.now += 1
    assert schedule.pass_done(tile_done=True) is Next.CONTINUE
    clock.now += 7
    assert schedule.pass_done(tile_done=True) is Next.STOP


def test_tiles_can_begin_at_the_middle_of_the_body() -> None:
    data = np.full((1, 20, 40, 40), -1, np.float32)
    data[0, 2:6, 28:36, 4:12] = 1
    first = Sweep(data, (8, 16, 16), step=0.5, nearest=True).tiles[0]
    assert all(part.start <= at < part.stop for part, at in zip(first, (4, 32, 8), strict=True))


def test_deadline_shares_the_remaining_time() -> None:
    clock = Clock(100.0)
    deadline = Deadline.after(60, clock)
    clock.now += 20
    assert deadline.left() == 40
    assert deadline.share(0.25).left() == 10
    assert 0 < localizer_deadline(deadline).left() < 40
    assert networks_deadline(deadline, 3_000_000).left() < 40
    clock.now += 50
    assert deadline.left() == -10
    assert deadline.share(0.5).left() == 0
    assert NEVER.left() == np.inf
    assert networks_deadline(NEVER.share(0.5), 10**9).left() == np.inf


@pytest.mark.fault("time", "a whole case has no time at all", "a mask on the volume's grid, and events")
@pytest.mark.slow
def test_segments_a_case_without_any_time(pancreas: Volume) -> None:
    session = Session(load_recipe(task_recipe(2)), DEMO_WEIGHTS, device="cpu")
    result = segment(pancreas, session, deadline=Deadline.after(0.0))
    assert result.mask.grid == pancreas.grid
    assert "folds_left_out" in [event.code for event in result.events]  # the crop of this volume fits into one tile


@pytest.mark.slow
def test_takes_the_time_budget_from_the_command_line(tmp_path: Path) -> None:
    scan = next((ROOT / "test" / "input" / "task1" / "images").rglob("*.mha"))
    for budget, is_short in (("3600", False), ("0.01", True)):
        output = tmp_path / budget
        options = ["--task", "1", "--device", "cpu", "--time-budget", budget]
        result = CliRunner().invoke(main, ["predict", str(scan), str(output), *options])
        assert result.exit_code == 0, result.output
        events = json.loads((output / f"{scan.stem}.json").read_text())["events"]
        assert ("folds_left_out" in [event["code"] for event in events]) == is_short


@pytest.mark.parametrize("budget", ["0", "-1", "soon", "nan"])
def test_refuses_a_time_budget_that_is_not_positive(tmp_path: Path, budget: str) -> None:
    result = CliRunner().invoke(main, ["predict", str(tmp_path), str(tmp_path), "--task", "1", "--time-budget", budget])
    assert result.exit_code == 2, result.output
