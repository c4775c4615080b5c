"""In `fast`, later folds run only the tiles that can change the mask."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from pantherseg.errors import ModelError
from pantherseg.fast import USUAL, Fast
from pantherseg.inference.accumulate import Network
from pantherseg.inference.backends import Mode
from pantherseg.inference.predictor import Logits, Predictor
from pantherseg.inference.tiles import tiles
from pantherseg.models.bundle import Bundle, open_bundle
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.preprocessing.preprocess import Prepared
from slow_backend import Clock, SlowBackend

SHAPE, PATCH = (40, 16, 16), (8, 16, 16)
TILES = len(tiles(SHAPE, PATCH, 0.5))
SURE = 30.0


class BallBackend(SlowBackend):
    """Fold k marks what is above 0 in the image plus k / 4. damaged: the one that has no network."""

    damaged = ""

    def network(self, bundle: Bundle, fold: str, upcoming: str | None = None, *, keep: bool = False) -> Network:
        if fold == self.damaged:
            raise ModelError(bundle.weights_path(fold), "the file is damaged")

        def run(tile: NDArray[np.float32]) -> NDArray[np.float32]:
            self.forwards.append(fold)
            return np.concatenate([np.zeros_like(tile), tile + float(fold) / 4], axis=1)

        return run


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """Five folds with two classes."""
    demo = open_bundle(DEMO_WEIGHTS / "task1")
    return replace(demo, manifest=msgspec.structs.replace(demo.manifest, patch=PATCH, classes=2, mirroring_axes=()))


def run(bundle: Bundle, image: NDArray[np.float32], fast: Fast | None) -> tuple[Logits, list[str]]:
    """Return the logits of an image, and the fold of each forward pass."""
    backend = BallBackend(Clock(), mode="exact" if fast is None else "fast")
    predictor = Predictor(bundle, backend, compared_label=1, fast=fast or USUAL)  # type: ignore[arg-type]
    back = predictor.preprocessing.run(np.ones(SHAPE, np.float32), (3.0, 2.4, 2.4)).back
    return predictor.logits(Prepared(image[None], back)), backend.forwards


def ball(z: float) -> NDArray[np.float32]:
    """Return an image that is above 0 in a ball around a slice."""
    at = np.indices(SHAPE) - np.array([z, 7.5, 7.5])[:, None, None, None]
    margins: NDArray[np.float32] = np.clip(4 * (2.6 - np.sqrt((at**2).sum(axis=0))), -SURE, 8).astype(np.float32)
    return margins


def test_exact_runs_all_tiles(bundle: Bundle) -> None:
    logits, forwards = run(bundle, ball(20), None)
    assert len(forwards) == 5 * TILES
    assert logits.tile_share == 1


@pytest.mark.parametrize("z", [0, 3, 20, 39])
def test_fast_runs_all_tiles_once_and_then_those_of_the_tumour(bundle: Bundle, z: float) -> None:
    image = ball(z)
    exact, _ = run(bundle, image, None)
    fast, forwards = run(bundle, image, USUAL)
    assert forwards.count("0") == TILES
    counts = {forwards.count(fold) for fold in "1234"}
    assert len(counts) == 1
    assert 1 <= counts.pop() <= 3
    assert fast.folds == exact.folds == tuple("01234")
    assert fast.tile_share == pytest.approx(len(forwards) / (5 * TILES))
    assert fast.events == exact.events == ()
    marked = [logits.values[1] > logits.values[0] for logits in (fast, exact)]
    np.testing.assert_array_equal(*marked)
    assert marked[0].any()
    assert exact.agreement is not None
    assert fast.agreement is None, "a fold agrees with itself where it was not run"


def test_where_a_fold_ran_no_tiles_the_folds_before_stand_in(bundle: Bundle) -> None:
    logits, forwards = run(bundle, ball(3), USUAL)
    assert forwards.count("4") < TILES - 2
    np.testing.assert_allclose(logits.values[1][-8:], -SURE, rtol=0, atol=0.1)


def test_no_later_fold_is_run_where_all_is_sure(bundle: Bundle) -> None:
    logits, forwards = run(bundle, np.full(SHAPE, SURE, np.float32), USUAL)
    assert forwards == ["0"] * TILES
    assert logits.folds == ("0",)
    assert logits.tile_share == 1 / 5
    np.testing.assert_allclose(logits.values[1], SURE, rtol=0, atol=0.1)


def test_the_likeliest_place_is_looked_at_where_nothing_is_marked(bundle: Bundle) -> None:
    """A rescue marks it, and must find the same one as in `exact`."""
    image = np.full(SHAPE, -SURE, np.float32)
    image[18:22, 6:10, 6:10] = -15
    image[20, 8, 8] = -14
    exact, _ = run(bundle, image, None)
    fast, forwards = run(bundle, image, USUAL)
    assert 0 < forwards.count("4") < TILES
    margins = [logits.values[1] - logits.values[0] for logits in (fast, exact)]
    assert margins[0].argmax() == margins[1].argmax()
    assert margins[0].max() == pytest.approx(margins[1].max(), abs=0.02)


@pytest.mark.parametrize("damaged", ["0", "2", "4"])
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_the_share_of_tiles_is_of_the_usable_folds(bundle: Bundle, mode: Mode, damaged: str) -> None:
    backend = BallBackend(Clock(), mode=mode)
    backend.damaged = damaged
    predictor = Predictor(bundle, backend, compared_label=1, min_folds=4)  # type: ignore[arg-type]
    back = predictor.preprocessing.run(np.ones(SHAPE, np.float32), (3.0, 2.4, 2.4)).back
    logits = predictor.logits(Prepared(ball(20)[None], back))
    assert logits.tile_share == len(backend.forwards) / (4 * TILES)
    assert (logits.tile_share == 1) == (mode == "exact")


def test_a_place_that_the_first_fold_does_not_mark_is_looked_at(bundle: Bundle) -> None:
    """All folds together mark it: the mean of what they add is 0.5."""
    image = np.full(SHAPE, -SURE, np.float32)
    image[18:22, 6:10, 6:10] = -0.3
    image[-1] = SURE  # without any mark, the likeliest place is always looked at
    fast, _ = run(bundle, image, USUAL)
    assert (fast.values[1] > fast.values[0])[:-1].sum() == 64
    blind, _ = run(bundle, image, Fast(edge_logits=0.1, doubt_logits=0.0))
    assert not (blind.values[1] > blind.values[0])[:-1].any()


def test_without_a_label_all_tiles_are_run(bundle: Bundle) -> None:
    backend = BallBackend(Clock(), mode="fast")
    predictor = Predictor(bundle, backend)  # type: ignore[arg-type]
    back = predictor.preprocessing.run(np.ones(SHAPE, np.float32), (3.0, 2.4, 2.4)).back
    assert predictor.logits(Prepared(ball(20)[None], back)).tile_share == 1
    assert len(backend.forwards) == 5 * TILES
