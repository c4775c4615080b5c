"""The first process of a run's namespaces: a local S3, the image's file system, and the platform's runner in it.

    python -I inside.py run.json

It runs in the runner's environment and does not import pantherseg. Its mounts disappear with its namespaces.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import sagemaker_shim.cli
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

BUCKET, MODEL_KEY, INVOCATION_KEY = "platform", "model.tar.gz", "invocation.json"
# Where the platform puts its runner in an image.
RUNNER = Path("/sagemaker-shim")
START = f"import sys; sys.path.append('{RUNNER}/packages'); from sagemaker_shim.cli import cli; cli(prog_name='shim')"
SIOCSIFFLAGS, IFF_UP = 0x8914, 1  # linux/sockios.h, linux/if.h
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
GRACE_S = 2.0


def main(settings: dict[str, Any]) -> None:
    """Run the invocations with the settings of `invocation.py`, and write results and logs to its folder."""
    os.umask(0o022)
    results = Path(settings["results"])
    loopback_up()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    client = boto3.client("s3", endpoint_url=address)
    upload(client, settings)
    root = mount_image(Path(settings["mount_point"]), settings["layers"])
    command = mount_runner(root)
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    environment = settings["environment"] | {name: os.environ[name] for name in names}
    environment["AWS_S3_ENDPOINT_URL"] = address
    if settings["model"] is not None:
        environment["GRAND_CHALLENGE_COMPONENT_MODEL"] = f"s3://{BUCKET}/{MODEL_KEY}"
    entry = [shutil.which("unshare") or "unshare", "--root", str(root), "--wd", settings["folder"]]
    invoke = ["invoke", "--file", f"s3://{BUCKET}/{INVOCATION_KEY}"]
    with (results / "stdout").open("wb") as out, (results / "stderr").open("wb") as err:
        status = subprocess.run([*entry, *command, *invoke], env=environment, stdout=out, stderr=err, check=False)
    outcome = {"exit_code": status.returncode, "survivors": survivors(), "metadata": download(client, results)}
    (results / "outcome.json").write_text(json.dumps(outcome))


def loopback_up() -> None:
    """Start the loopback network, which is down in a new namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def upload(client: Any, settings: dict[str, Any]) -> None:
    """Upload the inputs, the model and the description of the invocations to the bucket that the runner reads."""
    client.create_bucket(Bucket=BUCKET)
    for task in settings["tasks"]:
        for source in task["inputs"]:
            client.upload_file(source.pop("path"), BUCKET, source["bucket_key"])
    if settings["model"] is not None:
        client.upload_file(settings["model"], BUCKET, MODEL_KEY)
    client.put_object(Bucket=BUCKET, Key=INVOCATION_KEY, Body=json.dumps(settings["tasks"]).encode())


def download(client: Any, results: Path) -> dict[str, dict[str, str]]:
    """Write everything in the bucket to `objects` and return the metadata of each."""
    metadata = {}
    for entry in client.list_objects_v2(Bucket=BUCKET)["Contents"]:
        found = client.get_object(Bucket=BUCKET, Key=entry["Key"])
        path = results / "objects" / entry["Key"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(found["Body"].read())
        metadata[entry["Key"]] = found["Metadata"]
    return metadata


def mount(*arguments: str | Path) -> None:
    """Run `mount` in this namespace."""
    subprocess.run(["mount", *map(str, arguments)], check=True)


def mount_image(folder: Path, layers: list[str]) -> Path:
    """Mount the image's file system as on the platform and return its root; written files stay in memory."""
    mount("-t", "tmpfs", "none", folder)
    root, upper, work = folder / "root", folder / "upper", folder / "work"
    for path in (root, upper, work):
        path.mkdir()
    mount("-t", "overlay", "-o", f"lowerdir={':'.join(layers)},upperdir={upper},workdir={work}", "none", root)
    for name, mode in (("input", 0o755), ("output", 0o777)):
        (root / name).mkdir(exist_ok=True)
        (root / name).chmod(mode)
    for name, mode in (("tmp", 0o777), ("opt/ml", 0o755)):
        fresh = folder / name.replace("/", "-")
        fresh.mkdir()
        fresh.chmod(mode)
        (root / name).mkdir(parents=True, exist_ok=True)
        mount("--bind", fresh, root / name)
    for name in ("proc", "sys", "dev"):
        (root / name).mkdir(exist_ok=True)
    mount("-t", "proc", "none", root / "proc")
    mount("-t", "sysfs", "-o", "ro", "none", root / "sys")
    mount("-t", "tmpfs", "-o", "mode=755", "none", root / "dev")
    for name in DEVICES:
        (root / "dev" / name).touch()
        mount("--bind", f"/dev/{name}", root / "dev" / name)
    (root / "dev" / "shm").mkdir()
    mount("-t", "tmpfs", "-o", "size=50%,mode=1777", "none", root / "dev" / "shm")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        (root / "dev" / name).symlink_to(f"/proc/self/fd/{number}")
    (root / "dev" / "fd").symlink_to("/proc/self/fd")
    return root


def mount_runner(root: Path) -> list[str]:
    """Mount this Python, its packages and libraries in the image, and return the command that starts the runner there.

    The platform's runner is a single file with its own Python. The libraries are named to the loader, not in the
    environment, because the runner passes its environment on to the image.
    """
    target = root / RUNNER.relative_to("/")
    packages = Path(sagemaker_shim.cli.__file__).parents[1]
    base = Path(sys.base_prefix)
    mapped = {Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line}
    outside = {path for path in mapped if not path.is_relative_to(packages) and path.parent.name != "lib-dynload"}
    libraries = {folder: f"lib{number}" for number, folder in enumerate(sorted({path.parent for path in outside}))}
    loader = next(path for path in outside if path.name.startswith("ld-"))
    for source, name in {base: "python", packages: "packages", **libraries}.items():
        (target / name).mkdir(parents=True)
        mount("--bind", "-o", "ro", source, target / name)
    python = Path(sys.executable).resolve().relative_to(base)
    paths = ":".join(str(RUNNER / name) for name in libraries.values())
    start = [RUNNER / libraries[loader.parent] / loader.name, "--library-path", paths, RUNNER / "python" / python]
    return [*map(str, start), "-I", "-c", START]


def survivors() -> list[str]:
    """Return the command lines of processes that outlive the runner; they become children of this process."""
    until = time.monotonic() + GRACE_S
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return []
        if time.monotonic() > until:
            others = (path for path in Path("/proc").glob("[0-9]*") if path.name != str(os.getpid()))
            return [(path / "cmdline").read_text().replace("\0", " ") for path in others]
        time.sleep(0.05)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
    # The server's thread may still be waiting for a connection to be closed.
    os._exit(0)
