"""Pictures of cases for human readers. Not for clinical use."""

from pantherseg.report.picture import draw_case

__all__ = ["draw_case"]
