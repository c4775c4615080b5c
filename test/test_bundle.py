"""Bundles are checked before anything of them is used; what is wrong is said in one line that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from safetensors.numpy import load_file, save_file

from conftest import CopiedBundle, one_line_about
from pantherseg.errors import ModelError
from pantherseg.models.bundle import (
    DATASET,
    GRAPH,
    GRAPH_CONSTANTS,
    MANIFEST,
    PLANS,
    is_bundle,
    open_bundle,
    read_header,
    read_json,
    sha256_of,
)
from pantherseg.paths import DEMO_WEIGHTS

FOLD = "fold_0.safetensors"
TENSOR = "encoder.stem.convs.0.conv.weight"
Tensors = dict[str, Any]


def verify_all(folder: Path) -> None:
    bundle = open_bundle(folder)
    for fold in bundle.folds:
        bundle.verify(fold)


def reason(folder: Path, named: str) -> str:
    """Open a bundle, load its folds, and return the error, which must begin with the file."""
    with pytest.raises(ModelError) as caught:
        verify_all(folder)
    return one_line_about(folder / named, caught.value)


def changed_tensors(bundle: CopiedBundle, change: Callable[[Tensors], object]) -> None:
    """Change the tensors of a fold's file and make its checksum right again."""
    tensors = load_file(bundle.path / FOLD)
    change(tensors)
    save_file(tensors, bundle.path / FOLD)
    bundle.seal()


@pytest.mark.parametrize("role", ["task1", "task2", "localizer"])
def test_the_demo_bundles_are_sound(role: str) -> None:
    bundle = open_bundle(DEMO_WEIGHTS / role)
    assert is_bundle(bundle.path)
    manifest = bundle.manifest
    assert manifest.sha256.keys() == {GRAPH, PLANS, DATASET, *(bundle.weights_path(fold).name for fold in bundle.folds)}
    for fold in bundle.folds:
        values = load_file(bundle.verify(fold))
        constants = values.pop(GRAPH_CONSTANTS)
        assert constants.dtype == np.uint8
        assert {name: value.shape for name, value in values.items()} == manifest.tensors
        assert {value.dtype for value in values.values()} == {np.dtype(np.float32)}
        assert (
            sum(value.nbytes for value in values.values()) + constants.nbytes
            > 0.97 * bundle.weights_path(fold).stat().st_size
        ), "every number is there once"
    assert manifest.classes == len(manifest.labels)


def test_a_copy_is_as_good(copied_bundle: CopiedBundle) -> None:
    bundle = open_bundle(copied_bundle.path)
    assert bundle.manifest == open_bundle(DEMO_WEIGHTS / "task1").manifest
    assert [bundle.verify(fold).name for fold in bundle.folds] == [f"fold_{fold}.safetensors" for fold in range(5)]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            GRAPH,
            marks=pytest.mark.fault(
                "models", "one byte of the network's graph is changed", "an error that names the file"
            ),
        ),
        PLANS,
        DATASET,
        "fold_0.safetensors",
        "fold_4.safetensors",
    ],
)
def test_every_changed_byte_is_noticed(copied_bundle: CopiedBundle, name: str) -> None:
    path = copied_bundle.path / name
    before = sha256_of(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    text = reason(copied_bundle.path, name)
    assert f"expected SHA-256 {before}, found {sha256_of(path)}; copy the bundle again" in text


@pytest.mark.parametrize("name", [GRAPH, PLANS, DATASET])
def test_a_missing_file_is_named(copied_bundle: CopiedBundle, name: str) -> None:
    (copied_bundle.path / name).unlink()
    assert reason(copied_bundle.path, name).endswith("found No such file or directory")


def test_a_missing_fold_is_named(copied_bundle: CopiedBundle) -> None:
    (copied_bundle.path / "fold_3.safetensors").unlink()
    assert reason(copied_bundle.path, "").endswith("expected folds 0 1 2 3 4, found no fold_3.safetensors")
    assert open_bundle(copied_bundle.path, folds=[4, 0]).folds == ("4", "0")


@pytest.mark.fault("models", "a model without its manifest", "an error that names the file")
def test_a_missing_manifest_is_named(copied_bundle: CopiedBundle, tmp_path: Path) -> None:
    (copied_bundle.path / MANIFEST).unlink()
    assert is_bundle(copied_bundle.path), "folds alone are a bundle that lacks its manifest"
    assert reason(copied_bundle.path, MANIFEST).endswith("found No such file or directory")
    assert not is_bundle(tmp_path)
    assert not is_bundle(tmp_path / "missing")


def test_a_file_without_a_checksum_is_not_used(copied_bundle: CopiedBundle) -> None:
    sums = open_bundle(copied_bundle.path).manifest.sha256
    for name in (GRAPH, FOLD):
        copied_bundle.change(sha256={key: value for key, value in sums.items() if key != name})
        assert "expected SHA-256 in manifest.json, found " in reason(copied_bundle.path, name)


@pytest.mark.parametrize(
    "schema",
    [
        0,
        pytest.param(
            2, marks=pytest.mark.fault("models", "a model packed by a later version", "an error that says what to do")
        ),
        "1",
        None,
        [1],
        1.5,
    ],
)
def test_another_schema_asks_for_packing_again(copied_bundle: CopiedBundle, schema: object) -> None:
    copied_bundle.change(schema=schema)
    text = reason(copied_bundle.path, MANIFEST)
    assert f"expected schema 1, found {schema}; pack the model again" in text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        pytest.param(
            b"{", marks=pytest.mark.fault("models", "the manifest is not complete", "an error that names the file")
        ),
        b"nonsense",
        b"\xff\xfe\x00",
        b"[]",
        b"3",
        b"null",
        b'{"schema": 1}',
    ],
)
def test_a_manifest_that_is_none_is_named(copied_bundle: CopiedBundle, content: bytes) -> None:
    (copied_bundle.path / MANIFEST).write_bytes(content)
    reason(copied_bundle.path, MANIFEST)


KEYS = sorted(json.loads((DEMO_WEIGHTS / "task1" / MANIFEST).read_text()))


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_the_manifest_is_needed(copied_bundle: CopiedBundle, key: str) -> None:
    content = json.loads((copied_bundle.path / MANIFEST).read_text())
    del content[key]
    (copied_bundle.path / MANIFEST).write_text(json.dumps(content))
    assert key in reason(copied_bundle.path, MANIFEST)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_the_manifest_has_its_type(copied_bundle: CopiedBundle, key: str) -> None:
    copied_bundle.change(**{key: [{}]})
    assert "schema" in (text := reason(copied_bundle.path, MANIFEST)) or f"$.{key}" in text


def test_unknown_keys_of_the_manifest_are_refused(copied_bundle: CopiedBundle) -> None:
    copied_bundle.change(temperature=1.0)
    assert "temperature" in reason(copied_bundle.path, MANIFEST)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("normalization", "scheme", "MyNormalization"),
        ("normalization", "scheme", "CTNormalization"),
        ("images", "function", "my_resampling"),
        ("images", "order", 6),
        ("logits", "mode", "bilinear"),
    ],
)
def test_preprocessing_that_is_unknown_is_refused(
    copied_bundle: CopiedBundle, part: str, key: str, value: object
) -> None:
    preprocessing = json.loads((copied_bundle.path / MANIFEST).read_text())["preprocessing"]
    preprocessing[part][key] = value
    copied_bundle.change(preprocessing=preprocessing)
    assert f"$.preprocessing.{part}" in reason(copied_bundle.path, MANIFEST)


@pytest.mark.parametrize(
    "preprocessing", [{"spacing": [1.0]}, {"spacing": [1.0, 0.0, 1.0]}, {"transpose": [0, 1, 1]}, {"transpose": [0, 1]}]
)
def test_preprocessing_that_is_impossible_is_refused(
    copied_bundle: CopiedBundle, preprocessing: dict[str, object]
) -> None:
    before = json.loads((copied_bundle.path / MANIFEST).read_text())["preprocessing"]
    copied_bundle.change(preprocessing=before | preprocessing)
    assert "$.preprocessing" in reason(copied_bundle.path, MANIFEST)


def test_a_tensor_too_many_is_named(copied_bundle: CopiedBundle) -> None:
    changed_tensors(copied_bundle, lambda tensors: tensors.update(extra=np.ones((2, 3), np.float32)))
    assert reason(copied_bundle.path, FOLD).endswith("(extra: none), found (2, 3)")


def test_a_tensor_that_is_missing_is_named(copied_bundle: CopiedBundle) -> None:
    changed_tensors(copied_bundle, lambda tensors: tensors.pop(TENSOR))
    assert reason(copied_bundle.path, FOLD).endswith(f"({TENSOR}: (8, 1, 3, 3, 3)), found none")


def test_a_tensor_of_another_shape_is_named(copied_bundle: CopiedBundle) -> None:
    changed_tensors(copied_bundle, lambda tensors: tensors.update({TENSOR: tensors[TENSOR][0]}))
    assert reason(copied_bundle.path, FOLD).endswith(f"({TENSOR}: (8, 1, 3, 3, 3)), found (1, 3, 3, 3)")


@pytest.mark.parametrize(("dtype", "name"), [(np.float16, "F16"), (np.float64, "F64"), (np.int32, "I32")])
def test_a_tensor_of_another_dtype_is_named(copied_bundle: CopiedBundle, dtype: type, name: str) -> None:
    changed_tensors(copied_bundle, lambda tensors: tensors.update({TENSOR: tensors[TENSOR].astype(dtype)}))
    assert reason(copied_bundle.path, FOLD).endswith(f"expected float32 numbers in {TENSOR}, found {name}")


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(
            np.nan,
            marks=pytest.mark.fault(
                "models", "a weight is not a number", "an error that names the fold and the weight"
            ),
        ),
        np.inf,
        -np.inf,
    ],
)
def test_a_tensor_with_a_number_that_is_not_finite_is_named(copied_bundle: CopiedBundle, value: float) -> None:
    def damage(tensors: Tensors) -> None:
        tensors[TENSOR][-1, 0, 2, 2, 2] = value

    changed_tensors(copied_bundle, damage)
    assert f"expected finite numbers in {TENSOR}, found NaN or infinite ones" in reason(copied_bundle.path, FOLD)


@pytest.mark.fault("models", "a fold without a part that the network needs", "an error that names the file")
def test_a_fold_without_the_graphs_constants_is_named(copied_bundle: CopiedBundle) -> None:
    changed_tensors(copied_bundle, lambda tensors: tensors.pop(GRAPH_CONSTANTS))
    assert GRAPH_CONSTANTS in reason(copied_bundle.path, FOLD)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, 20_000, 1_000_000, -1])
def test_a_truncated_fold_is_named(copied_bundle: CopiedBundle, kept: int) -> None:
    path = copied_bundle.path / FOLD
    path.write_bytes(path.read_bytes()[:kept])
    copied_bundle.seal()
    reason(copied_bundle.path, FOLD)


def header(content: object) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 64,
        (2**63).to_bytes(8, "little") + b"{}",
        header(b"nonsense"),
        header(b"\xff\xfe\x00"),
        header([]),
        header("text"),
        header({}),
        header({TENSOR: 3}),
        header({TENSOR: {}}),
        header({TENSOR: ENTRY | {"shape": 3}}),
        header({TENSOR: ENTRY | {"data_offsets": [0]}}),
        header({TENSOR: ENTRY | {"data_offsets": [0, 10**15]}}),
        header({TENSOR: ENTRY | {"data_offsets": [-4, 0]}}),
        header({TENSOR: ENTRY | {"data_offsets": ["a", "b"]}}),
    ],
    ids=range(14),
)
def test_a_header_of_garbage_is_named(copied_bundle: CopiedBundle, content: bytes) -> None:
    (copied_bundle.path / FOLD).write_bytes(content)
    copied_bundle.seal()
    reason(copied_bundle.path, FOLD)


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [0]},
        {"data_offsets": [0, 10**15]},
        {"data_offsets": [-4, 860]},
        {"data_offsets": [0, 8]},
        {"data_offsets": None},
        {"dtype": None},
    ],
    ids=str,
)
def test_one_entry_of_the_header_that_is_wrong_is_named(copied_bundle: CopiedBundle, change: dict[str, object]) -> None:
    path = copied_bundle.path / FOLD
    before = read_header(path)
    entries = json.loads(before[8:])
    entries[TENSOR] |= change
    path.write_bytes(header(entries) + path.read_bytes()[len(before) :])
    copied_bundle.seal()
    reason(copied_bundle.path, FOLD)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | st.dictionaries(st.text(max_size=3), st.integers(), max_size=3).map(header))
def test_any_other_bytes_are_no_fold(copied_bundle: CopiedBundle, content: bytes) -> None:
    (copied_bundle.path / FOLD).write_bytes(content)
    copied_bundle.seal()
    reason(copied_bundle.path, FOLD)


@pytest.mark.fault(
    "models",
    "a fold whose weights lie in another order, so that one would be taken for another",
    "an error that names the file",
)
def test_tensors_in_another_order_are_not_run(copied_bundle: CopiedBundle) -> None:
    """The graph would take one tensor's numbers for another's: their bytes are exchanged together with their places."""
    path = copied_bundle.path / FOLD
    before = read_header(path)
    entries = json.loads(before[8:])
    body = path.read_bytes()[len(before) :]
    names = [name for name in entries if entries[name].get("shape") == [8]][:2]
    one, other = (entries[name]["data_offsets"] for name in names)
    exchanged = bytearray(body)
    exchanged[slice(*one)], exchanged[slice(*other)] = body[slice(*other)], body[slice(*one)]
    entries[names[0]]["data_offsets"], entries[names[1]]["data_offsets"] = other, one
    path.write_bytes(header(entries) + bytes(exchanged))
    copied_bundle.seal()
    assert "expected tensors where graph.xml looks for them, found another order" in reason(copied_bundle.path, FOLD)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"a": \x00}'])
def test_json_that_is_no_object_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / PLANS
    path.write_text(content)
    with pytest.raises(ModelError, match=r"plans\.json: expected (valid JSON|a JSON object), found "):
        read_json(path)
    with pytest.raises(ModelError, match="missing"):
        read_json(tmp_path / "missing.json")
