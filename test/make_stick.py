"""Writes what a scanner's exports might hold, for docs/clinic.md.

Run as `python test/make_stick.py`: phantoms of one patient as two series in `usb/export`, and in `stick/study` a study
of many series that are too small to be segmented.
"""

from pathlib import Path

import numpy as np

from dicom_files import STUDY, write_slices, write_study
from pantherseg.phantom import make_phantom
from pantherseg.volume import Volume

# By the name of a folder: the task, the seed, and what an operator writes.
SERIES = {
    "T1": (1, 5001, {"SeriesNumber": 3, "SeriesDescription": "t1_vibe_fs_tra arterial"}),
    "T2": (2, 5004, {"SeriesNumber": 5, "SeriesDescription": "t2_haste_tra", "ScanningSequence": "SE", "EchoTime": 90}),
}


def main() -> None:
    for name, (task, seed, tags) in SERIES.items():
        image = make_phantom(seed, task=task, size="small").image
        stored = Volume(image.array.round().astype(np.uint16), image.grid)
        uids = {"StudyInstanceUID": "2.25.5000", "SeriesInstanceUID": f"2.25.5000.{tags['SeriesNumber']}"}
        patient = {"PatientName": "Phantom^Petra", "PatientID": "P5000", "FrameOfReferenceUID": "2.25.5000.1"}
        write_slices(stored, Path("usb/export", name), SliceThickness=image.grid.spacing[0], **uids, **patient, **tags)
    write_study(Path("stick/study"), STUDY)


if __name__ == "__main__":
    main()
