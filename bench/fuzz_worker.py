"""The process that `bench.fuzz` runs atheris in: a fault in a library in C would end it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris
import SimpleITK as sitk  # noqa: N813

with atheris.instrument_imports(include=["pantherseg"]):
    from bench.fuzz import as_file, outcome


def main() -> None:
    """Fuzz with libFuzzer's options from the command line."""
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    with tempfile.TemporaryDirectory(prefix="pantherseg-fuzz-") as folder:

        def try_input(data: bytes) -> None:
            if data:
                path = as_file(data, Path(folder))
                outcome(path)
                path.unlink()  # ITK must not find the previous input beside the next one

        atheris.Setup(sys.argv, try_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
