"""The published claims put to the test on phantoms: see docs/experiments.md."""
