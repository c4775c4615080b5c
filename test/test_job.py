"""Job folders of the platform in both layouts, and those that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pantherseg.errors import JobError
from pantherseg.grand_challenge import find_input, output_path
from pantherseg.paths import ROOT
from pantherseg.recipe import Sockets, load_recipe

SOCKETS = Sockets(input="abdominal-t1-mri", output="pancreatic-tumor-segmentation")
KEY = "e68533e0-806c-55b9-bab7-cc62958cdc66"
PLACE = f"images/{SOCKETS.input}"


def entry(*keys: str, slug: str = SOCKETS.input, place: str = PLACE, key: str = KEY) -> dict[str, Any]:
    socket = {"slug": slug, "relative_path": place, "kind": "Image"}
    return dict.fromkeys(keys, socket) | {"value": None, "image": {"pk": key, "name": "orig.mha"}, "pk": 1}


def job(folder: Path, *names: str, place: str = PLACE, inputs: object = None) -> Path:
    """Make a job folder with empty volumes of these names and, if given, an inputs.json."""
    (folder / place).mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / place / name).touch()
    if inputs is not None:
        (folder / "inputs.json").write_text(inputs if isinstance(inputs, str) else json.dumps(inputs))
    return folder


def reason(folder: Path) -> str:
    with pytest.raises(JobError) as caught:
        find_input(folder, SOCKETS)
    text = str(caught.value)
    assert text.startswith(f"{folder}")
    assert ": expected " in text
    assert len(text.splitlines()) == 1
    return text


@pytest.mark.parametrize("keys", [("socket",), ("interface",), ("socket", "interface")])
def test_finds_the_input_that_inputs_json_describes(tmp_path: Path, keys: tuple[str, ...]) -> None:
    other = entry("socket", slug="age", place="age.json") | {"image": None}
    folder = job(tmp_path, f"{KEY}.mha", inputs=[other, entry(*keys)])
    assert find_input(folder, SOCKETS) == folder / PLACE / f"{KEY}.mha"


@pytest.mark.parametrize(
    ("names", "entries", "found"),
    [
        ([f"{KEY}.mha"], [entry("interface") | {"socket": None}], f"{KEY}.mha"),
        (["a.mha", f"{KEY}.mha"], [entry("socket")], f"{KEY}.mha"),
        (["orig.mha", "notes.txt"], [entry("socket")], "orig.mha"),
        ([f"{KEY}.mha"], [entry("socket", slug="abdominal-t1-mri-v2")], f"{KEY}.mha"),
        (["some.mha"], None, "some.mha"),
    ],
    ids=["socket is null", "image key", "another name", "another slug", "no inputs.json"],
)
def test_finds_the_only_volume_or_that_with_the_image_key(
    tmp_path: Path, names: list[str], entries: object, found: str
) -> None:
    folder = job(tmp_path, *names, inputs=entries)
    job(folder, "other.mha", place="images/another-socket")
    assert find_input(folder, SOCKETS) == folder / PLACE / found


def test_takes_the_only_volume_of_another_folder(tmp_path: Path) -> None:
    folder = job(tmp_path, "some.nii.gz", place="images/mri")
    job(folder, place="images/empty")
    assert find_input(folder, SOCKETS) == folder / "images/mri/some.nii.gz"
    job(folder, "more.mha", place="images/ct")
    assert "one folder with a volume, such as abdominal-t1-mri, found ct, mri" in reason(folder)


@pytest.mark.fault("jobs", "a job with two volumes or none, or no job folder", "an error that says what was found")
def test_refuses_two_volumes_and_none(tmp_path: Path) -> None:
    for name, inputs in (("none", None), ("described", [entry("socket")])):
        folder = job(tmp_path / name, inputs=inputs)
        assert reason(folder).endswith("found none")
        job(folder, "a.mha", "b.mha")
        assert "exactly one volume (.mha), found a.mha, b.mha" in reason(folder)
    assert "found no such folder" in reason(tmp_path / "missing")
    (tmp_path / "file").touch()
    assert "found a file" in reason(tmp_path / "file")


@pytest.mark.fault("jobs", "inputs.json names a folder that does not exist", "an error that names the folder")
def test_refuses_a_described_folder_that_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "inputs.json").write_text(json.dumps([entry("socket")]))
    assert reason(tmp_path).endswith("found none")


def test_refuses_the_job_of_the_other_task(tmp_path: Path) -> None:
    other = entry("socket", slug="abdominal-t2-mri", place="images/abdominal-t2-mri")
    folder = job(tmp_path, f"{KEY}.mha", place="images/abdominal-t2-mri", inputs=[other])
    text = reason(folder)
    assert "one input 'abdominal-t1-mri', found abdominal-t2-mri; each task has its own container" in text
    job(tmp_path, inputs=[])
    assert "found none;" in reason(folder)
    job(tmp_path, inputs=[entry("socket"), entry("socket")])
    assert "found abdominal-t1-mri, abdominal-t1-mri;" in reason(folder)


@pytest.mark.fault("jobs", "inputs.json {id}", "an error that names it")
@pytest.mark.parametrize(
    ("contents", "found"),
    [
        (("", "["), "Input data was truncated"),
        (("\udcff\udcfe\0",), "JSON is malformed: invalid character"),
        (("3", "null", '{"socket": {}}'), "Expected `array`"),
        (("[3]", "[null]", '["text"]'), "Expected `object`"),
        (("[{}]",), "an input without either"),
        (('[{"socket": {"slug": "a"}}]',), "Object missing required field `relative_path` - at `$[0].socket`"),
        (('[{"socket": "text"}]',), "Expected `object | null`, got `str`"),
        (
            ('[{"socket": {"slug": "a", "relative_path": "b"}, "image": "text"}]',),
            "Expected `object | null`, got `str`",
        ),
        (('[{"value": ' + "[" * 200_000,), "recursion"),
        ((" " * (17 << 20),), "17 MB"),
    ],
    ids=[
        "is incomplete",
        "is not a text file",
        "is no list",
        "is no list of inputs",
        "has an input without a socket",
        "has an incomplete socket",
        "has a text as socket",
        "has a text as image",
        "has 200,000 lists in each other",
        "is too large",
    ],
)
def test_refuses_an_invalid_inputs_json(tmp_path: Path, contents: tuple[str, ...], found: str) -> None:
    folder = job(tmp_path, f"{KEY}.mha")
    for content in contents:
        (folder / "inputs.json").write_text(content, "utf-8", "surrogateescape")
        text = reason(folder)
        assert text.startswith(f"{folder / 'inputs.json'}: expected ")
        assert found in text


def test_refuses_a_volume_that_is_a_link_to_itself(tmp_path: Path) -> None:
    folder = job(tmp_path, inputs=[entry("socket")])
    (folder / PLACE / f"{KEY}.mha").symlink_to(f"{KEY}.mha")
    assert "a file inside the job folder, found " in reason(folder)


@pytest.mark.fault("jobs", "inputs.json has {id}", "an error, and nothing outside the job folder is read")
@pytest.mark.parametrize(
    "changes",
    [
        {"place": "../outside/abdominal-t1-mri"},
        {"place": "images/../../outside/abdominal-t1-mri"},
        {"place": "/etc"},
        {"key": f"../../../outside/abdominal-t1-mri/{KEY}"},
        {"key": "a" * 5000},
        {"key": "a\0b"},
    ],
    ids=[
        "a path that leads out of the job folder",
        "a path in images that leads out of the job folder",
        "an absolute path",
        "an image key that leads out of the job folder",
        "an image key of 5,000 characters",
        "an image key with a zero byte",
    ],
)
def test_refuses_a_path_outside_the_job_folder(tmp_path: Path, changes: dict[str, str]) -> None:
    job(tmp_path / "outside", f"{KEY}.mha", place="abdominal-t1-mri")
    folder = job(tmp_path / "job", inputs=[entry("socket", **changes)])
    assert "a file inside the job folder, found " in reason(folder)


@pytest.mark.fault("jobs", "the input folder is a link, as on the platform", "the volume is found")
def test_finds_the_input_in_a_linked_job_folder(tmp_path: Path) -> None:
    real = job(tmp_path / "real", f"{KEY}.mha", inputs=[entry("socket")])
    link = tmp_path / "input"
    link.symlink_to(real, target_is_directory=True)
    assert find_input(link, SOCKETS) == link / PLACE / f"{KEY}.mha"
    (real / "inputs.json").unlink()
    assert find_input(link, SOCKETS) == link / PLACE / f"{KEY}.mha"


@pytest.mark.parametrize("name", ["a.mha", "a.nii.gz", "a.nrrd"])
def test_output_path_is_a_metaimage_below_the_output_socket(tmp_path: Path, name: str) -> None:
    expected = tmp_path / "images/pancreatic-tumor-segmentation/a.mha"
    assert output_path(tmp_path, SOCKETS, Path("somewhere") / name) == expected


@pytest.mark.parametrize("task", [1, 2])
def test_finds_the_input_of_the_sample_jobs(task: int) -> None:
    folder = ROOT / "test" / "input" / f"task{task}"
    recipe = load_recipe(ROOT / f"Task{task}" / "recipe.toml")
    assert find_input(folder, recipe.sockets).parent == folder / "images" / recipe.sockets.input
    other = load_recipe(ROOT / f"Task{3 - task}" / "recipe.toml")
    with pytest.raises(JobError, match="each task has its own container"):
        find_input(folder, other.sockets)
