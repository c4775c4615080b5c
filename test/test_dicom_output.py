"""Results of `pantherseg predict` in several formats, DICOM among them, and what of the patient they contain."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from click.testing import CliRunner, Result
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, SegmentationStorage
from pynetdicom import AE, evt

from conftest import one_line_about, run_python, valid_report
from dicom_files import MARK, marked_series
from pantherseg.cli import main as pantherseg
from pantherseg.dicom_results.formats import FORMATS
from pantherseg.dicom_results.send import Receiver
from pantherseg.errors import OutputError
from pantherseg.io import read_labels, write_volume
from pantherseg.orientation import NO_TURN
from pantherseg.paths import task_recipe
from pantherseg.phantom import make_phantom
from pantherseg.volume import Grid, Volume

RESULTS = ("mha", "seg.dcm", "probability.dcm", "rtstruct.dcm")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task 1's recipe with one fold."""
    path = tmp_path_factory.mktemp("recipe") / "one_fold.toml"
    path.write_text(task_recipe(1).read_text().replace('folds = "all"', "folds = [0]"))
    return path


def predict(source: Path, output: Path, recipe: Path, *options: str) -> Result:
    arguments = ["predict", source, output, "--recipe", recipe, "--device", "cpu", *options]
    return CliRunner().invoke(pantherseg, [*map(str, arguments)])


def written(folder: Path, name: str) -> dict[str, bytes]:
    return {path.name.removeprefix(f"{name}."): path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> tuple[Path, str]:
    """A folder with a phantom as a series, `scan`, and as `scan.mha`, what a run made of it in `out`, and its log."""
    folder = tmp_path_factory.mktemp("done")
    image = make_phantom(5001, task=1, size="small").image
    assert image.grid.turn_to("LPS") == NO_TURN
    volume = Volume(np.clip(image.array, 0, 4095).astype(np.uint16), image.grid)
    marked_series(folder / "scan", volume)
    write_volume(volume, folder / "volume" / "scan.mha")
    options = ("--output-format", "rtstruct,dcmseg,mha,dcmprob", "--save-probabilities", "--report", "--device", "cpu")
    arguments = ("predict", folder / "scan", folder / "out", "--recipe", recipe)
    result = run_python("-m", "pantherseg", *arguments, *options)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout + result.stderr


@pytest.mark.slow
def test_writes_the_same_mask_in_several_formats(done: tuple[Path, str], recipe: Path) -> None:
    out = (folder := done[0]) / "out"
    assert set(written(out, "scan")) == {*RESULTS, "json", "npz", "report.html"}
    report = valid_report(out / "scan.json")
    assert report["mask"] == "scan.mha"
    assert set(report["other_results"]) == {f"scan.{suffix}" for suffix in RESULTS[1:]}
    mask = read_labels(out / "scan.mha")
    assert mask.array.any()
    segmentation = highdicom.seg.segread(out / "scan.seg.dcm")
    assert [segment.SegmentLabel for segment in segmentation.SegmentSequence] == ["tumour", "pancreas"]
    read = segmentation.get_volume()
    same_way = read.affine[:3, 0] @ np.array(mask.grid.direction)[:, 2] > 0
    tumour, pancreas = np.moveaxis(read.array[:: 1 if same_way else -1], -1, 0)
    assert np.array_equal(tumour, mask.array)
    assert pancreas.any()
    assert not (tumour & pancreas).any()
    # The .mha has the voxels of the series, so the mask is the same, voxel for voxel.
    assert predict(folder / "volume" / "scan.mha", folder / "volume_out", recipe).exit_code == 0
    other = read_labels(folder / "volume_out" / "scan.mha")
    assert np.array_equal(other.array, mask.array)


@pytest.mark.slow
def test_nothing_but_dicom_objects_names_the_patient(done: tuple[Path, str], recipe: Path) -> None:
    folder, log = done
    assert MARK not in log
    marked = {name for name, content in written(folder / "out", "scan").items() if MARK.encode() in content}
    assert marked == set(RESULTS[1:])
    again = predict(folder / "scan", folder / "anonymous", recipe, "--output-format", "dcmseg,rtstruct", "--anonymous")
    assert again.exit_code == 0, again.stderr
    assert set(written(folder / "anonymous", "scan")) == {"seg.dcm", "rtstruct.dcm", "json"}
    assert [name for name, content in written(folder / "anonymous", "scan").items() if MARK.encode() in content] == []


@pytest.mark.slow
@pytest.mark.fault(
    "ends",
    "a case with DICOM results is segmented again, with one of them missing or changed, or with other options",
    "finished cases are skipped, others segmented again",
)
def test_cases_are_resumed_whatever_their_formats(
    done: tuple[Path, str], recipe: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def skips(*options: str) -> bool:
        caplog.clear()
        result = predict(source, out, recipe, *options)
        assert result.exit_code == 0, result.output
        return any("finished and skipped" in message for message in caplog.messages)

    source, out = done[0] / "scan", done[0] / "resumed"
    both = ("--output-format", "mha,dcmseg")
    assert not skips(*both)
    first, pixels = written(out, "scan"), pydicom.dcmread(out / "scan.seg.dcm").PixelData
    for options in (both, (), ("--output-format", "dcmseg")):
        assert skips(*options)
        assert written(out, "scan") == first
    (out / "scan.seg.dcm").write_bytes(first["seg.dcm"][:-1])
    assert not skips(*both)
    assert pydicom.dcmread(out / "scan.seg.dcm").PixelData == pixels
    assert not skips(*both, "--anonymous")
    assert MARK.encode() not in written(out, "scan")["seg.dcm"]
    # What is not wanted any more would be another run's.
    assert not skips("--output-format", "nii.gz")
    assert set(written(out, "scan")) == {"nii.gz", "json"}


@pytest.mark.slow
@pytest.mark.fault("ends", "the last of several results cannot be written", "an error, and none of the others")
def test_where_one_result_cannot_be_written_none_is_left(done: tuple[Path, str], recipe: Path) -> None:
    folder, out = done[0], done[0] / "blocked"
    (out / "scan.rtstruct.dcm").mkdir(parents=True)
    result = predict(folder / "scan", out, recipe, "--output-format", "mha,dcmseg,rtstruct")
    assert result.exit_code == 1
    assert "scan.rtstruct.dcm" in result.stderr.splitlines()[-1]
    assert [path.name for path in out.iterdir()] == ["scan.rtstruct.dcm"]


@pytest.mark.fault("inputs", "DICOM results are asked for about a volume file", "an error before anything is computed")
def test_dicom_results_need_dicom_input(tmp_path: Path, recipe: Path) -> None:
    write_volume(Volume(np.ones((8, 9, 10), np.float32), Grid((8, 9, 10), (3.0, 2.0, 2.0))), tmp_path / "in" / "a.mha")
    for source in (tmp_path / "in" / "a.mha", tmp_path / "in"):
        result = predict(source, tmp_path / "out", recipe, "--output-format", "mha,dcmseg")
        expected = f"error: {tmp_path}/in/a.mha: expected DICOM input for DICOM results, which refer to it"
        assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
        assert result.stderr.startswith(expected)
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("inputs", "DICOM results without the package highdicom", "an error before anything is computed")
def test_dicom_results_need_their_packages(tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marked_series(tmp_path / "scan", Volume(np.ones((20, 8, 9)), Grid((20, 8, 9), (3.0, 2.0, 2.0))))
    monkeypatch.setitem(sys.modules, "highdicom", None)
    result = predict(tmp_path / "scan", tmp_path / "out", recipe, "--output-format", "dcmseg")
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert "expected the package highdicom, which DICOM results need, found not installed; pip install" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("outputs", "nobody answers where results are to be sent", "an error before anything is computed")
def test_a_receiver_is_asked_before_anything_is_computed(tmp_path: Path, recipe: Path, archive: Archive) -> None:
    archive.stop()
    marked_series(tmp_path / "scan", Volume(np.ones((20, 8, 9)), Grid((20, 8, 9), (3.0, 2.0, 2.0))))
    options = ("--output-format", "dcmseg", "--send", f"ARCHIVE@localhost:{archive.port}")
    result = predict(tmp_path / "scan", tmp_path / "out", recipe, *options)
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert f"error: ARCHIVE@localhost:{archive.port}: no answer within 10 s" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"FrameOfReferenceUID": None}, "expected a frame of reference"),
        ({"SpecificCharacterSet": "ISO_IR 999"}, "expected texts in a character set of DICOM"),
        ({"StudyInstanceUID": None}, "the headers of the series do not allow"),
    ],
)
@pytest.mark.filterwarnings("ignore:Unknown encoding:UserWarning")  # of pydicom, when the test writes such headers
def test_headers_are_checked_before_anything_is_computed(
    tmp_path: Path, recipe: Path, changes: dict[str, object], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked_series(tmp_path / "scan", Volume(np.ones((20, 8, 9)), Grid((20, 8, 9), (3.0, 2.0, 2.0))), **changes)
    monkeypatch.setitem(sys.modules, "pantherseg.pipeline", None)  # nothing can be segmented
    for name in ("dcmseg", "rtstruct"):
        result = predict(tmp_path / "scan", tmp_path / "out", recipe, "--output-format", name)
        assert (result.exit_code, len(result.stderr.splitlines()[-1:])) == (1, 1)
        assert problem in result.stderr
        assert MARK not in result.stderr
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"FrameOfReferenceUID": None}, ["--output-format", "dcmseg"]),
        ({"SpecificCharacterSet": "ISO_IR 999"}, ["--output-format", "rtstruct"]),
        ({}, ["--output-format", "mha", "--series", "1.2.3.5"]),
    ],
)
@pytest.mark.filterwarnings("ignore:Unknown encoding:UserWarning")  # of pydicom, when the test writes such headers
@pytest.mark.fault(
    "inputs", "options that a series does not allow, after a first run", "an error, and its results stay"
)
def test_options_that_do_not_fit_lose_no_earlier_result(
    tmp_path: Path, recipe: Path, changes: dict[str, object], options: list[str]
) -> None:
    from test_dicom_results import REPORT

    marked_series(tmp_path / "scan", Volume(np.ones((20, 8, 9)), Grid((20, 8, 9), (3.0, 2.0, 2.0))), **changes)
    out = tmp_path / "out"
    out.mkdir()
    (out / "scan.seg.dcm").write_bytes(b"an earlier result")
    (out / "scan.json").write_text(REPORT.as_text())
    earlier = written(out, "scan")
    for source in (tmp_path / "scan", tmp_path):
        result = predict(source, out, recipe, *options)
        assert result.exit_code == 1
        assert "expected " in result.stderr
        assert written(out, "scan") == earlier
    next((tmp_path / "scan").iterdir()).write_bytes(bytes(128) + b"DICM")  # of a damaged series nothing is kept
    assert predict(tmp_path / "scan", out, recipe, *options).exit_code == 1
    assert written(out, "scan") == {}


def test_a_mask_is_written_in_the_formats_that_are_asked_for(tmp_path: Path, recipe: Path) -> None:
    grid = Grid((12, 24, 24), (4.0, 3.0, 3.0))
    image = np.random.default_rng(0).normal(100, 20, grid.shape).astype(np.float32)
    write_volume(Volume(image, grid), tmp_path / "a.mha")
    result = predict(tmp_path / "a.mha", tmp_path / "out", recipe, "--output-format", "nrrd,NII.GZ")
    assert result.exit_code == 0, result.stderr
    assert set(written(tmp_path / "out", "a")) == {"nii.gz", "nrrd", "json"}
    masks = [read_labels(tmp_path / "out" / f"a.{suffix}") for suffix in ("nii.gz", "nrrd")]
    assert np.array_equal(masks[0].array, masks[1].array)
    assert masks[0].grid.difference(grid) == masks[1].grid.difference(grid) == ""


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--output-format", "dicom"], "expected some of mha, nii.gz, nrrd, dcmseg, dcmprob, rtstruct"),
        (["--output-format", ","], "expected some of"),
        (["--output-format", "dcmprob"], "name the format of the mask too"),
        (["--anonymous"], "need a DICOM format"),
        (["--output-format", "dcmseg", "--report"], "--report needs the mask as a volume file"),
        (["--output-format", "mha", "--send", "A@b:1"], "need a DICOM format"),
        (["--output-format", "dcmseg", "--send", "localhost:104"], "expected AET@host:port"),
        (["--output-format", "dcmseg", "--send", "A@b:99999"], "expected AET@host:port"),
        (["--output-format", "dcmseg", "--send", "SEVENTEEN_LETTERS@b:1"], "expected AET@host:port"),
        (["--output-format", "dcmseg", "--send", "ÄÖ@localhost:104"], "expected a title of plain letters"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, recipe: Path, options: list[str], problem: str) -> None:
    result = predict(tmp_path, tmp_path / "out", recipe, *options)
    assert result.exit_code == 2
    assert problem in " ".join(result.stderr.split())


class Archive:
    """An archive that takes objects of some SOP classes by C-STORE, on a port of this machine."""

    def __init__(self, *classes: str, status: int = 0x0000) -> None:
        self.stored: list[str] = []
        entity = AE("ARCHIVE")
        entity.require_called_aet = True
        for one in classes:
            entity.add_supported_context(one, ExplicitVRLittleEndian)
        entity.add_supported_context("1.2.840.10008.1.1")

        def store(event: evt.Event) -> int:
            self.stored.append(event.dataset.SOPInstanceUID)
            return status

        self._server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
        self._running = True
        self.port: int = self._server.server_address[1]

    def stop(self) -> None:
        if self._running:
            self._server.shutdown()
        self._running = False


@pytest.fixture
def archive() -> Iterator[Archive]:
    started = Archive(SegmentationStorage, RTStructureSetStorage)
    yield started
    started.stop()


@pytest.fixture
def objects(tmp_path: Path) -> list[Path]:
    from test_dicom_results import case_in

    case = case_in(tmp_path)
    paths = [tmp_path / "scan.seg.dcm", tmp_path / "scan.rtstruct.dcm"]
    for path in paths:
        case.write(path)
    return paths


def test_sends_objects_to_an_archive(objects: list[Path], archive: Archive) -> None:
    receiver = Receiver.of(f"ARCHIVE@127.0.0.1:{archive.port}")
    receiver.check([FORMATS["dcmseg"], FORMATS["rtstruct"]])
    receiver.send(objects)
    assert archive.stored == [pydicom.dcmread(path).SOPInstanceUID for path in objects]


@pytest.mark.slow
def test_predict_sends_what_is_done(done: tuple[Path, str], recipe: Path, archive: Archive) -> None:
    options = ("--output-format", "dcmseg,rtstruct", "--send", f"ARCHIVE@localhost:{archive.port}")
    for count in (2, 4):  # finished cases are sent again, so that a run whose sending failed can be repeated
        result = predict(done[0] / "scan", done[0] / "sent", recipe, *options)
        assert result.exit_code == 0, result.stderr
        assert len(archive.stored) == count
    assert archive.stored[:2] == archive.stored[2:]


def refusal(receiver: Receiver, paths: list[Path]) -> str:
    with pytest.raises(OutputError) as caught:
        receiver.send(paths)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.fault("outputs", "nobody answers where results are to be sent", "an error that says so in one line")
def test_names_a_receiver_that_does_not_answer(
    objects: list[Path], archive: Archive, caplog: pytest.LogCaptureFixture
) -> None:
    archive.stop()
    assert "no answer within 10 s" in refusal(Receiver("ARCHIVE", "127.0.0.1", archive.port), objects)
    assert caplog.messages == []


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a" * 64, "a..b"])
def test_names_a_host_that_is_not_known(host: str) -> None:
    with pytest.raises(OutputError) as caught:
        Receiver.of(f"A@{host}:104").check([FORMATS["dcmseg"]])
    one_line_about(f"A@{host}:104", caught.value)
    assert f"the host {host} is not known" in str(caught.value)


@pytest.mark.fault("outputs", "the receiver of results refuses the connection", "an error that gives its reason")
def test_names_a_receiver_that_refuses(objects: list[Path], archive: Archive) -> None:
    problem = refusal(Receiver("OTHER", "127.0.0.1", archive.port), objects)
    assert "refused the connection: Called AE title not recognised" in problem


@pytest.mark.fault("outputs", "the receiver takes no structure sets", "an error that names what it does not accept")
def test_names_what_a_receiver_does_not_accept(objects: list[Path]) -> None:
    for classes, names in (
        ((SegmentationStorage,), "RT Structure Set Storage"),
        ((), "Segmentation Storage and RT Structure Set Storage"),
    ):
        archive = Archive(*classes)
        assert f"does not accept {names}" in refusal(Receiver("ARCHIVE", "127.0.0.1", archive.port), objects)
        assert archive.stored == []
        archive.stop()


@pytest.mark.fault("outputs", "the receiver of results has no room", "an error with its status")
def test_names_an_object_that_was_not_stored(objects: list[Path]) -> None:
    archive = Archive(SegmentationStorage, RTStructureSetStorage, status=0xA700)
    problem = refusal(Receiver("ARCHIVE", "127.0.0.1", archive.port), objects)
    archive.stop()
    assert "did not store scan.seg.dcm: status 0xA700" in problem
