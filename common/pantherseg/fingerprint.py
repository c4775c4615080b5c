"""What a case was made from, and whether it is finished: segmented before from the same input, recipe and models."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pantherseg import __version__
from pantherseg.errors import InputError
from pantherseg.events import EventCode
from pantherseg.io import source_files
from pantherseg.io.digest import source_sha256
from pantherseg.results import CaseReport, Fingerprint, read_report
from pantherseg.session import Session

if TYPE_CHECKING:
    from pantherseg.inference.predictor import Predictor

# What is left out because it is damaged. Events of the session are about models that its fingerprint knows.
LEFT_OUT = (EventCode.FOLD_LEFT_OUT, EventCode.MEMBER_LEFT_OUT)


def fingerprint_of(source: Path, session: Session) -> Fingerprint:
    """Return what decides the mask of a source, apart from the version and the device.

    The device is left out, so that a folder that was begun on one machine is finished on another; each report names it.
    Raises InputError for the source, and what `Session.load` raises.
    """
    ensemble = session.load()
    return Fingerprint(
        input_sha256=source_sha256(source, source_files(source, session.recipe.series)),
        recipe_sha256=_sha256(session.recipe),
        models_sha256=_sha256([_identity(one) for one in ensemble.predictors]),
        mode=ensemble.backend.mode,
    )


def finished_report(source: Path, session: Session, *, mask: Path, report: Path) -> CaseReport | None:
    """Return the report of a case that is finished, or None where it is to be segmented.

    It is finished if the report has the fingerprint and the version of now, if the mask is there as it was written, and
    if nothing was found to be damaged on the way, which may be mended by now. Raises InputError, and what
    `Session.load` raises.
    """
    try:
        earlier = read_report(report)
        if (report.parent / earlier.mask).resolve() != mask.resolve() or earlier.mask_sha256 != source_sha256(mask):
            return None
    except InputError:  # none, or one of an earlier version
        return None
    if earlier.pantherseg != __version__ or earlier.fingerprint != fingerprint_of(source, session):
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
