"""`python -m pantherseg`: the same as the command `pantherseg`, where the package is only on the path."""

from pantherseg.cli import main

main(prog_name="pantherseg")
