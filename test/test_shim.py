"""The platform's own runner on the built images: what it records of a good case and of each kind of failure."""

from __future__ import annotations

import hmac
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import valid_report
from pantherseg.grand_challenge.check import check_output
from pantherseg.io import read_volume, write_volume
from pantherseg.paths import DEMO_WEIGHTS, ROOT, task_recipe
from pantherseg.phantom import make_phantom
from pantherseg.recipe import load_recipe
from pantherseg.volume import Box, Grid, Volume
from shim import machine
from shim.image import Image, built, exported, open_image, stored_layers
from shim.invocation import SIGNING_KEY, Outcome, invoke, invoke_all, verified

pytestmark = [pytest.mark.docker, pytest.mark.slow]
# The images of .ci/run, and the others.
SHORT = ["task2-cpu"]
CPU = [*SHORT, pytest.param("task1-cpu", marks=pytest.mark.full)]
EVERY = [*CPU, *(pytest.param(name, marks=pytest.mark.full) for name in ("task1", "task2"))]
SHORT_SERVER = ["task2-cpu-invoke"]
EVERY_SERVER = [
    *SHORT_SERVER,
    *(pytest.param(f"{name}-invoke", marks=pytest.mark.full) for name in ("task1-cpu", "task1", "task2")),
]
# Packs the demo models and ignores those in weights/own.
PACK = 'source scripts/containers.sh; weights=weights/demo; pack_model "$0" "$1"'


NAMED = "an error that names it, shown to the user; nothing uploaded, no process left"


def on_images(images: list[Any], done: str, must: str) -> pytest.MarkDecorator:
    """Run a test on images; on the first of them it is a row of the table of faults."""
    first = pytest.param(images[0], marks=pytest.mark.fault("platform", done, must))
    return pytest.mark.parametrize("image", [first, *images[1:]], indirect=True)


Run = Callable[..., Outcome]


@pytest.fixture(scope="session")
def python() -> Path:
    if reason := machine.missing():
        pytest.skip(reason)
    try:
        return machine.runner()
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip() or str(error)).splitlines()[-1]
        pytest.skip(f"the runner cannot be installed: {reason}")


@pytest.fixture(scope="module")
def image(python: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    with opened(request.param, tmp_path_factory.mktemp("image") / "root") as image:
        yield image


@contextmanager
def opened(name: str, folder: Path) -> Iterator[Image]:
    """Open an image; its file system is written to a new folder where the engine's layers cannot be mounted."""
    description = built(name)
    if layers := stored_layers(description):
        yield open_image(description, layers)
        return
    with exported(description, folder) as layers:
        yield open_image(description, layers)


def task_of(image: Image) -> str:
    return next(task for task in ("task1", "task2") if task in image.name)


@pytest.fixture
def job(image: Image, tmp_path: Path) -> Path:
    """A copy of the task's sample job."""
    return Path(shutil.copytree(ROOT / "test" / "input" / task_of(image), tmp_path / "job"))


@pytest.fixture
def run(image: Image, job: Path, python: Path, tmp_path: Path) -> Run:
    """Run the image of the test on its job."""
    return partial(invoke, image, job, tmp_path / "run", python=python)


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a task's model.tar.gz, as it is uploaded."""
    folder = tmp_path_factory.mktemp("models")

    def pack(task: str) -> Path:
        target = folder / f"{task}.tar.gz"
        if not target.exists():
            subprocess.run(["bash", "-euc", PACK, task, target], cwd=ROOT, check=True, capture_output=True)
        return target

    return pack


@pytest.fixture
def unpacked_model(image: Image, packed: Callable[[str], Path], tmp_path: Path) -> Path:
    """The folder that the platform makes of the task's model.tar.gz."""
    with tarfile.open(packed(task_of(image))) as archive:
        archive.extractall(tmp_path / "model", filter="data")
    return tmp_path / "model"


@pytest.fixture(scope="session")
def native_mask(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """Return the mask that a task's entry point makes of the sample job without a container."""
    folder = tmp_path_factory.mktemp("native")

    def mask(task: str) -> bytes:
        output = folder / task
        if not output.exists():
            run_natively(task, ROOT / "test" / "input" / task, output)
        return next(output.rglob("*.mha")).read_bytes()

    return mask


def run_natively(task: str, job: Path, output: Path) -> None:
    """Run a task's entry point on a job without a container."""
    program = task_recipe(int(task[-1])).with_name("inference.py")
    folders = {"--input": job, "--output": output, "--model": DEMO_WEIGHTS}
    options = [word for option in folders.items() for word in option]
    subprocess.run([sys.executable, program, *options], check=True, capture_output=True)


def archived(folder: Path) -> Path:
    """Return a model.tar.gz of a folder's content."""
    target = folder.with_suffix(".tar.gz")
    with tarfile.open(target, "w:gz") as archive:
        archive.add(folder, arcname=".")
    return target


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# Prints one line for each condition under which the platform runs an image, as the image sees it.
CONDITIONS = r"""
echo "user $(id -u) $(id -g) $HOME"
echo "folder $(pwd)"
echo "input $(readlink /input) $(find /input/ -type f | sort | xargs)"
touch /input/x 2>/dev/null && echo "input can be written"
for folder in /output /tmp /opt/ml/model; do
  touch "$folder/x" && rm "$folder/x" && echo "$folder can be written and holds $(ls -A "$folder" | xargs)"
done
echo "the model's files belong to $(find /opt/ml/model -type f -printf '%u\n' | sort -u | xargs)"
echo "data $(ulimit -d)"
echo "shared memory $(touch /dev/shm/x && df --output=fstype /dev/shm | tail -n 1)"
echo "network $(tail -n +3 /proc/net/dev | cut -d: -f1 | xargs)"
echo "secrets $(env | grep -ci grand_challenge)"
"""


@pytest.mark.parametrize("image", SHORT, indirect=True)
def test_runs_an_image_under_the_platforms_conditions(
    image: Image, job: Path, python: Path, packed: Callable[[str], Path], tmp_path: Path
) -> None:
    asked = replace(image, entrypoint=["/bin/sh", "-c", CONDITIONS])
    outcome = invoke(asked, job, tmp_path / "run", python=python, model=packed(task_of(image)))
    files = " ".join(sorted(f"/input/{path.relative_to(job)}" for path in job.rglob("*") if path.is_file()))
    assert outcome.lines("stdout") == [
        "user 1000 1000 /home/user",
        f"folder {image.folder}",
        f"input /opt/ml/input/data/algorithm-1-input {files}",
        "/output can be written and holds ",
        "/tmp can be written and holds ",
        "/opt/ml/model can be written and holds calibration.json localizer task2",
        "the model's files belong to user",
        f"data {15 * 1024 * 1024}",
        "shared memory tmpfs",
        "network lo",
        "secrets 0",
    ]


def check_success(outcome: Outcome, image: Image, native: bytes, job: Path | None = None) -> dict[str, Any]:
    """Check that the platform has recorded the mask that is made without a container, and return the report.

    job: the folder of the job, if it is not the sample.
    """
    assert (outcome.exit_code, outcome.survivors) == (0, [])
    assert outcome.result is not None, outcome.log
    assert (outcome.result["return_code"], outcome.result["user_safe_error_message"]) == (0, ""), outcome.shown
    sockets = load_recipe(task_recipe(int(task_of(image)[-1]))).sockets
    job = job or ROOT / "test" / "input" / task_of(image)
    assert [verdict for verdict in check_output(outcome.outputs, sockets, job=job) if not verdict.kept] == []
    recorded = sorted(entry["relative_path"] for entry in outcome.result["outputs"])
    assert recorded == outcome.uploaded
    (mask,) = outcome.outputs.rglob("*.mha")
    same = mask.read_bytes() == native  # so that pytest does not print both
    assert same
    return valid_report(outcome.outputs / "results.json")


def check_failure(outcome: Outcome, *reasons: str) -> None:
    """Check that the platform has recorded a failure, shows its reason in one line, and received no output."""
    assert (outcome.exit_code, outcome.survivors) == (0, [])
    assert outcome.result is not None, outcome.log
    assert outcome.result["return_code"] == 1
    assert outcome.result["user_safe_error_message"] == ""
    assert outcome.shown.startswith("error: ")
    assert all(reason in outcome.shown for reason in reasons), outcome.shown
    assert (outcome.result["outputs"], outcome.uploaded) == ([], [])


@on_images(EVERY, "nothing: a good case, for comparison", "the mask that is made without a container, and the report")
def test_records_the_mask_of_a_good_case(
    image: Image, run: Run, packed: Callable[[str], Path], native_mask: Callable[[str], bytes]
) -> None:
    outcome = run(model=packed(task_of(image)))
    assert outcome.setup is not None
    assert outcome.setup["return_code"] == 0
    report = check_success(outcome, image, native_mask(task_of(image)))
    assert all(model["path"].startswith("/opt/ml/model/") for model in report["models"])


@pytest.mark.full
@on_images(CPU, "no model is uploaded", "the demo models' mask")
def test_uses_the_demo_weights_without_a_model(image: Image, run: Run, native_mask: Callable[[str], bytes]) -> None:
    report = check_success(run(), image, native_mask(task_of(image)))
    assert all(model["path"].startswith("/opt/pantherseg/weights/demo/") for model in report["models"])


@on_images(EVERY, "the volume is cut short", NAMED)
def test_names_a_damaged_volume(job: Path, run: Run) -> None:
    (volume,) = job.rglob("*.mha")
    truncate(volume)
    outcome = run()
    # The path is that of the job, although /input is a link.
    check_failure(outcome, f"/input/{volume.relative_to(job)}: expected", "compressed bytes, found")
    assert outcome.lines("stdout") == []


@pytest.mark.full
@on_images(EVERY, "the platform's time is over", "an end by SIGTERM; nothing uploaded, no process left")
def test_ends_at_once_at_the_time_limit_and_leaves_nothing(run: Run) -> None:
    outcome = run(timeout="PT2S")
    assert (outcome.exit_code, outcome.survivors) == (0, [])
    assert outcome.result is not None
    assert (outcome.result["return_code"], outcome.shown) == (1, "Time limit exceeded")
    assert (outcome.result["outputs"], outcome.uploaded) == ([], [])
    # It ended by SIGTERM, since SIGKILL comes 5 s later.
    assert 2 <= float(outcome.result["exec_duration"].removeprefix("PT").removesuffix("S")) < 6


@pytest.mark.full
@on_images(EVERY, "a machine with 256 MB", NAMED)
def test_names_a_machine_that_is_too_small(run: Run) -> None:
    check_failure(run(memory_mb=256), "expected a limit of at least 512 MB", "found 256 MB")


@pytest.mark.full
@on_images(CPU, "a volume that is too large for the machine's memory", NAMED)
def test_names_a_volume_that_is_too_large(job: Path, run: Run) -> None:
    (volume,) = job.rglob("*.mha")
    # 300 MB as stored and 600 MB in float32.
    write_volume(Volume(np.zeros((600, 500, 500), np.int16), Grid((600, 500, 500), (1.0, 1.0, 1.0))), volume)
    # The reader or a later step may be the first to need too much memory.
    check_failure(run(memory_mb=1000), "memory")


@pytest.mark.full
@on_images(CPU, "a fold of the uploaded model is damaged", "the mask of the other folds, and an event")
def test_leaves_a_damaged_fold_out(
    image: Image, run: Run, unpacked_model: Path, native_mask: Callable[[str], bytes]
) -> None:
    truncate(unpacked_model / task_of(image) / "fold_3.safetensors")
    outcome = run(model=archived(unpacked_model))
    assert outcome.result is not None
    assert outcome.result["return_code"] == 0
    report = valid_report(outcome.outputs / "results.json")
    assert [event["code"] for event in report["events"]] == ["fold_left_out"]
    (mask,) = outcome.outputs.rglob("*.mha")
    assert mask.read_bytes() != native_mask(task_of(image)), "the damaged fold was used"


@pytest.mark.full
@on_images(CPU, "three folds of the uploaded model are damaged", NAMED)
def test_names_the_first_of_too_many_damaged_folds(image: Image, run: Run, unpacked_model: Path) -> None:
    for fold in (0, 2, 4):
        truncate(unpacked_model / task_of(image) / f"fold_{fold}.safetensors")
    check_failure(run(model=archived(unpacked_model)), f"/opt/ml/model/{task_of(image)}/fold_0.safetensors: expected")


@pytest.mark.full
@on_images(
    SHORT, "the uploaded model's archive is cut short", "the runner's own error; nothing uploaded, no process left"
)
def test_the_runner_refuses_a_truncated_model_archive(
    image: Image, run: Run, packed: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copy(packed(task_of(image)), tmp_path / "model.tar.gz")
    truncate(tmp_path / "model.tar.gz")
    outcome = run(model=tmp_path / "model.tar.gz")
    assert (outcome.exit_code, outcome.survivors, outcome.result, outcome.uploaded) == (0, [], None, [])
    assert outcome.setup is not None
    assert outcome.setup["return_code"] == 1
    assert outcome.setup["user_safe_error_message"] == "Could not set up model: Tarfile could not be extracted"


@pytest.mark.full
@pytest.mark.parametrize("image", SHORT, indirect=True)
def test_an_exported_file_system_gives_the_same_mask_as_the_engines_layers(
    image: Image, job: Path, python: Path, native_mask: Callable[[str], bytes], tmp_path: Path
) -> None:
    description = built(SHORT[0])
    with exported(description, tmp_path / "root") as layers:
        outcome = invoke(open_image(description, layers), job, tmp_path / "run", python=python)
        check_success(outcome, image, native_mask(task_of(image)))
    assert not (tmp_path / "root").exists()


@pytest.mark.full
@pytest.mark.parametrize("image", SHORT, indirect=True)
def test_reports_a_process_that_outlives_the_runner(image: Image, job: Path, python: Path, tmp_path: Path) -> None:
    leaves_a_process = replace(image, entrypoint=["/bin/sh", "-c", "setsid sleep 600 >/dev/null 2>&1 &"])
    outcome = invoke(leaves_a_process, job, tmp_path / "run", python=python)
    assert outcome.result is not None
    assert (outcome.result["return_code"], outcome.survivors) == (0, ["sleep 600 "])


@pytest.fixture
def jobs(image: Image, job: Path, tmp_path: Path) -> list[Path]:
    """Jobs of the image's task: the sample, the sample in another voxel order, its lower half, and another phantom."""
    (path,) = job.rglob("*.mha")
    volume = read_volume(path)
    lower = Box((0, 0, 0), (volume.grid.shape[0] // 2, *volume.grid.shape[1:]))
    phantom = make_phantom(5002, task=int(task_of(image)[-1]), size="small").image
    folders = [job]
    for number, other in enumerate((volume.turned_to("RAS"), volume.crop(lower), phantom), start=2):
        folder = tmp_path / f"job-{number}"
        # Another name for each, in inputs.json too.
        name = f"{path.stem[:-1]}{number}"
        write_volume(other, folder / path.relative_to(job).with_name(f"{name}.mha"))
        (folder / "inputs.json").write_text((job / "inputs.json").read_text().replace(path.stem, name))
        folders.append(folder)
    return folders


@pytest.fixture
def serve(image: Image, python: Path, tmp_path: Path) -> Callable[..., list[Outcome]]:
    """Run the image of the test on jobs."""
    return partial(invoke_all, image, work=tmp_path / "served", python=python)


def seconds_of(outcome: Outcome) -> float:
    """Return how long the runner waited for a job."""
    assert outcome.result is not None
    (duration,) = filter(None, (outcome.result["exec_duration"], outcome.result["invoke_duration"]))
    minutes, _, seconds = duration.removeprefix("PT").removesuffix("S").rpartition("M")
    return 60 * int(minutes or 0) + float(seconds)


@on_images(EVERY_SERVER, "invoke: three good jobs in one run", "each mask as it is made without a container")
def test_one_server_runs_several_jobs(
    image: Image,
    jobs: list[Path],
    serve: Callable[..., list[Outcome]],
    packed: Callable[[str], Path],
    native_mask: Callable[[str], bytes],
    tmp_path: Path,
) -> None:
    run_natively(task_of(image), jobs[1], tmp_path / "native")
    other = next((tmp_path / "native").rglob("*.mha")).read_bytes()
    sample = native_mask(task_of(image))
    outcomes = serve([jobs[0], jobs[1], jobs[0]], model=packed(task_of(image)))
    assert outcomes[0].setup is not None
    assert outcomes[0].setup["return_code"] == 0
    for outcome, job, mask in zip(outcomes, (jobs[0], jobs[1], jobs[0]), (sample, other, sample), strict=True):
        report = check_success(outcome, image, mask, job)
        assert all(model["path"].startswith("/opt/ml/model/") for model in report["models"])
        assert outcome.result is not None
        assert outcome.result["exec_duration"] is None
    assert outcomes[0].ended_by_sigterm


@on_images(
    EVERY_SERVER,
    "invoke: a volume that is cut short between two good jobs",
    "the first mask; an error that names the file, shown to the user; the runner then stops",
)
def test_the_runner_stops_at_the_first_job_that_fails(
    image: Image, jobs: list[Path], serve: Callable[..., list[Outcome]], native_mask: Callable[[str], bytes]
) -> None:
    (volume,) = jobs[2].rglob("*.mha")
    truncate(volume)
    first, second, third = serve([jobs[0], jobs[2], jobs[0]])
    check_success(first, image, native_mask(task_of(image)))
    check_failure(second, f"/input/{volume.relative_to(jobs[2])}: expected", "bytes, found")
    assert (third.result, third.uploaded) == (None, [])
    assert first.ended_by_sigterm


@pytest.mark.full
@on_images(
    EVERY_SERVER,
    "invoke: the platform's time is over in the second job",
    "the first mask; an end by SIGTERM; nothing uploaded for the second, no process left",
)
def test_a_server_ends_at_the_time_limit(
    image: Image, jobs: list[Path], serve: Callable[..., list[Outcome]], native_mask: Callable[[str], bytes]
) -> None:
    (path,) = jobs[3].rglob("*.mha")
    size = (200, 400, 400)
    # No localizer finds a pancreas in it, so the whole volume is searched, which takes more than the time.
    ramp = np.broadcast_to(np.arange(size[0], dtype=np.float32)[:, None, None], size).copy()
    write_volume(Volume(ramp, Grid(size, (2.0, 1.0, 1.0))), path)
    first, second = serve([jobs[0], jobs[3]], timeout="PT30S")
    check_success(first, image, native_mask(task_of(image)))
    assert second.result is not None
    assert (second.result["return_code"], second.uploaded, second.survivors) == (1, [], [])
    assert "ime limit exceeded" in second.shown
    assert second.ended_by_sigterm


@pytest.mark.full
@on_images(
    SHORT_SERVER,
    "invoke: three folds of the uploaded model are damaged",
    "no server, with the runner's own message; the reason in the log; nothing uploaded, no process left",
)
def test_the_runner_waits_for_a_server_that_cannot_load_its_models(
    image: Image, jobs: list[Path], serve: Callable[..., list[Outcome]], unpacked_model: Path
) -> None:
    for fold in (0, 2, 4):
        truncate(unpacked_model / task_of(image) / f"fold_{fold}.safetensors")
    (outcome,) = serve(jobs[:1], model=archived(unpacked_model), start_seconds=20)
    assert (outcome.exit_code, outcome.survivors, outcome.result, outcome.uploaded) == (0, [], None, [])
    assert outcome.setup is not None
    assert outcome.setup["return_code"] == 1
    assert "pass the health check within 20 seconds" in outcome.setup["user_safe_error_message"]
    expected = f"error: /opt/ml/model/{task_of(image)}/fold_0.safetensors: expected"
    of_runner = outcome.setup["user_safe_error_message"]  # which the runner writes to stderr too
    assert [line for line in outcome.lines() if line.strip() and line != of_runner][-1].startswith(expected)


@pytest.mark.full
@on_images(
    [*SHORT_SERVER, "task1-cpu-invoke", "task1-invoke", "task2-invoke"],
    "invoke: 20 jobs of four kinds",
    "the masks of the image for exec, and memory within 5 % from the fifth job on",
)
def test_a_server_runs_twenty_jobs(
    image: Image,
    jobs: list[Path],
    serve: Callable[..., list[Outcome]],
    python: Path,
    packed: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = packed(task_of(image))
    name = image.name.partition(":")[0].removeprefix("pantherseg-").removesuffix("-invoke")
    with opened(name, tmp_path / "root") as single:
        expected = invoke_all(single, jobs, tmp_path / "exec", python=python, model=model)
    outcomes = serve(jobs * 5, model=model)
    memory = []
    for number, outcome in enumerate(outcomes):
        (mask,) = expected[number % 4].outputs.rglob("*.mha")
        memory.append(check_success(outcome, image, mask.read_bytes(), jobs[number % 4])["peak_memory_mb"])
    with capsys.disabled():
        print(f"\n{image.name}")
        for number in range(4):
            served = " ".join(f"{seconds_of(outcome):.1f}" for outcome in outcomes[number::4])
            print(f"  job {number + 1}: exec {seconds_of(expected[number]):.1f} s, invoke {served} s")
        print("  peak memory after each job, MB:", " ".join(f"{value:.0f}" for value in memory))
    for number in range(8, 20):
        assert memory[number] == pytest.approx(memory[4 + number % 4], rel=0.05)


def test_refuses_a_result_that_was_changed() -> None:
    content = b'{"return_code": 0}'
    signature = hmac.new(bytes.fromhex(SIGNING_KEY), content, "sha256").hexdigest()
    assert verified(content, {"signature_hmac_sha256": signature}) == {"return_code": 0}
    for changed in (content.replace(b"0", b"1"), b""):
        with pytest.raises(ValueError, match="expected the signature"):
            verified(changed, {"signature_hmac_sha256": signature})
