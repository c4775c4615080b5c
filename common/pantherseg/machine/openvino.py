"""OpenVINO without `openvino_telemetry`, which reports to its makers and, on import, writes to the home folder."""

from __future__ import annotations

import sys

# A name that is None cannot be imported: OpenVINO falls back to a stand-in that does nothing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino as ov  # noqa: E402

__all__ = ["ov"]
