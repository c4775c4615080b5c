"""What all DICOM objects of a case have in common: whose they are, what made them, when, and their UIDs."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from functools import cached_property
from typing import Any

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID
from pydicom.valuerep import DA, TM

from pantherseg import __version__
from pantherseg.dicom_results.headers import Headers, headers_of
from pantherseg.io.dicom.source import DicomSource
from pantherseg.labels import PANCREAS_NAME, TUMOUR_NAME
from pantherseg.results import SCHEMA, CaseReport, Confidence, DicomOptions, VoxelBox
from pantherseg.volume import Grid, Volume

NOT_CLINICAL = "not for clinical use"
MANUFACTURER = "pantherseg"
# DICOM asks for a serial number of what makes a segmentation, which software does not have.
NO_SERIAL_NUMBER = "none"
# Where a date is required and must not say when anything was done.
NO_DATE, NO_TIME = date(1900, 1, 1), time(0)
# Most characters of DICOM's value representations.
SHORT_STRING, LONG_STRING, SHORT_TEXT = 16, 64, 1024

# SNOMED CT and DICOM codes as in DICOM PS3.16, context groups 7150, 7151 (categories), 7155, 7159 and 9514 (types).
TUMOUR_CATEGORY, TUMOUR_TYPE = codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Neoplasm
PANCREAS_CATEGORY, PANCREAS_TYPE = codes.SCT.AnatomicalStructure, codes.SCT.Pancreas
# PS3.16, context group 7050: what was done to remove the patient's identity. The code of the option is not in pydicom.
DEIDENTIFICATION = (
    codes.DCM.BasicApplicationConfidentialityProfile,
    Code("113110", "DCM", "Retain UIDs Option"),
)


@dataclass(frozen=True)
class Found:
    """What was found in a volume, all (z, y, x) on its grid.

    tumour: uint8, 1 where it is; pancreas: the same without the tumour, None where the models do not mark it;
    probability: of the tumour before post-processing, 0 to 1, None where it was not kept.
    """

    tumour: Volume
    pancreas: Volume | None = None
    probability: Volume | None = None

    @property
    def masks(self) -> dict[str, Volume]:
        """The masks by their names."""
        pancreas = {} if self.pancreas is None else {PANCREAS_NAME: self.pancreas}
        return {TUMOUR_NAME: self.tumour, **pancreas}


@dataclass(frozen=True)
class Making:
    """A case whose objects are made. source: the series; report: of the case, with its fingerprint."""

    source: DicomSource
    grid: Grid
    report: CaseReport
    options: DicomOptions = field(default_factory=DicomOptions)

    @cached_property
    def headers(self) -> Headers:
        """The headers of the series that the objects refer to."""
        return headers_of(self.source, self.grid, anonymous=self.options.anonymous)

    @cached_property
    def moment(self) -> tuple[date, time]:
        """When the objects were made: the study's date and time where the objects of each run must be the same."""
        if self.options.anonymous:
            return NO_DATE, NO_TIME
        if not self.options.stable_uids:
            now = datetime.now(UTC).astimezone()
            return now.date(), now.time().replace(microsecond=0)
        study = self.headers.first
        return DA(study.StudyDate) or NO_DATE, TM(study.StudyTime) or NO_TIME

    def uid(self, what: str) -> UID:
        """Return a new UID, or the one that `what` of this very case always gets, where that was asked for.

        It is derived from a UUID, as PS3.5, B.2 allows.
        """
        if not self.options.stable_uids:
            return UID(f"2.25.{uuid.uuid4().int}")
        made = (self.source.series_uid, self.report.pantherseg, str(self.report.fingerprint), what)
        case = hashlib.sha256("\0".join(made).encode()).hexdigest()
        return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, case).int}")

    def identification(self, kind: str, series_number: int) -> dict[str, Any]:
        """Return the arguments by which an object names itself, its series and its maker."""
        return {
            "series_instance_uid": self.uid(f"series {kind}"),
            "sop_instance_uid": self.uid(f"instance {kind}"),
            "series_number": series_number,
            "instance_number": 1,
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": self.report.recipe[:LONG_STRING],
            "software_versions": self.report.pantherseg[:LONG_STRING],
            "device_serial_number": NO_SERIAL_NUMBER,
            "series_description": f"{kind}, {NOT_CLINICAL}",
            "content_qualification": "RESEARCH",
        }

    @property
    def algorithm(self) -> AlgorithmIdentificationSequence:
        """The recipe, the version, and the SHA-256 of the weights of each fold that took part."""
        weights = {
            f"{model.name or model.role} fold {fold}": sha256
            for model in self.report.models
            for fold, sha256 in model.sha256.items()
        }
        return AlgorithmIdentificationSequence(
            name=f"{MANUFACTURER} {self.report.recipe}"[:LONG_STRING],
            family=codes.DCM.ArtificialIntelligence,
            version=self.report.pantherseg[:LONG_STRING],
            parameters={"sha256 of weights": "as follows", **weights},
        )

    def finish(self, made: Dataset) -> Dataset:
        """Return an object with its dates, and with what was done to remove the patient's identity."""
        day, moment = self.moment
        made.InstanceCreationDate, made.InstanceCreationTime = DA(day), TM(moment)
        for keyword, value in (("ContentDate", DA(day)), ("ContentTime", TM(moment))):
            if keyword in made:
                setattr(made, keyword, value)
        for equipment in made.get("ContributingEquipmentSequence", []):
            equipment.pop("ContributionDateTime", None)  # highdicom says that the scanner contributed just now
        if self.options.anonymous:
            del made.InstanceCreationDate, made.InstanceCreationTime
            made.PatientIdentityRemoved = "YES"
            made.DeidentificationMethodCodeSequence = [as_item(code) for code in DEIDENTIFICATION]
            made.LongitudinalTemporalInformationModified = "REMOVED"
        return made


def nothing_found(source: DicomSource, grid: Grid, options: DicomOptions, recipe: str) -> tuple[Found, Making]:
    """Return a case before its volume was segmented, with empty masks."""
    report = CaseReport(
        schema=SCHEMA,
        input="",
        mask="",
        pantherseg=__version__,
        not_for_clinical_use=True,
        recipe=recipe,
        device="",
        precision="",
        models=(),
        tumour_ml=0,
        confidence=Confidence(pairwise_dice=None, mean_entropy=None, fold_volumes_ml=(), expected_dice=None),
        box=VoxelBox(start_zyx=(0, 0, 0), stop_zyx=grid.shape),
        pancreas=None,
        events=(),
        peak_memory_mb=0,
        seconds={},
    )
    empty = Volume(np.zeros(grid.shape, np.uint8), grid)
    return Found(empty, empty, empty), Making(source, grid, report, options)


def as_item(code: Code) -> Dataset:
    """Return a code as an item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def stated(name: str, mask: Volume) -> str:
    """Return what is said about a mask, so that an empty one is an answer."""
    voxels = int(mask.array.sum())
    if not voxels:
        return f"no {name} was found; {NOT_CLINICAL}"
    return f"{voxels * mask.grid.voxel_mm3 / 1000:.3f} ml of {name}; {NOT_CLINICAL}"
