"""Training of one fold by Lightning, from the beginning or from where it was interrupted."""

from __future__ import annotations

import contextlib
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import monai
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader

from pantherseg.datasets.splits import SPLITS, read_splits
from pantherseg.files import write_text
from pantherseg.logs import silenced
from pantherseg.model_sources.lightning import BEST, FINAL, read_checkpoint, write_checkpoint
from pantherseg.model_sources.lightning_plans import LightningPlans, write_plans
from pantherseg.training.lightning_recipe import LightningSchedule, LightningSettings
from pantherseg.training.patches.batches import EpochNumbers, Patch, Patches
from pantherseg.training.patches.callbacks import History, ReduceOnPlateau, Seeds
from pantherseg.training.patches.folders import HISTORY, PatchFolders
from pantherseg.training.patches.module import DICE, PatchModule
from pantherseg.training.patches.preparing import check_prepared, plans_of
from pantherseg.training.patches.resuming import LATEST, Resumable, check_resumable
from pantherseg.training.patches.start import load_start
from pantherseg.training.seeds import reseed
from pantherseg.training.workers import workers_for_augmentation

logger = logging.getLogger(__name__)

# Warnings of Lightning about what is meant to be so: few processes, a folder with files, a GPU that is not used; and
# one about a name that Lightning itself uses.
ADVICE = (".*does not have many workers", ".*exists and is not empty", ".*GPU available but not used", ".*LeafSpec")
# In the seeds of patches: what they are for.
TRAINING, VALIDATION = 0, 1


@dataclass(frozen=True)
class Fold:
    """One fold that is trained. output: its folder; device: `cpu` or `cuda`."""

    folders: PatchFolders
    settings: LightningSettings
    plans: LightningPlans
    seed: int
    fold: int
    device: str

    @property
    def schedule(self) -> LightningSchedule:
        """The schedule."""
        return self.settings.schedule

    @property
    def output(self) -> Path:
        """The folder of the fold."""
        return self.folders.fold(self.fold)

    @property
    def resumable(self) -> Resumable:
        """What a checkpoint to resume from must belong to."""
        return Resumable(self.plans, self.schedule, self.seed, self.fold)

    def loader(self, part: str, *, numbers: Callable[[int], Any], batches: int, augment: bool) -> DataLoader[Patch]:
        """Return the batches of the cases of a part of the split: `train` or `val`."""
        cases = read_splits(self.folders.dataset / SPLITS)[self.fold][part]
        kind = TRAINING if part == "train" else VALIDATION
        seed = (self.seed, self.fold, kind)
        patches = Patches(self.folders, cases, self.plans, self.schedule, seed=seed, augment=augment)
        workers = int(workers_for_augmentation())
        return DataLoader(
            patches,
            batch_size=self.settings.plan.batch_size,
            sampler=numbers(batches * self.settings.plan.batch_size),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.device == "cuda",
        )


def train_fold(
    folders: PatchFolders,
    settings: LightningSettings,
    *,
    seed: int,
    fold: int,
    start: Path | None = None,
    device: str = "cpu",
) -> Path:
    """Train one fold of a prepared data set, and return its folder with the final and the best checkpoint.

    A training that was interrupted goes on after the epoch of its latest checkpoint, and ends as one without
    interruption; a finished one is left as it is. start: checkpoint of the model to fine-tune; what is not taken over
    from it is logged, and listed in start.json. device: `cpu` or `cuda`, the first GPU that this process sees.

    Raises InputError unless the data set was prepared, ModelError for a checkpoint or start that does not fit or is
    damaged, OutputError if the fold's folder holds a training with other settings or cannot be written, and
    PantherSegError if the loss is no longer a number.
    """
    plans = plans_of(folders, settings)
    one = Fold(folders, settings, plans, seed, fold, device)
    split = read_splits(folders.dataset / SPLITS)[fold]
    check_prepared(folders, plans, [*split["train"], *split["val"]])
    final, latest = one.output / FINAL, one.output / LATEST
    if final.is_file():
        read_checkpoint(final, plans, str(fold))
        return one.output
    reseed(seed, fold)
    network = plans.architecture.build_trainable(final, classes=len(plans.labels))
    module = PatchModule(network, one.schedule, classes=len(plans.labels))
    if latest.is_file():
        check_resumable(latest, module.state_dict(), one.resumable)
        logger.info("fold %d: resumes", fold)
    elif start is not None:
        load_start(network, start, plans, one.output)
    write_plans(folders.model, plans)
    began = time.monotonic()
    history = _fit(one, module, latest if latest.is_file() else None)
    write_text(one.output / HISTORY, json.dumps(history.rows, indent=1) + "\n")
    write_checkpoint(final, network.state_dict(), plans, str(fold))
    latest.unlink(missing_ok=True)
    logger.info("fold %d trained in %.0f s", fold, time.monotonic() - began)
    return one.output


def _fit(one: Fold, module: PatchModule, latest: Path | None) -> History:
    """Let Lightning train a fold, from a checkpoint that was checked or from the beginning."""
    schedule = one.schedule
    keep = partial(_keep_best, one, module)
    history = History(one.output, schedule, fold=one.fold, keep=keep)
    callbacks: list[Callback] = [Seeds(one.seed, one.fold), history]
    if schedule.decay == "plateau":
        callbacks.append(ReduceOnPlateau(schedule))
    if schedule.early_stopping is not None:
        callbacks.append(Stopping(monitor=DICE, mode="max", patience=schedule.early_stopping))
    # Lightning calls it last, when the others know the epoch.
    callbacks.append(
        ModelCheckpoint(
            one.output,
            filename=LATEST.removesuffix(".ckpt"),
            every_n_epochs=schedule.checkpoint_every,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
    )
    with _quietly():
        trainer = Trainer(
            accelerator="gpu" if one.device == "cuda" else "cpu",
            devices=1,
            precision=_precision(one),
            max_epochs=schedule.epochs,
            gradient_clip_val=schedule.clip_gradient,
            num_sanity_val_steps=0,
            callbacks=[*callbacks, one.resumable.note()],
            benchmark=one.device == "cuda",
            default_root_dir=one.output,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[LightningEnvironment()],  # not Slurm's, whose jobs are submitted, and requeued, elsewhere
            use_distributed_sampler=False,
        )
        batches = one.loader("train", numbers=EpochNumbers, batches=schedule.iterations, augment=True)
        validation = one.loader("val", numbers=range, batches=schedule.validation_iterations, augment=False)
        # `check_resumable` has read the checkpoint in the same way: tensors and plain values, and nothing else.
        trainer.fit(module, batches, validation, ckpt_path=latest, weights_only=True)
    return history


class Stopping(EarlyStopping):
    """Lightning's early stopping, which a training that was killed after its last epoch does not forget."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """End before the first epoch where the checkpoint was that of the last one."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


def _keep_best(one: Fold, module: PatchModule) -> None:
    write_checkpoint(one.output / BEST, module.network.state_dict(), one.plans, str(one.fold))


def _precision(one: Fold) -> Any:
    # Not bfloat16 on CPUs: where a convolution sees two voxels in depth, oneDNN's gradient of its weights contains
    # memory that was never written, at times NaN (torch 2.10).
    return "16-mixed" if one.schedule.mixed_precision and one.device == "cuda" else "32-true"


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep Lightning's notes and advice from the log, and let Ctrl-C and SIGTERM be what they are elsewhere."""
    monai.data.set_track_meta(False)  # patches have no place in the world
    try:
        with silenced("lightning.pytorch", below=logging.ERROR), warnings.catch_warnings():
            for advice in ADVICE:
                warnings.filterwarnings("ignore", advice)
            yield
    except SystemExit as error:
        # Lightning makes an exit of an interrupt.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
