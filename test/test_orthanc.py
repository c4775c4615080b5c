"""Orthanc answers a series that it receives: scripts/orthanc.py with Orthanc itself, C-STORE and C-FIND."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]

from dicom_files import MARK, marked_series
from pantherseg.paths import ROOT, task_recipe
from pantherseg.phantom import make_phantom
from pantherseg.volume import Volume

WAIT_S = 300


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def send(folder: Path, port: int) -> None:
    entity = AE()
    entity.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
    association = entity.associate("127.0.0.1", port, ae_title="ORTHANC")
    assert association.is_established
    for path in sorted(folder.iterdir()):
        assert association.send_c_store(path).Status == 0
    association.release()


def found_series(port: int, study: str) -> dict[str, str]:
    """Return the modalities of a study's series by their UIDs, as a viewer asks for them."""
    query = Dataset()
    query.QueryRetrieveLevel, query.StudyInstanceUID, query.SeriesInstanceUID, query.Modality = "SERIES", study, "", ""
    entity = AE("VIEWER")
    entity.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
    association = entity.associate("127.0.0.1", port, ae_title="ORTHANC")
    assert association.is_established
    answers = list(association.send_c_find(query, StudyRootQueryRetrieveInformationModelFind))
    association.release()
    return {one.SeriesInstanceUID: one.Modality for _, one in answers if one is not None}


@pytest.mark.slow
def test_a_received_series_is_answered_with_a_segmentation(tmp_path: Path) -> None:
    if shutil.which("Orthanc") is None:
        pytest.skip("Orthanc is not installed (Debian's package orthanc)")
    image = make_phantom(5001, task=1, size="small").image
    volume = Volume(np.clip(image.array, 0, 4095).astype(np.uint16), image.grid)
    header = marked_series(tmp_path / "scan", volume).datasets[0]
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(task_recipe(1).read_text().replace('folds = "all"', "folds = [0]"))
    dicom_port, http_port = free_port(), free_port()
    ports = ["--dicom-port", str(dicom_port), "--http-port", str(http_port), "--stable-age", "1"]
    ports += ["--viewer", "VIEWER@localhost:11112"]
    predict = ["--", "--recipe", str(recipe), "--device", "cpu"]
    command = [sys.executable, str(ROOT / "scripts" / "orthanc.py"), str(tmp_path / "clinic"), *ports, *predict]
    log = tmp_path / "log.txt"
    with log.open("w") as file:
        started = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=tmp_path, env=os.environ)
    try:
        wait_until(lambda: "Orthanc listens" in log.read_text(), started)
        send(tmp_path / "scan", dicom_port)
        wait_until(lambda: "SEG" in found_series(dicom_port, header.StudyInstanceUID).values(), started)
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait(60)
    assert MARK not in log.read_text()
    (path,) = (tmp_path / "clinic" / "results").rglob("*.seg.dcm")
    seg = pydicom.dcmread(path)
    assert (seg.PatientID, seg.StudyInstanceUID) == (header.PatientID, header.StudyInstanceUID)
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == header.SeriesInstanceUID
    assert seg.pixel_array.any()
    with socket.socket() as tried:  # Orthanc has ended with the script
        assert tried.connect_ex(("127.0.0.1", http_port)) != 0


def wait_until(happened: Callable[[], bool], started: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + WAIT_S
    while not happened():
        assert started.poll() is None, "the script has ended"
        assert time.monotonic() < end, "it takes too long"
        time.sleep(1)
