"""One repetition: its phantoms, the stages that a question needs, and the probabilities of its networks.

Everything is kept in the folder of the repetition, so that an interrupted study goes on, and questions share networks.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.study.design import DOMAINS, SIZES, Size, first_seed, key_of, training_file
from pantherseg.fusion import MeanLogits
from pantherseg.inference.backends import choose_backend
from pantherseg.inference.predictor import Predictor
from pantherseg.io import case_name, read_image
from pantherseg.io.probabilities import SUFFIX, read_probability, write_probability
from pantherseg.labels import TUMOUR
from pantherseg.models.find import open_model_folder
from pantherseg.packing.pack import as_bundle
from pantherseg.phantom import write_dataset
from pantherseg.selection.cases import Case, read_case
from pantherseg.training.run import prepare, run
from pantherseg.training.state import State
from pantherseg.training.steps import steps_of
from pantherseg.training.workspace import Inputs, Workspace
from pantherseg.volume import Volume

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Network:
    """One trained network: a fold of a stage. Its name is that of the stage, and the fold where there are several."""

    stage: str
    fold: int = 0

    def __str__(self) -> str:
        return f"{self.stage}-{self.fold}"


class Repetition:
    """The data, networks and probabilities of one repetition below the work folder."""

    def __init__(self, work: Path, size_name: str, number: int, device: str) -> None:
        self.size: Size = SIZES[size_name]
        self.number, self.device = number, device
        kind = size_name if device == "cpu" else f"{size_name}-{device}"
        self.folder = work / kind / key_of(self.size, number)
        data = {name: self.folder / "data" / name for name in DOMAINS if not name.startswith("test")}
        self.training = Workspace(training_file(self.size, number), self.folder / "training", Inputs(data=data))

    def folds_of(self, stage: str) -> list[Network]:
        """Return all networks of a stage."""
        return [Network(stage, fold) for fold in self.training.graph.stage[stage].used_folds]

    def data(self, domain: str) -> Path:
        """Return the folder with the phantoms of a domain, which are made if they are not there."""
        folder, kind = self.folder / "data" / domain, DOMAINS[domain]
        if not folder.is_dir():
            beside = folder.with_name(f".{domain}")
            shutil.rmtree(beside, ignore_errors=True)
            cases, seed = getattr(self.size, kind.cases), first_seed(domain, self.number)
            write_dataset(beside, task=kind.task, cases=cases, seed=seed, size="small", modality=kind.modality)
            if domain == "unlabelled":
                shutil.rmtree(beside / "labelsTr")
            beside.rename(folder)
        return folder

    def train(self, wanted: Sequence[str | Network]) -> float:
        """Train what is not finished of stages or single networks, and of what they start from.

        Return the seconds that all of it took, in this run or an earlier one.
        """
        for name in self.training.graph.data:
            self.data(name)
        needed: dict[str, float] = {}
        for one in wanted:
            stage, fold = (one.stage, one.fold) if isinstance(one, Network) else (one, None)
            training = prepare(Path(__file__), self.training, stage=stage, fold=fold)
            run(training, [self.device])
            state, steps = State(self.training.output), steps_of(self.training.graph).by_name
            for step in training.chosen:
                record = state.finished(steps[step])
                needed[step] = 0.0 if record is None else record.seconds
        return sum(needed.values())

    def held_out(self, network: Network, domain: str) -> Path:
        """Return the folder with a network's probabilities of the unseen cases of a domain; they are made if absent."""
        output = self.folder / "held_out" / f"{domain}-{network}"
        images = sorted((self.data(f"test_{domain}") / "imagesTr").iterdir())
        missing = [path for path in images if not (output / f"{_case(path)}{SUFFIX}").is_file()]
        if missing:
            began = time.monotonic()
            checkpoint = self.training.graph.stage[network.stage].checkpoint
            model = self.training.folders(network.stage).model
            bundle = as_bundle(open_model_folder(model, folds=[network.fold], checkpoint=checkpoint))
            predictor = Predictor(bundle, choose_backend(self.device), mirroring=False)
            for path in missing:
                image, _ = read_image(path)
                probability = MeanLogits().fuse([predictor.predict(image)]).probability(TUMOUR)
                write_probability(Volume(probability, image.grid), output / f"{_case(path)}{SUFFIX}")
            logger.info("%s: %d unseen cases in %.0f s", network, len(missing), time.monotonic() - began)
        return output

    def fused(self, stage: str, domain: str) -> Path:
        """Return the folder with the mean probability of a stage's networks in the unseen cases of a domain."""
        output = self.folder / "held_out" / f"{domain}-{stage}"
        folders = [self.held_out(network, domain) for network in self.folds_of(stage)]
        for path in sorted(folders[0].glob(f"*{SUFFIX}")):
            if not (output / path.name).is_file():
                found = [read_probability(folder / path.name) for folder in folders]
                mean = np.mean([one.array for one in found], axis=0)
                write_probability(Volume(mean, found[0].grid), output / path.name)
        return output

    def cases(self, members: Sequence[Path], domain: str) -> tuple[Case, ...]:
        """Return the cases of a domain with the probabilities in the members' folders. domain: such as `test_t1`."""
        references = sorted((self.data(domain) / "labelsTr").iterdir())
        return tuple(
            read_case(path.stem, path, [folder / f"{path.stem}{SUFFIX}" for folder in members]) for path in references
        )

    def unseen_cases(self, networks: Sequence[Network], domain: str) -> tuple[Case, ...]:
        """Return the unseen cases of a domain (`t1`, `t2`) with the probabilities of networks."""
        return self.cases([self.held_out(network, domain) for network in networks], f"test_{domain}")


def _case(image: Path) -> str:
    """Return the name of a case by its image."""
    return case_name(image).removesuffix("_0000")
