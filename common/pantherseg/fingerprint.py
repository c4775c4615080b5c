"""What a case was made from, and whether it is finished: segmented before from the same input, recipe and models."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, UnsetType

from pantherseg import __version__
from pantherseg.errors import InputError
from pantherseg.events import EventCode
from pantherseg.io import source_files
from pantherseg.io.digest import source_sha256
from pantherseg.results import CaseReport, DicomOptions, Fingerprint, read_report
from pantherseg.session import Session

if TYPE_CHECKING:
    from pantherseg.inference.predictor import Predictor

# What is left out because it is damaged. Events of the session are about models that its fingerprint knows.
LEFT_OUT = (EventCode.FOLD_LEFT_OUT, EventCode.MEMBER_LEFT_OUT)


def fingerprint_of(source: Path, session: Session, dicom: DicomOptions | UnsetType = UNSET) -> Fingerprint:
    """Return what decides the results of a source, apart from the version and the device.

    dicom: how DICOM results are made, if there are any.

    The device is left out, so that a folder that was begun on one machine is finished on another; each report names it.
    Raises InputError for the source, and what `Session.load` raises.
    """
    ensemble = session.load()
    return Fingerprint(
        input_sha256=source_sha256(source, source_files(source, session.recipe.series)),
        recipe_sha256=_sha256(session.recipe),
        models_sha256=models_sha256(session),
        mode=ensemble.backend.mode,
        dicom=dicom,
    )


def models_sha256(session: Session) -> str:
    """Return the SHA-256 of the weights and settings of all models of a session. Raises what `Session.load` raises."""
    return _sha256([_identity(one) for one in session.load().predictors])


def finished_report(
    source: Path, session: Session, *, results: Sequence[Path], report: Path, dicom: DicomOptions | UnsetType = UNSET
) -> CaseReport | None:
    """Return the report of a case that is finished, or None where it is to be segmented.

    It is finished if the report has the fingerprint and the version of now, if the results, the mask in one or more
    formats, are there as they were written, and if nothing was found to be damaged on the way, which may be mended by
    now. dicom: how DICOM results are made, if there are any. Raises InputError, and what `Session.load` raises.
    """
    try:
        earlier = read_report(report)
        written = {path.resolve(): sha256 for path, sha256 in earlier.results(report.parent).items()}
        if any(written.get(path.resolve()) != source_sha256(path) for path in results):
            return None
    except InputError:  # none, or one of an earlier version
        return None
    made_from = earlier.fingerprint
    if made_from is not UNSET and dicom is UNSET:
        made_from = msgspec.structs.replace(made_from, dicom=UNSET)
    if earlier.pantherseg != __version__ or made_from != fingerprint_of(source, session, dicom):
        return None
    damaged = {event for event in earlier.events if event.code in LEFT_OUT}
    return None if damaged - set(session.load().events) else earlier


def _identity(predictor: Predictor) -> dict[str, Any]:
    """Return what decides the logits of a model: everything in its manifest but where it comes from."""
    manifest = msgspec.to_builtins(predictor.bundle.manifest)
    del manifest["provenance"]
    return {"manifest": manifest, "folds": predictor.bundle.folds, "orientation": predictor.trained_orientation}


def _sha256(content: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()
