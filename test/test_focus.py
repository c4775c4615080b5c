"""Which tiles later folds run: those that can still change what is marked."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from numpy.typing import NDArray

from pantherseg.fast import USUAL, Fast
from pantherseg.inference.accumulate import Sweep
from pantherseg.inference.focus import Focus, Ranking

# Seven tiles along z, one along the other axes.
SHAPE, PATCH = (32, 32, 32), (8, 32, 32)
STARTS = (0, 4, 8, 12, 16, 20, 24)
SURE = 40.0


def logits_of(margins: NDArray[np.floating], *, label: int = 1, classes: int = 3) -> NDArray[np.float16]:
    """Return logits (class, z, y, x) with these margins of a label over the others, which differ."""
    logits = np.zeros((classes, *margins.shape), np.float16)
    logits[label] = margins
    for other in range(classes):
        if other not in (label, 0):
            logits[other] = -other
    return logits


def with_balls(
    *balls: tuple[float, float], peak: float = 8.0, shape: tuple[int, int, int] = SHAPE
) -> NDArray[np.float64]:
    """Return margins of balls (z, radius) in the middle of the other axes: 4 a voxel through the edge, up to a peak."""
    z, y, x = np.indices(shape)
    middle = [(size - 1) / 2 for size in shape]
    margins = np.full(shape, -SURE)
    for centre, radius in balls:
        distance = np.sqrt((z - centre) ** 2 + (y - middle[1]) ** 2 + (x - middle[2]) ** 2)
        margins = np.maximum(margins, np.clip(4 * (radius - distance), -SURE, peak))
    return margins


def focus(label: int = 1, fast: Fast = USUAL, *, shape: tuple[int, int, int] = SHAPE) -> Focus:
    return Focus(Sweep(np.zeros((1, *shape), np.float32), PATCH, step=0.5), label, fast)


def tiles(
    margins: NDArray[np.floating], *, done: int = 2, left: int = 3, share: float = 0.0, label: int = 1
) -> list[int]:
    total = logits_of(margins, label=label) * np.float16(done)
    return needed(focus(label, Fast(left_out_share=share)).ranking(total, done=done, left=left))


def needed(ranking: Ranking) -> list[int]:
    return ranking.order[: ranking.needed]


@pytest.mark.parametrize("label", [0, 1, 2])
def test_only_tiles_at_the_edge_of_what_is_marked_matter(label: int) -> None:
    """The first is that in whose middle it is. label: in the order of the network's classes."""
    found = tiles(with_balls((15.5, 2.0)), label=label)
    assert found[0] == STARTS.index(12)
    assert set(found) == {STARTS.index(start) for start in (8, 12, 16)}


def test_no_tile_matters_where_all_is_sure() -> None:
    assert tiles(np.full(SHAPE, SURE)) == []


@pytest.mark.parametrize("done", [1, 4])
def test_the_likeliest_place_matters_where_nothing_is_marked(done: int) -> None:
    """A rescue marks it."""
    found = tiles(with_balls((15.5, 2.0), (4.0, 2.0), peak=-20.0), done=done, left=5 - done)
    assert found
    margins = with_balls((15.5, 9.0), peak=-30.0)
    margins[3:5, 14:18, 14:18] = -25
    assert set(tiles(margins, done=done, left=5 - done)) == {0, 1}


def test_the_lightest_tiles_are_left_out() -> None:
    margins = with_balls((15.5, 2.0))
    every = tiles(margins)
    assert tiles(margins, share=0.4) == every[:1]


def test_a_small_place_is_not_left_out_beside_a_large_one() -> None:
    alone = set(tiles(with_balls((4.0, 1.2)), share=0.1))
    assert alone
    large = (22.0, 6.0)
    assert alone <= set(tiles(with_balls((4.0, 1.2), large), share=0.1))
    assert not alone <= set(tiles(with_balls(large), share=0.1))


@pytest.mark.parametrize("bridge", [-7.0, -3.5])
def test_a_small_place_counts_by_itself_where_it_is_joined_with_a_large_one(bridge: float) -> None:
    margins = np.full(SHAPE, -SURE)
    margins[:18] = 3.0
    margins[28:30, 14:18, 14:18] = -0.3
    margins[18:28, 15:17, 15:17] = bridge
    assert STARTS.index(24) in tiles(margins, done=1, left=4, share=0.05)


@pytest.mark.parametrize(
    ("peak", "done", "left", "looks"),
    [(-7.5, 1, 4, True), (-8.5, 1, 4, False), (-2.9, 2, 3, True), (-3.5, 2, 3, False), (-1.0, 4, 1, False)],
)
def test_unmarked_places_matter_while_the_folds_to_come_could_mark_them(
    peak: float, done: int, left: int, looks: bool
) -> None:
    """With a margin of 2 in each of the folds to come, the mean would be above 0. Another place is marked."""
    margins = with_balls((10.0, 5.0), peak=peak)
    margins[30:, 14:18, 14:18] = 4
    assert (STARTS.index(8) in tiles(margins, done=done, left=left)) == looks


def test_settings_say_how_wide_an_edge_is() -> None:
    margins = np.full(SHAPE, -SURE)
    margins[:14] = 3.0
    total = logits_of(margins)
    wide, narrow = (
        focus(fast=Fast(edge_logits=edge, left_out_share=0)).ranking(total, done=1, left=4) for edge in (4.0, 2.5)
    )
    assert sorted(needed(wide)) == [STARTS.index(start) for start in (0, 4, 8, 12)]
    assert sorted(needed(narrow)) == [STARTS.index(start) for start in (8, 12)]


def test_the_other_tiles_follow_by_their_largest_margin() -> None:
    margins = with_balls((4.0, 2.0))
    margins[22, 3, 3], margins[30, 3, 3] = -15, -12
    ranking = focus().ranking(logits_of(margins), done=1, left=4)
    assert sorted(ranking.order) == list(range(len(STARTS)))
    others = ranking.order[ranking.needed :]
    assert others[:4] == [STARTS.index(start) for start in (8, 24, 16, 20)]


def test_tiles_of_what_is_marked_come_before_those_of_what_is_not() -> None:
    margins = np.full(SHAPE, -SURE)
    margins[:18, 8:24, 8:24] = 3.0
    margins[28:30, 14:18, 14:18] = -6
    found = tiles(margins, done=1, left=4)
    assert STARTS.index(24) in found
    assert set(found[:4]) == {STARTS.index(start) for start in (0, 4, 8, 12)}
    margins[:18] = -SURE
    margins[3:5, 14:18, 14:18] = -5.5
    assert tiles(margins, done=1, left=4)[0] in (0, 1)


def test_a_steep_edge_is_looked_at() -> None:
    margins = np.full(SHAPE, -SURE)
    margins[14:18, 8:24, 8:24] = SURE
    assert STARTS.index(12) in tiles(margins)


def test_all_tiles_matter_where_noise_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pantherseg.inference.focus.MOST_SHARES", 20)
    margins = np.full(SHAPE, -SURE)
    margins[26, ::8, ::8] = 1
    margins[1, 8, 8] = 0.5
    every = focus().ranking(logits_of(margins), done=1, left=4, every=False)
    assert every.needed == len(STARTS)
    assert sorted(every.order) == list(range(len(STARTS)))
    assert every.order[:3] == [STARTS.index(start) for start in (20, 24, 0)]


def test_a_volume_smaller_than_the_patch_is_one_tile() -> None:
    shape = (5, 9, 11)
    total = logits_of(with_balls((2.0, 2.0), shape=shape))
    assert needed(focus(shape=shape).ranking(total, done=1, left=1)) == [0]


def test_tiles_can_be_single_slices() -> None:
    """A network of two dimensions runs slice by slice."""
    sweep = Sweep(np.zeros((1, *SHAPE), np.float32), (32, 32), step=0.5)
    found = Focus(sweep, 1).ranking(logits_of(with_balls((15.0, 2.0))), done=1, left=1)
    assert sorted(needed(found)) == [13, 14, 15, 16, 17]


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(*[st.integers(3, 30)] * 3),
    patch=st.lists(st.integers(3, 12), min_size=2, max_size=3).map(tuple),
    share=st.floats(0, 0.5),
    seed=st.integers(0, 99),
)
def test_every_open_voxel_is_in_a_tile_of_any_volume(
    shape: tuple[int, int, int], patch: tuple[int, ...], share: float, seed: int
) -> None:
    """Without a share to leave out, all tiles with open voxels are run; with one, a part of them. As on a device."""
    rng = np.random.default_rng(seed)
    total = rng.normal(scale=6, size=(3, *shape)).astype(np.float16)
    sweep = Sweep(np.zeros((1, *shape), np.float32), patch, step=0.5)
    every = Focus(sweep, 1, Fast(left_out_share=0)).ranking(total, done=1, left=0)
    fewer = Focus(sweep, 1, Fast(left_out_share=share)).ranking(total, done=1, left=0)
    assert sorted(every.order) == sorted(fewer.order) == list(range(len(sweep.tiles)))
    assert set(needed(fewer)) <= set(needed(every))
    ran = np.zeros(sweep.shape, bool)
    for number in needed(every):
        ran[sweep.tiles[number]] = True
    margins = total[1].astype(np.float32) - np.maximum(total[0], total[2])
    # A place that is not marked anywhere counts only while there are folds to come.
    assert ran[sweep.inside][(margins > 0) & (margins < USUAL.edge_logits)].all()
    device = Sweep(torch.zeros((1, *shape)), patch, step=0.5)
    assert Focus(device, 1, Fast(left_out_share=0)).ranking(torch.from_numpy(total), done=1, left=0) == every
