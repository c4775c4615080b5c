"""What the study trains: sizes, phantoms, and one training file for each repetition, which all questions share."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from pantherseg.phantom import Modality
from pantherseg.tables import Table
from pantherseg.training.graph import DataSource, PseudoLabels, Stage, TrainingFile
from pantherseg.training.training_recipe import Augmentation, PlanSettings, ScheduleSettings

# Repetitions from this number on are for trying out a design: their figures are printed and not kept.
PILOT = 20
# Not among the seeds of weights/demo/make.sh, the training files, test/make_samples.py and the other benchmarks.
FIRST_SEED = 60_000
SEEDS_A_REPETITION = 1_000
# Learning rates of AdamW from random weights, and from those of another stage.
FROM_SCRATCH, FINE_TUNING = 3e-3, 1e-3


class Size(Table, frozen=True):
    """How large the study is.

    cases: labelled ones of each domain; folds: of every cross-validation; epochs, iterations: of every stage but
    scratch_t2_long.
    """

    cases: int
    unlabelled: int
    held_out: int
    epochs: int
    iterations: int
    plan: PlanSettings
    folds: int = 5


@dataclass(frozen=True)
class Domain:
    """Phantoms of one kind. offset: of their seeds within a repetition; cases: the key of `Size` with their number."""

    task: int
    offset: int
    cases: str
    modality: Modality = "mri"


DOMAINS = {
    "ct": Domain(1, 0, "cases", "ct"),
    "t1": Domain(1, 100, "cases"),
    "t2": Domain(2, 200, "cases"),
    "unlabelled": Domain(1, 300, "unlabelled"),
    "test_t1": Domain(1, 600, "held_out"),
    "test_t2": Domain(2, 800, "held_out"),
}
SMALL = PlanSettings(
    network="PlainConvUNet",
    spacing=(6.0, 4.0, 4.0),
    patch_size=(16, 48, 48),
    batch_size=2,
    memory_gb=0.1,
    base_features=8,
    max_features=32,
    blocks_encoder=[1] * 7,
    blocks_decoder=[1] * 6,
)
LARGE = PlanSettings(
    network="ResidualEncoderUNet",
    spacing=(3.0, 2.4, 2.4),
    patch_size=(32, 96, 96),
    batch_size=2,
    memory_gb=1.0,
    base_features=16,
    max_features=128,
    blocks_encoder=[1, 2, 2, 2, 2, 2, 2],
    blocks_decoder=[1] * 6,
)
SIZES = {
    "smoke": Size(cases=4, unlabelled=2, held_out=2, epochs=3, iterations=6, plan=SMALL, folds=2),
    "cpu": Size(cases=20, unlabelled=30, held_out=16, epochs=16, iterations=25, plan=SMALL),
    "large": Size(cases=20, unlabelled=80, held_out=40, epochs=60, iterations=50, plan=LARGE),
}


def training_file(size: Size, repetition: int) -> TrainingFile:
    """Return the stages of a repetition. Each has networks with other initial weights than in other repetitions."""
    data = {
        "ct": DataSource(layout="panther", dataset_id=700),
        "t1": DataSource(layout="panther", dataset_id=701),
        "t2": DataSource(layout="panther", dataset_id=702),
        "unlabelled": DataSource(layout="panther-unlabelled", dataset_id=703),
    }
    scratch, tuned = _schedule(size, FROM_SCRATCH), _schedule(size, FINE_TUNING)
    # Tumours are harder to find in T2, so that more patches are centred on them.
    scratch_t2, tuned_t2 = (msgspec.structs.replace(one, foreground=0.75) for one in (scratch, tuned))
    long = msgspec.structs.replace(scratch_t2, epochs=3 * size.epochs)
    strong = _schedule(size, FROM_SCRATCH, "da5")
    kept = PlanSettings(spacing=size.plan.spacing)  # all else is that of the stage before

    def stage(
        number: int, data: list[str], schedule: ScheduleSettings, start: str | None = None, folds: int = 1
    ) -> Stage:
        return Stage(
            data=data,
            dataset_id=number,
            plan=size.plan if start is None else kept,
            schedule=schedule,
            folds=size.folds,
            trained_folds=folds,
            start=start,
            seed=repetition,
        )

    stages = {
        "default": stage(711, ["t1"], scratch, folds=size.folds),
        "strong": stage(712, ["t1"], strong, folds=size.folds),
        "from_ct": stage(721, ["ct"], scratch),
        "ct_t1": stage(722, ["t1"], tuned, "from_ct"),
        "ct_t1_t2": stage(723, ["t2"], tuned_t2, "ct_t1"),
        "scratch_t2": stage(724, ["t2"], scratch_t2),
        "scratch_t2_long": stage(725, ["t2"], long),
        "student1": stage(731, ["t1", "round1"], tuned, "default"),
        "student2": stage(732, ["t1", "round2"], tuned, "student1"),
        "continued1": stage(733, ["t1"], tuned, "default"),
        "continued2": stage(734, ["t1"], tuned, "continued1"),
    }
    pseudo = {
        "round1": PseudoLabels(data="unlabelled", by="default", dataset_id=741),
        "round2": PseudoLabels(data="unlabelled", by="student1", dataset_id=742),
    }
    return TrainingFile(schema=2, name="study", data=data, stage=stages, pseudo=pseudo)


def first_seed(domain: str, repetition: int) -> int:
    """Return the seed of the first phantom of a domain; no two domains or repetitions have a phantom in common."""
    return FIRST_SEED + SEEDS_A_REPETITION * repetition + DOMAINS[domain].offset


def key_of(size: Size, repetition: int) -> str:
    """Return a name for the folder of a repetition, which is another one after a change of the design."""
    content = msgspec.json.encode((size, training_file(size, repetition), FIRST_SEED))
    return f"{repetition:02d}-{hashlib.sha256(content).hexdigest()[:8]}"


def _schedule(size: Size, learning_rate: float, augmentation: Augmentation = "default") -> ScheduleSettings:
    return ScheduleSettings(
        epochs=size.epochs,
        iterations=size.iterations,
        validation_iterations=1,
        optimizer="adamw",
        learning_rate=learning_rate,
        warm_up=2,
        foreground=0.5,
        augmentation=augmentation,
        mirroring=False,  # left and right of a patient differ
        bfloat16=True,
    )
