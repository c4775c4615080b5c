"""Forms of MetaImage and NRRD headers that tools write.

Each gives the right voxels on the right grid, or is refused with an error that names it.
"""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from faults import refused
from pantherseg.events import EventCode
from pantherseg.io import find_sources, mask_name, read_image, write_volume
from pantherseg.volume import Grid, Volume
from volume_files import GRID, RAW, VOXELS, ZLIB, compressed, metaimage, refusal

pytestmark = pytest.mark.usefixtures("quiet_itk")

SWAPPED = VOXELS.astype(">i2").tobytes()
FILLER = b"something else of any length"


def with_lines(path: Path, *lines: str) -> Path:
    """Add lines to the header of a MetaImage, before its last one."""
    extra = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(path.read_bytes().replace(b"ElementDataFile", extra + b"ElementDataFile", 1))
    return path


@pytest.mark.fault("inputs", "a MetaImage gives {id} again, with the same value", "the volume")
@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (SWAPPED, ["BinaryDataByteOrderMSB = True", "ElementByteOrderMSB = True"]),
        (RAW, ["BinaryDataByteOrderMSB = False", "ElementByteOrderMSB = false"]),
        (RAW, ["Position = 0 0 0", "Origin = 0.0 0.0 0.0", "ImagePosition = 0 0 0"]),
        (RAW, ["Rotation = 1 0 0 0 1 0 0 0 1", "Orientation = 1 0 0 0 1 0 0 0 1.0"]),
        (RAW, ["NDims = 3", "DimSize = 5 4 3", "ElementSpacing = 1 1 2", "ElementType = MET_SHORT"]),
        (RAW, ["Comment = the same", "Comment = the same", "0010|0010 = a name", "0010|0010 = a name"]),
    ],
    ids=["the byte order (big)", "the byte order (little)", "the origin", "the direction", "the size", "a note"],
)
def test_reads_a_metaimage_that_gives_a_field_again_with_the_same_value(
    tmp_path: Path, data: bytes, lines: list[str]
) -> None:
    volume, events = read_image(with_lines(metaimage(tmp_path / "a.mha", data), *lines))
    assert np.array_equal(volume.array, VOXELS)
    assert (volume.grid, events) == (GRID, ())


@refused("a MetaImage gives a field again with another value: {line}")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ElementByteOrderMSB = True", "BinaryDataByteOrderMSB = False and ElementByteOrderMSB = True"),
        ("Origin = 1 1 1", "one value of Offset in the header, found Offset = 0 0 0 and Origin = 1 1 1"),
        ("ImagePosition = 0 0 1", "found Offset = 0 0 0 and ImagePosition = 0 0 1"),
        ("Rotation = 0 1 0 1 0 0 0 0 1", "found TransformMatrix = 1 0 0 0 1 0 0 0 1 and Rotation = 0 1 0 1 0 0 0 0 1"),
        ("NDims = 4", "one value of NDims in the header, found NDims = 3 and NDims = 4"),
        ("DimSize = 5 4 30", "one value of DimSize in the header"),
    ],
)
def test_refuses_a_metaimage_that_contradicts_itself(tmp_path: Path, line: str, expected: str) -> None:
    path = metaimage(tmp_path / "a.mha", RAW, {"BinaryDataByteOrderMSB": "False"})
    assert expected in refusal(with_lines(path, line))


@pytest.mark.fault(
    "inputs", "a MetaImage with HeaderSize = {header_size}, its voxels {place}", "the voxels that it points to"
)
@pytest.mark.parametrize("place", ["in the same file", "in a file beside it"])
@pytest.mark.parametrize("header_size", ["-1", "0", "a number"])
def test_reads_the_voxels_to_which_the_header_size_points(tmp_path: Path, header_size: str, place: str) -> None:
    local = place == "in the same file"
    name = "LOCAL" if local else "voxels.raw"
    filler = b"" if header_size == "0" else FILLER
    (tmp_path / "voxels.raw").write_bytes(filler + RAW)
    data = filler + RAW if local else b""
    text = header_size
    if header_size == "a number":
        # Of the same length as the number, which is counted from the start of the file.
        path = metaimage(tmp_path / "a.mhd", data, {"HeaderSize": "000", "ElementDataFile": name})
        text = f"{path.read_bytes().index(FILLER) + len(FILLER) if local else len(FILLER):03}"
    volume, _ = read_image(metaimage(tmp_path / "a.mhd", data, {"HeaderSize": text, "ElementDataFile": name}))
    assert np.array_equal(volume.array, VOXELS)
    assert volume.grid == GRID


@refused("a MetaImage with HeaderSize = {header_size} that does not fit its voxels")
@pytest.mark.parametrize(
    ("header_size", "expected"),
    [
        ("-1", "expected 120 bytes of voxels, found 119 bytes"),
        ("-2", "a HeaderSize of -1, 0 or a number of bytes between"),
        ("3", "a HeaderSize of -1, 0 or a number of bytes between"),
        ("many", "a HeaderSize of -1, 0 or a number of bytes between"),
        ("1000", "expected 120 bytes of voxels, found 0 bytes"),
        ("3000000000", "a HeaderSize of -1, 0 or a number of bytes between"),
    ],
)
def test_refuses_a_header_size_that_does_not_fit(tmp_path: Path, header_size: str, expected: str) -> None:
    assert expected in refusal(metaimage(tmp_path / "a.mha", RAW[:-1], {"HeaderSize": header_size}))


@refused("a compressed MetaImage with HeaderSize = -1, of which ITK reads other voxels")
def test_refuses_a_header_size_of_compressed_voxels(tmp_path: Path) -> None:
    path = compressed(tmp_path / "a.mha", FILLER + ZLIB, {"HeaderSize": "-1"})
    assert refusal(path).startswith("compressed MetaImage with HeaderSize = -1 is not supported")


@pytest.mark.fault("inputs", "a {suffix} with a header of 500 KB: 8,000 fields of DICOM, and long lines", "the volume")
@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_reads_a_long_header(tmp_path: Path, suffix: str) -> None:
    mark = " = " if suffix == ".mha" else ":="
    notes = [f"0010|{number:04x}{mark}{'v' * 50}" for number in range(8000)] + [f"note{mark}{'long ' * 5000}"]
    path = tmp_path / f"a{suffix}"
    if suffix == ".mha":
        with_lines(metaimage(path), *notes)
    else:
        path.write_bytes(nrrd_of(*notes))
    assert path.stat().st_size > 500_000
    volume, events = read_image(path)
    assert np.array_equal(volume.array, VOXELS)
    assert (volume.grid, events) == (GRID, ())


@refused("a {suffix} with a header of more than 1 MiB, or a line of 40 KB")
@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_refuses_a_header_beyond_the_limits(tmp_path: Path, suffix: str) -> None:
    mark = " = " if suffix == ".mha" else ":="
    path = tmp_path / f"a{suffix}"
    for notes, expected in (
        (
            [f"{number}{mark}{'v' * 60}" for number in range(16000)],
            "a (MetaImage|NRRD) header of less than 1048576 bytes, found a longer one",
        ),
        (["note" + mark + "v" * 40_000], "expected lines of at most 32768 bytes in a (MetaImage|NRRD) header"),
    ):
        content = with_lines(metaimage(path), *notes).read_bytes() if suffix == ".mha" else nrrd_of(*notes)
        path.write_bytes(content)
        assert re.search(expected, refusal(path))


@refused("a MetaImage with a text of 300 bytes as {field}, for which ITK has room for 255")
@pytest.mark.parametrize("field", ["Name", "Comment", "AcquisitionDate", "ObjectSubType"])
def test_refuses_a_text_that_overflows_a_buffer_of_itk(tmp_path: Path, field: str) -> None:
    path = metaimage(tmp_path / "a.mha", RAW, {field: "x" * 300})
    assert refusal(path) == f"expected at most 254 bytes in the field {field}, found 301 bytes"
    assert np.array_equal(read_image(metaimage(path, RAW, {field: "x" * 253}))[0].array, VOXELS)


@pytest.mark.parametrize("unit", ["mm", "?"])
def test_reads_a_metaimage_in_millimetres(tmp_path: Path, unit: str) -> None:
    assert read_image(metaimage(tmp_path / "a.mha", RAW, {"DistanceUnits": unit}))[0].grid == GRID


@refused("a MetaImage whose lengths are in {unit}, which ITK would read as mm")
@pytest.mark.parametrize("unit", ["um", "cm", "m", "inches"])
def test_refuses_a_metaimage_in_another_unit(tmp_path: Path, unit: str) -> None:
    text = refusal(metaimage(tmp_path / "a.mha", RAW, {"DistanceUnits": unit}))
    hint = "write the spacing and the offset in mm"
    assert text == f"expected DistanceUnits = mm, found DistanceUnits = {unit}; {hint}"


@pytest.mark.fault(
    "inputs", "a MetaImage whose AnatomicalOrientation differs from its matrix", "the volume as its matrix says"
)
@pytest.mark.parametrize("orientation", ["RAI", "LPS", "RAS", "???"])
def test_the_matrix_of_a_metaimage_decides_about_its_orientation(tmp_path: Path, orientation: str) -> None:
    changes = {"AnatomicalOrientation": orientation, "TransformMatrix": "-1 0 0 0 -1 0 0 0 1", "Offset": "1 2 3"}
    grid = read_image(metaimage(tmp_path / "a.mha", RAW, changes))[0].grid
    assert grid.orientation == "RAS"
    assert np.allclose(positions(grid)[2, 3, 4], (1 - 4, 2 - 3, 3 + 2 * 2))


@pytest.mark.fault("inputs", "a file called {name}", "the volume, and a mask called {mask}")
@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("A.MHA", "A.mha"),
        ("a.Mha", "a.mha"),
        ("A.NRRD", "A.nrrd"),
        ("A.NII", "A.nii"),
        ("A.NII.GZ", "A.nii.gz"),
        ("a.Nii.Gz", "a.nii.gz"),
    ],
)
def test_reads_and_writes_suffixes_in_any_case(tmp_path: Path, name: str, mask: str) -> None:
    write_volume(Volume(VOXELS, GRID), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert find_sources(tmp_path) == [tmp_path / name]
    volume, _ = read_image(tmp_path / name)
    assert np.array_equal(volume.array, VOXELS)
    assert volume.grid == GRID
    assert mask_name(tmp_path / name) == mask


HEADER = (
    *("NRRD0004", "type: short", "dimension: 3", "space: left-posterior-superior", "sizes: 5 4 3"),
    *("space directions: (1,0,0) (0,1,0) (0,0,2)", "endian: little", "encoding: raw", "space origin: (0,0,0)"),
)
# In the header: three right angles, no two axes along the same axis of the space.
OBLIQUE = np.array([[0.6, -0.64, 0.48], [0.8, 0.48, -0.36], [0.0, 0.6, 0.8]])
ORIGIN = np.array([10.0, -20.0, 30.0])
SPACING = np.array([1.0, 1.5, 2.0])


def nrrd_of(*extra: str, data: bytes = RAW, **changes: str | None) -> bytes:
    """Return a NRRD of VOXELS with fields changed, left out (None) or added; `_` stands for a blank."""
    fields = {key.replace("_", " "): value for key, value in changes.items()}
    lines = [line for line in HEADER if fields.get(line.partition(":")[0], "") is not None]
    lines = [f"{name}: {fields[name]}" if (name := line.partition(":")[0]) in fields else line for line in lines]
    return "\n".join([*lines, *extra]).encode() + b"\n\n" + data


def positions(grid: Grid) -> NDArray[np.float64]:
    """Return the position of every voxel of a grid, (z, y, x, 3), in mm (x, y, z), LPS."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)[..., ::-1]
    return np.array(grid.origin) + (index * grid.spacing[::-1]) @ np.array(grid.direction).T


@pytest.mark.fault("inputs", "a NRRD in the space {space}, with oblique axes", "the volume in LPS")
@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (1, 1, 1)),
        ("LPS", (1, 1, 1)),
        ("right-anterior-superior", (-1, -1, 1)),
        ("RAS", (-1, -1, 1)),
        ("Right-Anterior-Superior", (-1, -1, 1)),
        ("left-anterior-superior", (1, -1, 1)),
        ("LAS", (1, -1, 1)),
    ],
)
def test_reads_a_nrrd_in_any_space_of_the_patient(tmp_path: Path, space: str, signs: tuple[int, ...]) -> None:
    columns = [f"({','.join(map(str, column))})" for column in (OBLIQUE * SPACING).T]
    origin = f"({','.join(map(str, ORIGIN))})"
    path = tmp_path / "a.nrrd"
    path.write_bytes(nrrd_of(space=space, space_directions=" ".join(columns), space_origin=origin))
    volume, _ = read_image(path)
    # As NRRD defines it: origin + index * direction, in the space that the header names.
    index = np.stack(np.meshgrid(range(3), range(4), range(5), indexing="ij"), axis=-1)[..., ::-1]
    named = ORIGIN + index @ (OBLIQUE * SPACING).T
    assert np.allclose(positions(volume.grid), named * signs, atol=1e-9)
    assert np.array_equal(volume.array, VOXELS)


@pytest.mark.parametrize(
    "space",
    [
        *(
            pytest.param(space, marks=refused(f"a NRRD in the space {space}, which ITK would read as LPS"))
            for space in ("scanner-xyz", "3D-left-handed", "3D-right-handed")
        ),
        pytest.param("RAI", marks=refused("a NRRD in a space of no known name")),
    ],
)
def test_refuses_a_nrrd_in_a_space_other_than_the_patients(tmp_path: Path, space: str) -> None:
    path = tmp_path / "a.nrrd"
    path.write_bytes(nrrd_of(space=space))
    known = "left-posterior-superior, right-anterior-superior, left-anterior-superior"
    assert refusal(path) == f"expected one of the spaces {known}, found space: {space}"


@pytest.mark.parametrize(
    "extra",
    [
        "kinds: domain domain domain",
        "kinds: space space space",
        'space units: "mm" "mm" "mm"',
        'space units: "" "" ""',
        pytest.param(
            "measurement frame: (0,1,0) (1,0,0) (0,0,1)",
            marks=pytest.mark.fault("inputs", "a NRRD with a measurement frame, which is for vectors", "the volume"),
        ),
        "centerings: cell cell cell",
        "thicknesses: 1 1 5",
        "content: anything",
        "# a comment",
    ],
)
def test_reads_a_nrrd_with_fields_that_change_nothing(tmp_path: Path, extra: str) -> None:
    path = tmp_path / "a.nrrd"
    path.write_bytes(nrrd_of(extra))
    volume, events = read_image(path)
    assert np.array_equal(volume.array, VOXELS)
    assert (volume.grid, events) == (GRID, ())


@pytest.mark.parametrize(
    "content",
    [
        nrrd_of(encoding="GZIP", data=gzip.compress(RAW)),
        nrrd_of(encoding="Gz", data=gzip.compress(RAW)),
        nrrd_of(encoding="RAW", type="SHORT", endian="LITTLE"),
        nrrd_of(endian="big", data=SWAPPED),
        nrrd_of("type: int16", "space origin: (0,0,0)", type=None, space_origin=None),
        nrrd_of("spacings: 1 1 2", space=None, space_directions=None, space_origin=None),
        nrrd_of("space dimension: 3", *HEADER[5:6], *HEADER[8:], space=None, space_directions=None, space_origin=None),
    ],
    ids=["GZIP", "Gz", "capitals", "big-endian", "another order", "spacings", "space dimension"],
)
def test_reads_a_nrrd_in_any_of_its_forms(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.nrrd"
    path.write_bytes(content)
    volume, _ = read_image(path)
    assert np.array_equal(volume.array, VOXELS)
    assert volume.grid == GRID


UNORIENTED: dict[str, str | None] = {"space": None, "space_directions": None, "space_origin": None}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(
            nrrd_of('space units: "um" "um" "um"'),
            'expected lengths in mm, found space units: "um" "um" "um"; write the spacing and the origin in mm',
            marks=refused("a NRRD whose lengths are in micrometres, which ITK would read as mm"),
        ),
        (nrrd_of("space units: mm mm mm"), "expected lengths in mm, found space units: mm mm mm"),
        (nrrd_of("spacings: 1 1 2", 'units: "mm" "mm" "m"', **UNORIENTED), "lengths in mm, found units"),
        pytest.param(
            nrrd_of("spacings: 1 1 nan", **UNORIENTED),
            "expected 3 finite numbers as spacings, found 1 1 nan",
            marks=refused("a NRRD with a spacing of NaN, which ITK would read as 1 mm"),
        ),
        (nrrd_of("spacings: 1 1 -2", **UNORIENTED), "a spacing between 0.001 and 1000 mm, found 1 1 -2"),
        pytest.param(
            nrrd_of("axis mins: 0 0 0", "axis maxs: 10 8 6", **UNORIENTED),
            "NRRD with axis maxs instead of spacings is not supported",
            marks=refused("a NRRD with the ends of its axes instead of spacings, of which ITK reads 1 mm"),
        ),
        (nrrd_of("kinds: domain domain time"), "with one value per voxel, found axes of the kinds domain domain time"),
        (nrrd_of("kinds: domain domain vector"), "found axes of the kinds domain domain vector"),
        (nrrd_of("sizes: 5 4 3"), "expected each field of the header once, found sizes twice"),
        (
            nrrd_of("space: LPS", space=None),
            "expected space or space dimension before space directions in the header, found space directions without",
        ),
    ],
)
def test_refuses_a_nrrd_that_itk_would_read_in_another_way(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "a.nrrd"
    path.write_bytes(content)
    assert expected in refusal(path)


@pytest.mark.fault(
    "inputs", "a header states {missing}", "the volume as ITK reads it, and an event that says what was assumed"
)
@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"ElementSpacing": None}, "no spacing"),
        ({"TransformMatrix": None}, "no orientation"),
        ({"ElementSpacing": None, "TransformMatrix": None}, "no spacing and no orientation"),
    ],
)
def test_says_what_a_metaimage_does_not_state(tmp_path: Path, changes: dict[str, None], missing: str) -> None:
    volume, events = read_image(metaimage(tmp_path / "a.mha", changes=changes))
    assert volume.grid.spacing == ((2.0, 1.0, 1.0) if "ElementSpacing" not in changes else (1.0, 1.0, 1.0))
    assert volume.grid.orientation == "LPS"
    assert [event.code for event in events] == [EventCode.GEOMETRY_ASSUMED]
    stated = missing.replace("no spacing", "no spacing, so 1 mm was assumed")
    assert events[0].message == "the header states " + stated.replace(
        "no orientation", "no orientation, so LPS was assumed"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("", "the header states no spacing, so 1 mm was assumed and no orientation, so LPS was assumed"),
        ("spacings: 1 1 2\n", "the header states no orientation, so LPS was assumed"),
    ],
)
def test_says_what_a_nrrd_does_not_state(tmp_path: Path, fields: str, message: str) -> None:
    header = f"NRRD0004\ntype: short\ndimension: 3\nsizes: 5 4 3\n{fields}endian: little\nencoding: raw\n\n"
    (tmp_path / "a.nrrd").write_bytes(header.encode() + RAW)
    volume, events = read_image(tmp_path / "a.nrrd")
    assert np.array_equal(volume.array, VOXELS)
    assert [(event.code, event.message) for event in events] == [(EventCode.GEOMETRY_ASSUMED, message)]


@refused("the file with the voxels of an .mhd has a name with other letters than ASCII's")
def test_refuses_a_data_file_whose_name_is_not_ascii(tmp_path: Path) -> None:
    write_volume(Volume(VOXELS, GRID), tmp_path / "a.nrrd")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nrrd")), str(tmp_path / "Müller.mhd"))
    text = refusal(tmp_path / "Müller.mhd")
    assert text == (
        "the name of the file with the voxels has other letters than ASCII's; "
        "rename both files, or write the volume as .mha"
    )
