"""Stand-ins for values of other libraries in a checkpoint, so that loading runs none of their code.

Packing needs none of these values; nnU-Net's log and settings, and those of its variants, contain them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

NUMBER = re.compile(r"[biufc]\d+")


class LeftOut:
    """Takes the place of an array or a path, whose content is left out."""

    def __init__(self, *_: object) -> None:
        """Ignore the arguments."""

    def __setstate__(self, _: object) -> None:
        """Ignore the state."""


class DataType:
    """Takes the place of a numpy dtype, which only tells how to read a number. code: such as f8; order: such as <."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Accept numpy's state of a dtype, of which only the byte order matters for a number."""
        self.order = state[1]


def number(dtype: DataType, content: bytes = b"", *_: object) -> object:
    """Return the number of a numpy scalar, and None for other scalars such as texts."""
    if not NUMBER.fullmatch(dtype.code):
        return None
    return np.frombuffer(content, dtype.order + dtype.code)[0].item()


def empty_dict(*_: object) -> dict[Any, Any]:
    """Return what a `defaultdict` becomes before its entries are set."""
    return {}


_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_FACTORIES = ("dict", "float", "int", "list", "str", "tuple")
_STAND_INS: dict[str, Callable[..., object]] = {
    "numpy.ndarray": LeftOut,
    "numpy.dtype": DataType,
    # numpy 1 wrote the same functions under another module name.
    **{f"numpy.{core}.multiarray._reconstruct": LeftOut for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": number for core in ("core", "_core")},
    # Python 3.13 wrote the same classes under another module name.
    **{f"{module}.{name}": LeftOut for module in ("pathlib", "pathlib._local") for name in _PATHS},
    **{f"datetime.{name}": LeftOut for name in ("date", "datetime", "time", "timedelta", "timezone")},
    "collections.defaultdict": empty_dict,
    # What a defaultdict fills itself with.
    **{f"builtins.{name}": LeftOut for name in _FACTORIES},
}
# In the form of torch's `safe_globals`: what to use, and the name in the file that it is used for.
ALLOWED = [(stand_in, name) for name, stand_in in _STAND_INS.items()]
