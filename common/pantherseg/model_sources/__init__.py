"""The kinds of model folders that can be packed. A further kind is one `Source` appended to SOURCES."""

from __future__ import annotations

from pathlib import Path

from pantherseg.model_sources.lightning import LightningSource
from pantherseg.model_sources.nnunet import NnunetSource
from pantherseg.model_sources.packable import PackableModel, Source

__all__ = ["SOURCES", "PackableModel", "Source", "source_of"]

# The first that accepts a folder reads it.
SOURCES: list[Source] = [NnunetSource(), LightningSource()]


def source_of(folder: Path) -> Source:
    """Return the source that accepts a folder, or else the first, which reports the files that are missing."""
    return next((source for source in SOURCES if source.accepts(folder)), SOURCES[0])
