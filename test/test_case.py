"""One case from its source to a written mask and report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import nibabel
import numpy as np
import pytest

from conftest import valid_report
from pantherseg.case import CaseOutput, run_case
from pantherseg.errors import InputError, ModelError, OutputError
from pantherseg.events import EventCode
from pantherseg.fusion import MeanProbability
from pantherseg.io import read_labels, write_volume
from pantherseg.io.probabilities import read_probability
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.postprocess import Components, Threshold
from pantherseg.recipe import Recipe
from pantherseg.session import Session
from pantherseg.volume import Grid, Volume

GRID = Grid((12, 24, 24), (4.0, 3.0, 3.0), origin=(5.0, -7.0, 11.0))


@pytest.fixture(scope="module")
def session(one_fold: Recipe) -> Session:
    return Session(one_fold, DEMO_WEIGHTS, device="cpu", many_cases=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).normal(100, 20, GRID.shape).astype(np.float32)
    write_volume(Volume(noise, GRID), tmp_path / "scan.mha")
    return tmp_path / "scan.mha"


@pytest.fixture
def output(tmp_path: Path) -> CaseOutput:
    folder = tmp_path / "output"
    return CaseOutput(folder / "images" / "tumour" / "scan.mha", folder / "results.json")


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_writes_the_mask_and_the_report(source: Path, session: Session, output: CaseOutput) -> None:
    result = run_case(source, session, output)
    assert result.output == output
    mask = read_labels(output.mask)
    assert GRID.difference(mask.grid) == ""
    np.testing.assert_array_equal(mask.array, result.segmentation.mask.array)
    report = valid_report(output.report)
    assert report["input"] == "scan.mha"
    assert output.report.parent / report["mask"] == output.mask, "the path is relative to the report"
    assert [report["models"][0][key] for key in ("role", "folds", "step", "mirroring")] == ["member", ["0"], 0.5, False]
    codes = [EventCode(event["code"]) for event in report["events"]]
    assert codes == [event.code for event in result.segmentation.events]
    assert "probability" not in report
    assert len(files_in(output.report.parent)) == 2


def test_reports_the_events_of_reading_first(tmp_path: Path, session: Session, output: CaseOutput) -> None:
    black = tmp_path / "black.mha"
    write_volume(Volume(np.zeros(GRID.shape, np.float32), GRID), black)
    run_case(black, session, output)
    report = valid_report(output.report)
    codes = [EventCode(event["code"]) for event in report["events"]]
    assert codes == [EventCode.CONSTANT_IMAGE, EventCode.EMPTY_MASK_RESCUED]


def test_the_mask_of_a_nifti_has_its_geometry_as_it_is_stored(tmp_path: Path, session: Session) -> None:
    source, mask = tmp_path / "scan.nii.gz", tmp_path / "masks" / "scan.nii.gz"
    image = nibabel.Nifti1Image(np.random.default_rng(0).normal(100, 20, (24, 24, 12)), None)
    image.set_sform([[-3, 0.003, 0, 5], [0.003, 3, 0, 7], [0, 0.009, 4, 11], [0, 0, 0, 1]], code=4)
    image.to_filename(source)
    result = run_case(source, session, CaseOutput(mask, tmp_path / "masks" / "scan.json"))
    assert EventCode.DIRECTION_CORRECTED in [event.code for event in result.segmentation.events]
    assert np.array_equal(nibabel.load(mask).affine, nibabel.load(source).affine)
    header = nibabel.load(mask).header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (0, 4)
    assert header.get_data_dtype() == np.uint8


def test_names_a_bad_source_before_missing_models(source: Path, one_fold: Recipe, output: CaseOutput) -> None:
    missing = source.with_name("missing")
    with pytest.raises(ModelError) as no_models:
        run_case(source, Session(one_fold, missing), output)
    assert no_models.value.where == missing
    source.write_text("not a volume")
    with pytest.raises(InputError) as bad_source:
        run_case(source, Session(one_fold, missing), output)
    assert bad_source.value.where == source
    assert not output.report.parent.exists()


def test_an_error_on_the_way_names_the_source(tmp_path: Path, session: Session, output: CaseOutput) -> None:
    source = tmp_path / "vast.mha"
    write_volume(Volume(np.ones((2, 4, 4), np.float32), Grid((2, 4, 4), (1000.0, 1000.0, 1000.0))), source)
    with pytest.raises(InputError, match="at the model's spacing") as caught:
        run_case(source, session, output)
    assert caught.value.where == source
    assert files_in(output.report.parent) == []


def test_finds_out_before_networks_run_that_it_may_not_write(
    source: Path, session: Session, output: CaseOutput, caplog: pytest.LogCaptureFixture
) -> None:
    output.report.parent.write_text("a file in place of the folder")
    caplog.set_level("INFO", "pantherseg")
    with pytest.raises(OutputError):
        run_case(source, session, output)
    stages = [record.getMessage().split()[0] for record in caplog.records]
    assert "read" in stages
    assert "members" not in stages


def test_leaves_no_mask_where_the_report_cannot_be_written(source: Path, session: Session, output: CaseOutput) -> None:
    # A name as long as a name can be, so that the name of the temporary file beside it is too long.
    report = output.report.with_name("r" * 250 + ".json")
    with pytest.raises(OutputError) as caught:
        run_case(source, session, CaseOutput(output.mask, report))
    assert caught.value.where == report
    assert files_in(report.parent) == []


def test_refuses_a_folder_in_place_of_the_report(source: Path, session: Session, output: CaseOutput) -> None:
    output.report.mkdir(parents=True)
    with pytest.raises(OutputError) as caught:
        run_case(source, session, output)
    assert caught.value.where == output.report
    assert files_in(output.report.parent) == []


def test_writes_the_probability_before_post_processing(source: Path, one_fold: Recipe, output: CaseOutput) -> None:
    saved = replace(output, probability=output.report.with_name("scan.npz"))
    recipe = msgspec.structs.replace(one_fold, fusion=MeanProbability(), postprocess=())
    first = run_case(source, Session(recipe, DEMO_WEIGHTS, device="cpu"), saved).segmentation
    assert first.probability is not None
    assert valid_report(output.report)["probability"] == "scan.npz"
    stored = read_probability(output.report.with_name("scan.npz"))
    assert GRID.difference(stored.grid) == ""
    np.testing.assert_allclose(stored.array, first.probability.array, rtol=0, atol=1 / 510 + 1e-6)
    level = float(first.probability.array.max()) / 2
    recipe = msgspec.structs.replace(recipe, postprocess=(Threshold(probability=level), Components(max_count=1)))
    second = run_case(source, Session(recipe, DEMO_WEIGHTS, device="cpu"), saved).segmentation
    assert second.tumour_ml > first.tumour_ml == 0
    assert second.probability is not None
    np.testing.assert_array_equal(second.probability.array, first.probability.array)
    assert (second.probability.array[read_labels(output.mask).array == 1] >= level).all()


def test_leaves_no_probability_where_the_report_cannot_be_written(
    source: Path, session: Session, output: CaseOutput
) -> None:
    report = output.report.with_name("r" * 250 + ".json")
    with pytest.raises(OutputError):
        run_case(source, session, CaseOutput(output.mask, report, report.with_name("scan.npz")))
    assert files_in(report.parent) == []


def test_replaces_an_earlier_result(source: Path, session: Session, output: CaseOutput) -> None:
    for path in (output.mask, output.report):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("an earlier result")
    run_case(source, session, output)
    assert read_labels(output.mask).array.any()
    assert valid_report(output.report)["input"] == "scan.mha"
