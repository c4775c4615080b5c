"""Reading TOML files whose keys and values are checked."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from pantherseg.errors import RecipeError, os_reason

T = TypeVar("T")

Positive = Annotated[float, Meta(gt=0)]
Fraction = Annotated[float, Meta(gt=0, le=1)]
NotNegative = Annotated[float, Meta(ge=0)]
# A name without a folder; `.` and `..` are folders.
FileName = Annotated[str, Meta(pattern=r"^(?!\.{1,2}$)[^/]+$")]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A TOML table: unknown and missing keys and invalid values are errors."""


def read_table(path: Path, kind: type[T]) -> T:
    """Read a TOML file as a Table type. Raises RecipeError with the file and the key."""
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        _refuse_non_finite(path, content)
        return msgspec.convert(content, kind, dec_hook=decode_registered)
    except OSError as error:
        raise RecipeError(path, f"failed to read this file: {os_reason(error)}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(path, f"invalid TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise RecipeError(path, f"invalid content: {error}") from error


def decode_registered(kind: type[Any], value: object) -> Any:
    """Decode a value for a field whose type owns a Registry: the `dec_hook` of msgspec. Raises ValueError."""
    return kind.registry.decode(value)


def _refuse_non_finite(path: Path, value: Any, key: str = "$") -> None:
    """Raise RecipeError for inf and nan, which TOML has but no key allows. key: where the value is."""
    if isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(path, expected=f"a finite number at `{key}`", found=str(value))
    if isinstance(value, dict):
        for name, inner in value.items():
            _refuse_non_finite(path, inner, f"{key}.{name}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _refuse_non_finite(path, inner, f"{key}[{number}]")
