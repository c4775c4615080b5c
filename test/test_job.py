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


def test_uses_the_interface_where_the_socket_is_null(tmp_path: Path) -> None:
    folder = job(tmp_path, f"{KEY}.mha", inputs=[entry("interface") | {"socket": None}])
    assert find_input(folder, SOCKETS).name == f"{KEY}.mha"


def test_chooses_the_volume_with_the_image_key(tmp_path: Path) -> None:
    folder = job(tmp_path, "a.mha", f"{KEY}.mha", inputs=[entry("socket")])
    assert find_input(folder, SOCKETS).name == f"{KEY}.mha"


def test_takes_the_only_volume_whatever_its_name(tmp_path: Path) -> None:
    folder = job(tmp_path, "orig.mha", "notes.txt", inputs=[entry("socket")])
    assert find_input(folder, SOCKETS).name == "orig.mha"
    job(tmp_path, "second.mha")
    assert "expected exactly one volume (.mha), found orig.mha, second.mha" in reason(folder)


def test_finds_the_input_by_its_folder_where_the_slug_differs(tmp_path: Path) -> None:
    folder = job(tmp_path, f"{KEY}.mha", inputs=[entry("socket", slug="abdominal-t1-mri-v2")])
    assert find_input(folder, SOCKETS).name == f"{KEY}.mha"


def test_finds_the_input_without_inputs_json(tmp_path: Path) -> None:
    folder = job(tmp_path, "some.mha")
    job(folder, "other.mha", place="images/another-socket")
    assert find_input(folder, SOCKETS) == folder / PLACE / "some.mha"


def test_takes_the_only_volume_of_another_folder(tmp_path: Path) -> None:
    folder = job(tmp_path, "some.nii.gz", place="images/mri")
    job(folder, place="images/empty")
    assert find_input(folder, SOCKETS) == folder / "images/mri/some.nii.gz"
    job(folder, "more.mha", place="images/ct")
    assert "one folder with a volume, such as abdominal-t1-mri, found ct, mri" in reason(folder)


@pytest.mark.fault("jobs", "a job with two volumes or none, or no job folder", "an error that says what was found")
def test_refuses_two_volumes_and_none(tmp_path: Path) -> None:
    two = job(tmp_path / "two", "a.mha", "b.mha")
    assert "exactly one volume (.mha), found a.mha, b.mha" in reason(two)
    for name, inputs in (("none", None), ("described", [entry("socket")])):
        assert reason(job(tmp_path / name, inputs=inputs)).endswith("found none")
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


@pytest.mark.parametrize(
    "inputs",
    [
        "",
        pytest.param("[", marks=pytest.mark.fault("jobs", "inputs.json is incomplete", "an error that names it")),
        "3",
        "null",
        '{"socket": {}}',
        "[3]",
        "[null]",
        '["text"]',
        "[{}]",
        '[{"socket": {"slug": "a"}}]',
        pytest.param(
            '[{"socket": "text"}]',
            marks=pytest.mark.fault(
                "jobs", "inputs.json has another structure than the platform's", "an error that names it"
            ),
        ),
        '[{"socket": {"slug": "a", "relative_path": "b"}, "image": "text"}]',
    ],
)
def test_refuses_an_invalid_inputs_json(tmp_path: Path, inputs: str) -> None:
    folder = job(tmp_path, f"{KEY}.mha", inputs=inputs)
    assert reason(folder).startswith(f"{folder / 'inputs.json'}: expected a list of inputs with 'socket' or")


@pytest.mark.fault("jobs", "inputs.json is not a text file", "an error that names it")
def test_refuses_an_inputs_json_that_is_not_text(tmp_path: Path) -> None:
    folder = job(tmp_path, f"{KEY}.mha")
    (folder / "inputs.json").write_bytes(b"\xff\xfe\x00")
    assert "UnicodeDecodeError" in reason(folder)


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(
            "../outside/abdominal-t1-mri",
            marks=pytest.mark.fault(
                "jobs", "a path in inputs.json leads out of the job folder", "an error, and nothing outside is read"
            ),
        ),
        "images/../../outside/abdominal-t1-mri",
        "/etc",
    ],
)
def test_refuses_a_path_outside_the_job_folder(tmp_path: Path, place: str) -> None:
    job(tmp_path / "outside", f"{KEY}.mha", place="abdominal-t1-mri")
    folder = job(tmp_path / "job", inputs=[entry("socket", place=place)])
    assert f"a file inside the job folder, found {place!r}" in reason(folder)


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


@pytest.mark.fault(
    "jobs", "the image key in inputs.json leads out of the job folder", "an error, and nothing outside is read"
)
def test_refuses_an_image_key_outside_the_job_folder(tmp_path: Path) -> None:
    inputs = [entry("socket", key="../../../secret")]
    (tmp_path / "secret.mha").write_bytes(b"not for this job")
    assert "a file inside the job folder" in reason(job(tmp_path / "job", inputs=inputs))


@pytest.mark.parametrize("key", ["a" * 5000, "a\0b"])
def test_refuses_an_image_key_that_is_not_a_file_name(tmp_path: Path, key: str) -> None:
    assert "a file inside the job folder" in reason(job(tmp_path, inputs=[entry("socket", key=key)]))
