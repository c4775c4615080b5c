"""Grand Challenge: job folder in, mask and results.json out."""

from pantherseg.grand_challenge.entry_point import main
from pantherseg.grand_challenge.job import find_input, output_path

__all__ = ["find_input", "main", "output_path"]
