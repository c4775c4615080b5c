"""placeholder until the labels module is merged."""

from collections.abc import Mapping

PANCREAS_NAME = "pancreas"


def find_label(labels: Mapping[str, int], name: str) -> int | None:
    """Return the number of a label."""
    return next((number for key, number in labels.items() if key.lower() == name), None)
