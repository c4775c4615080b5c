"""Published weights for tests: archives in the published layouts, served on this machine, and their fetching."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.published_layouts import BEST, TASK1, TASK2
from click.testing import CliRunner, Result

from conftest import one_line_about
from pantherseg.cli import main as pantherseg
from pantherseg.errors import PantherSegError
from pantherseg.model_sources.nnunet import CHECKPOINT, DATASET, PLANS, read_configuration
from pantherseg.models.find import ModelFolder
from pantherseg.paths import ZOO
from pantherseg.weights import fetch, find_weights, load_zoo
from pantherseg.weights.downloads import Client
from served import FileServer, Page

RETRIES = 2
# The records of the winner's and of the baseline's weights.
RECORD, BASELINE_RECORD = 17212158, 15211865
ARCHIVE = "Dataset901_PANTHER.zip"
ZOO_ENTRIES = load_zoo(ZOO)
FIVE_FOLDS = {str(fold): str(fold) for fold in range(5)}

Files = dict[str, bytes]


def fault(done: str, must: str) -> pytest.MarkDecorator:
    """Return the mark of a row in the table of faults."""
    return pytest.mark.fault("downloads", done, must)


def model_files(
    model: ModelFolder, prefix: str, folds: dict[str, str], checkpoints: tuple[str, ...] = (BEST,)
) -> Files:
    """Return the files of a published model folder. folds: for each fold, the fold of `model` that it is a copy of."""
    files = {f"{prefix}{name}": (model.path / name).read_bytes() for name in (PLANS, DATASET)}
    for fold, source in folds.items():
        content = model.checkpoint_path(source).read_bytes()
        files |= {f"{prefix}fold_{fold}/{checkpoint}": content for checkpoint in checkpoints}
        files[f"{prefix}fold_{fold}/progress.png"] = b"not needed"
    return files


def zipped(files: Files, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: Files) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def run(*arguments: object) -> Result:
    """Run the command line."""
    return CliRunner().invoke(pantherseg, [*map(str, arguments)])


class Fetches:
    """Fetches weights from the server's records into a folder of models, and expects success or an error."""

    def __init__(self, server: FileServer, client: Client, root: Path) -> None:
        self.server, self.client, self.root = server, client, root
        self.zenodo = server.url("/api/records")

    def serve(self, archive: bytes) -> None:
        """Serve the winner's record with one archive."""
        self.server.add_record(RECORD, {ARCHIVE: Page(archive)})

    def page(self) -> Page:
        """Return the winner's archive."""
        return self.server.pages[f"/api/records/{RECORD}/files/{ARCHIVE}/content"]

    def succeeds(self, name: str = "winner-task1", **options: Any) -> list[str]:
        """Return the lines that fetching prints."""
        entry = find_weights(ZOO_ENTRIES, name)
        return list(fetch(entry, self.root, zoo=ZOO_ENTRIES, client=self.client, zenodo=self.zenodo, **options))

    def fails(self, kind: type[PantherSegError], where: object, name: str = "winner-task1", **options: Any) -> str:
        """Return the error. where: what it is about; a relative path is one in the folder of models."""
        before = self.installed()
        with pytest.raises(kind) as caught:
            self.succeeds(name, **options)
        assert self.installed() == before
        return one_line_about(self.root / where if isinstance(where, Path) else where, caught.value)

    def download(self, name: str = "winner-task1", file: str = ARCHIVE) -> Path:
        """Return the path of a download, relative to the folder of models."""
        return Path(".fetch", name, file)

    def installed(self) -> Files:
        """Return all files in the folder of models except the downloads."""
        paths = [path for path in self.root.rglob("*") if path.is_file() and ".fetch" not in path.parts]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in paths}


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client(retries=RETRIES, pause=0.01)
    yield made
    made.close()


@pytest.fixture
def fetches(server: FileServer, client: Client, tmp_path: Path) -> Fetches:
    return Fetches(server, client, tmp_path / "models")


@pytest.fixture(scope="session")
def winner(demo_folder: ModelFolder) -> bytes:
    """The winner's archive for Task 1, with the demo's folds."""
    return zipped(model_files(demo_folder, f"{TASK1}/", FIVE_FOLDS))


@pytest.fixture
def winner_record(fetches: Fetches, winner: bytes, demo_folder: ModelFolder) -> None:
    """Serve the winner's record."""
    second = tarred(model_files(demo_folder, f"{TASK2}/", {"0": "0", "1": "1"}, (BEST, CHECKPOINT)))
    pretrained = zipped(model_files(demo_folder, "Dataset900_PancCT/T__PancCTMultiTalentV2__3d/", {"all": "0"}))
    files = {ARCHIVE: winner, "Dataset902_PANTHER_HR.tar.gz": second, "PancCTMultiTalentV2.zip": pretrained}
    fetches.server.add_record(RECORD, {name: Page(content) for name, content in files.items()})


@pytest.fixture(scope="session")
def demo_graph(demo_folder: ModelFolder) -> Any:
    from pantherseg.packing.graph import make_graph

    configuration = read_configuration(demo_folder.path, "3d_fullres")
    return make_graph(configuration.network(), (1, 1, *configuration.patch))


@pytest.fixture
def one_graph(monkeypatch: pytest.MonkeyPatch, demo_graph: Any) -> None:
    """Use the demo's graph for every model: to make one takes longer than the rest of a fetch."""
    from pantherseg.packing import graph

    monkeypatch.setattr(graph, "make_graph", lambda *_: demo_graph)
