"""The learning rates of a schedule, compared with the schedulers of nnU-Net and torch, and invalid schedules."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.lr_scheduler.warmup import Lin_incr_LRScheduler, PolyLRScheduler_offset

from pantherseg.training.training_recipe import ScheduleSettings, TrainingSettings


def rates(schedule: ScheduleSettings) -> list[float]:
    return [schedule.learning_rate_at(epoch) for epoch in range(schedule.epochs)]


def rates_of(make: Any, epochs: range, rate: float) -> list[float]:
    """Return what a scheduler of nnU-Net sets at some epochs, where nnU-Net calls it before each."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], rate)
    scheduler, found = make(optimizer), []
    for epoch in epochs:
        optimizer.step()
        scheduler.step(epoch)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_default_is_the_schedule_of_nnunet() -> None:
    schedule = ScheduleSettings()
    expected = rates_of(lambda optimizer: PolyLRScheduler(optimizer, 1e-2, 1000), range(1000), 1e-2)
    assert rates(schedule) == pytest.approx(expected)


def test_warms_up_linearly_and_then_decays() -> None:
    schedule = ScheduleSettings(epochs=60, warm_up=10, learning_rate=1e-3)
    warm = rates_of(lambda optimizer: Lin_incr_LRScheduler(optimizer, 1e-3, 10), range(10), 1e-3)
    poly = rates_of(lambda optimizer: PolyLRScheduler_offset(optimizer, 1e-3, 60, 10), range(10, 60), 1e-3)
    assert rates(schedule) == pytest.approx(warm + poly)
    assert rates(schedule)[9:11] == pytest.approx([1e-3, 1e-3])


@pytest.mark.parametrize("warm_up", [0, 10])
def test_decays_by_a_cosine(warm_up: int) -> None:
    schedule = ScheduleSettings(epochs=60, warm_up=warm_up, decay="cosine", learning_rate=1e-3)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1e-3)
    scheduler, cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60 - warm_up), []
    for _ in range(warm_up, 60):
        cosine += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    assert rates(schedule)[warm_up:] == pytest.approx(cosine)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"epochs": 10, "warm_up": 10}, "warm_up must be less than epochs: 10 of 10"),
        ({"augmentation": "da6"}, r"Invalid enum value 'da6' - at `\$.schedule.augmentation`"),
        ({"epoch": 3}, r"unknown field `epoch` - at `\$.schedule`"),
    ],
)
def test_refuses_an_invalid_schedule(schedule: dict[str, Any], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert({"schedule": schedule}, TrainingSettings)
