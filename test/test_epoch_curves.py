"""The values of each epoch, as TensorBoard reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pantherseg.training.epoch_curves import EpochCurves


def test_a_resumed_training_replaces_the_epochs_after_its_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed (extra train)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, losses in ((0, [1.0, 0.5]), (1, [0.25])):
        curves = EpochCurves(tmp_path, first_epoch=first)
        for epoch, loss in enumerate(losses, first):
            curves.add(epoch, {"loss": loss})
        curves.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 1.0), (1, 0.25)]
