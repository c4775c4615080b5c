"""The files that start a cohort on Slurm and Kubernetes, and the table that the page describes."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from locks import locked
from pantherseg.cli import main as pantherseg
from pantherseg.cohort.table import Row
from pantherseg.paths import ROOT

DOCS = ROOT / "docs"
SLURM, KUBERAY = DOCS / "cohort" / "slurm.sh", DOCS / "cohort" / "kuberay.yaml"
# What a Slurm job has, and what the programs that the script calls would do there.
JOB = {
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_ID": "123456",
    "SLURM_CPUS_PER_TASK": "16",
}
PROGRAMS = {"scontrol": "printf 'n1\\nn2\\n'", "srun": 'printf "%s\\n" "$@"'}


def test_every_column_of_the_table_is_described() -> None:
    page = (DOCS / "cohort.md").read_text()
    assert [name for name in Row.__struct_fields__ if f"`{name}`" not in page] == []


def test_the_slurm_script_passes_shellcheck() -> None:
    if (shellcheck := shutil.which("shellcheck")) is None:
        pytest.skip("no shellcheck")
    result = subprocess.run([shellcheck, SLURM], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def test_the_slurm_script_starts_ray_with_what_the_job_has(tmp_path: Path) -> None:
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = JOB | {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    command = ["bash", str(SLURM), "cases.csv", "out put", "--task", "1"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    arguments = result.stdout.splitlines()
    assert arguments[2:4] == ["ray", "symmetric-run"]
    assert arguments[4:6] == ["--address", "n1:23456"]
    options = dict(zip(arguments[4:14:2], arguments[5:14:2], strict=True))
    assert options["--num-cpus"] == "16"
    assert options["--num-gpus"] == "0"
    assert options["--min-nodes"] == "2"
    check_options(arguments[arguments.index("--") + 1 :])
    assert arguments[-6:] == ["cases.csv", "out put", "--task", "1", "--address", "n1:23456"]


def test_the_manifest_for_kubernetes_is_a_ray_job() -> None:
    """https://ray-project.github.io/kuberay/reference/api, `RayJobSpec` and what it contains."""
    job = yaml.safe_load(KUBERAY.read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["metadata"].keys() == {"name"}
    spec = job["spec"]
    assert spec.keys() == {
        *("entrypoint", "entrypointNumCpus", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit"),
        "rayClusterSpec",
    }
    check_options(shlex.split(spec["entrypoint"]))
    cluster = spec["rayClusterSpec"]
    assert cluster.keys() == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    versions = {package.name: package.version for package in locked(ROOT / "requirements.lock")}
    assert cluster["rayVersion"] == versions["ray"]
    (workers,) = cluster["workerGroupSpecs"]
    assert workers.keys() == {
        *("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    }
    assert workers["minReplicas"] == workers["replicas"] == workers["maxReplicas"]
    assert f"--workers {workers['replicas']}" in spec["entrypoint"]
    for group in (cluster["headGroupSpec"], workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())  # or KubeRay refuses them
        check_container(group["template"])
    worker = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert f"--cpus {worker['cpu']}" in spec["entrypoint"]


def check_container(template: dict[str, Any]) -> None:
    """Check that a pod has one container, which gets what it asks for: Ray counts its limits."""
    (container,) = template["spec"]["containers"]
    assert container.keys() == {"name", "image", "envFrom", "resources"}
    assert container["resources"]["requests"] == container["resources"]["limits"]


def check_options(command: list[str]) -> None:
    """Check that `pantherseg cohort run` takes the options of a command."""
    assert command[:3] == ["pantherseg", "cohort", "run"]
    text = CliRunner().invoke(pantherseg, ["cohort", "run", "--help"]).output
    assert [option for option in command if option.startswith("--") and option not in text] == []
