"""Our surface metrics against DeepMind's surface-distance and against values that follow from geometry."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from numpy.typing import NDArray

from pantherseg.evaluation import surfaces
from pantherseg.evaluation.metrics import CaseMetrics, score_case
from pantherseg.evaluation.surfaces import Surface, surface_metrics
from pantherseg.labels import tumour_of
from pantherseg.phantom import make_phantom
from pantherseg.volume import Grid, Triple, Volume

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import surface_distance
    from surface_distance import lookup_tables

Mask = NDArray[np.bool_]
EQUAL = 1e-9
# Spacings of PANTHER's volumes, of thick slices, and such that many distances are equal; all (z, y, x).
SPACINGS = [
    (3.0, 1.1875, 1.1875),
    (2.0, 1.0, 1.0),
    (7.7, 1.25, 1.25),
    (1.0, 1.0, 1.0),
    (3.0, 2.0, 1.0),
    (0.2, 0.7, 5.0),
]
ANY_SPACING = st.sampled_from(SPACINGS) | st.tuples(*[st.floats(0.3, 8)] * 3)


def reference_metrics(reference: Mask, predicted: Mask, spacing: Triple) -> tuple[float, ...]:
    """Return Dice, surface Dice, HD95, MASD and the volume error by surface-distance."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # surface-distance uses old namespaces of SciPy
        distances = surface_distance.compute_surface_distances(reference, predicted, spacing)
    return (
        surface_distance.compute_dice_coefficient(reference, predicted),
        surface_distance.compute_surface_dice_at_tolerance(distances, 5),
        surface_distance.compute_robust_hausdorff(distances, 95),
        float(np.mean(surface_distance.compute_average_surface_distance(distances))),
        float(np.prod(spacing)) * (int(predicted.sum()) - int(reference.sum())),
    )


def figures(metrics: CaseMetrics) -> tuple[float, ...]:
    m = metrics
    return (m.dice, m.surface_dice_5mm, m.hd95_mm, m.masd_mm, m.volume_error_mm3)


def scored(reference: Mask, predicted: Mask, spacing: Triple) -> dict[str, tuple[float, ...]]:
    grid = Grid(reference.shape, spacing)
    scores = score_case(Volume(predicted.astype(np.uint8), grid), Volume(reference.astype(np.uint8), grid))
    return {"corrected": figures(scores.corrected), "official": figures(scores.official)}


def assert_parity(reference: Mask, predicted: Mask, spacing: Triple) -> None:
    ours = scored(reference, predicted, spacing)
    assert ours["corrected"] == pytest.approx(reference_metrics(reference, predicted, spacing), abs=EQUAL, rel=0)
    assert ours["official"] == pytest.approx(reference_metrics(reference, predicted, spacing[::-1]), abs=EQUAL, rel=0)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_areas_are_those_of_surface_distance_for_all_neighbourhoods(spacing: Triple) -> None:
    table = lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
    codes = np.arange(256, dtype=np.uint8)
    ours = Surface(np.zeros((1, 1, 1), bool), np.zeros((256, 3), int), codes).areas(spacing)
    assert ours == pytest.approx(table, abs=1e-12, rel=1e-12)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Mask, Mask]:
    """Two masks of one shape, each scattered, a box, or a few voxels; axes of one voxel are among the shapes."""
    shape = draw(array_shapes(min_dims=3, max_dims=3, max_side=12))
    random = np.random.default_rng(draw(st.integers(0, 10**9)))

    def mask() -> Mask:
        kind = draw(st.sampled_from(["scattered", "box", "few"]))
        if kind == "scattered":
            return random.random(shape) < draw(st.sampled_from([0.02, 0.2, 0.5, 0.9]))
        array = np.zeros(shape, bool)
        if kind == "box":
            array[tuple(slice(*sorted(random.integers(0, n + 1, 2))) for n in shape)] = True
        else:
            array[tuple(random.integers(0, n, 3) for n in shape)] = True
        return array

    return mask(), mask()


@settings(deadline=None, max_examples=20)
@given(pairs(), ANY_SPACING)
def test_all_metrics_equal_surface_distance_on_random_masks(pair: tuple[Mask, Mask], spacing: Triple) -> None:
    reference, predicted = pair
    assume(reference.any() and predicted.any() and not predicted.all())
    assert_parity(reference, predicted, spacing)


@pytest.mark.slow
@settings(deadline=None, max_examples=500)
@given(pairs(), ANY_SPACING)
def test_all_metrics_equal_surface_distance_on_many_masks(pair: tuple[Mask, Mask], spacing: Triple) -> None:
    reference, predicted = pair
    assume(reference.any() and predicted.any() and not predicted.all())
    assert_parity(reference, predicted, spacing)


@pytest.mark.slow
@pytest.mark.parametrize("task", [1, 2])
def test_all_metrics_equal_surface_distance_on_phantoms(task: int) -> None:
    labels = make_phantom(1, task=task, size="small").labels
    tumour, pancreas = tumour_of(labels.array), labels.array > 0
    far = tumour.copy()
    far[2:5, 10:14, 10:14] = True
    for predicted in (np.roll(tumour, (1, -2, 3), (0, 1, 2)), pancreas, far):
        assert_parity(tumour, predicted, labels.grid.spacing)


@pytest.mark.slow
def test_all_metrics_equal_surface_distance_on_a_full_size_phantom() -> None:
    labels = make_phantom(0, task=1).labels
    tumour = tumour_of(labels.array)
    scattered = tumour | (np.random.default_rng(0).random(tumour.shape) < 1e-4)
    for predicted in (np.roll(tumour, (2, 3, -4), (0, 1, 2)), labels.array > 0, scattered):
        assert_parity(tumour, predicted, labels.grid.spacing)


def test_distances_do_not_depend_on_how_many_are_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    masks = random.random((2, 9, 14, 11)) < 0.1
    at_once = surface_metrics(*masks, [(3.0, 2.0, 1.0)], tolerance_mm=2, percent=95)
    monkeypatch.setattr(surfaces, "AT_ONCE", 100)
    assert surface_metrics(*masks, [(3.0, 2.0, 1.0)], tolerance_mm=2, percent=95) == at_once


def half_space(axis: int, depth: int) -> Mask:
    mask = np.zeros((100, 100, 100), bool)
    mask[tuple(slice(depth) if a == axis else slice(None) for a in range(3))] = True
    return mask


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_half_spaces_of_100_voxels_at_spacing_2_1_1(axis: int) -> None:
    # The faces that differ are parallel and 4 voxels apart. The other faces are those of one volume, so that the
    # elements of the smaller one all lie on the larger one, but for its own face.
    spacing: Triple = (2.0, 1.0, 1.0)
    smaller, larger = half_space(axis, 46), half_space(axis, 50)
    for convention, mm in (("corrected", spacing), ("official", spacing[::-1])):
        dice, surface_dice, hd95, _, volume_error = scored(larger, smaller, spacing)[convention]
        assert dice == pytest.approx(2 * 46 / 96)
        assert volume_error == pytest.approx(-4 * 2 * 100**2)
        # The face is more than 5 % of either surface.
        assert hd95 == pytest.approx(4 * mm[axis])
        if 4 * mm[axis] <= 5:
            assert surface_dice == 1
        else:
            assert 0.5 < surface_dice < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_half_spaces_have_the_metrics_of_surface_distance(axis: int) -> None:
    assert_parity(half_space(axis, 50), half_space(axis, 46), (2.0, 1.0, 1.0))


@pytest.mark.parametrize(("axis", "steps"), [(1, 1), (2, 2)])
def test_two_voxels_2_mm_apart_at_spacing_3_2_1(axis: int, steps: int) -> None:
    a, b = np.zeros((2, 9, 9, 9), bool)
    a[4, 4, 4] = True
    b[tuple(4 + steps * (axis == each) for each in range(3))] = True
    ours = scored(a, b, (3.0, 2.0, 1.0))
    assert ours["corrected"][:3] == pytest.approx((0, 1, 2))
    # Each voxel has eight corners. Four are as far from the other voxel as both voxels are from each other; of the
    # other four, those of the next voxel belong to both, and those of the one after it are one voxel away.
    assert ours["corrected"][3] == pytest.approx(1 if steps == 1 else 1.5)
    assert_parity(a, b, (3.0, 2.0, 1.0))


def test_a_face_of_a_cube_has_its_area() -> None:
    # The corners of a cube of 8 voxels are cut, as marching cubes does, and its edges are; the faces are whole.
    mask = np.ones((8, 8, 8), bool)
    surface = Surface.of(mask)
    flat = surface.codes == 0b00001111
    assert np.count_nonzero(flat) == 49
    assert surface.areas((2.0, 3.0, 5.0))[flat] == pytest.approx(15)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 6, 7), (5, 1, 7), (5, 6, 1), (1, 1, 7), (5, 6, 7)])
def test_masks_that_touch_the_border_and_axes_of_one_voxel(shape: tuple[int, int, int]) -> None:
    random = np.random.default_rng(sum(shape))
    reference, predicted = random.random((2, *shape)) < 0.5
    reference.flat[0] = predicted.flat[-1] = True
    if predicted.all():
        assert scored(reference, predicted, (3.0, 2.0, 1.0))["official"][0] == 0  # counts as empty
        predicted.flat[0] = predicted.size == 1
    if not predicted.all():
        assert_parity(reference, predicted, (3.0, 2.0, 1.0))


def test_surfaces_of_turned_masks_are_the_same() -> None:
    random = np.random.default_rng(5)
    masks = random.random((2, 5, 6, 7)) < 0.4

    def metrics(a: NDArray[Any], b: NDArray[Any], spacing: Triple) -> Any:
        return surface_metrics(a, b, [spacing], tolerance_mm=2, percent=95)[0]

    expected = metrics(*masks, (3.0, 2.0, 1.0))
    turned = metrics(*(mask.transpose(2, 0, 1)[::-1, :, ::-1] for mask in masks), (1.0, 3.0, 2.0))
    assert turned.masd_mm == pytest.approx(expected.masd_mm)
    assert turned.surface_dice == pytest.approx(expected.surface_dice)
    assert turned.hausdorff_mm == pytest.approx(expected.hausdorff_mm)
