"""What `bench.fuzz` runs in a process of its own, which a fault of a library in C may end."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris
import SimpleITK as sitk  # noqa: N813

with atheris.instrument_imports(include=["pantherseg"]):
    from bench.fuzz import as_file, outcome


def main() -> None:
    """Fuzz as libFuzzer's options say."""
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    with tempfile.TemporaryDirectory(prefix="pantherseg-fuzz-") as folder:

        def try_input(data: bytes) -> None:
            if data:
                path = as_file(data, Path(folder))
                outcome(path)
                path.unlink()  # what ITK reads beside a file must not be the one before

        atheris.Setup(sys.argv, try_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
