"""DICOM that cannot be read as a volume: one line that names the file or the series, what is wrong, and what to do."""

from __future__ import annotations

import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from pydicom import Dataset
from pydicom.uid import CTImageStorage, SecondaryCaptureImageStorage
from pydicom.valuerep import DSfloat
from scipy.spatial.transform import Rotation

from conftest import one_line_about
from dicom_files import PATIENT, header, position, save, some_volume, write_enhanced, write_slices
from pantherseg.batch import run_batch
from pantherseg.cli import main
from pantherseg.errors import InputError, OutputError
from pantherseg.evaluation import evaluate
from pantherseg.events import EventCode
from pantherseg.io import case_name, read_image, read_labels, source_datasets, source_files
from pantherseg.io.dicom.choice import SeriesChoice
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.recipe import load_recipe
from pantherseg.session import Session
from pantherseg.volume import Volume

VOLUME = some_volume()


def refusal(source: Path, where: Path | str | None = None, choice: SeriesChoice | None = None) -> str:
    """Return why a source is refused, and check that nothing else can be had of it, nor anything about the patient."""
    choice = choice or SeriesChoice()
    texts = set()
    for read in (read_image, source_datasets, source_files):
        try:
            read(source, choice)
        except InputError as error:
            texts.add(one_line_about(where or source, error))
    assert len(texts) == 1
    (text,) = texts
    assert not any(word in text for value in PATIENT.values() for word in value.split("^"))
    return text.partition(f"{where or source}: ")[2]


def pixel_refusal(source: Path, where: Path) -> str:
    """Return why the pixels of a source are refused."""
    with pytest.raises(InputError) as caught:
        read_image(source)
    return one_line_about(where, caught.value).partition(f"{where}: ")[2]


def move(steps: dict[int, float]) -> Callable[[Dataset, int], None]:
    """Return what moves some slices along z by mm."""

    def change(data: Dataset, z: int) -> None:
        data.ImagePositionPatient[2] = float(data.ImagePositionPatient[2]) + steps.get(z, 0.0)

    return change


@pytest.mark.fault("dicom", "slices of two patients in a folder", "an error that names a file of each")
def test_refuses_two_patients(tmp_path: Path) -> None:
    write_slices(VOLUME, tmp_path, shuffled=False)
    write_slices(some_volume((3, 9, 7)), tmp_path, PatientID="other", SeriesInstanceUID="1.2.8")
    data = pydicom.dcmread(tmp_path / "IM0005")
    save(data, tmp_path / "IM0009")
    assert refusal(tmp_path) == (
        "expected the series of one patient, found 2 patients, such as those of IM0003 and IM0000; give the folder of "
        "one of them, or choose a series with --series UID"
    )
    assert read_image(tmp_path, SeriesChoice(uid="1.2.8"))[0].array.shape == (3, 9, 7)


@pytest.mark.fault("dicom", "a series with missing slices", "an error that says how many and between which files")
def test_names_missing_slices(tmp_path: Path) -> None:
    paths = write_slices(some_volume((10, 4, 4)), tmp_path, shuffled=False)
    for z in (3, 6, 7):
        paths[z].unlink()
    assert refusal(tmp_path) == (
        "expected MR slices of one volume at even distances, found 7 slices 3 mm apart and 3 missing, 1 between IM0002 "
        "and IM0004, 2 between IM0005 and IM0008 (series 1.2.3.4); export the complete series again, or choose another "
        "with --series UID"
    )


@pytest.mark.fault("dicom", "every second slice is missing", "an error that says so, as the header has the distance")
@pytest.mark.parametrize(("every", "missing"), [(2, "1 of every 2 is"), (3, "2 of every 3 are")])
def test_names_slices_that_are_missing_all_along(tmp_path: Path, every: int, missing: str) -> None:
    for z, path in enumerate(write_slices(some_volume((12, 4, 4)), tmp_path, SpacingBetweenSlices=3)):
        if z % every:
            path.unlink()
    assert (
        f"found {12 // every} slices {3 * every} mm apart where the header says 3 mm (SpacingBetweenSlices), so that "
        f"{missing} missing (series 1.2.3.4); export the complete series again" in refusal(tmp_path)
    )


@pytest.mark.fault("dicom", "slices far apart, and the header has no distance, or images are derived", "an event")
@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"SliceThickness": 1.5}, "they are 1.5 mm thick (SliceThickness)"),
        (
            {"SpacingBetweenSlices": 1, "ImageType": ["DERIVED", "PRIMARY", "MPR"]},
            "the header says 1 mm (SpacingBetweenSlices)",
        ),
    ],
)
def test_says_where_slices_may_be_missing_all_along(tmp_path: Path, tags: dict[str, object], said: str) -> None:
    write_slices(VOLUME, tmp_path, **tags)
    assert [str(event) for event in read_image(tmp_path)[1]] == [
        f"slices_far_apart: the slices are 3 mm apart, and {said}; see whether slices between them are missing"
    ]
    listed = CliRunner().invoke(main, ["dicom", "list", str(tmp_path)]).output.splitlines()
    assert listed[-1].startswith("1.2.3.4: the slices are 3 mm apart, and ")


@pytest.mark.parametrize(
    "tags",
    [
        {"SliceThickness": 2.5, "SpacingBetweenSlices": 3},
        {"SliceThickness": 1, "SpacingBetweenSlices": 3},  # a gap that the scanner meant
        {"SliceThickness": 6, "SpacingBetweenSlices": 3},  # slices that overlap
        {"SliceThickness": 2.4, "SpacingBetweenSlices": 0.6},  # some scanners write the gap alone
        {"SliceThickness": 2.4, "SpacingBetweenSlices": ""},
        {"SliceThickness": 0, "SpacingBetweenSlices": "1e-300"},
        {"SliceThickness": -3, "SpacingBetweenSlices": -3},
    ],
)
def test_takes_any_distance_that_the_header_explains(tmp_path: Path, tags: dict[str, object]) -> None:
    write_slices(VOLUME, tmp_path, **tags)
    assert read_image(tmp_path)[1] == ()


@pytest.mark.fault("dicom", "an Enhanced MR object with a missing frame", "an error that names the frames beside it")
def test_names_missing_frames(tmp_path: Path) -> None:
    write_enhanced(VOLUME, tmp_path / "a", order=[5, 4, 2, 1, 0])
    found = refusal(tmp_path)
    assert "found 5 slices 3 mm apart and 1 missing, 1 between a frame 3 and a frame 2 (series 1.2.3.4)" in found


@pytest.mark.fault("dicom", "slices at uneven distances", "an error that says from where to where they reach")
def test_refuses_uneven_distances(tmp_path: Path) -> None:
    write_slices(VOLUME, tmp_path, change=move({3: 0.4, 4: 1.2}))
    assert "found slices that are 1.8 to 3.8 mm apart (series 1.2.3.4)" in refusal(tmp_path)


def test_accepts_a_slice_that_is_off_by_less_than_a_twentieth_of_the_distance(tmp_path: Path) -> None:
    write_slices(VOLUME, tmp_path / "a", change=move({3: 0.14}))
    assert read_image(tmp_path / "a")[0].grid.difference(VOLUME.grid) == ""
    write_slices(VOLUME, tmp_path / "b", change=move({3: 0.16}))
    assert "mm apart" in refusal(tmp_path / "b")


@pytest.mark.fault("dicom", "slices that are shifted sideways, as of a tilted gantry", "an error that says by how much")
def test_refuses_sheared_slices(tmp_path: Path) -> None:
    def tilt(data: Dataset, z: int) -> None:
        data.ImagePositionPatient[1] = float(data.ImagePositionPatient[1]) + 0.5 * z

    write_slices(VOLUME, tmp_path, change=tilt)
    assert "found slices that are shifted sideways by up to 2.5 mm (series 1.2.3.4)" in refusal(tmp_path)


def rounded(decimals: int) -> Callable[[Dataset, int], None]:
    def change(data: Dataset, z: int) -> None:
        data.ImageOrientationPatient = [round(cosine, decimals) for cosine in data.ImageOrientationPatient]

    return change


@pytest.mark.parametrize("angles", [(8, 0, 0), (20, -35, 10), (-7, 12, 85)])
def test_takes_directions_that_are_rounded_to_two_decimals(tmp_path: Path, angles: tuple[int, int, int]) -> None:
    turned = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    volume = some_volume((60, 16, 16), turned)
    write_slices(volume, tmp_path, change=rounded(2))
    read, events = read_image(tmp_path)
    assert [event.code for event in events] == [EventCode.DIRECTION_CORRECTED]
    assert np.array_equal(read.array, volume.array)
    assert np.allclose(read.grid.direction, turned, rtol=0, atol=0.01)
    assert np.allclose(np.array(read.grid.direction)[:, 2], turned[:, 2], rtol=0, atol=1e-6)


@pytest.mark.fault(
    "dicom", "slices that are shifted sideways, with directions of two decimals", "an error that says so"
)
@pytest.mark.parametrize(("angles", "decimals"), [((20, -35, 10), 1), ((0, 0, 0), 2)])
def test_refuses_a_shift_that_rounding_does_not_explain(
    tmp_path: Path, angles: tuple[int, int, int], decimals: int
) -> None:
    def change(data: Dataset, z: int) -> None:
        rounded(decimals)(data, z)
        if decimals == 2:
            data.ImagePositionPatient[1] = float(data.ImagePositionPatient[1]) + 0.06 * z

    turned = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    write_slices(some_volume((60, 16, 16), turned), tmp_path, change=change)
    with pytest.raises(InputError, match="shifted sideways"):
        read_image(tmp_path)


@pytest.mark.fault("dicom", "slices at the same positions that no tag tells apart", "an error that names two of them")
def test_refuses_positions_that_repeat(tmp_path: Path) -> None:
    write_slices(VOLUME, tmp_path / "a", shuffled=False)
    write_slices(VOLUME, tmp_path / "b", shuffled=False)
    assert "found several slices at 6 of the positions (IM0000 and IM0000), which no tag tells" in refusal(tmp_path)


PHASES = [
    ("TemporalPositionIdentifier", "temporal position", [1, 2, 3]),
    ("EchoTime", "echo time", [1.2, 2.4, 3.6]),
    ("TriggerTime", "trigger time", [1234567.1, 1234567.2, 1234567.3]),
    ("ImageType", "image type", [["ORIGINAL", "PRIMARY", kind] for kind in ("FAT", "OPP", "WATER")]),
    ("AcquisitionTime", "acquisition time", ["120001", "120031", "120111"]),
]


@pytest.mark.fault("dicom", "phases, told apart by the {key}, in one series", "an error that names them")
@pytest.mark.parametrize(("key", "name", "values"), PHASES, ids=[key for key, *_ in PHASES])
def test_asks_for_one_of_several_phases(tmp_path: Path, key: str, name: str, values: list[object]) -> None:
    for number, value in enumerate(values):
        volume = Volume(VOLUME.array + np.int16(number), VOLUME.grid)
        write_slices(volume, tmp_path / str(number), **{key: value})
    text = refusal(tmp_path)
    first = "\\".join(values[0]) if isinstance(values[0], list) else values[0]
    assert text.startswith("expected one series, found 3 that may be meant: ")
    assert f"1.2.3.4/1 (t1_vibe_tra, {name} {first}, 6 slices), 1.2.3.4/2 (" in text
    assert text.endswith("; choose one with --series UID; `pantherseg dicom list` shows them all")
    assert np.array_equal(read_image(tmp_path, SeriesChoice(uid="1.2.3.4/2"))[0].array, VOLUME.array + 1)
    assert "3 that may be meant" in refusal(tmp_path, choice=SeriesChoice(uid="1.2.3.4"))


@pytest.mark.fault("dicom", "echoes and phases in one series", "an error that names them")
def test_tells_echoes_and_phases_apart(tmp_path: Path) -> None:
    for echo in (1.2, 2.4):
        for phase in (1, 2):
            tags = {"EchoTime": echo, "TemporalPositionIdentifier": phase}
            write_slices(VOLUME, tmp_path / f"{echo} {phase}", **tags)
    assert "1.2.3.4/2 (t1_vibe_tra, temporal position 1, echo time 2.4, 6 slices)" in refusal(tmp_path)


@pytest.mark.fault("dicom", "a slice missing in one of two phases", "an error that names its neighbours")
def test_names_a_slice_that_one_phase_lacks(tmp_path: Path) -> None:
    for phase in (1, 2):
        write_slices(VOLUME, tmp_path / str(phase), shuffled=False, TemporalPositionIdentifier=phase)
    (tmp_path / "1" / "IM0002").unlink()
    found = refusal(tmp_path, choice=SeriesChoice(uid="1.2.3.4/1"))
    assert "1 missing, 1 between IM0001 and IM0003" in found
    assert len(read_image(tmp_path, SeriesChoice(uid="1.2.3.4/2"))[0].array) == 6


def test_takes_the_slices_beside_localizers_of_another_orientation_or_size(tmp_path: Path) -> None:
    turned = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    volume = some_volume((20, 9, 7))
    write_slices(volume, tmp_path / "a")
    write_slices(some_volume((3, 9, 7), turned), tmp_path / "b")
    write_slices(some_volume((3, 5, 5)), tmp_path / "c")
    read, _ = read_image(tmp_path, SeriesChoice(min_slices=16))
    assert read.grid.difference(volume.grid) == ""
    assert "3 that may be meant" in refusal(tmp_path)


@pytest.mark.fault("dicom", "{what} instead of MR images", "an error that says what they are")
@pytest.mark.parametrize(
    ("what", "tags", "reason"),
    [
        ("a CT series", {"Modality": "CT", "SOPClassUID": CTImageStorage}, "the modality CT, not MR"),
        (
            "secondary captures",
            {"SOPClassUID": SecondaryCaptureImageStorage},
            "Secondary Capture Image Storage, not an MR image",
        ),
        ("inverted grey values", {"PhotometricInterpretation": "MONOCHROME1"}, "MONOCHROME1, not one grey value"),
        ("a private class", {"SOPClassUID": "1.3.12.2.1107.5.9.1"}, "1.3.12.2.1107.5.9.1, not an MR image"),
    ],
)
def test_refuses_other_images(tmp_path: Path, what: str, tags: dict[str, str], reason: str) -> None:
    write_slices(VOLUME, tmp_path, **tags)
    expected = "expected an MR series (at least 2 slices), found none but 1.2.3.4 (t1_vibe_tra, 6 slices): "
    assert refusal(tmp_path).startswith(expected + reason), what
    chosen = refusal(tmp_path, choice=SeriesChoice(uid="1.2.3.4"))
    assert chosen.startswith(f"expected an MR series, found {reason}")


@pytest.mark.fault("dicom", "objects without pixels, such as a report", "an error that says what they are")
def test_refuses_objects_without_pixels(tmp_path: Path) -> None:
    save(header(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR"), tmp_path / "a.dcm")
    assert refusal(tmp_path) == "expected MR images, found an object without pixels (Basic Text SR Storage)"
    assert refusal(tmp_path / "a.dcm") == "expected MR images, found an object without pixels (Basic Text SR Storage)"


@pytest.mark.fault("dicom", "a series of one slice, in a folder or a file", "an error that says so")
def test_refuses_one_slice(tmp_path: Path) -> None:
    path = write_slices(some_volume((1, 4, 4)), tmp_path)[0]
    expected = "expected an MR series (at least 2 slices), found none but 1.2.3.4 (t1_vibe_tra, 1 slice): fewer than 2"
    assert refusal(tmp_path).startswith(expected)
    assert refusal(path).startswith(expected)
    assert "found 1 slice (series 1.2.3.4)" in refusal(tmp_path, choice=SeriesChoice(uid="1.2.3.4"))


@pytest.mark.fault("dicom", "slices without {key}", "an error that says in how many slices")
@pytest.mark.parametrize("key", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_refuses_slices_without_geometry(tmp_path: Path, key: str) -> None:
    def remove(data: Dataset, z: int) -> None:
        if z in (2, 3):
            delattr(data, key)

    write_slices(VOLUME, tmp_path, shuffled=False, change=remove)
    name = {"ImagePositionPatient": "position", "ImageOrientationPatient": "orientation"}.get(key, "pixel spacing")
    assert f"found no {name} in 2 of 6 slices (IM0002, IM0003) (series 1.2.3.4)" in refusal(tmp_path)


@pytest.mark.fault("dicom", "directions or spacings that are no valid numbers: {value}", "an error that says so")
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("PixelSpacing", [0, 0]),
        ("ImageOrientationPatient", [0, 0, 0, 0, 0, 0]),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]),
        ("ImageOrientationPatient", [1, 0, 0, 0.6, 0.8, 0]),
        ("PixelSpacing", [1e5, 1e5]),
    ],
)
def test_refuses_an_impossible_geometry(tmp_path: Path, key: str, value: list[float]) -> None:
    write_slices(VOLUME, tmp_path, change=lambda data, z: setattr(data, key, value))
    with pytest.raises(InputError) as caught:
        read_image(tmp_path)
    one_line_about(tmp_path, caught.value)


@pytest.mark.fault("dicom", "a DICOM file that is {damage} among the slices", "an error that names it")
@pytest.mark.parametrize("damage", ["empty", "cut in the header", "of random bytes", "without a series"])
def test_names_a_damaged_file(tmp_path: Path, damage: str) -> None:
    path = write_slices(VOLUME, tmp_path, shuffled=False)[2].rename(tmp_path / "IM0002.dcm")
    content = {
        "empty": b"",
        "cut in the header": path.read_bytes()[:500],
        "of random bytes": np.random.default_rng(0).bytes(3000),
    }.get(damage)
    if content is None:
        data = pydicom.dcmread(path)
        del data.SeriesInstanceUID
        data.save_as(path)
    else:
        path.write_bytes(content)
    text = refusal(tmp_path, where=path)
    assert text.startswith("expected a readable DICOM file, found ")
    assert text.endswith("; copy it again, or move it away if it does not belong to the series")


@pytest.mark.slow
@pytest.mark.fault("dicom", "a slice with any bytes changed", "a valid volume, or an error of one line")
def test_handles_a_slice_with_any_bytes_changed(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, paths in {"classic": write_slices(VOLUME, tmp_path / "classic"), "enhanced": []}.items():
        path = paths[2] if paths else write_enhanced(VOLUME, tmp_path / "enhanced" / "a")
        content = path.read_bytes()
        outcomes = set()
        for _ in range(100):
            changed = bytearray(content)
            for place in random.integers(128, len(content), random.integers(1, 4)):
                changed[place] = random.integers(256)
            path.write_bytes(changed)
            for read in (read_image, source_datasets, case_name):
                with suppress(InputError):  # of one line, whatever its parts are
                    read(tmp_path / name)
                    outcomes.add(read)
        assert outcomes == {read_image, source_datasets, case_name}


@pytest.mark.fault("dicom", "a slice whose pixels are {damage}", "an error that names it")
@pytest.mark.parametrize("damage", ["cut off", "missing", "of another size", "in a private transfer syntax"])
def test_names_a_slice_with_damaged_pixels(tmp_path: Path, damage: str) -> None:
    path = write_slices(VOLUME, tmp_path)[2]
    data = pydicom.dcmread(path)
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "missing":
        del data.PixelData
        data.save_as(path)
    elif damage == "of another size":
        data.PixelData = data.PixelData[:-20]
        data.save_as(path)
    else:
        data.file_meta.TransferSyntaxUID = "1.2.840.113619.5.2"
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.3.12.2.1107.5.9.1\0"))
    text = pixel_refusal(tmp_path, path)
    assert text.startswith("expected 9 x 7 pixels that can be decoded, found ")
    if damage == "in a private transfer syntax":
        assert text.endswith("found the transfer syntax 1.3.12.2.1107.5.9.1, for which there is no decoder")


@pytest.mark.fault("dicom", "a rescale slope of {slope}", "an error that names the file")
@pytest.mark.parametrize("slope", ["0", "inf", "nan"])
def test_refuses_a_rescale_slope_that_loses_the_values(tmp_path: Path, slope: str) -> None:
    def scale(data: Dataset, z: int) -> None:
        if z == 1:
            data.RescaleIntercept, data.RescaleSlope = 0, DSfloat(slope)

    paths = write_slices(VOLUME, tmp_path, change=scale)
    assert f"the rescale slope {slope}" in pixel_refusal(tmp_path, paths[1])


@pytest.mark.fault("dicom", "a zip archive that is {damage}", "an error that says so")
@pytest.mark.parametrize(
    "damage", ["cut off", "damaged", pytest.param("made to fill the memory", marks=pytest.mark.slow)]
)
def test_refuses_a_damaged_archive(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "scan.zip"
    paths = write_slices(VOLUME, tmp_path / "files")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for one in paths:
            archive.write(one, one.name)
        if damage == "made to fill the memory":
            archive.writestr("z", bytes(128) + b"DICM" + bytes(70 << 20))
    content = bytearray(path.read_bytes())
    if damage == "cut off":
        path.write_bytes(content[:-30])
        with pytest.raises(InputError, match="expected a volume in one of the formats"):
            read_image(path)
        return
    if damage == "damaged":
        with zipfile.ZipFile(path) as archive:
            start = archive.getinfo(paths[3].name).header_offset
        content[start + 300 : start + 320] = bytes(20)
        path.write_bytes(content)
    text = refusal(path)
    assert text.startswith("expected a valid zip archive, found ")
    assert text.endswith("; copy it again, or unpack it and give the folder")


@pytest.mark.fault("dicom", "a zip archive without DICOM files", "an error that says so")
def test_refuses_an_archive_of_other_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        archive.writestr("notes.txt", "no image")
    assert refusal(tmp_path / "scan.zip").endswith("found a zip archive that is damaged or has no DICOM file")


@pytest.mark.fault("dicom", "a series that is asked for and not there", "an error that names those that are")
def test_names_the_series_that_are_there(tmp_path: Path) -> None:
    write_slices(VOLUME, tmp_path)
    assert refusal(tmp_path, choice=SeriesChoice(uid="1.2")) == "expected the series 1.2, found only 1.2.3.4"
    assert "only 1.2.3.4" in refusal(tmp_path, choice=SeriesChoice(uid="1.2.3.4/2"))


@pytest.mark.fault("dicom", "DICOM in the place of masks", "an error that says what to do")
def test_refuses_dicom_as_masks(tmp_path: Path) -> None:
    write_slices(VOLUME, tmp_path / "scan")
    for read in (lambda: read_labels(tmp_path / "scan"), lambda: evaluate(tmp_path / "scan", tmp_path / "scan")):
        with pytest.raises(InputError) as caught:
            read()
        expected = "expected a mask in a volume file, found DICOM; convert the mask, for example with 3D Slicer"
        assert one_line_about(tmp_path / "scan", caught.value).endswith(expected)


@pytest.mark.fault("dicom", "pydicom is not installed", "an error that says how to install it")
def test_says_what_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_slices(VOLUME, tmp_path / "scan")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    expected = "expected the package pydicom, which reads DICOM, found not installed; pip install 'pantherseg[dicom]'"
    assert refusal(tmp_path / "scan") == refusal(tmp_path) == expected
    with pytest.raises(InputError, match="pip install"):
        case_name(tmp_path / "scan")


@pytest.mark.fault("dicom", "a series that cannot be read, given to predict", "nothing is written")
def test_writes_nothing_for_a_bad_series(tmp_path: Path) -> None:
    write_slices(VOLUME, tmp_path / "scan", Modality="CT", SOPClassUID=CTImageStorage)
    with pytest.raises(InputError, match="the modality CT"):
        run_batch(tmp_path / "scan", tmp_path / "out", Session(load_recipe(task_recipe(1)), DEMO_WEIGHTS, device="cpu"))
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("dicom", "results are to lie in the folder of the series", "an error before anything is computed")
def test_writes_nothing_among_the_slices(tmp_path: Path) -> None:
    paths = write_slices(VOLUME, tmp_path)
    with pytest.raises(OutputError, match="the masks would lie among the volumes"):
        run_batch(tmp_path, tmp_path, Session(load_recipe(task_recipe(1)), DEMO_WEIGHTS, device="cpu"))
    assert sorted(tmp_path.iterdir()) == sorted(paths)


@pytest.mark.slow
@pytest.mark.fault("dicom", "5,000 files of other studies beside the series", "the series is found within a minute")
def test_finds_a_series_among_thousands_of_other_files(tmp_path: Path) -> None:
    template = header(SOPClassUID=CTImageStorage, Modality="CT", Rows=64, Columns=64)
    template.ImagePositionPatient, template.PixelData = position(VOLUME.grid, 0), bytes(2 * 64 * 64)
    for study in range(50):
        template.StudyInstanceUID, template.SeriesInstanceUID = f"1.9.{study}", f"1.9.{study}.1"
        path = save(template, tmp_path / "other")
        content = path.read_bytes()
        for number in range(100):
            (tmp_path / f"{study:02}-{number:02}").write_bytes(content)
        path.unlink()
    write_slices(VOLUME, tmp_path)
    began = time.process_time()
    read, _ = read_image(tmp_path)
    first = time.process_time() - began
    source_files(tmp_path), case_name(tmp_path)
    assert read.grid == VOLUME.grid
    assert first < 60
    assert time.process_time() - began - first < 10  # the headers are known by now
