"""OpenVINO without `openvino_telemetry`, which sends usage data to Intel and writes to the home folder on import."""

from __future__ import annotations

import sys

# With None in place of the module its import fails, and OpenVINO uses a substitute that does nothing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino as ov  # noqa: E402

__all__ = ["ov"]
