"""Reading TOML files whose keys and values are checked."""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, inspect

from pantherseg.errors import RecipeError, first_few, os_reason

T = TypeVar("T")

Positive = Annotated[float, Meta(gt=0)]
Fraction = Annotated[float, Meta(gt=0, le=1)]
NotNegative = Annotated[float, Meta(ge=0)]
# A name without a folder; `.` and `..` are folders.
FILE_NAME = r"^(?!\.{1,2}$)[^/]+$"
FileName = Annotated[str, Meta(pattern=FILE_NAME, description="a file name")]
# An error about a word names at most so many that are allowed.
MOST_WORDS = 12


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A TOML table: unknown and missing keys and invalid values are errors."""


def read_table(path: Path, kind: type[T]) -> T:
    """Read a TOML file as a Table type. Raises RecipeError with the file and the key."""
    try:
        if path.exists() and not path.is_file():
            raise RecipeError(path, expected="a TOML file", found="a folder, device or pipe")
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        _refuse_non_finite(path, content)
        return msgspec.convert(content, kind, dec_hook=decode_registered)
    except OSError as error:
        raise RecipeError(path, f"failed to read this file: {os_reason(error)}") from error
    except msgspec.ValidationError as error:
        raise RecipeError(path, f"invalid content: {what_is_wrong(content, kind) or error}") from error
    except (ValueError, RecursionError) as error:  # also of Unicode, and of numbers and nesting without end
        raise RecipeError(path, f"invalid TOML: {error}") from error


def what_is_wrong(value: object, kind: Any, where: str = "$") -> str:
    """Return what is wrong with the first key or word that a type does not have; empty for other mistakes.

    value: plain data; kind: the type as which they are decoded; where: its place, empty where others add it.
    """
    return _what_is_wrong(value, inspect.type_info(kind), where)


def _what_is_wrong(value: object, kind: inspect.Type, where: str) -> str:
    if isinstance(kind, inspect.Metadata):
        described = str((kind.extra_json_schema or {}).get("description", ""))
        if described and isinstance(value, str) and not _fits(value, kind.type):
            return f"expected {described}, found {value!r}{_at(where)}"
        return _what_is_wrong(value, kind.type, where)
    if isinstance(kind, inspect.UnionType):
        if isinstance(value, str) and any(isinstance(one, inspect.StrType) for one in kind.types):
            return ""
        return next(filter(None, (_what_is_wrong(value, one, where) for one in kind.types)), "")
    if isinstance(kind, inspect.LiteralType) and isinstance(value, type(kind.values[0])) and value not in kind.values:
        words = [str(word) for word in kind.values]
        one_of = f"one of {first_few(words, MOST_WORDS)}" if len(words) > 1 else words[0]
        return f"expected {one_of}, found {value!r}{did_you_mean(str(value), words)}{_at(where)}"
    if isinstance(value, list):
        inner = getattr(kind, "item_type", None)
        parts = [] if inner is None else [(item, inner, f"{where}[{n}]") for n, item in enumerate(value)]
    elif isinstance(value, dict) and isinstance(kind, inspect.DictType):
        parts = [(item, kind.value_type, f"{where}.{key}") for key, item in value.items()]
        found = (_what_is_wrong(*part) or _invalid(*part) for part in parts)
        return next(filter(None, found), "")
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
    return next(filter(None, (_what_is_wrong(*part) for part in parts)), "")


def _invalid(value: object, kind: inspect.Type, where: str) -> str:
    """Return msgspec's error about an entry of a table of tables, of which it does not say the name."""
    if isinstance(kind, inspect.StructType):
        try:
            msgspec.convert(value, kind.cls, dec_hook=decode_registered)
        except msgspec.ValidationError as error:
            text, at, rest = str(error).rpartition(" - at `$")
            return f"{text} - at `{where.removeprefix('.')}{rest}" if at else f"{error}{_at(where)}"
    return ""


def _at(where: str) -> str:
    return f" - at `{where.removeprefix('.')}`" if where else ""


def _fits(value: str, kind: inspect.Type) -> bool:
    pattern = kind.pattern if isinstance(kind, inspect.StrType) else None
    return pattern is None or re.search(pattern, value) is not None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: the nearest of the known ones, if any is near."""
    by_lower_case = {one.casefold(): one for one in known}
    close = difflib.get_close_matches(name.casefold(), list(by_lower_case), n=1)
    return f"; did you mean '{by_lower_case[close[0]]}'?" if close else ""


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
