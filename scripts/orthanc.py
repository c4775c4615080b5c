"""Starts Orthanc on this machine, and answers each MR series that it receives with a DICOM segmentation.

    python scripts/orthanc.py FOLDER -- --task 1

FOLDER gets Orthanc's data and, for each series, what `pantherseg predict` wrote; what follows `--` are its options.
Orthanc keeps the answers beside the series, where every viewer finds them. Debian's package `orthanc` suffices; only
Orthanc's REST interface on this machine is used. Not for clinical use.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ANSWERED = "answered.txt"
POLL_S, START_S = 1, 60


class Orthanc:
    """Orthanc's REST interface on this machine."""

    def __init__(self, port: int) -> None:
        self._address = f"http://localhost:{port}"

    def get(self, path: str) -> Any:
        """Return the answer to a path, as JSON."""
        return json.loads(self.download(path))

    def download(self, path: str) -> bytes:
        """Return the bytes of a path."""
        with urllib.request.urlopen(f"{self._address}{path}", timeout=600) as answer:
            return bytes(answer.read())

    def store(self, path: Path) -> None:
        """Store a DICOM file."""
        request = urllib.request.Request(f"{self._address}/instances", data=path.read_bytes(), method="POST")
        with urllib.request.urlopen(request, timeout=600):
            pass

    def stable_series(self, since: int) -> tuple[list[str], int]:
        """Return the series that are complete since a change, by their numbers in Orthanc, and the last change."""
        changes = self.get(f"/changes?since={since}&limit=100")
        return [one["ID"] for one in changes["Changes"] if one["ChangeType"] == "StableSeries"], changes["Last"]


def main() -> None:
    """Start Orthanc and answer until this is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--title", default="ORTHANC", help="application entity title")
    parser.add_argument("--dicom-port", type=int, default=4242)
    parser.add_argument("--http-port", type=int, default=8042)
    parser.add_argument(
        "--stable-age", type=int, default=60, help="seconds without new images after which a series is complete"
    )
    parser.add_argument(
        "--viewer",
        action="append",
        default=[],
        metavar="AET@HOST:PORT",
        help="a viewer or an archive that may query and retrieve; Orthanc answers no others (may be repeated)",
    )
    # argparse takes a list in front of options for an empty one, so what follows `--` is cut off before.
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given, options = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that Orthanc is ended, too
    orthanc = Orthanc(given.http_port)
    with started(given):
        wait_for(orthanc)
        say(f"Orthanc listens as {given.title} on port {given.dicom_port}, http://localhost:{given.http_port}")
        try:
            answer_all(orthanc, given.folder, options)
        except KeyboardInterrupt:
            say("ended")


@contextmanager
def started(given: argparse.Namespace) -> Iterator[None]:
    """Run Orthanc within the block. Only this machine may use its REST interface, every machine may send images."""
    program = shutil.which("Orthanc")
    if program is None:
        sys.exit("error: Orthanc: expected the program on the path, found none; apt-get install orthanc")
    viewers = [re.fullmatch(r"([^@]{1,16})@([^:]+):(\d+)", viewer) for viewer in given.viewer]
    if None in viewers:
        sys.exit(f"error: --viewer: expected AET@host:port, found {', '.join(given.viewer)}")
    data = (given.folder / "orthanc").absolute()
    data.mkdir(parents=True, exist_ok=True)
    settings = {
        "Name": "pantherseg, not for clinical use",
        "DicomAet": given.title,
        "DicomPort": given.dicom_port,
        "HttpPort": given.http_port,
        "RemoteAccessAllowed": False,
        "DicomModalities": {f"viewer{k}": [one[1], one[2], int(one[3])] for k, one in enumerate(viewers) if one},
        "StableAge": given.stable_age,
        "StorageDirectory": str(data),
        "IndexDirectory": str(data),
    }
    configuration = data / "configuration.json"
    configuration.write_text(json.dumps(settings, indent=2))
    log = (data / "orthanc.log").open("w")
    process = subprocess.Popen([program, str(configuration)], stdout=log, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        process.terminate()
        process.wait()
        log.close()


def wait_for(orthanc: Orthanc) -> None:
    """Wait until Orthanc answers."""
    for _ in range(START_S):
        try:
            orthanc.get("/system")
        except OSError:
            time.sleep(1)
        else:
            return
    sys.exit(
        f"error: Orthanc: expected an answer within {START_S} s, found none; see orthanc/orthanc.log in the folder"
    )


def answer_all(orthanc: Orthanc, folder: Path, options: list[str]) -> None:
    """Answer each series once it is complete, one after the other."""
    last = 0
    while True:
        series, now = orthanc.stable_series(last)
        for one in series:
            answer(orthanc, one, folder, options)
        if now == last:
            time.sleep(POLL_S)
        last = now


def answer(orthanc: Orthanc, series: str, folder: Path, options: list[str]) -> None:
    """Segment a series of MR images and store the segmentation in Orthanc, once; say what went wrong and go on."""
    answered = folder / ANSWERED
    if answered.exists() and series in answered.read_text().split():
        return
    try:
        if orthanc.get(f"/series/{series}")["MainDicomTags"].get("Modality") != "MR":
            return  # such as the segmentations that are stored here
        # Orthanc's other archives have folders that are called by the patient's name.
        source = folder / "series" / f"{series}.zip"
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_bytes(orthanc.download(f"/series/{series}/media"))
        output = folder / "results" / series
        formats = [] if "--output-format" in options else ["--output-format", "dcmseg"]
        command = [sys.executable, "-m", "pantherseg", "predict", str(source), str(output), *formats, *options]
        done = subprocess.run(command, check=False)
        source.unlink()
        made = sorted(output.glob("*.dcm")) if done.returncode == 0 else []
        for path in made:
            orthanc.store(path)
    except OSError as error:
        say(f"series {series}: {error}")
        return
    with answered.open("a") as file:
        file.write(f"{series}\n")
    say(f"series {series}: {f'{len(made)} objects stored' if made else 'failed, see above'}")


def say(text: str) -> None:
    """Print a line at once, for logs."""
    print(text, flush=True)


if __name__ == "__main__":
    main()
