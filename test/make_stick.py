"""Writes what a scanner's export might hold, for docs/clinic.md: phantoms of one patient as two series of a study.

Run as `python test/make_stick.py FOLDER`.
"""

import sys
from pathlib import Path

import numpy as np

from dicom_files import write_slices
from pantherseg.phantom import make_phantom
from pantherseg.volume import Volume

# By the name of a folder: the task, the seed, and what an operator writes.
SERIES = {
    "T1": (1, 5001, {"SeriesNumber": 3, "SeriesDescription": "t1_vibe_fs_tra arterial"}),
    "T2": (2, 5004, {"SeriesNumber": 5, "SeriesDescription": "t2_haste_tra", "ScanningSequence": "SE", "EchoTime": 90}),
}


def main(folder: Path) -> None:
    for name, (task, seed, tags) in SERIES.items():
        image = make_phantom(seed, task=task, size="small").image
        stored = Volume(image.array.round().astype(np.uint16), image.grid)
        uids = {"StudyInstanceUID": "2.25.5000", "SeriesInstanceUID": f"2.25.5000.{tags['SeriesNumber']}"}
        patient = {"PatientName": "Phantom^Petra", "PatientID": "P5000", "FrameOfReferenceUID": "2.25.5000.1"}
        write_slices(stored, folder / name, SliceThickness=image.grid.spacing[0], **uids, **patient, **tags)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
