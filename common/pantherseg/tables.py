"""Reading TOML files whose keys and values are checked."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, inspect

from pantherseg.errors import RecipeError, os_reason

T = TypeVar("T")

Positive = Annotated[float, Meta(gt=0)]
Fraction = Annotated[float, Meta(gt=0, le=1)]
NotNegative = Annotated[float, Meta(ge=0)]
# A name without a folder; `.` and `..` are folders.
FILE_NAME = r"^(?!\.{1,2}$)[^/]+$"
FileName = Annotated[str, Meta(pattern=FILE_NAME)]


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
        raise RecipeError(path, f"invalid content: {unknown_key(content, kind) or error}") from error


def unknown_key(value: object, kind: Any, where: str = "$") -> str:
    """Return what is wrong with the first key of a table that its type does not have, or an empty string.

    value: plain data; kind: the type as which they are decoded; where: its place, empty where others add it.
    """
    return _unknown_key(value, inspect.type_info(kind), where)


def _unknown_key(value: object, kind: inspect.Type, where: str) -> str:
    if isinstance(kind, inspect.UnionType):
        return next(filter(None, (_unknown_key(value, one, where) for one in kind.types)), "")
    if isinstance(value, list):
        inner = getattr(kind, "item_type", None)
        parts = [] if inner is None else [(item, inner, f"{where}[{n}]") for n, item in enumerate(value)]
    elif isinstance(value, dict) and isinstance(kind, inspect.StructType):
        if kind.tag_field is not None and value.get(kind.tag_field) != kind.tag:
            return ""  # it is meant to be another table
        fields = {field.encode_name: field.type for field in kind.fields}
        known = [*([kind.tag_field] if kind.tag_field else []), *fields]
        if other := next((key for key in value if key not in known), None):
            place = f" in `{where}`" if where else ""
            return f"unknown key '{other}'{place}, expected one of {', '.join(known)}{did_you_mean(other, known)}"
        parts = [(item, fields[key], f"{where}.{key}") for key, item in value.items() if key in fields]
    else:
        return ""
    return next(filter(None, (_unknown_key(*part) for part in parts)), "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: the nearest of the known ones, if any is near."""
    close = difflib.get_close_matches(name.casefold(), list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


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
