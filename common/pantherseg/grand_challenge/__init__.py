"""The Grand Challenge platform: its job folders, the container's entry point, and checks before an upload."""

from pantherseg.grand_challenge.entry_point import main
from pantherseg.grand_challenge.job import find_input, output_path

__all__ = ["find_input", "main", "output_path"]
