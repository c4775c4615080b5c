"""One label of many, computed only where it can be: the same voxels as in the whole label map."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from pantherseg.inference.predictor import Logits
from pantherseg.orientation import ORIENTATIONS, Orientation
from pantherseg.preprocessing.intensity import IntensityScheme
from pantherseg.preprocessing.preprocess import Prepared, Preprocessing
from pantherseg.preprocessing.resample import Resampling
from pantherseg.volume import Box, Grid, Volume

CLASSES = 6
RESAMPLINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("resample_data_or_seg_to_shape", {"order": 1, "order_z": 0, "force_separate_z": None}),
    "nearest": ("resample_data_or_seg_to_shape", {"order": 0, "order_z": 0, "force_separate_z": False}),
    "cubic": ("resample_data_or_seg_to_shape", {"order": 3, "order_z": 0, "force_separate_z": False}),
    "torch": ("resample_torch_fornnunet", {"mode": "linear", "force_separate_z": False}),
}


def prepared(resampling: str, volume: Volume, spacing: tuple[float, float, float]) -> Prepared:
    name, arguments = RESAMPLINGS[resampling]
    both = Resampling.from_plans(name, arguments)
    scheme = IntensityScheme.registry.decode({"scheme": "NoNormalization"})
    preprocessing = Preprocessing(
        spacing=spacing, transpose=(0, 1, 2), normalization=scheme, images=RESAMPLED, logits=both
    )
    return preprocessing.run(volume.array, volume.grid.spacing, volume.grid.turn_to("LPS"))


RESAMPLED = Resampling.from_plans(*RESAMPLINGS["linear"])


def logits_of(seed: int, smooth: float, steps: float, where: Prepared) -> Logits:
    """Return smooth logits; steps: to which they are rounded, so that many are equal."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 30, (CLASSES, *where.data.shape[1:]))
    values = np.stack([ndimage.gaussian_filter(one, smooth) for one in values])
    values = np.round(values / steps) * steps
    return Logits(values.astype(np.float16), where.back, (), "float32", ("0",))


def volume_of(code: Orientation, shape: tuple[int, int, int] = (9, 14, 12)) -> Volume:
    array = np.zeros(shape, np.float32)
    array[1:-1, 2:, 1:] = 1  # the rest is cropped away before the network
    return Volume(array, Grid(shape, (4.0, 1.5, 2.0))).turned_to(code)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.0, 1.0, 3.0]),
    st.sampled_from([1e-3, 2.0, 20.0]),
    st.sampled_from(["linear", "nearest", "torch"]),
    st.sampled_from(ORIENTATIONS),
    st.tuples(*[st.sampled_from([1.2, 2.0, 3.7, 30.0])] * 3),
)
def test_a_label_has_the_voxels_of_the_whole_label_map(
    seed: int,
    smooth: float,
    steps: float,
    resampling: str,
    code: Orientation,
    spacing: tuple[float, float, float],
) -> None:
    logits = logits_of(seed, smooth, steps, prepared(resampling, volume_of(code), spacing))
    labels = logits.labels()
    for label in range(1, CLASSES):
        np.testing.assert_array_equal(logits.mask(label), labels == label)


def test_splines_that_reach_far_are_computed_everywhere() -> None:
    logits = logits_of(1, 1.0, 1e-3, prepared("cubic", volume_of("RAS"), (3.7, 2.0, 1.2)))
    labels = logits.labels()
    for label in range(1, CLASSES):
        np.testing.assert_array_equal(logits.mask(label), labels == label)


def with_spot(where: Prepared) -> NDArray[np.float16]:
    values = np.zeros((CLASSES, *where.data.shape[1:]), np.float16)
    values[0] = 20
    values[3, 2:4, 3:6, 2:5] = 40
    values[4, 5:] = 30
    return values


@pytest.mark.parametrize("code", ["LPS", "RAS", "SRA"])
def test_only_the_neighbourhood_of_a_label_is_interpolated(code: Orientation, monkeypatch: pytest.MonkeyPatch) -> None:
    where = prepared("linear", volume_of(code, (30, 40, 50)), (5.0, 2.0, 3.0))
    logits = Logits(with_spot(where), where.back, (), "float32", ("0",))
    labels, asked = logits.labels(), []
    part = type(where.back).part

    def counted(back: Any, values: Any, box: Box) -> Any:
        asked.append(np.prod(box.shape))
        return part(back, values, box)

    monkeypatch.setattr(type(where.back), "part", counted)
    np.testing.assert_array_equal(logits.mask(3), labels == 3)
    assert (labels == 3).any()
    assert 0 < sum(asked) < 0.05 * labels.size
    asked.clear()
    assert not logits.mask(5).any()
    assert asked == [], "nothing is interpolated for a label that is nowhere the largest"
