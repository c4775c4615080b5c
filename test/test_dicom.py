"""DICOM as input: the volume of a series is that of the same voxels in a volume file."""

from __future__ import annotations

import gc
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.fileset import FileSet
from pydicom.uid import JPEGLosslessSV1
from scipy.spatial.transform import Rotation

from dicom_files import some_volume, write_enhanced, write_legacy_enhanced, write_slices
from pantherseg.io import case_name, find_sources, mask_name, read_image, source_datasets, source_files
from pantherseg.io.dicom.choice import SeriesChoice
from pantherseg.io.itk import from_itk
from pantherseg.volume import Volume

AXIAL = np.eye(3)
CORONAL = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # columns: rows to the left, columns to the feet
SAGITTAL = np.array([[0, 0, 1.0], [1, 0, 0], [0, -1, 0]])
OBLIQUE = Rotation.from_euler("xyz", (20, -35, 10), degrees=True).as_matrix()
PLANES = {"axial": AXIAL, "coronal": CORONAL, "sagittal": SAGITTAL, "oblique": OBLIQUE}
Writer = Callable[[Volume, Path], object]
WRITERS: dict[str, Writer] = {
    "classic": lambda volume, folder: write_slices(volume, folder),
    "enhanced": lambda volume, folder: write_enhanced(volume, folder / "IM1"),
    "legacy converted": lambda volume, folder: write_legacy_enhanced(volume, folder / "IM1"),
}


def right_handed(volume: Volume) -> Volume:
    """Return a volume with its slices in the other order if their normal is not the cross product of the others."""
    if np.linalg.det(np.array(volume.grid.direction)) > 0:
        return volume
    array = volume.array[::-1]
    columns = np.array(volume.grid.direction)
    origin = np.array(volume.grid.origin) + columns[:, 2] * volume.grid.spacing[0] * (len(array) - 1)
    columns = columns * (1, 1, -1)
    rows = tuple(tuple(map(float, row)) for row in columns)
    return Volume(array, type(volume.grid)(array.shape, volume.grid.spacing, tuple(map(float, origin)), rows))


def assert_same(read: Volume, expected: Volume) -> None:
    """Check that two volumes have the same voxels at the same places."""
    assert expected.grid.difference(read.grid) == ""
    assert np.array_equal(read.array, expected.array)


@pytest.mark.parametrize("writer", ["classic", "enhanced", pytest.param("legacy converted", marks=pytest.mark.slow)])
@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_reads_the_volume_that_was_written(tmp_path: Path, writer: str, plane: str, order: str) -> None:
    direction = PLANES[plane] * (1, 1, 1 if order == "ascending" else -1)
    volume = some_volume(direction=direction)
    WRITERS[writer](volume, tmp_path / "scan")
    read, events = read_image(tmp_path / "scan")
    assert events == ()
    assert_same(read, right_handed(volume))


@pytest.mark.parametrize("plane", PLANES)
def test_reads_what_simpleitk_and_highdicom_read(tmp_path: Path, plane: str) -> None:
    paths = write_slices(some_volume(direction=PLANES[plane]), tmp_path)
    read, _ = read_image(tmp_path)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path))
    assert_same(read, from_itk(sitk.ReadImage(names)))
    other = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in paths])
    assert_same_affine(read, other)


def assert_same_affine(read: Volume, other: highdicom.Volume) -> None:
    """Compare with a volume of highdicom, whose affine is that of indices (z, y, x); it may begin at the other end."""
    steps = np.array(read.grid.direction) * read.grid.spacing[::-1]
    affine, array = np.array(other.affine), other.array
    if affine[:3, 0] @ steps[:, 2] < 0:
        affine[:3, 3] += affine[:3, 0] * (len(array) - 1)
        affine[:3, 0] *= -1
        array = array[::-1]
    assert np.allclose(affine[:3, :3], steps[:, ::-1], atol=1e-5)
    assert np.allclose(affine[:3, 3], read.grid.origin, atol=1e-5)
    assert np.array_equal(read.array, array)


def test_reads_the_frames_of_enhanced_mr_as_highdicom_does(tmp_path: Path) -> None:
    path = write_legacy_enhanced(some_volume(direction=OBLIQUE), tmp_path / "scan")
    assert_same_affine(read_image(path)[0], highdicom.imread(path).get_volume())


def write_disc(paths: list[Path], folder: Path) -> Path:
    """Write a DICOMDIR with copies of files, and return its path."""
    made = FileSet()
    for path in paths:
        made.add(path)
    made.write(folder)
    with warnings.catch_warnings():  # the library leaves its temporary folder to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        del made
        gc.collect()
    return folder / "DICOMDIR"


@pytest.mark.parametrize("source", ["folder", "folder above", "file", "DICOMDIR", "zip", "zip of folders"])
def test_takes_a_series_in_any_form(tmp_path: Path, source: str) -> None:
    volume, folder = some_volume(), tmp_path / "study" / "series"
    paths = write_slices(volume, folder)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden").write_bytes(paths[0].read_bytes()[:200])
    given = {"folder": folder, "folder above": folder.parent, "file": paths[2]}.get(source)
    if source == "DICOMDIR":
        given = write_disc(paths, tmp_path / "disc")
    if given is None:
        given = tmp_path / "scan.zip"
        with zipfile.ZipFile(given, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in paths:
                archive.write(path, path.relative_to(folder if source == "zip" else tmp_path))
    assert find_sources(given) == [given]
    assert_same(read_image(given)[0], volume)
    known = source_datasets(given)
    assert known is not None
    assert not known.is_multi_frame
    assert [one.ImagePositionPatient[2] for one in known.datasets] == [7.25 + 3 * z for z in range(6)]
    assert known.frames == tuple((z, 0) for z in range(6))
    assert all("PixelData" not in one and one.PatientID for one in known.datasets)
    files = source_files(given)
    assert files is not None
    assert len(files) == (1 if "zip" in source else 6)


def test_tells_which_frame_a_slice_is(tmp_path: Path) -> None:
    volume = some_volume()
    path = write_enhanced(volume, tmp_path / "a", order=[3, 0, 5, 1, 2, 4])
    known = source_datasets(tmp_path)
    assert known is not None
    assert known.is_multi_frame
    assert known.frames == ((0, 1), (0, 3), (0, 4), (0, 0), (0, 5), (0, 2))
    stored = pydicom.dcmread(path).pixel_array
    assert all(np.array_equal(stored[frame], volume.array[z]) for z, (_, frame) in enumerate(known.frames))


def test_a_volume_file_has_no_dicom_source(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.Image(2, 2, 2, sitk.sitkUInt8), str(tmp_path / "a.mha"))
    assert source_datasets(tmp_path / "a.mha") is source_files(tmp_path / "a.mha") is None


def test_prefers_volume_files_to_dicom_beside_them(tmp_path: Path) -> None:
    write_slices(some_volume(), tmp_path)
    write_slices(some_volume(), tmp_path / "below")
    sitk.WriteImage(sitk.Image(2, 2, 2, sitk.sitkUInt8), str(tmp_path / "a.mha"))
    assert find_sources(tmp_path) == [tmp_path / "a.mha"]


def test_each_patient_below_a_folder_is_a_case(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_slices(some_volume(), tmp_path / name / "1", PatientID=name)
    assert find_sources(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    write_slices(some_volume(), tmp_path / "a" / "2", PatientID="a", SeriesInstanceUID="1.2.7")
    assert find_sources(tmp_path / "a") == [tmp_path / "a"]


def test_each_patient_with_a_disc_of_its_own_is_a_case(tmp_path: Path) -> None:
    for name in ("a", "b"):
        paths = write_slices(some_volume(), tmp_path / "images" / name, PatientID=name)
        write_disc(paths, tmp_path / "discs" / name)
    assert find_sources(tmp_path / "discs") == [tmp_path / "discs" / "a", tmp_path / "discs" / "b"]
    assert_same(read_image(tmp_path / "discs" / "b")[0], some_volume())


@pytest.mark.parametrize("form", ["folder", "folder above", "zip"])
def test_finds_slices_behind_thousands_of_other_files(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "study" / "scan"
    paths = write_slices(some_volume(), folder)
    others = [folder / f"A{number:04}.txt" for number in range(1500)]
    for other in others:
        other.touch()
    given = {"folder": folder, "folder above": folder.parent}.get(form, tmp_path / "scan.zip")
    if form == "zip":
        with zipfile.ZipFile(given, "w") as archive:
            for path in (*others, *paths):
                archive.write(path, path.name)
    assert find_sources(given) == [given]
    assert_same(read_image(given)[0], some_volume())


@pytest.mark.parametrize("slopes", [[2.5] * 6, [1, 2, 1, 3, 1, 1], [0.123456789] * 6])
def test_applies_the_rescale_slope_of_each_slice(tmp_path: Path, slopes: list[float]) -> None:
    def scale(data: Dataset, z: int) -> None:
        data.RescaleSlope, data.RescaleIntercept, data.RescaleType = slopes[z], -7, "US"

    volume = some_volume()
    write_slices(volume, tmp_path, change=scale)
    expected = volume.array * np.array(slopes)[:, None, None] - 7
    assert_same(read_image(tmp_path)[0], Volume(expected.astype(np.float32), volume.grid))
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path))
    one_by_one = [sitk.GetArrayFromImage(sitk.ReadImage(name))[0] for name in names]
    assert np.allclose(one_by_one, expected, rtol=1e-6, atol=0)


def test_applies_the_rescale_slope_of_each_frame(tmp_path: Path) -> None:
    volume = some_volume()
    path = write_enhanced(volume, tmp_path / "a", order=range(6))
    data = pydicom.dcmread(path)
    for number, group in enumerate(data.PerFrameFunctionalGroupsSequence):
        item = Dataset()
        item.RescaleSlope, item.RescaleIntercept, item.RescaleType = number + 1, 2, "US"
        group.PixelValueTransformationSequence = [item]
    data.save_as(path)
    expected = volume.array * np.arange(1, 7)[:, None, None] + 2
    assert np.array_equal(read_image(path)[0].array, expected)


def test_leaves_out_overlays_in_unused_bits(tmp_path: Path) -> None:
    volume = Volume(some_volume().array.astype(np.uint16), some_volume().grid)
    paths = write_slices(volume, tmp_path)
    for path in paths:
        data = pydicom.dcmread(path)
        data.BitsStored, data.HighBit = 12, 11
        data.PixelData = (data.pixel_array | 0x5000).astype("<u2").tobytes()
        data.save_as(path)
    assert_same(read_image(tmp_path)[0], volume)


COMPRESSED = [
    *("MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_bigendian.dcm"),
    *("MR_small_implicit.dcm", "MR_small_padded.dcm"),
]


def two_slices(path: Path, folder: Path) -> None:
    """Write a slice and a copy of it 5 mm above, with the pixels as they are stored."""
    folder.mkdir()
    for number, mm in enumerate((0.0, 5.0)):
        data = pydicom.dcmread(path)
        data.SOPInstanceUID += f".{number}"
        data.ImagePositionPatient[2] = float(data.ImagePositionPatient[2]) + mm
        data.save_as(folder / f"{number}.dcm")


@pytest.mark.parametrize("name", COMPRESSED)
def test_reads_compressed_slices_as_uncompressed_ones(tmp_path: Path, name: str) -> None:
    plain = get_testdata_file("MR_small.dcm", read=True)
    two_slices(Path(str(get_testdata_file(name))), tmp_path / "scan")
    read, _ = read_image(tmp_path / "scan")
    assert np.array_equal(read.array, [plain.pixel_array] * 2)


def jpeg_lossless(path: Path, array: NDArray[np.uint16]) -> bytes:
    """Return an array as a lossless JPEG, which GDCM encodes."""
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG")
    writer.SetFileName(str(path))
    writer.Execute(sitk.GetImageFromArray(array[None]))
    data = pydicom.dcmread(path)
    assert data.file_meta.TransferSyntaxUID == JPEGLosslessSV1
    return next(iter(pydicom.encaps.generate_frames(data.PixelData, number_of_frames=1)))


def test_reads_lossless_jpeg_without_a_package_under_the_gpl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels.decoders.base import get_decoder

    decoder = get_decoder(JPEGLosslessSV1)
    for name in set(decoder.available_plugins) - {"simpleitk"}:
        monkeypatch.delitem(decoder._available, name)
    volume = Volume(some_volume().array.astype(np.uint16), some_volume().grid)
    for z, path in enumerate(write_slices(volume, tmp_path / "scan")):
        data = pydicom.dcmread(path)
        data.PixelData = encapsulate([jpeg_lossless(tmp_path / "one.dcm", volume.array[z])])
        data["PixelData"].VR = "OB"
        data.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        data.save_as(path)
    assert_same(read_image(tmp_path / "scan")[0], volume)


def test_a_copy_of_a_slice_counts_once(tmp_path: Path) -> None:
    volume = some_volume()
    path = write_slices(volume, tmp_path)[1]
    shutil.copy(path, tmp_path / "copy")
    assert_same(read_image(tmp_path)[0], volume)


@pytest.mark.parametrize("name", ["scan", "scan.dcm", "scan.zip"])
def test_a_case_is_called_like_its_file_or_folder(tmp_path: Path, name: str) -> None:
    paths = write_slices(some_volume(), tmp_path / "files")
    given = tmp_path / name
    if name == "scan":
        paths[0].parent.rename(given)
    elif name == "scan.dcm":
        paths[0].rename(given)
    else:
        with zipfile.ZipFile(given, "w") as archive:
            archive.write(paths[0], "a")
    assert (case_name(given), mask_name(given)) == ("scan", "scan.mha")


def test_reads_the_series_that_is_asked_for(tmp_path: Path) -> None:
    for number in range(3):
        volume = some_volume((5 + number, 4, 4))
        write_slices(volume, tmp_path / str(number), SeriesInstanceUID=f"1.2.3.{number}", SeriesNumber=number)
    read, events = read_image(tmp_path, SeriesChoice(uid="1.2.3.1"))
    assert read.array.shape == (6, 4, 4)
    assert [str(event) for event in events] == [
        "series_chosen: the series with the number 1, of 6 slices, was taken; 2 others were not"
    ]


def test_positions_that_are_rounded_are_even(tmp_path: Path) -> None:
    volume = some_volume()

    def rounded(data: Dataset, z: int) -> None:
        data.ImagePositionPatient = [-40, 25.5, [7.25, 10.3, 13.2, 16.3, 19.2, 22.25][z]]

    write_slices(volume, tmp_path, change=rounded)
    assert_same(read_image(tmp_path)[0], volume)
