"""Bootstrap intervals against SciPy's and against values that follow from counting."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pantherseg.evaluation import bootstrap
from pantherseg.evaluation.bootstrap import mean_samples, percentile_interval
from pantherseg.evaluation.metrics import METRICS, CaseMetrics, totals, totals_interval


def cases(number: int, seed: int = 0) -> list[CaseMetrics]:
    random = np.random.default_rng(seed)
    return [CaseMetrics(*random.random(2), *random.gamma(2, 5, 2), random.normal(0, 900), 1, 1) for _ in range(number)]


def test_intervals_are_those_of_scipy() -> None:
    values = np.random.default_rng(1).gamma(2, 5, 40)
    found = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(2))
    interval = percentile_interval(mean_samples(values[:, None]))
    width = found.confidence_interval.high - found.confidence_interval.low
    assert interval == pytest.approx(tuple(found.confidence_interval), abs=0.05 * width)


def test_the_volume_rmse_has_the_interval_of_the_rmse() -> None:
    chosen = cases(30)

    def rmse(errors: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.sqrt(np.mean(errors**2, axis=axis))

    errors = np.array([case.volume_error_mm3 for case in chosen])
    found = stats.bootstrap((errors,), rmse, method="percentile", n_resamples=20_000, rng=np.random.default_rng(2))
    interval = totals_interval(chosen)
    assert interval is not None
    width = found.confidence_interval.high - found.confidence_interval.low
    assert interval["volume_rmse_mm3"] == pytest.approx(tuple(found.confidence_interval), abs=0.05 * width)


def test_intervals_hold_the_totals_and_are_the_same_every_time() -> None:
    chosen = cases(20)
    interval = totals_interval(chosen)
    assert interval is not None
    assert list(interval) == list(METRICS)
    for metric, value in totals(chosen).as_dict().items():
        assert interval[metric][0] < value < interval[metric][1]
    assert totals_interval(chosen) == interval


def test_two_cases_have_the_interval_between_them_equal_ones_a_point_and_one_has_none() -> None:
    two = cases(2)
    interval = totals_interval(two)
    assert interval is not None
    assert interval["dice"] == pytest.approx(sorted(case.dice for case in two))
    equal = totals_interval(two[:1] * 5)
    assert equal is not None
    assert equal["hd95_mm"] == pytest.approx((two[0].hd95_mm, two[0].hd95_mm))
    assert totals_interval(two[:1]) is None


def test_many_cases_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((50, 2))
    whole = mean_samples(values)
    assert whole.shape == (bootstrap.RESAMPLES, 2)
    monkeypatch.setattr(bootstrap, "DRAWS_AT_ONCE", 7777)
    assert mean_samples(values) == pytest.approx(whole)


@pytest.mark.slow
def test_intervals_hold_the_true_mean_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(4)
    samples = [percentile_interval(mean_samples(random.beta(4, 2, (30, 1)))) for _ in range(300)]
    held = np.mean([low <= 4 / 6 <= high for low, high in samples])
    assert 0.9 <= held <= 0.98
