"""Cases for human readers: a picture of one, or a page of any number. Not for clinical use."""

from pantherseg.report.picture import draw_case

__all__ = ["draw_case"]
