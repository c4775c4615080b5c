"""Writes docs/results.schema.json from the code: `python test/make_schema.py`."""

from __future__ import annotations

from pathlib import Path

from pantherseg.results import schema_text

SCHEMA = Path(__file__).parents[1] / "docs" / "results.schema.json"

if __name__ == "__main__":
    SCHEMA.write_text(schema_text(), encoding="utf-8")
