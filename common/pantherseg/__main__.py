"""`python -m pantherseg` runs the command `pantherseg`, also where the package is not installed."""

from pantherseg.cli import main

main(prog_name="pantherseg")
