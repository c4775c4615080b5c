"""Cohorts on a Ray cluster of three nodes on this machine, which are lost like machines, and on S3."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cohorts import fast_recipe, job_of, kill_and_start_again, masks_in, reports, wait_for, write_volumes
from conftest import SmallDisk, one_line_about
from pantherseg import __version__
from pantherseg.batch import run_batch
from pantherseg.cohort.ray_crew import Cluster
from pantherseg.cohort.run import run_cohort
from pantherseg.cohort.storage import exists, join, read_bytes, write_bytes
from pantherseg.cohort.table import CASES, read_rows
from pantherseg.errors import OutputError, PantherSegError
from pantherseg.io import write_volume
from pantherseg.paths import DEMO_WEIGHTS, PACKAGE, ROOT
from pantherseg.session import Session
from pantherseg.volume import Grid, Volume
from shim import machine

pytestmark = pytest.mark.slow

# Each takes a fraction of a second; by hand, more of them show what a few do not.
CASES_OF_A_RUN = int(os.environ.get("PANTHERSEG_COHORT_CASES", "24"))
STORE_BYTES = 100_000_000
STARTS = 3
# Whose worker is killed, as the kernel does it where memory is short.
POISON = "poison"
TASKS = (1, 2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes of one CPU on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster as Nodes

        nodes = Nodes()
        for _ in range(3):
            add_node(nodes)
        yield nodes
        nodes.shutdown()


def add_node(nodes: Any, **options: Any) -> Any:
    """Start a node, which Ray gives up after 15 s; a busy machine may need more for the first."""
    settings = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False, **options}
    for _ in range(STARTS - 1):
        with suppress(Exception):  # Ray raises nothing else
            return nodes.add_node(**settings)
    return nodes.add_node(**settings)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small volumes."""
    return write_volumes(tmp_path_factory.mktemp("volumes"), CASES_OF_A_RUN)


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture(scope="module")
def predicted(volumes: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, bytes]]:
    """Return what `predict` makes of the volumes, by the names of the masks."""
    known: dict[int, dict[str, bytes]] = {}

    def masks(task: int) -> dict[str, bytes]:
        if task not in known:
            folder = tmp_path_factory.mktemp("predicted")
            run_batch(volumes, folder, Session(fast_recipe(task), DEMO_WEIGHTS, device="cpu", many_cases=True))
            known[task] = masks_in(folder)
        return known[task]

    return masks


def on(nodes: Any, **options: Any) -> Cluster:
    return Cluster(nodes.address, **options)


@contextmanager
def meanwhile(action: Callable[[], object]) -> Iterator[None]:
    """Do something in a thread beside the block; what it raises fails the test."""
    problems: list[BaseException] = []

    def act() -> None:
        try:
            action()
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    assert problems == []


def test_masks_are_those_of_predict(
    cluster: Any, task: int, volumes: Path, predicted: Callable[[int], dict[str, bytes]], tmp_path: Path
) -> None:
    assert run_cohort(str(volumes), job_of(tmp_path, task), on(cluster)) == []
    assert masks_in(tmp_path / CASES) == predicted(task)
    rows = read_rows(str(tmp_path))
    assert {(row.status, row.tries) for row in rows.values()} == {("done", 1)}
    assert len(rows) == CASES_OF_A_RUN


def ray_processes(name: str) -> list[int]:
    """Return the processes of Ray that work on a case; they are called by its name."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cmdline").read_bytes().startswith(f"ray::{name}".encode()):
                found.append(int(process.name))
    return found


@pytest.mark.fault(
    "cohorts",
    "a case's worker is killed twice, as where memory is short; a volume is damaged",
    "both recorded with the reason, all other cases done",
)
def test_a_case_that_kills_its_worker_takes_no_others_with_it(
    cluster: Any, volumes: Path, predicted: Callable[[int], dict[str, bytes]], tmp_path: Path
) -> None:
    source = tmp_path / "in"
    shutil.copytree(volumes, source)
    big = Volume(np.tile(np.arange(200.0, dtype=np.float32), (60, 200, 1)), Grid((60, 200, 200), (3.0, 1.0, 1.0)))
    write_volume(big, source / f"{POISON}.mha")
    damaged = source / "damaged.mha"
    damaged.write_bytes((source / "case00.mha").read_bytes()[:-1000])
    # What an earlier run made of another volume of this name.
    shutil.copy(volumes / "case00.mha", tmp_path / f"{POISON}.mha")
    run_batch(tmp_path / f"{POISON}.mha", tmp_path / "out" / CASES, Session(fast_recipe(1), DEMO_WEIGHTS, device="cpu"))
    killed: list[int] = []

    def kill() -> None:
        while len(killed) < 2:
            wait_for(lambda: set(ray_processes(POISON)) - set(killed))
            for process in set(ray_processes(POISON)) - set(killed):
                os.kill(process, signal.SIGKILL)
                killed.append(process)

    with meanwhile(kill):
        failed = run_cohort(str(source), job_of(tmp_path / "out"), on(cluster))
    assert [row.case for row in failed] == ["damaged", POISON]
    assert failed[1].tries == 2
    assert failed[1].error.startswith(
        f"{source / POISON}.mha: its worker was lost twice, the second time without other"
    )
    assert failed[0].error.startswith(f"{damaged}: ")
    assert masks_in(tmp_path / "out" / CASES) == predicted(1)
    assert set(reports(tmp_path / "out")) == {f"case{number:02d}" for number in range(CASES_OF_A_RUN)}


@pytest.mark.fault("cohorts", "a node of the cluster is lost in the middle of a run", "every case done once")
def test_a_node_is_lost(
    cluster: Any, volumes: Path, predicted: Callable[[int], dict[str, bytes]], tmp_path: Path
) -> None:
    node = add_node(cluster)

    def lose() -> None:
        wait_for(lambda: len(reports(tmp_path)) > 3)
        cluster.remove_node(node, allow_graceful=False)

    with meanwhile(lose):
        assert run_cohort(str(volumes), job_of(tmp_path), on(cluster)) == []
    assert masks_in(tmp_path / CASES) == predicted(1)
    assert len(read_rows(str(tmp_path))) == CASES_OF_A_RUN


@pytest.mark.fault(
    "cohorts", "the command is killed in a run on Ray, and started again", "no case lost, and none done twice"
)
def test_the_command_is_killed(cluster: Any, tmp_path: Path) -> None:
    # So many that some are left when the command is killed, even where that comes late.
    volumes = write_volumes(tmp_path / "in", 4 * CASES_OF_A_RUN)
    kill_and_start_again(volumes, tmp_path, "--address", cluster.address)


def copied_package(folder: Path) -> Path:
    """Copy the package with its recipes and demo models, as another machine would have it."""
    shutil.copytree(PACKAGE, folder / "common" / "pantherseg", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Task1", "weights"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


def other_version(folder: Path) -> None:
    path = folder / "common" / "pantherseg" / "__init__.py"
    path.write_text(path.read_text().replace(__version__, "9.9.9"))


def other_weights(folder: Path) -> None:
    path = folder / "weights" / "demo" / "task1" / "manifest.json"
    content = json.loads(path.read_text())
    content["sha256"]["fold_0.safetensors"] = "0" * 64
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "must"),
    [(other_version, f"expected pantherseg {__version__}, as here, found 9.9.9"), (other_weights, "expected models ")],
)
@pytest.mark.fault("cohorts", "a machine of the cluster has {change}", "an error, before any case runs")
def test_refuses_workers_that_are_unlike(
    cluster: Any, volumes: Path, tmp_path: Path, change: Callable[[Path], None], must: str
) -> None:
    copy = copied_package(tmp_path / "other")
    change(copy)
    node = add_node(cluster, env_vars={"PYTHONPATH": f"{copy / 'common'}"})
    try:
        with pytest.raises(PantherSegError, match=must) as error:
            run_cohort(str(volumes), job_of(tmp_path / "out"), on(cluster))
        assert str(error.value).startswith("worker on ")
        assert len(str(error.value).splitlines()) == 1
        assert reports(tmp_path / "out") == {}
    finally:
        cluster.remove_node(node, allow_graceful=False)


@pytest.mark.fault("cohorts", "no machine has what a worker is to get", "an error, before any case runs")
def test_refuses_more_than_a_machine_has(cluster: Any, volumes: Path, tmp_path: Path) -> None:
    with pytest.raises(PantherSegError, match="expected a machine with 1000 CPUs"):
        run_cohort(str(volumes), job_of(tmp_path), on(cluster, cpus=1000))


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "nonsense"])
@pytest.mark.fault("cohorts", "no cluster answers at {address}", "an error within seconds, before any case runs")
def test_refuses_an_address_where_no_cluster_answers(volumes: Path, tmp_path: Path, address: str) -> None:
    address = address.format(port=free_port())
    with pytest.raises(
        PantherSegError, match="expected the address of a Ray cluster, found none that answers"
    ) as error:
        run_cohort(str(volumes), job_of(tmp_path), Cluster(address))
    assert str(error.value).startswith(f"--address {address}: ")


@pytest.mark.fault(
    "cohorts", "the disk is full in the middle of a run", "an error; later, no case is lost and none is done twice"
)
def test_a_full_disk(
    cluster: Any, volumes: Path, predicted: Callable[[int], dict[str, bytes]], small_disk: SmallDisk
) -> None:
    disk = small_disk(80_000)
    with suppress(OutputError):  # of the table, unless that finds room
        assert run_cohort(str(volumes), job_of(disk), on(cluster))
    before = reports(disk)
    assert 0 < len(before) < CASES_OF_A_RUN
    small_disk(10_000_000)
    assert run_cohort(str(volumes), job_of(disk), on(cluster)) == []
    after = reports(disk)
    assert {name: after[name] for name in before} == before
    assert masks_in(disk / CASES) == predicted(1)


def free_port() -> int:
    with socket.socket() as given:
        given.bind(("127.0.0.1", 0))
        port: int = given.getsockname()[1]
        return port


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of an S3 server on this machine."""
    if not machine.has_python():
        pytest.skip("no Python 3.12, for which moto is installed")
    port = free_port()
    process = subprocess.Popen(
        [machine.runner(), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    settings = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    settings |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    try:
        wait_for(lambda: is_open(port))
        from pyarrow.fs import FileSystem

        name = f"cohort-{port}"  # a client is kept for each bucket
        FileSystem.from_uri(f"s3://{name}?allow_bucket_creation=true")[0].create_dir(name)
        yield f"s3://{name}"
    finally:
        process.terminate()
        process.wait()


def is_open(port: int) -> bool:
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False


def test_from_s3_to_s3(
    cluster: Any, bucket: str, volumes: Path, predicted: Callable[[int], dict[str, bytes]], tmp_path: Path
) -> None:
    """Workers of a node that was started with the settings of the store read and write there."""
    names = sorted(path.name for path in volumes.iterdir())[:4]
    for name in names:
        write_bytes(f"{bucket}/in/{name}", (volumes / name).read_bytes())
    job, crew = job_of(f"{bucket}/out"), on(cluster, workers=1, cpus=2)
    node = add_node(cluster, num_cpus=2)
    try:
        assert run_cohort(f"{bucket}/in", job, crew) == []
        rows = read_rows(job.output)
        masks = {name: read_bytes(join(job.output, f"{CASES}/{name}")) for name in names}
        assert masks == {name: predicted(1)[name] for name in names}
        write_bytes(f"{bucket}/in/{names[0]}", (volumes / names[1]).read_bytes())
        assert run_cohort(f"{bucket}/i*/*.mha", job, crew) == []
    finally:
        cluster.remove_node(node, allow_graceful=False)
    changed = {name for name, row in read_rows(job.output).items() if row != rows[name]}
    assert changed == {names[0].removesuffix(".mha")}
    assert read_bytes(join(job.output, f"{CASES}/{names[0]}")) == predicted(1)[names[1]]


@pytest.mark.fault("cohorts", "an object of a store is damaged or cannot be read", "recorded, all other cases done")
def test_a_damaged_object_of_a_store_is_recorded(bucket: str, volumes: Path, tmp_path: Path) -> None:
    job = job_of(f"{bucket}/out")
    content = (volumes / "case00.mha").read_bytes()
    write_bytes(f"{bucket}/in/good.mha", content)
    write_bytes(f"{bucket}/in/bad.mha", content)
    assert run_cohort(f"{bucket}/in", job) == []
    write_bytes(f"{bucket}/in/bad.mha", content[:100])
    failed = run_cohort(f"{bucket}/in", job)
    assert [row.case for row in failed] == ["bad"]
    # Nobody may take what was made of another volume for the result of this one.
    assert [exists(join(job.output, f"{CASES}/bad{suffix}")) for suffix in (".mha", ".json")] == [False, False]
    assert exists(join(job.output, f"{CASES}/good.json"))


@pytest.mark.fault("cohorts", "the bucket does not exist, or its package is not installed", "an error that names it")
def test_names_a_store_that_cannot_be_used(bucket: str, volumes: Path) -> None:
    for source in ("s3://other-bucket/in", "s3://other-bucket/in.csv", "nostore://bucket/in", "gs://bucket/in"):
        with pytest.raises(PantherSegError) as error:
            run_cohort(source, job_of(f"{bucket}/out"))
        one_line_about(source, error.value)
    with pytest.raises(PantherSegError) as error:
        run_cohort(str(volumes), job_of("s3://other-bucket/out"))
    assert "s3://other-bucket/out" in str(error.value)
