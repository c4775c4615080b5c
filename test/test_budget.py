"""The time of a case: what is left out when it gets short, in which order, and that it is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from matrix import saw
from pantherseg.cli import main
from pantherseg.events import Event
from pantherseg.inference.accumulate import Network, Sweep
from pantherseg.inference.backends import Placement
from pantherseg.inference.predictor import Logits, Predictor
from pantherseg.inference.tiles import tiles
from pantherseg.machine.deadline import NEVER, Deadline
from pantherseg.models.bundle import Bundle, open_bundle
from pantherseg.paths import DEMO_WEIGHTS, ROOT, task_recipe
from pantherseg.pipeline import load_system, segment
from pantherseg.preprocessing.preprocess import CERTAIN, Prepared
from pantherseg.recipe import load_recipe
from pantherseg.volume import Volume

SHAPE, PATCH = (10, 30, 30), (8, 16, 16)


@dataclass
class Clock:
    """A clock that moves when somebody works."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Working:
    """A backend whose folds take their time: fold k's logits are k and the tile, as classes 0 and 1."""

    clock: Clock
    forward_s: float = 1.0
    load_s: float = 0.0
    forwards: list[str] = field(default_factory=list)
    device = "cpu"
    precision = "float32"
    mode = "exact"
    events: tuple[Event, ...] = ()

    def network(self, bundle: Bundle, fold: str, upcoming: str | None = None) -> Network:
        self.clock.now += self.load_s

        def run(tile: NDArray[np.float32]) -> NDArray[np.float32]:
            self.clock.now += self.forward_s
            self.forwards.append(fold)
            return np.concatenate([np.full_like(tile, float(fold)), tile], axis=1)

        return run

    def placements(self, data: NDArray[np.float32], bundle: Bundle) -> Iterator[Placement]:
        yield Placement(data, self)  # type: ignore[arg-type]

    def explained(self, error: Exception) -> None:
        return None


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """Five folds of two classes that may be mirrored along two axes, which makes four inputs a tile."""
    demo = open_bundle(DEMO_WEIGHTS / "task1")
    manifest = msgspec.structs.replace(demo.manifest, patch=PATCH, classes=2, mirroring_axes=(1, 2))
    return replace(demo, manifest=manifest)


def predictor_of(bundle: Bundle, backend: Working, *, mirroring: bool = False, step: float = 0.5) -> Predictor:
    return Predictor(bundle, backend, mirroring=mirroring, step=step)  # type: ignore[arg-type]


def run(predictor: Predictor, seconds: float) -> Logits:
    array = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    prepared = Prepared(array[None], predictor.preprocessing.run(np.ones(SHAPE, np.float32), (3.0, 2.4, 2.4)).back)
    clock = predictor.backend.clock  # type: ignore[attr-defined]
    return predictor.logits(prepared, Deadline.after(seconds, clock))


def codes(logits: Logits) -> list[str]:
    saw(logits.events)
    return [event.code for event in logits.events]


TILES = len(tiles(SHAPE, PATCH, 0.5))


def test_with_enough_time_nothing_is_left_out(bundle: Bundle) -> None:
    backend = Working(Clock())
    logits = run(predictor_of(bundle, backend, mirroring=True), 5 * 4 * TILES)
    assert codes(logits) == []
    assert backend.clock.now == 5 * 4 * TILES
    np.testing.assert_allclose(logits.values[0], 2, rtol=0, atol=2e-3)


@pytest.mark.fault(
    "time", "time for five folds, but not for mirroring", "the five folds without mirroring, and an event"
)
def test_mirroring_is_left_out_first(bundle: Bundle) -> None:
    backend = Working(Clock())
    logits = run(predictor_of(bundle, backend, mirroring=True), 5 * 4 * TILES - 1)
    assert codes(logits) == ["mirroring_left_out"]
    # One forward pass went into finding out.
    assert backend.clock.now == 5 * TILES + 1
    plain = run(predictor_of(bundle, Working(Clock())), 1e9)
    np.testing.assert_array_equal(logits.values, plain.values)


@pytest.mark.fault("time", "time for three of five folds", "three folds, and an event")
def test_then_folds_from_the_last_one_on(bundle: Bundle) -> None:
    backend = Working(Clock())
    logits = run(predictor_of(bundle, backend), 3.5 * TILES)
    assert codes(logits) == ["folds_left_out"]
    assert "folds 3 4 were left out" in logits.events[0].message
    assert backend.clock.now == 3 * TILES
    np.testing.assert_allclose(logits.values[0], 1, rtol=0, atol=1e-3)  # the mean of 0, 1 and 2


@pytest.mark.fault("time", "time for three folds without mirroring", "no mirroring, three folds, and an event for each")
def test_mirroring_goes_before_any_fold(bundle: Bundle) -> None:
    logits = run(predictor_of(bundle, Working(Clock()), mirroring=True), 3.5 * TILES)
    assert codes(logits) == ["mirroring_left_out", "folds_left_out"]
    assert "folds 3 4 " in logits.events[1].message


@pytest.mark.fault(
    "time", "not even time for one fold with overlapping tiles", "one fold of tiles side by side, and events"
)
def test_then_the_overlap_of_tiles(bundle: Bundle) -> None:
    backend = Working(Clock())
    seconds = TILES - 2.0
    logits = run(predictor_of(bundle, backend), seconds)
    assert codes(logits) == ["overlap_left_out", "folds_left_out"]
    assert set(backend.forwards) == {"0"}
    assert backend.clock.now <= seconds
    array = np.random.default_rng(0).normal(size=SHAPE)
    # Where only the edge of a tile reaches, float16's sums leave little more than whole numbers.
    np.testing.assert_allclose(logits.values[1], array, rtol=0, atol=0.51)


@pytest.mark.fault(
    "time", "not even time for one fold with tiles side by side", "the tiles in the middle of the body, and events"
)
def test_then_the_tiles_far_from_the_middle_of_the_body(bundle: Bundle) -> None:
    backend = Working(Clock())
    logits = run(predictor_of(bundle, backend), 4.0)
    assert codes(logits) == ["overlap_left_out", "tiles_left_out", "folds_left_out"]
    assert backend.clock.now <= 4.0
    seen = logits.values[0] != CERTAIN
    assert 0 < seen.mean() < 1
    assert seen[5, 15, 15]
    np.testing.assert_array_equal(logits.values[1][~seen], 0)


@pytest.mark.fault("time", "all time is gone before the network is loaded", "one tile, and events")
def test_without_any_time_one_tile_is_seen(bundle: Bundle) -> None:
    backend = Working(Clock(), load_s=3.0)
    logits = run(predictor_of(bundle, backend), 1.0)
    assert "tiles_left_out" in codes(logits)
    saw(f"{len(backend.forwards) - 1} tile, one pass before it to find out how long it takes")
    assert backend.clock.now == 5.0, "loaded, one pass to find out how long it takes, and one tile"


@pytest.mark.fault(
    "time", "any amount of time and any speed", "an end at most one tile late, and an event for all that was left out"
)
@settings(max_examples=200, deadline=None)
@given(
    seconds=st.floats(0.5, 500),
    forward_s=st.floats(0.01, 5),
    load_s=st.floats(0, 5),
    mirroring=st.booleans(),
    step=st.sampled_from([0.3, 0.5, 1.0]),
)
def test_never_more_than_one_tile_over(
    bundle: Bundle, seconds: float, forward_s: float, load_s: float, mirroring: bool, step: float
) -> None:
    backend = Working(Clock(), forward_s, load_s)
    logits = run(predictor_of(bundle, backend, mirroring=mirroring, step=step), seconds)
    least = load_s + 2 * forward_s
    late = max(backend.clock.now - max(seconds, least), 0) / (4 * forward_s)
    saw("never late" if late == 0 else "at most one tile late" if late <= 1 else f"{late:.1f} tiles late")
    assert backend.clock.now <= max(seconds, least) + 4 * forward_s
    assert np.isfinite(logits.values).all()
    every = len(tiles(SHAPE, PATCH, step)) * 5 * (4 if mirroring else 1)
    assert (len(backend.forwards) == every) == (logits.events == ())


@pytest.mark.fault("time", "the network gets slower and slower", "fewer folds, and an event")
def test_a_network_that_slows_down_is_noticed(bundle: Bundle) -> None:
    backend = Working(Clock())

    class Slowing(Working):
        def network(self, bundle: Bundle, fold: str, upcoming: str | None = None) -> Network:
            self.forward_s = 1.0 + 2 * int(fold)
            return super().network(bundle, fold, upcoming)

    slowing = Slowing(backend.clock)
    logits = run(predictor_of(bundle, slowing), 5 * TILES)
    assert codes(logits) == ["folds_left_out"]
    assert slowing.clock.now <= 5 * TILES + 5


def test_without_a_deadline_no_clock_is_looked_at(bundle: Bundle) -> None:
    backend = Working(Clock(), forward_s=1e9)
    predictor = predictor_of(bundle, backend)
    prepared = predictor.preprocessing.run(np.ones(SHAPE, np.float32), (3.0, 2.4, 2.4))
    assert predictor.logits(Prepared(np.zeros((1, *SHAPE), np.float32), prepared.back), NEVER).events == ()


def test_tiles_may_begin_at_the_middle_of_the_body() -> None:
    data = np.full((1, 20, 40, 40), -1, np.float32)
    data[0, 2:6, 28:36, 4:12] = 1
    first = Sweep(data, (8, 16, 16), step=0.5, nearest=True).tiles[0]
    assert all(part.start <= at < part.stop for part, at in zip(first, (4, 32, 8), strict=True))


def test_a_deadline_is_a_moment_of_its_clock() -> None:
    clock = Clock(100.0)
    deadline = Deadline.after(60, clock)
    clock.now += 20
    assert deadline.left() == 40
    assert deadline.share(0.25).left() == 10
    assert deadline.before(3_000_000).left() < 40
    clock.now += 50
    assert deadline.left() == -10
    assert deadline.share(0.5).left() == 0
    assert NEVER.left() == np.inf
    assert NEVER.share(0.5).before(10**9).left() == np.inf


@pytest.mark.fault("time", "a whole case, with no time at all", "a mask on the volume's grid, and events")
@pytest.mark.slow
def test_a_case_without_time_still_gets_its_mask(pancreas: Volume) -> None:
    system = load_system(load_recipe(task_recipe(2)), DEMO_WEIGHTS, device="cpu")
    result = segment(pancreas, system, deadline=Deadline.after(0.0))
    saw(result)
    assert result.mask.grid == pancreas.grid
    assert "tiles_left_out" in [event.code for event in result.events]


@pytest.mark.slow
def test_the_budget_comes_from_the_command_line(tmp_path: Path) -> None:
    scan = next((ROOT / "test" / "input" / "task1" / "images").rglob("*.mha"))
    for budget, short in (("3600", False), ("0.01", True)):
        output = tmp_path / budget
        options = ["--task", "1", "--device", "cpu", "--time-budget", budget]
        result = CliRunner().invoke(main, ["predict", str(scan), str(output), *options])
        assert result.exit_code == 0, result.output
        events = json.loads((output / f"{scan.stem}.json").read_text())["events"]
        assert ("folds_left_out" in [event["code"] for event in events]) == short


@pytest.mark.parametrize("budget", ["0", "-1", "soon", "nan"])
def test_a_budget_is_seconds_above_0(tmp_path: Path, budget: str) -> None:
    result = CliRunner().invoke(main, ["predict", str(tmp_path), str(tmp_path), "--task", "1", "--time-budget", budget])
    assert result.exit_code == 2, result.output
