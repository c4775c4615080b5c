"""Any file at all: reading it gives a valid volume or one error of one line, in little time and memory."""

from __future__ import annotations

import bz2
import gzip
import re
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from bench.fuzz import kept_files, outcome
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from matrix import refused, saw
from pantherseg.errors import InputError
from pantherseg.io.itk import from_itk, read_image, to_itk, write_volume
from pantherseg.io.limits import MAX_SIDE, MAX_SPACING_MM, MIN_SPACING_MM
from pantherseg.paths import ROOT
from pantherseg.volume import Grid, Volume

# Of this process: other work on the machine counts for nothing.
SECONDS = 10
# Beside the voxels themselves: chunks, headers, and what Python needs to read them.
MEMORY_BYTES = 32 << 20
TYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]
SUFFIXES = [".mha", ".nii", ".nii.gz", ".nrrd"]
HEADER = {
    "ObjectType": "Image",
    "NDims": "3",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "0 0 0",
    "ElementSpacing": "1 1 2",
    "DimSize": "4 3 2",
    "ElementType": "MET_SHORT",
}
VOXELS = np.arange(24, dtype=np.int16).tobytes()
AS_SAID = {"volume": "a volume", "error": "an error of one line"}
NRRD = (
    b"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 3 2\nspace: left-posterior-superior\nencoding: %s\nendian: little\n"
)


@pytest.fixture(autouse=True)
def itk_keeps_quiet() -> Iterator[None]:
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    yield
    sitk.ProcessObject.SetGlobalWarningDisplay(True)


def metaimage(folder: Path, data: bytes = VOXELS, **changes: str) -> Path:
    path = folder / "a.mha"
    fields = HEADER | changes
    lines = "".join(f"{key} = {value}\n" for key, value in fields.items() if key != "ElementDataFile")
    path.write_bytes(f"{lines}ElementDataFile = {fields.get('ElementDataFile', 'LOCAL')}\n".encode() + data)
    return path


def check(path: Path, *, voxel_bytes: int = 0) -> str:
    """Return the outcome, reached in a bounded time and memory."""
    tracemalloc.start()
    began = time.process_time()
    try:
        result = outcome(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < SECONDS
    assert peak < MEMORY_BYTES + 4 * voxel_bytes
    return result


def refusal(path: Path) -> str:
    """Return why a file is refused."""
    assert check(path) == "error"
    with pytest.raises(InputError) as caught:
        read_image(path)
    saw(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", kept_files(), ids=lambda path: path.name)
def test_a_file_that_the_fuzzer_starts_from_or_has_found(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check(path)
    assert capfd.readouterr().err.isascii()  # a platform takes nothing but UTF-8


@pytest.mark.slow
def test_the_fuzzer_finds_nothing_in_a_short_time() -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this machine")
    done = subprocess.run(
        [sys.executable, "-m", "bench.fuzz", "--seconds", "12"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = re.search(r"(\d+) inputs, 0 faults, .*\n(\d+) of (\d+) lines of the checks", done.stdout)
    assert figures is not None, done.stdout
    inputs, reached, lines = map(int, figures.groups())
    assert inputs > 100
    assert reached > 0.7 * lines, "the fuzzer does not see what it fuzzes"


@st.composite
def directions(draw: st.DrawFn) -> NDArray[np.float64]:
    """Any rotation, as a quaternion, and any reflection."""
    quaternion = np.array([draw(st.floats(-1, 1)) for _ in range(4)])
    length = np.linalg.norm(quaternion)
    w, x, y, z = quaternion / length if length > 1e-3 else np.array([1.0, 0.0, 0.0, 0.0])
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    return rotation @ np.diag(draw(st.tuples(*[st.sampled_from([1.0, -1.0])] * 3)))


lengths = st.one_of(st.just(1), st.integers(1, 9))
# A little within the limits, as NIfTI keeps float32.
spacings = st.floats(np.log(MIN_SPACING_MM) + 1e-6, np.log(MAX_SPACING_MM) - 1e-6).map(
    lambda power: float(np.exp(power))
)


@pytest.mark.fault(
    "inputs",
    "any size down to one voxel, spacing, origin, rotation or reflection, type and format",
    "the same voxels on the same grid",
)
@settings(deadline=None, max_examples=80)
@given(
    st.tuples(lengths, lengths, lengths),
    st.tuples(spacings, spacings, spacings),
    st.tuples(*[st.floats(-1e4, 1e4)] * 3),
    directions(),
    st.sampled_from(TYPES),
    st.sampled_from(SUFFIXES),
    st.booleans(),
)
def test_a_volume_of_any_geometry_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    origin: tuple[float, float, float],
    direction: NDArray[np.float64],
    dtype: str,
    suffix: str,
    packed: bool,
) -> None:
    path = tmp_path_factory.mktemp("any") / f"a{suffix}"
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    sitk.WriteImage(to_itk(Volume(array, Grid(shape, spacing, origin, tuple(direction)))), str(path), packed)
    volume, _ = read_image(path)
    assert np.array_equal(volume.array, array.astype(np.float32))
    saw(f"{np.count_nonzero(volume.array != array)} voxels differ")
    assert volume.grid == from_itk(sitk.ReadImage(str(path))).grid
    assert np.allclose(volume.grid.spacing, spacing, rtol=1e-5)
    assert np.allclose(volume.grid.direction, direction, rtol=0, atol=1e-5)


NUMBERS = "0 -0 1 -1 1e30 1e-30 1e400 nan inf -inf 1_0 0x10 1e 1. .5 ² ٣ 4294967296 9223372036854775808 1000000000 x"
NUMERIC = """NDims DimSize ElementSpacing ElementSize Offset Origin TransformMatrix Rotation CenterOfRotation HeaderSize
CompressedDataSize ElementNumberOfChannels ElementNBits SequenceID ElementMin ElementToIntensityFunctionSlope"""
LOGICAL = "CompressedData BinaryData BinaryDataByteOrderMSB ElementByteOrderMSB"
DATA_FILES = (
    """LIST,LIST 3,LIST 1,local,%s,%s%n%s,a%d.raw,a%03d.raw 0 9 1,%999999d 0 2 1,../a,/etc/passwd,.,..,a.mha,"""
)
NAMED_TYPES = "MET_DOUBLE MET_CHAR MET_FLOAT_ARRAY MET_OTHER MET_STRING"
number_texts = st.one_of(st.sampled_from(NUMBERS.split()), st.floats().map(str), st.integers(-3, 12).map(str))
fields = st.one_of(
    st.tuples(st.sampled_from(NUMERIC.split()), st.lists(number_texts, max_size=10).map(" ".join)),
    st.tuples(st.sampled_from(LOGICAL.split()), st.sampled_from(["True", "False", "1", "t", "", "maybe"])),
    st.tuples(st.just("ElementType"), st.sampled_from(NAMED_TYPES.split())),
    st.tuples(st.just("ElementDataFile"), st.sampled_from(DATA_FILES.split(","))),
    st.tuples(st.text(max_size=20), st.text(max_size=40)),
)


@pytest.mark.fault(
    "inputs", "a header with any fields, numbers and encodings in it", "a valid volume, or an error of one line"
)
@settings(deadline=None, max_examples=400)
@given(st.lists(fields, min_size=1, max_size=4), st.binary(max_size=64), st.booleans())
def test_a_header_of_any_fields(
    tmp_path_factory: pytest.TempPathFactory, changed: list[tuple[str, str]], data: bytes, packed: bool
) -> None:
    folder = tmp_path_factory.getbasetemp()
    voxels = zlib.compress(VOXELS) if packed else VOXELS
    packing = {"CompressedData": "True", "CompressedDataSize": str(len(voxels))} if packed else {}
    saw(AS_SAID[outcome(metaimage(folder, voxels + data, **packing | dict(changed)))])


special = st.one_of(
    st.floats(width=64, allow_subnormal=True),
    st.sampled_from([np.nan, np.inf, -np.inf, 5e-324, 1e-45, 1e-13, 1.0, 1e13, 1e15, 1.7e308]),
)


@pytest.mark.fault(
    "inputs",
    "voxels of any value: infinite, denormal, up to 1e308, mostly the same",
    "a volume of finite values, or an error of one line",
)
@settings(deadline=None, max_examples=100)
@given(
    st.lists(special, min_size=1, max_size=6), special, st.integers(1, 3000), st.sampled_from(["float32", "float64"])
)
def test_voxels_of_any_value(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], background: float, size: int, dtype: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "values.mha"
    with np.errstate(over="ignore"):
        array = np.full((1, 1, size + len(values)), background).astype(dtype)
        array[0, 0, : len(values)] = values
    sitk.WriteImage(to_itk(Volume(array, Grid(array.shape, (1.0, 1.0, 1.0)))), str(path))
    usable = np.abs(array) < 1e15
    result = outcome(path)
    saw(AS_SAID[result])
    assert result == ("error" if (~usable).sum() > 0.01 * array.size else "volume")
    if result == "volume":
        image = read_image(path)[0].array
        assert np.isfinite(np.square(image, dtype=np.float32).sum(dtype=np.float32))
        assert np.array_equal(image[usable], array[usable].astype(np.float32))


BOMB = 200 << 20


@pytest.mark.parametrize(
    ("name", "make"),
    [
        pytest.param(
            "a.mha",
            lambda: zlib.compress(bytes(BOMB)),
            marks=pytest.mark.fault(
                "inputs",
                "a MetaImage of a few bytes expands to 200 MB",
                "an error, in little time and memory",
            ),
            id="MetaImage bomb",
        ),
        pytest.param(
            "a.nii.gz",
            lambda: gzip.compress(bytes(BOMB)),
            marks=pytest.mark.fault(
                "inputs",
                "a .nii.gz of a few bytes expands to 200 MB",
                "an error, in little time and memory",
            ),
            id="nii.gz bomb",
        ),
        pytest.param(
            "a.nrrd",
            lambda: NRRD % b"gzip" + b"\n" + gzip.compress(bytes(BOMB)),
            marks=pytest.mark.fault(
                "inputs",
                "an NRRD with gzip of a few bytes expands to 200 MB",
                "an error, in little time and memory",
            ),
            id="gzip bomb",
        ),
        pytest.param(
            "b.nrrd",
            lambda: NRRD % b"bzip2" + b"\n" + bz2.compress(bytes(BOMB)),
            marks=pytest.mark.fault(
                "inputs",
                "an NRRD with bzip2 of a few bytes expands to 200 MB",
                "an error, in little time and memory",
            ),
            id="bzip2 bomb",
        ),
    ],
)
def test_data_that_expand_without_end(tmp_path: Path, name: str, make: Callable[[], bytes]) -> None:
    data, path = make(), tmp_path / name
    if path.suffix == ".mha":
        path = metaimage(tmp_path, data, CompressedData="True", CompressedDataSize=str(len(data)))
    else:
        path.write_bytes(data)
    assert refusal(path)


@pytest.mark.fault(
    "inputs", "200 MB follow the voxels of a .nii.gz, in a few bytes", "an error, in little time and memory"
)
def test_a_gzip_with_voxels_that_never_end_is_left_early(tmp_path: Path) -> None:
    plain, path = tmp_path / "plain.nii", tmp_path / "a.nii.gz"
    write_volume(Volume(np.zeros((2, 3, 4), np.int16), Grid((2, 3, 4), (1.0, 1.0, 1.0))), plain)
    path.write_bytes(gzip.compress(plain.read_bytes() + bytes(BOMB)))
    plain.unlink()
    assert "expected 400 bytes with the voxels" in refusal(path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param(
            {"NDims": "1000000000"},
            "a complete MetaImage header",
            marks=refused("the header claims a billion dimensions"),
        ),
        ({"NDims": "0", "DimSize": ""}, "a complete MetaImage header"),
        ({"NDims": "2"}, "a complete MetaImage header"),
        ({"NDims": "4", "DimSize": "4 3 2 2", "ElementSpacing": "1 1 1 1"}, "4 numbers as Offset, found 0 0 0"),
        ({"NDims": "9", "DimSize": "1 " * 9}, "a 3-D volume, found 9 dimensions"),
        ({"DimSize": f"{MAX_SIDE + 1} 1 1"}, f"at most {MAX_SIDE} voxels a side"),
        pytest.param(
            {"DimSize": "9999 9999 9999"},
            "MiB, found",
            marks=refused("the header claims 9,999 voxels a side"),
        ),
        ({"DimSize": "4294967297 1 1"}, f"at most {MAX_SIDE} voxels a side"),
        ({"DimSize": "4 3 " + "9" * 50}, "a complete MetaImage header"),
        pytest.param(
            {"ElementSpacing": "1 1 1e30"},
            "spacing between 0.001 and 1000 mm",
            marks=refused("a spacing of 1e30 mm"),
        ),
        ({"ElementSpacing": "1 1 1e-30"}, "spacing between 0.001 and 1000 mm"),
        ({"ElementSpacing": "1 1 1_0"}, "positive spacing in mm"),
        pytest.param(
            {"Offset": "0 0 1e30"},
            "an origin within 1e+06 mm",
            marks=refused("an origin far beyond any scanner"),
        ),
        ({"Offset": "0 0"}, "3 numbers as Offset"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 0"}, "9 numbers as TransformMatrix"),
        pytest.param(
            {"dimsize": "1 1 1"},
            "each field of the header once, found dimsize twice",
            marks=refused("the header says the size twice, differently"),
        ),
        ({"Origin": "1 1 1"}, "each field of the header once, found offset and origin"),
        ({"Comment": "a\0b"}, "a MetaImage header"),
        pytest.param(
            {"Comment": "long" * (10 << 18)},
            "a MetaImage header",
            marks=refused("a header with a field of 10 MB"),
        ),
        ({"C" * 1000: "x"}, "a MetaImage header"),
        pytest.param(
            {"ElementNumberOfChannels": "100"},
            "one real number a voxel",
            marks=refused("100 numbers in each voxel"),
        ),
        ({"ElementDataFile": "../a.raw"}, "its voxels in a file beside it, found ../a.raw"),
        pytest.param(
            {"ElementDataFile": "/etc/passwd"},
            "its voxels in a file beside it, found /etc/passwd",
            marks=refused("the header sends to a file elsewhere on the machine"),
        ),
        ({"ElementDataFile": "LIST 3"}, "LIST, or a pattern such as"),
        ({"ElementDataFile": "%s%n 1 2 1"}, "LIST, or a pattern such as"),
        ({"ElementDataFile": "LIST"}, "2 files of a slice each, found"),
        ({"ElementDataFile": "none%d.raw 1 2 1"}, "its voxels in a file beside it, found no none1.raw"),
        ({"HeaderSize": "-1"}, "no HeaderSize, found -1"),
        ({"HeaderSize": "3"}, "no HeaderSize, found 3"),
        ({"BinaryData": "False"}, "finite numbers as voxels"),
        ({"CompressedData": "True", "CompressedDataSize": "-5"}, "CompressedDataSize in the header"),
        pytest.param(
            {"CompressedData": "True", "CompressedDataSize": "48"},
            "valid compressed voxels",
            marks=refused("voxels said to be compressed that are not"),
        ),
    ],
)
def test_a_header_that_lies(tmp_path: Path, changes: dict[str, str], expected: str) -> None:
    assert expected in refusal(metaimage(tmp_path, **changes))


@pytest.mark.parametrize(
    "encoding",
    [
        pytest.param(
            "utf-16",
            marks=refused("a header in another encoding (UTF-16)"),
        ),
        "cp037",
    ],
)
def test_a_header_in_another_encoding(tmp_path: Path, encoding: str) -> None:
    path = metaimage(tmp_path)
    head, mark, data = path.read_bytes().partition(b"LOCAL\n")
    path.write_bytes((head + mark).decode().encode(encoding) + data)
    assert refusal(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"sizes: 4 3 2\n", "each field of the header once, found sizes twice"),
        (b"data file: /etc/passwd\n", "its voxels in the file itself, found the file /etc/passwd"),
        (b"datafile: LIST\n", "its voxels in the file itself"),
        (b"byte skip: -1\n", "no byte skip, found -1"),
        (b"no colon\n", "an NRRD header, found the line b'no colon'"),
        (b"note: a\0b\n", "an NRRD header"),
    ],
)
def test_an_nrrd_header_that_lies(tmp_path: Path, text: bytes, expected: str) -> None:
    path = tmp_path / "a.nrrd"
    path.write_bytes(NRRD % b"raw" + text + b"\n" + VOXELS)
    assert expected in refusal(path)


@pytest.mark.parametrize("encoding", [b"zstd", b"none", b"text", b"hex"])
def test_an_nrrd_of_too_few_voxels_or_no_known_encoding(tmp_path: Path, encoding: bytes) -> None:
    path = tmp_path / "a.nrrd"
    path.write_bytes(NRRD % encoding + b"\n1 2 3\n")
    assert check(path) == "error"


@pytest.mark.fault("inputs", "a volume of 10,000x10,000x1 voxels, one of them bright", "the volume")
def test_the_flattest_volume_within_the_limits(tmp_path: Path) -> None:
    shape = (1, MAX_SIDE, MAX_SIDE)
    array = np.zeros(shape, np.uint8)
    array[0, 5000, 5000] = 1
    write_volume(Volume(array, Grid(shape, (1.0, 1.0, 1.0))), tmp_path / "a.mha")
    began = time.process_time()
    volume, _ = read_image(tmp_path / "a.mha")
    assert volume.array.sum() == 1
    saw(f"a volume of {'x'.join(map(str, volume.grid.shape))} voxels (z, y, x), {volume.array.sum():g} of them bright")
    assert time.process_time() - began < SECONDS


def test_reading_takes_a_few_times_the_voxels(tmp_path: Path) -> None:
    path = metaimage(tmp_path, bytes(64 << 20), DimSize="1024 1024 16", ElementType="MET_INT")
    assert check(path, voxel_bytes=64 << 20) == "volume"


@refused("a picture or another format under a volume's name")
def test_a_file_named_after_another_format(tmp_path: Path) -> None:
    # ITK would look for a format by the content, and find one that was not checked.
    for suffix in (".png", ".tif", ".nrrd"):
        other = tmp_path / f"other{suffix}"
        sitk.WriteImage(sitk.Image([5, 4], sitk.sitkUInt8), str(other))
        for name in ("a.mha", "a.nii", "a.nrrd"):
            (tmp_path / name).write_bytes(other.read_bytes())
            assert refusal(tmp_path / name)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            "x" * 300 + ".mha",
            marks=pytest.mark.fault("inputs", "a file name longer than any can be", "an error of one line"),
            id="long",
        ),
        "a\0b.mha",
    ],
)
def test_a_name_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    assert "expected" in refusal(tmp_path / name)


@pytest.mark.fault(
    "inputs", "file names with line ends, escape codes and bytes that are no text", "an error of one printable line"
)
def test_odd_names_and_headers_stay_one_printable_line(tmp_path: Path) -> None:
    for name in ("a\nb.mha", "\x1b[31m.mha", "ü\u202e.mha", "\udcff.mha"):
        path = tmp_path / name
        path.write_bytes(b"\x1b]0;owned\x07 = \xff\n")
        assert refusal(path).isprintable()
