"""The report of a case and its published schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from conftest import one_line_about, valid_report
from make_schema import SCHEMA
from pantherseg.errors import InputError
from pantherseg.events import Event, EventCode
from pantherseg.results import (
    CaseReport,
    Confidence,
    LocatedPancreas,
    ModelUse,
    VoxelBox,
    read_report,
    schema_text,
)

REPORT = CaseReport(
    schema=1,
    input="scan.mha",
    mask="masks/scan.mha",
    pantherseg="0.1.0",
    not_for_clinical_use=True,
    recipe="task2",
    device="cpu",
    precision="float32",
    models=(
        ModelUse(
            role="member",
            path="models/task2",
            folds=("0",),
            checkpoint="a.pth",
            orientation="LPS",
            step=0.5,
            mirroring=False,
            sha256={"0": "a" * 64},
        ),
    ),
    tumour_ml=1.5,
    confidence=Confidence(pairwise_dice=0.5, mean_entropy=0.25, fold_volumes_ml=(1.0, 2.0), expected_dice=0.75),
    box=VoxelBox(start_zyx=(0, 1, 2), stop_zyx=(10, 20, 30)),
    pancreas=LocatedPancreas(
        ml=60.5,
        left_out_ml=0.5,
        centre_xyz_mm=(-12.5, 30.0, 4.0),
        box=VoxelBox(start_zyx=(2, 5, 7), stop_zyx=(8, 16, 25)),
    ),
    events=(Event(EventCode.NO_LOCALIZER, "the folder of models has no 'localizer'"),),
    peak_memory_mb=300,
    seconds={"members": 1.25},
)

# In a report only if it was saved, if the mask was made from a file, for DICOM results, or for members only.
OPTIONAL = {
    *("probability", "fingerprint", "mask_sha256", "name", "tumour_label", "tile_share"),
    *("other_results", "dicom", "anonymous", "stable_uids"),
}


def objects(schema: Any) -> list[dict[str, Any]]:
    """Return every description of an object in a schema."""
    inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else []
    own = [schema] if isinstance(schema, dict) and "properties" in schema else []
    return own + [found for value in inner for found in objects(value)]


def test_the_published_schema_is_that_of_the_code() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == schema_text(), "run python test/make_schema.py"
    jsonschema.Draft202012Validator.check_schema(json.loads(schema_text()))


def test_every_key_is_described() -> None:
    schema = json.loads(schema_text())
    tables = objects(schema)
    assert {table["title"] for table in tables} == {
        *("CaseReport", "ModelUse", "Confidence", "VoxelBox", "LocatedPancreas", "Fingerprint", "DicomOptions", "Event")
    }
    for table in tables:
        assert not table["additionalProperties"], table["title"]
        assert table["required"] == [key for key in table["properties"] if key not in OPTIONAL], table["title"]
        for name, value in table["properties"].items():
            target = schema["$defs"][value["$ref"].rpartition("/")[2]] if "$ref" in value else value
            assert target["description"].endswith("."), f"{table['title']}.{name}"


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(REPORT.as_text())
    assert read_report(path) == REPORT
    assert valid_report(path)["models"][0]["orientation"] == "LPS"
    empty = Confidence(pairwise_dice=None, mean_entropy=None, fold_volumes_ml=(0.0,), expected_dice=None)
    path.write_text(
        msgspec.structs.replace(REPORT, confidence=empty, pancreas=None, events=(), models=(), seconds={}).as_text()
    )
    assert valid_report(path)["confidence"]["expected_dice"] is None
    assert read_report(path).confidence == empty


def changed(**keys: object) -> str:
    content = json.loads(REPORT.as_text())
    return json.dumps({name: value for name, value in (content | keys).items() if value != "absent"})


CONFIDENCE = {"pairwise_dice": 0.5, "mean_entropy": 0.25, "fold_volumes_ml": [1.0], "expected_dice": None}


@pytest.mark.fault("evaluation", "the report of a case is {id}", "an error that names the report and the fault")
@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("", "Input data was truncated", id="an empty file"),
        pytest.param(REPORT.as_text()[:-30], "truncated", id="cut short"),
        pytest.param("[]", "schema None", id="a list"),
        pytest.param(changed(schema="absent"), "schema None", id="of an earlier version, without a schema"),
        pytest.param(changed(schema=2), "schema 2", id="of another schema"),
        pytest.param(changed(confidence="absent"), "missing required field `confidence`", id="without a key"),
        pytest.param(changed(dice=1.0), "unknown field `dice`", id="with an unknown key"),
        pytest.param(changed(events=[{"code": "odd", "message": ""}]), "'odd'", id="with an unknown event"),
        pytest.param(changed(confidence=CONFIDENCE | {"mean_entropy": 2}), "<= 1.0", id="with an impossible entropy"),
        pytest.param(changed(not_for_clinical_use=False), "not_for_clinical_use", id="said to be for clinical use"),
        pytest.param("[" * 100_000, "depth", id="nested without end"),
    ],
)
def test_refuses_a_damaged_report(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "scan.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_report(path)
    assert found in one_line_about(path, caught.value)


def test_names_a_missing_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_report(tmp_path / "scan.json")
