"""Probabilities in 8 bits: what is written is read again, and numpy alone can read it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pantherseg.errors import InputError
from pantherseg.io.probabilities import read_probability, write_probability
from pantherseg.volume import Grid, Volume

GRID = Grid((6, 7, 8), (3.0, 1.2, 0.8), (-20.0, 5.0, 70.0), ((0.0, 1.0, 0.0), (-1.0, 0.0, 0.0), (0.0, 0.0, 1.0)))


def test_reads_back_what_was_written_to_the_nearest_of_256_values(tmp_path: Path) -> None:
    array = np.zeros(GRID.shape, np.float32)
    array[2:5, 1:4, 3:] = np.random.default_rng(1).uniform(0.01, 1, (3, 3, 5))
    write_probability(Volume(array, GRID), tmp_path / "case.npz")
    found = read_probability(tmp_path / "case.npz")
    assert found.grid == GRID
    assert found.array.dtype == np.float32
    np.testing.assert_allclose(found.array, array, atol=1 / 510 + 1e-6)
    write_probability(found, tmp_path / "again.npz")
    np.testing.assert_array_equal(read_probability(tmp_path / "again.npz").array, found.array)


def test_stores_only_the_box_that_holds_probabilities(tmp_path: Path) -> None:
    array = np.zeros(GRID.shape, np.float32)
    array[3, 2, 4], array[0, 0, 0] = 0.5, 0.001
    write_probability(Volume(array, GRID), tmp_path / "case.npz")
    with np.load(tmp_path / "case.npz") as file:
        assert file["values"].tolist() == [[[128]]]
        assert (file["start"].tolist(), file["shape"].tolist()) == ([3, 2, 4], [6, 7, 8])


def test_stores_a_volume_without_any_probability(tmp_path: Path) -> None:
    write_probability(Volume(np.zeros(GRID.shape, np.float32), GRID), tmp_path / "case.npz")
    found = read_probability(tmp_path / "case.npz")
    assert found.grid == GRID
    assert not found.array.any()


def test_keeps_every_decision_at_one_half(tmp_path: Path) -> None:
    array = np.random.default_rng(2).uniform(0, 1, GRID.shape).astype(np.float32)
    array[np.abs(array - 0.5) < 1 / 510] = 0.6
    write_probability(Volume(array, GRID), tmp_path / "case.npz")
    np.testing.assert_array_equal(read_probability(tmp_path / "case.npz").array > 0.5, array > 0.5)


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "too large", "other", "outside"])
@pytest.mark.fault("training", "a file of probabilities is {damage}", "an error that names the file")
def test_refuses_a_file_without_probabilities(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "case.npz"
    write_probability(Volume(np.ones(GRID.shape, np.float32), GRID), path)
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "flipped":
        content = bytearray(path.read_bytes())
        # Behind the local header (30 bytes and the name), whatever a zlib stream may begin with.
        content[60:100] = bytes(255 - byte for byte in content[60:100])
        path.write_bytes(content)
    elif damage == "too large":
        values = io.BytesIO()
        np.lib.format.write_array_header_1_0(values, {"descr": "|u1", "fortran_order": False, "shape": (1 << 20,) * 3})
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("values.npy", values.getvalue())
    elif damage == "other":
        np.savez(path, something=np.zeros(3))
    else:
        with np.load(path) as file:
            np.savez(path, **{**file, "start": np.array([1, 0, 0])})
    with pytest.raises(InputError, match=r"case.npz: expected the probabilities of a class"):
        read_probability(path)
