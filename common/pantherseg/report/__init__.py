"""What a case looked like, for people. Not for clinical use."""

from pantherseg.report.picture import draw_case

__all__ = ["draw_case"]
