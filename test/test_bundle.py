"""Bundles are checked before they are used; each error is one line that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from conftest import CopiedBundle, flip_a_bit, one_line_about
from pantherseg.errors import ModelError
from pantherseg.io.digest import sha256_of
from pantherseg.model_sources.nnunet import DATASET, PLANS, RECORD
from pantherseg.models.bundle import GRAPH, GRAPH_CONSTANTS, is_bundle, open_bundle, read_header
from pantherseg.models.manifest import MANIFEST
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.preprocessing.intensity import IntensityScheme, register_intensity_scheme
from pantherseg.tables import Table

FOLD = "fold_0.safetensors"
TENSOR = "encoder.stem.convs.0.conv.weight"
NAMES_FILE = "an error that names the file"
LATER = pytest.mark.fault("models", "a model packed by a later version", "an error that says what to do")
CUT_OFF = pytest.mark.fault("models", "the manifest is cut off", NAMES_FILE)
CHANGED = pytest.mark.fault("models", "one byte of the graph is changed", NAMES_FILE)
DEMO = json.loads((DEMO_WEIGHTS / "task1" / MANIFEST).read_text())
PREPROCESSING = DEMO["preprocessing"]
Tensors = dict[str, Any]


def error_about(folder: Path, named: str) -> str:
    """Open and verify a bundle, which must fail, and return the error, which must name a file."""
    with pytest.raises(ModelError) as caught:
        open_bundle(folder).verify_all()
    return one_line_about(folder / named, caught.value)


@pytest.mark.parametrize("role", ["task1", "task2", "localizer"])
def test_the_demo_bundles_are_complete(role: str) -> None:
    bundle = open_bundle(DEMO_WEIGHTS / role)
    bundle.verify_all()
    manifest = bundle.manifest
    assert is_bundle(bundle.path)
    assert manifest.sha256.keys() == {GRAPH, *(bundle.weights_path(fold).name for fold in bundle.folds)}
    assert manifest.provenance.files_sha256.keys() == {PLANS, DATASET, RECORD}
    assert manifest.classes == len(manifest.labels)
    for fold in bundle.folds:
        values = load_file(bundle.weights_path(fold))
        constants = values.pop(GRAPH_CONSTANTS)
        assert constants.dtype == np.uint8
        assert {name: value.shape for name, value in values.items()} == manifest.tensors
        assert {value.dtype for value in values.values()} == {np.dtype(np.float32)}
        size = sum(value.nbytes for value in values.values()) + constants.nbytes
        assert size > 0.97 * bundle.weights_path(fold).stat().st_size, "each weight must be stored once"


@pytest.mark.parametrize("name", [pytest.param(GRAPH, marks=CHANGED), PLANS, DATASET, FOLD, "fold_4.safetensors"])
def test_detects_a_changed_byte(copied_bundle: CopiedBundle, name: str) -> None:
    path = copied_bundle.path / name
    before = sha256_of(path)
    flip_a_bit(path)
    text = error_about(copied_bundle.path, name)
    assert f"expected SHA-256 {before}, found {sha256_of(path)}; copy the bundle again" in text


@pytest.mark.parametrize("name", [GRAPH, PLANS, DATASET])
def test_names_a_missing_file(copied_bundle: CopiedBundle, name: str) -> None:
    (copied_bundle.path / name).unlink()
    assert error_about(copied_bundle.path, name).endswith("found No such file or directory")


@pytest.mark.parametrize("damage", [Path.unlink, flip_a_bit])
def test_runs_without_the_files_of_its_source(copied_bundle: CopiedBundle, damage: Callable[[Path], None]) -> None:
    for name in (PLANS, DATASET):
        damage(copied_bundle.path / name)
    bundle = open_bundle(copied_bundle.path)
    for fold in bundle.folds:
        bundle.verify(fold)


def test_names_a_missing_fold(copied_bundle: CopiedBundle) -> None:
    (copied_bundle.path / "fold_3.safetensors").unlink()
    assert error_about(copied_bundle.path, "").endswith("expected folds 0 1 2 3 4, found no fold_3.safetensors")
    assert open_bundle(copied_bundle.path, folds=[4, 0]).folds == ("4", "0")


@pytest.mark.fault("models", "a model without its manifest", NAMES_FILE)
def test_names_a_missing_manifest(copied_bundle: CopiedBundle, tmp_path: Path) -> None:
    (copied_bundle.path / MANIFEST).unlink()
    assert is_bundle(copied_bundle.path), "folds without a manifest are an incomplete bundle"
    assert error_about(copied_bundle.path, MANIFEST).endswith("found No such file or directory")
    assert not is_bundle(tmp_path)
    assert not is_bundle(tmp_path / "missing")


@pytest.mark.parametrize("name", [GRAPH, FOLD])
def test_refuses_a_file_without_a_checksum(copied_bundle: CopiedBundle, name: str) -> None:
    sums = open_bundle(copied_bundle.path).manifest.sha256
    copied_bundle.change(sha256={key: value for key, value in sums.items() if key != name})
    assert "expected SHA-256 in manifest.json, found " in error_about(copied_bundle.path, name)


@pytest.mark.parametrize("schema", [1, pytest.param(3, marks=LATER), "2", None, [2], 2.5])
def test_another_schema_must_be_packed_again(copied_bundle: CopiedBundle, schema: object) -> None:
    copied_bundle.change(schema=schema)
    text = error_about(copied_bundle.path, MANIFEST)
    assert f"expected schema 2, found {schema}; pack the model again" in text


@pytest.mark.parametrize("content", [b"", pytest.param(b"{", marks=CUT_OFF), b"\xff\xfe\x00", b"[]", b'{"schema": 2}'])
def test_refuses_an_invalid_manifest(copied_bundle: CopiedBundle, content: bytes) -> None:
    (copied_bundle.path / MANIFEST).write_bytes(content)
    error_about(copied_bundle.path, MANIFEST)


@pytest.mark.parametrize("key", sorted(DEMO.keys() - {"orientation"}))
def test_every_key_of_the_manifest_is_required_and_typed(copied_bundle: CopiedBundle, key: str) -> None:
    for damaged in ({name: value for name, value in DEMO.items() if name != key}, DEMO | {key: [{}]}):
        (copied_bundle.path / MANIFEST).write_text(json.dumps(damaged))
        assert key in error_about(copied_bundle.path, MANIFEST)


@pytest.mark.parametrize("orientation", ["LPX", "LLS", "lps", "", 1, ["LPS"]])
def test_refuses_an_unknown_orientation(copied_bundle: CopiedBundle, orientation: object) -> None:
    copied_bundle.change(orientation=orientation)
    assert "orientation" in error_about(copied_bundle.path, MANIFEST)


def test_a_manifest_need_not_state_an_orientation(copied_bundle: CopiedBundle) -> None:
    stated = {key: value for key, value in DEMO.items() if key != "orientation"}
    (copied_bundle.path / MANIFEST).write_text(json.dumps(stated))
    assert open_bundle(copied_bundle.path).manifest.orientation is None


def test_refuses_unknown_keys_of_the_manifest(copied_bundle: CopiedBundle) -> None:
    copied_bundle.change(temperature=1.0)
    assert "temperature" in error_about(copied_bundle.path, MANIFEST)


@pytest.mark.parametrize(
    "change", [{"normalization": {"scheme": "MyNormalization"}}, {"images": {"order": 6}}], ids=str
)
def test_refuses_invalid_preprocessing(copied_bundle: CopiedBundle, change: dict[str, object]) -> None:
    copied_bundle.change(preprocessing=PREPROCESSING | change)
    assert "$.preprocessing" in error_about(copied_bundle.path, MANIFEST)


@register_intensity_scheme("test.PercentileClip")
class PercentileClip(Table, IntensityScheme, frozen=True):
    """Clip an image to two of its percentiles, and divide by the range."""

    low: float
    high: float

    def run(self, image: NDArray[np.float32]) -> None:
        bounds = np.percentile(image, [self.low, self.high]).astype(np.float32)
        np.clip(image, *bounds, out=image)
        image -= bounds[0]
        image /= bounds[1] - bounds[0]


def test_a_registered_intensity_scheme_runs_from_a_bundle(copied_bundle: CopiedBundle) -> None:
    normalization = {"scheme": "test.PercentileClip", "low": 5, "high": 95}
    copied_bundle.change(preprocessing=PREPROCESSING | {"normalization": normalization})
    found = open_bundle(copied_bundle.path).manifest.preprocessing
    assert found.normalization == PercentileClip(low=5.0, high=95.0)
    volume = np.random.default_rng(0).uniform(1, 100, (8, 8, 8)).astype(np.float32)
    data = found.run(volume, tuple(found.spacing)).data  # type: ignore[arg-type]
    assert (data.min(), data.max()) == (0, 1)
    assert 0.04 < (data == 0).mean() < 0.06


def one_weight(value: float) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        tensors[TENSOR][-1, 0, 2, 2, 2] = value

    return change


def replaced(change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({TENSOR: change(tensors[TENSOR])})


SHAPE = f"({TENSOR}: (8, 1, 3, 3, 3)), found"
FINITE = f"expected finite values in {TENSOR}, found NaN or infinite values"
NAN = pytest.mark.fault("models", "a weight is NaN", "an error that names the fold and the weight")
CONSTANTS = pytest.mark.fault("models", "a fold without the constants of the graph", NAMES_FILE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.update(extra=np.ones((2, 3), np.float32)), "(extra: none), found (2, 3)"),
        (lambda tensors: tensors.pop(TENSOR), f"{SHAPE} none"),
        (replaced(lambda value: value[0]), f"{SHAPE} (1, 3, 3, 3)"),
        (replaced(lambda value: value.astype(np.float16)), f"expected float32 values in {TENSOR}, found F16"),
        (replaced(lambda value: value.astype(np.int32)), f"expected float32 values in {TENSOR}, found I32"),
        (one_weight(np.inf), FINITE),
        pytest.param(one_weight(np.nan), FINITE, marks=NAN),
        pytest.param(lambda tensors: tensors.pop(GRAPH_CONSTANTS), f"a tensor {GRAPH_CONSTANTS}", marks=CONSTANTS),
    ],
)
def test_refuses_a_fold_with_wrong_tensors(
    copied_bundle: CopiedBundle, change: Callable[[Tensors], object], message: str
) -> None:
    tensors = load_file(copied_bundle.path / FOLD)
    change(tensors)
    save_file(tensors, copied_bundle.path / FOLD)
    copied_bundle.seal()
    assert message in error_about(copied_bundle.path, FOLD)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, 20_000, 1_000_000, -1])
def test_refuses_a_truncated_fold(copied_bundle: CopiedBundle, kept: int) -> None:
    path = copied_bundle.path / FOLD
    path.write_bytes(path.read_bytes()[:kept])
    copied_bundle.seal()
    error_about(copied_bundle.path, FOLD)


def header(content: object) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text


def read_fold(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the entries of a fold's header by the names of the tensors, and the bytes behind it."""
    before = read_header(path)
    return json.loads(before[8:]), path.read_bytes()[len(before) :]


TOO_LONG = (2**63).to_bytes(8, "little") + b"{}"
HEADERS = [b"nonsense", b"\xff\xfe\x00", [], "text", {}, {TENSOR: 3}, {TENSOR: {}}]


@pytest.mark.parametrize("content", [b"\xff" * 64, TOO_LONG, *map(header, HEADERS)], ids=range(9))
def test_refuses_an_invalid_header(copied_bundle: CopiedBundle, content: bytes) -> None:
    (copied_bundle.path / FOLD).write_bytes(content)
    copied_bundle.seal()
    error_about(copied_bundle.path, FOLD)


OFFSETS = ([0], [0, 10**15], [-4, 860], [0, 8], ["a", "b"], None)


@pytest.mark.parametrize("change", [*({"data_offsets": value} for value in OFFSETS), {"dtype": None}, {"shape": 3}])
def test_refuses_a_wrong_entry_of_the_header(copied_bundle: CopiedBundle, change: dict[str, object]) -> None:
    path = copied_bundle.path / FOLD
    entries, tensors = read_fold(path)
    entries[TENSOR] |= change
    path.write_bytes(header(entries) + tensors)
    copied_bundle.seal()
    error_about(copied_bundle.path, FOLD)


@pytest.mark.fault(
    "models", "the weights of a fold are in another order, so that the graph would confuse them", NAMES_FILE
)
def test_refuses_tensors_in_another_order(copied_bundle: CopiedBundle) -> None:
    """Two tensors of the same size swap their positions in the file, which stays valid."""
    path = copied_bundle.path / FOLD
    entries, tensors = read_fold(path)
    one, other = [name for name in entries if entries[name].get("shape") == [8]][:2]
    first, second = (slice(*entries[name]["data_offsets"]) for name in (one, other))
    exchanged = bytearray(tensors)
    exchanged[first], exchanged[second] = tensors[second], tensors[first]
    entries[one], entries[other] = entries[other], entries[one]
    path.write_bytes(header(entries) + exchanged)
    copied_bundle.seal()
    assert "at the positions that graph.xml names, found another order" in error_about(copied_bundle.path, FOLD)
