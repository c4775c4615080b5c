"""Results as DICOM objects: read back by independent programs, checked against the standard, and without identity."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import highdicom
import msgspec
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from pydicom import Dataset
from scipy import ndimage
from scipy.spatial.transform import Rotation

from conftest import dice, one_line_about
from dicom_files import IDENTITY, MARK, marked_series, some_volume, write_enhanced, write_slices
from pantherseg.dicom_results.formats import FORMATS, make_object, save_object
from pantherseg.dicom_results.making import Found, Making
from pantherseg.errors import InputError, OptionError
from pantherseg.io import find_sources, read_image, source_datasets
from pantherseg.io.dicom.source import DicomSource
from pantherseg.io.itk import to_itk
from pantherseg.labels import PANCREAS, TUMOUR
from pantherseg.phantom import make_phantom
from pantherseg.results import CaseReport, Confidence, DicomOptions, Fingerprint, ModelUse, VoxelBox
from pantherseg.volume import Grid, Volume

SUFFIXES = [one.suffix for one in FORMATS.values()]
SHA = "a1" * 32
REPORT = CaseReport(
    schema=1,
    input="scan",
    mask="scan.seg.dcm",
    pantherseg="1.2.3",
    not_for_clinical_use=True,
    recipe="task2",
    device="cpu",
    precision="float32",
    models=(
        ModelUse(
            role="member",
            path="/models/task2",
            folds=("0", "1"),
            checkpoint="c",
            orientation="LPS",
            step=0.5,
            mirroring=False,
            sha256={"0": SHA, "1": SHA[::-1]},
            name="task2",
        ),
    ),
    tumour_ml=1.0,
    confidence=Confidence(pairwise_dice=None, mean_entropy=None, fold_volumes_ml=(), expected_dice=None),
    box=VoxelBox(start_zyx=(0, 0, 0), stop_zyx=(1, 1, 1)),
    pancreas=None,
    events=(),
    peak_memory_mb=1,
    seconds={},
    fingerprint=Fingerprint(input_sha256=SHA, recipe_sha256=SHA, models_sha256=SHA, mode="exact"),
)
COS, SIN = float(np.cos(0.3)), float(np.sin(0.3))
# Directions of the index axes as columns; right-handed, as volumes that were read from DICOM.
DIRECTIONS = {
    "axial": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "coronal": ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0)),
    "oblique": ((COS, -SIN * COS, SIN * SIN), (SIN, COS * COS, -COS * SIN), (0.0, SIN, COS)),
}
SHAPE = (6, 20, 24)


@dataclass(frozen=True)
class Case:
    """A series in files, its headers and what was found in it."""

    files: Path
    source: DicomSource
    found: Found
    grid: Grid

    def write(self, path: Path, report: CaseReport = REPORT, **options: bool) -> Dataset:
        making = Making(self.source, self.grid, report, DicomOptions(**options))
        save_object(path, make_object(path, self.found, making))
        return pydicom.dcmread(path)


def masks(grid: Grid) -> Found:
    """Return a tumour with a hole, a ring in a hole, voxels that touch at corners and single ones; and a pancreas."""
    rng = np.random.default_rng(3)
    tumour = np.zeros(grid.shape, np.uint8)
    tumour[1:4, 3:14, 4:15] = 1
    tumour[2, 5:12, 6:13] = 0
    tumour[2, 7:9, 8:10] = 1
    tumour[3, 5, 6] = 0
    tumour[4, 0, 0] = tumour[4, 1, 1] = tumour[5, -1, -1] = 1  # at corners of the volume
    pancreas = (rng.random(grid.shape) < 0.2) & (tumour == 0)
    probability = rng.random(grid.shape).astype(np.float32)
    return Found(Volume(tumour, grid), Volume(pancreas.astype(np.uint8), grid), Volume(probability, grid))


def case_in(folder: Path, name: str = "axial", *, enhanced: bool = False, **changes: object) -> Case:
    grid = Grid(SHAPE, (3.0, 1.25, 1.1), (-31.5, 40.25, 12.125), DIRECTIONS[name])
    image = Volume(np.random.default_rng(1).integers(0, 1000, SHAPE).astype(np.float32), grid)
    files = folder / ("enhanced.dcm" if enhanced else "series")
    source = marked_series(files, image, enhanced=enhanced, **changes)
    return Case(files, source, masks(grid), grid)


@pytest.fixture(scope="module", params=[*DIRECTIONS, "enhanced"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    enhanced = request.param == "enhanced"
    folder = tmp_path_factory.mktemp("case")
    return case_in(folder, "oblique" if enhanced else request.param, enhanced=enhanced)


def program(name: str) -> str:
    """Return the path of a program of this Python's environment or of the system; skip the test where it is absent."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"the program {name} is not installed")
    return found


def run(name: str, *arguments: object) -> str:
    command = [program(name), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def check_standard(path: Path) -> None:
    """Check an object with dciodvfy, which knows the attributes that the standard requires."""
    errors = [line for line in run("dciodvfy", path).splitlines() if line.startswith("Error")]
    assert errors == []


def on_grid(path: Path, grid: Grid) -> NDArray[np.uint8]:
    """Return an image that another program wrote at the voxels of a grid."""
    like = to_itk(Volume(np.zeros(grid.shape, np.uint8), grid))
    image = sitk.Resample(sitk.ReadImage(str(path)), like, sitk.Transform(), sitk.sitkNearestNeighbor)
    return np.asarray(sitk.GetArrayFromImage(image), np.uint8)


def points_of(contour: Dataset) -> NDArray[np.float64]:
    return np.array(contour.ContourData, float).reshape(-1, 3)


def rasterised(roi: Dataset, grid: Grid) -> NDArray[np.bool_]:
    """Return the voxels whose middles lie in an odd number of a structure's contours in their slice.

    An even-odd rasteriser that knows nothing of voxel edges: contours are taken from mm to index coordinates.
    """
    mask = np.zeros(grid.shape, bool)
    y, x = np.mgrid[: grid.shape[1], : grid.shape[2]]
    for contour in roi.get("ContourSequence", []):
        index = (points_of(contour) - grid.origin) @ np.array(grid.direction) / grid.spacing[::-1]
        assert np.ptp(index[:, 2]) < 1e-6, "the contour lies in one plane"
        z = int(np.rint(index[0, 2]))
        assert abs(index[0, 2] - z) < 1e-6, "the plane is that of a slice"
        inside = np.zeros(grid.shape[1:], bool)
        for (xa, ya, _), (xb, yb, _) in zip(index, np.roll(index, -1, axis=0), strict=True):
            if ya != yb:
                crossed = (np.minimum(ya, yb) <= y) & (y < np.maximum(ya, yb))
                inside ^= crossed & (x < xa + (y - ya) * (xb - xa) / (yb - ya))
        mask[z] ^= inside
    return mask


def test_objects_follow_the_standard(case: Case, tmp_path: Path) -> None:
    for options in ({}, {"anonymous": True}):
        for suffix in SUFFIXES:
            path = tmp_path / f"scan{suffix}"
            case.write(path, **options)
            check_standard(path)


def test_another_program_reads_the_very_mask_from_a_segmentation(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "scan.seg.dcm"
    case.write(path)
    run("segimage2itkimage", "--inputDICOM", path, "--outputDirectory", tmp_path, "--prefix", "read", "-t", "nrrd")
    for number, mask in enumerate(case.found.masks.values(), start=1):
        read = on_grid(tmp_path / f"read-{number}.nrrd", case.grid)
        assert int((read != number * mask.array).sum()) == 0
    described = json.loads((tmp_path / "read-meta.json").read_text())["segmentAttributes"]
    types = [segment["SegmentedPropertyTypeCodeSequence"]["CodeValue"] for (segment,) in described]
    assert types == ["108369006", "15776009"]


def test_the_frames_of_a_segmentation_lie_where_the_mask_does(case: Case, tmp_path: Path) -> None:
    seg = case.write(tmp_path / "scan.seg.dcm")
    read = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "scan.seg.dcm")))
    orientation = np.array(seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient)
    row_step, column_step = map(float, seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing)
    points = []
    for group, frame in zip(seg.PerFrameFunctionalGroupsSequence, read, strict=True):
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 1:
            position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
            rows, columns = np.nonzero(frame)
            across, down = columns[:, None] * column_step * orientation[:3], rows[:, None] * row_step * orientation[3:]
            points.append(position + across + down)
    index = np.argwhere(case.found.tumour.array)[:, ::-1] * case.grid.spacing[::-1]
    expected = np.array(case.grid.origin) + (index @ np.array(case.grid.direction).T).mean(axis=0)
    assert np.allclose(np.concatenate(points).mean(axis=0), expected, rtol=0, atol=1e-4)


def test_a_segmentation_says_what_it_is_and_to_what_it_belongs(case: Case, tmp_path: Path) -> None:
    seg = case.write(tmp_path / "scan.seg.dcm")
    header = case.source.datasets[0]
    carried = ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "StudyDate", "AccessionNumber")
    assert [seg[key].value for key in (*carried, "FrameOfReferenceUID")] == [
        header[key].value for key in (*carried, "FrameOfReferenceUID")
    ]
    assert seg.SeriesInstanceUID != header.SeriesInstanceUID
    assert (seg.SegmentationType, seg.ContentQualification) == ("BINARY", "RESEARCH")
    assert "not for clinical use" in seg.SeriesDescription
    tumour, pancreas = seg.SegmentSequence
    assert (tumour.SegmentLabel, tumour.SegmentAlgorithmType) == ("tumour", "AUTOMATIC")
    assert "not for clinical use" in tumour.SegmentDescription
    algorithm = tumour.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("pantherseg task2", "1.2.3")
    assert SHA in algorithm.AlgorithmParameters
    assert SHA[::-1] in algorithm.AlgorithmParameters
    assert pancreas.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "91723000"
    # Every slice has a frame for each segment, with a reference to just the slice that it belongs to.
    assert int(seg.NumberOfFrames) == 2 * SHAPE[0]
    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == header.SeriesInstanceUID
    assert len(series.ReferencedInstanceSequence) == len(case.source.datasets)
    for group in seg.PerFrameFunctionalGroupsSequence:
        (image,) = group.DerivationImageSequence[0].SourceImageSequence
        z = int(np.argmin(np.abs(positions_along_normal(case) - along_normal(case, group.PlanePositionSequence[0]))))
        assert (image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber")) == reference(case, z)


def reference(case: Case, z: int) -> tuple[str, int | None]:
    """Return the instance UID of a slice, and its frame as DICOM counts where there are several."""
    instance, frame = case.source.frames[z]
    return case.source.datasets[instance].SOPInstanceUID, frame + 1 if case.source.is_multi_frame else None


def along_normal(case: Case, place: Dataset) -> float:
    return float(np.array(place.ImagePositionPatient, float) @ np.array(case.grid.direction)[:, 2])


def positions_along_normal(case: Case) -> NDArray[np.float64]:
    return float(np.array(case.grid.origin) @ np.array(case.grid.direction)[:, 2]) + 3.0 * np.arange(SHAPE[0])


def test_a_probability_is_kept_to_a_step(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "scan.probability.dcm"
    assert case.write(path).SegmentationType == "FRACTIONAL"
    assert case.found.probability is not None
    volume = highdicom.seg.segread(path).get_volume(rescale_fractional=True)
    same_way = volume.affine[:3, 0] @ np.array(case.grid.direction)[:, 2] > 0
    read = volume.array[:: 1 if same_way else -1, ..., 0]
    assert np.abs(read - case.found.probability.array).max() <= 0.5 / 255 + 1e-6


def test_contours_enclose_exactly_the_mask(case: Case, tmp_path: Path) -> None:
    structures = case.write(tmp_path / "scan.rtstruct.dcm")
    assert [roi.ROIName for roi in structures.StructureSetROISequence] == ["tumour", "pancreas"]
    for roi, mask in zip(structures.ROIContourSequence, case.found.masks.values(), strict=True):
        assert np.array_equal(rasterised(roi, case.grid), mask.array > 0)
        for contour in roi.ContourSequence:
            assert contour.ContourGeometricType == "CLOSED_PLANAR"
            assert all(len(str(value)) <= 16 for value in contour["ContourData"].value)
            (image,) = contour.ContourImageSequence
            z = int(
                np.argmin(
                    np.abs(positions_along_normal(case) - points_of(contour)[0] @ np.array(case.grid.direction)[:, 2])
                )
            )
            assert (image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber")) == reference(case, z)
    assert (structures.StructureSetLabel, structures.ApprovalStatus) == ("NOT CLINICAL USE", "UNAPPROVED")
    study = structures.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    assert study.RTReferencedSeriesSequence[0].SeriesInstanceUID == case.source.series_uid


def full_size(folder: Path) -> Case:
    """Return a full-size phantom's series with its tumour and pancreas, and a component of one voxel."""
    phantom = make_phantom(5002, task=2, size="full")
    grid = replace(phantom.image.grid, direction=DIRECTIONS["axial"])
    source = marked_series(folder / "series", Volume(np.clip(phantom.image.array, 0, 4095), grid))
    tumour, pancreas = (phantom.labels.array == label for label in (TUMOUR, PANCREAS))
    tumour[0, 5, 5] = True
    found = Found(Volume(tumour.astype(np.uint8), grid), Volume(pancreas.astype(np.uint8), grid))
    return Case(folder / "series", source, found, grid)


@pytest.mark.slow
@pytest.mark.parametrize("made", [case_in, full_size])
def test_plastimatch_reads_the_mask_from_contours(tmp_path: Path, made: Callable[[Path], Case]) -> None:
    # Of other than axial slices, plastimatch 1.9.4 reads no contours rightly.
    program("plastimatch")
    case = made(tmp_path)
    path, image = tmp_path / "scan.rtstruct.dcm", tmp_path / "like.mha"
    case.write(path)
    sitk.WriteImage(to_itk(case.found.tumour), str(image))
    run("plastimatch", "convert", "--input", path, "--fixed", image, "--output-prefix", tmp_path / "read")
    for name, mask in case.found.masks.items():
        found = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "read" / f"{name}.mha"))) > 0
        assert dice(found, mask.array > 0) >= 0.99
        components, count = ndimage.label(mask.array)
        assert set(np.unique(components[found])) >= set(range(1, count + 1)), "no component is lost"


@pytest.mark.fault(
    "outputs", "no tumour was found, and the result is a {name}", "an object that is valid and says that none was found"
)
@pytest.mark.parametrize("name", ["dcmseg", "rtstruct"])
def test_an_empty_tumour_is_an_answer(tmp_path: Path, name: str) -> None:
    case = case_in(tmp_path)
    empty = Found(Volume(np.zeros(SHAPE, np.uint8), case.grid))
    path = tmp_path / f"scan{FORMATS[name].suffix}"
    made = Case(case.files, case.source, empty, case.grid).write(path)
    check_standard(path)
    if name == "dcmseg":
        (segment,) = made.SegmentSequence
        assert segment.SegmentDescription.startswith("no tumour was found")
        assert int(made.NumberOfFrames) == SHAPE[0]
        assert not made.pixel_array.any()
    else:
        (roi,) = made.StructureSetROISequence
        assert roi.ROIDescription.startswith("no tumour was found")
        assert "ContourSequence" not in made.ROIContourSequence[0]


def test_uids_are_new_unless_stable_ones_are_asked_for(tmp_path: Path) -> None:
    case = case_in(tmp_path)
    for suffix in SUFFIXES:
        paths = [tmp_path / f"{number}{suffix}" for number in range(2)]
        first, second = (case.write(path) for path in paths)
        assert first.SOPInstanceUID != second.SOPInstanceUID
        assert first.SeriesInstanceUID != second.SeriesInstanceUID
        first, second = (case.write(path, stable_uids=True) for path in paths)
        assert first.SOPInstanceUID == second.SOPInstanceUID
        changed = msgspec.structs.replace(REPORT, pantherseg="1.2.4")
        assert case.write(paths[1], changed, stable_uids=True).SOPInstanceUID != first.SOPInstanceUID


def test_stable_objects_have_the_same_bytes(tmp_path: Path) -> None:
    case = case_in(tmp_path)
    for suffix in SUFFIXES:
        contents = []
        for _ in range(2):
            case.write(tmp_path / f"scan{suffix}", stable_uids=True)
            contents.append((tmp_path / f"scan{suffix}").read_bytes())
        assert contents[0] == contents[1]


def test_anonymous_objects_keep_nothing_that_identifies_the_patient(case: Case, tmp_path: Path) -> None:
    values = set(IDENTITY.values())
    for suffix in SUFFIXES:
        path = tmp_path / f"scan{suffix}"
        case.write(path)
        assert MARK.encode() in path.read_bytes(), "the mark is in an object that may name the patient"
        made = case.write(path, anonymous=True)
        content = path.read_bytes()
        assert [value for value in values if value.encode() in content] == []
        assert (made.PatientName, made.PatientID, made.StudyTime, made.PatientIdentityRemoved) == ("", "", "", "YES")
        assert [item.CodeValue for item in made.DeidentificationMethodCodeSequence] == ["113100", "113110"]
        assert made.StudyInstanceUID == case.source.datasets[0].StudyInstanceUID


def other_id(**tags: str) -> Dataset:
    """Return an item of a sequence with values that DICOM may not allow."""
    item = Dataset()
    with pydicom.config.disable_value_validation():
        item.PatientID, item.TypeOfPatientID = f"{MARK}-8", "TEXT"
        for key, value in tags.items():
            setattr(item, key, value)
    return item


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # of pydicom, when the test reads such headers
def test_values_that_dicom_does_not_allow_are_left_out_and_others_kept(tmp_path: Path) -> None:
    with pydicom.config.disable_value_validation():
        broken = {"PatientAge": "45", "PatientBirthDate": "20240231", "StudyTime": "25", "PatientWeight": "70"}
        ids = [other_id(IssuerOfPatientID=MARK * 20), other_id()]
        case = case_in(tmp_path, OtherPatientIDsSequence=ids, PatientID=MARK * 20, PatientName="ÖZ^Ñ", **broken)
    before = [str(header) for header in case.source.datasets]
    for suffix in SUFFIXES:
        made = case.write(tmp_path / f"scan{suffix}")
        assert "PatientAge" not in made
        assert (made.PatientBirthDate, made.StudyTime, made.PatientWeight) == ("", "", 70)
        assert [item.PatientID for item in made.OtherPatientIDsSequence] == [f"{MARK}-8"]
        assert (made.PatientID, made.PatientName) == (MARK * 20, "ÖZ^Ñ")  # by these the archive finds the patient
    assert [str(header) for header in case.source.datasets] == before


ODD_HEADERS: dict[str, dict[str, Any]] = {
    "lacks what anonymised images lack": dict.fromkeys(
        ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate")
    ),
    "has a name without ^": {"PatientName": f"{MARK} DIEGO"},
    "has a name in another character set": {"PatientName": f"{MARK}^Ñandú", "SpecificCharacterSet": "ISO_IR 100"},
    "has an unknown sex": {"PatientSex": MARK},
    "has impossible dates": {"PatientBirthDate": MARK, "StudyDate": "2024-2-9", "StudyTime": "noon"},
    "has an impossible age": {"PatientAge": MARK},
    "has a time of birth that is none": {"PatientBirthTime": MARK},
    "has a broken value in a sequence": {"OtherPatientIDsSequence": [other_id(IssuerOfPatientID=MARK * 20)]},
    "has too long a number of the visit": {"AccessionNumber": MARK * 4, "StudyID": MARK * 4},
    "has a UID with letters": {"ReferencedStudySequence": [other_id(ReferencedSOPInstanceUID=MARK)]},
}


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # of pydicom, when the test writes such headers
@pytest.mark.fault("inputs", "the header of a DICOM series {odd}", "DICOM results, and nothing of it in a log")
@pytest.mark.parametrize("odd", list(ODD_HEADERS))
def test_odd_headers_allow_objects_and_are_not_quoted(
    tmp_path: Path, odd: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    case = case_in(tmp_path, **ODD_HEADERS[odd])
    capfd.readouterr()
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    for suffix in SUFFIXES:
        case.write(tmp_path / f"scan{suffix}")
        assert pydicom.dcmread(tmp_path / f"scan{suffix}").StudyInstanceUID
        check_standard(tmp_path / f"scan{suffix}")
    printed = capfd.readouterr()
    assert MARK not in caplog.text + printed.out + printed.err


@pytest.mark.fault("inputs", "a DICOM series without a frame of reference, and DICOM results", "an error that says so")
def test_a_series_without_a_frame_of_reference_is_refused(tmp_path: Path) -> None:
    case = case_in(tmp_path, FrameOfReferenceUID=None)
    for suffix in SUFFIXES:
        with pytest.raises(InputError, match="expected a frame of reference") as caught:
            case.write(tmp_path / f"scan{suffix}")
        one_line_about(f"series {case.source.series_uid}", caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["series"]


@pytest.mark.fault("inputs", "headers of which no DICOM object can be made", "an error that quotes nothing of them")
def test_an_unexpected_failure_quotes_no_header(tmp_path: Path) -> None:
    case = case_in(tmp_path)
    with pydicom.config.disable_value_validation():
        case.source.datasets[0].SOPClassUID = MARK
    with pytest.raises(InputError, match=r"do not allow scan\.seg\.dcm") as caught:
        case.write(tmp_path / "scan.seg.dcm")
    assert MARK not in one_line_about(f"series {case.source.series_uid}", caught.value)
    assert not (tmp_path / "scan.seg.dcm").exists()


def test_slices_that_are_not_quite_even_keep_their_own_planes(tmp_path: Path) -> None:
    case = case_in(tmp_path)
    moved = [z + 0.02 * (-1) ** k for k, z in enumerate(12.125 + 3.0 * np.arange(SHAPE[0]))]
    for header, z in zip(case.source.datasets, moved, strict=True):
        header.ImagePositionPatient[2] = z
    seg = case.write(tmp_path / "scan.seg.dcm")
    found = [
        float(group.PlanePositionSequence[0].ImagePositionPatient[2]) for group in seg.PerFrameFunctionalGroupsSequence
    ]
    assert sorted(found) == pytest.approx(sorted(moved * 2))
    assert all("DerivationImageSequence" in group for group in seg.PerFrameFunctionalGroupsSequence)
    structures = case.write(tmp_path / "scan.rtstruct.dcm")
    planes = {
        float(z) for contour in structures.ROIContourSequence[0].ContourSequence for z in points_of(contour)[:, 2]
    }
    assert planes <= {round(z, 6) for z in moved}


@pytest.mark.fault("inputs", "Enhanced MR in several files, and a segmentation", "an error that names what can be made")
def test_enhanced_mr_in_several_files_gets_contours_but_no_segmentation(tmp_path: Path) -> None:
    grid = Grid((6, 20, 24), (3.0, 1.25, 1.1))
    array = np.random.default_rng(1).integers(0, 1000, grid.shape).astype(np.uint16)
    halves = ((range(3), tmp_path / "scan" / "a"), (range(3, 6), tmp_path / "scan" / "b"))
    for order, path in halves:
        write_enhanced(Volume(array, grid), path, order=order)
    source = source_datasets(tmp_path / "scan")
    assert source is not None
    case = Case(tmp_path / "scan", source, masks(grid), grid)
    for suffix in SUFFIXES[:2]:
        with pytest.raises(OptionError, match="expected a series in one Enhanced MR file for a segmentation, found 2"):
            case.write(tmp_path / f"scan{suffix}")
    structures = case.write(tmp_path / "scan.rtstruct.dcm")
    check_standard(tmp_path / "scan.rtstruct.dcm")
    for roi, mask in zip(structures.ROIContourSequence, case.found.masks.values(), strict=True):
        assert np.array_equal(rasterised(roi, grid), mask.array > 0)


def test_objects_about_rounded_directions_hold_the_very_mask(tmp_path: Path) -> None:
    def rounded(data: Dataset, z: int) -> None:
        data.ImageOrientationPatient = [round(cosine, 2) for cosine in data.ImageOrientationPatient]

    turned = Rotation.from_euler("xyz", (20, -35, 10), degrees=True).as_matrix()
    write_slices(some_volume((40, 20, 24), turned), tmp_path / "scan", change=rounded)
    volume, source = read_image(tmp_path / "scan")[0], source_datasets(tmp_path / "scan")
    assert source is not None
    case = Case(tmp_path / "scan", source, masks(volume.grid), volume.grid)
    structures = case.write(tmp_path / "scan.rtstruct.dcm")
    assert np.array_equal(rasterised(structures.ROIContourSequence[0], volume.grid), case.found.tumour.array > 0)
    case.write(tmp_path / "scan.seg.dcm")
    check_standard(tmp_path / "scan.seg.dcm")
    options = ("--outputDirectory", tmp_path, "--prefix", "read", "-t", "nrrd")
    run("segimage2itkimage", "--inputDICOM", tmp_path / "scan.seg.dcm", *options)
    assert int((on_grid(tmp_path / "read-1.nrrd", volume.grid) != case.found.tumour.array).sum()) == 0


@pytest.mark.parametrize("where", ["scan/out", "out"])
def test_anonymous_results_inside_the_input_are_no_other_patient(tmp_path: Path, where: str) -> None:
    case, study = case_in(tmp_path / "study" / "scan"), tmp_path / "study"
    (study / where).mkdir()
    for suffix in SUFFIXES:
        case.write(study / where / f"scan{suffix}", anonymous=True)
    assert find_sources(study) == [study]
    read, _ = read_image(study)
    assert read.grid.difference(case.grid) == ""


def test_a_classic_image_may_say_that_it_has_one_frame(tmp_path: Path) -> None:
    case = case_in(tmp_path, NumberOfFrames=1)
    assert len(case.write(tmp_path / "scan.seg.dcm").PerFrameFunctionalGroupsSequence) == 2 * SHAPE[0]


@pytest.mark.parametrize(
    ("sets", "name"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        (["ISO 2022 IR 6", "ISO 2022 IR 100"], "Äneas^Ñandú"),
    ],
)
def test_names_in_any_character_set_are_kept(tmp_path: Path, sets: list[str], name: str) -> None:
    case = case_in(tmp_path, SpecificCharacterSet=sets, PatientName=name)
    for suffix in SUFFIXES:
        made = case.write(tmp_path / f"scan{suffix}")
        assert (made.PatientName, made.SpecificCharacterSet) == (name, "ISO_IR 192")


@pytest.mark.filterwarnings("ignore:Unknown encoding:UserWarning")  # of pydicom, when the test writes such headers
def test_an_unknown_character_set_is_refused(tmp_path: Path) -> None:
    case = case_in(tmp_path, SpecificCharacterSet="ISO_IR 999")
    with pytest.raises(InputError, match="expected texts in a character set of DICOM, found an unknown one") as caught:
        case.write(tmp_path / "scan.seg.dcm")
    one_line_about(f"series {case.source.series_uid}", caught.value)
    assert case.write(tmp_path / "scan.seg.dcm", anonymous=True).PatientName == ""
