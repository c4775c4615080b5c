"""Which cases a cohort has: a manifest (CSV or Parquet), or a folder or a pattern of volumes."""

from __future__ import annotations

import csv
import glob
import io
import posixpath
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Meta

from pantherseg.cohort.storage import absolute, exists, inside, join, matching, on_disk, read_bytes, write_bytes
from pantherseg.errors import InputError, OutputError, first_few, last_line
from pantherseg.io import case_name, find_sources
from pantherseg.io.reader import VOLUME_SUFFIXES
from pantherseg.tables import Table, did_you_mean

CSV, PARQUET = ".csv", ".parquet"
MANIFEST_SUFFIXES = (CSV, PARQUET)
SOURCES = f"a manifest ({' or '.join(MANIFEST_SUFFIXES)}), a folder, a volume or a pattern"
WILDCARDS = "*?["
# What a column of a Parquet manifest may hold.
TEXT_OR_NUMBER = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_integer)
# Files of a store that are taken for volumes, where there is no reader to ask.
REMOTE_SUFFIXES = (*VOLUME_SUFFIXES, ".zip")
# A store answers slowly, but many questions at once.
QUESTIONS_AT_ONCE = 32
# What stands between columns in files that are not separated by commas.
OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs"}
# The name of a file has at most 255 bytes, of which 16 are for the longest suffix, `.probability.dcm`, and 9 for the
# number of the process that is writing it.
NAME_BYTES = 255 - 16 - 9
Name = Annotated[str, Meta(pattern=r"^[^./\x00-\x1f\x7f-\x9f][^/\x00-\x1f\x7f-\x9f]*\Z")]


class CohortCase(Table, frozen=True):
    """A case: its name, which its results are called by, and the path of its volume on a disk or in a store."""

    case: Name
    input: Annotated[str, Meta(min_length=1)]

    def __post_init__(self) -> None:
        """Raise ValueError for a name that is too long."""
        if len(self.case.encode()) > NAME_BYTES:
            raise ValueError(f"expected at most {NAME_BYTES} bytes, found {len(self.case.encode())}")


COLUMNS = tuple(field.name for field in msgspec.structs.fields(CohortCase))


def find_cases(source: str, *, results: str | None = None) -> list[CohortCase]:
    """Return the cases that `list_cases` lists. Raises InputError, also for two of one name and for missing volumes."""
    cases = list_cases(source, results=results)
    names = Counter(case.case for case in cases)
    if double := [name for name, count in names.items() if count > 1]:
        hint = "write a manifest by `pantherseg cohort manifest`, and give each case a name of its own in it"
        raise InputError(source, expected="each case once", found=f"several of {first_few(double)}", hint=hint)
    _check_inputs(source, cases)
    return cases


def list_cases(source: str, *, results: str | None = None) -> list[CohortCase]:
    """Return the cases of a manifest, a folder, a volume, or a pattern such as `scans/*/t1.nii.gz`, sorted by name.

    A manifest has the columns of `COLUMNS`; without `case`, and without a manifest, cases are called by their files.
    Paths in it are relative to its folder. What exists is no pattern, whatever characters are in its name. results: the
    folder of a cohort's results, which a pattern does not mean. Raises InputError.
    """
    if source.lower().endswith(MANIFEST_SUFFIXES):
        cases = read_manifest(source)
    else:
        paths = _that_match(source, results) if _is_pattern(source) else _in_folder(source)
        cases = [_case(source, {"input": path}, "") for path in paths]
    if not cases:
        raise InputError(source, expected="at least one case", found="none")
    return sorted(cases, key=lambda case: (case.case, case.input))


def write_manifest(cases: Sequence[CohortCase], target: str) -> None:
    """Write a manifest that `find_cases` reads, CSV or Parquet by its suffix. Raises OutputError."""
    rows = [msgspec.structs.asdict(case) for case in cases]
    if target.lower().endswith(CSV):
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        content = text.getvalue().encode()
    elif target.lower().endswith(PARQUET):
        file = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in COLUMNS])), file)
        content = file.getvalue().to_pybytes()
    else:
        raise OutputError(target, expected=f"a name that ends with {' or '.join(MANIFEST_SUFFIXES)}", found="another")
    write_bytes(target, content)


def read_manifest(source: str) -> list[CohortCase]:
    """Return the cases of a manifest, whether or not their volumes exist. Raises InputError."""
    content = read_bytes(source)
    rows = (_csv_rows if source.lower().endswith(CSV) else _parquet_rows)(source, content)
    folder = posixpath.dirname(source)
    return [_case(f"{source}, case {number}", row, folder) for number, row in enumerate(rows, start=1)]


def _csv_rows(source: str, content: bytes) -> list[dict[str, str]]:
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        columns = reader.fieldnames or ()
        rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(source, expected="a CSV file in UTF-8", found=last_line(error)) from error
    for separator, name in OTHER_SEPARATORS.items():
        if separator in "".join(columns):
            raise InputError(source, expected="commas between the columns", found=name)
    _check_columns(source, columns)
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            expected = f"{len(columns)} values in case {number}"
            raise InputError(source, expected=expected, found="more" if None in row else "fewer")
    return rows


def _parquet_rows(source: str, content: bytes) -> list[dict[str, str]]:
    try:
        table = pq.ParquetFile(pa.BufferReader(content)).read()
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise InputError(source, expected="a Parquet file", found=last_line(error)) from error
    _check_columns(source, table.column_names)
    for field in table.schema:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if not any(is_kind(kind) for is_kind in TEXT_OR_NUMBER):
            expected = f"text or whole numbers in the column `{field.name}`"
            raise InputError(source, expected=expected, found=f"the type {kind}")
    return [{key: "" if value is None else str(value) for key, value in row.items()} for row in table.to_pylist()]


def _check_columns(source: str, columns: Sequence[str]) -> None:
    for name in columns:
        if name not in COLUMNS:
            known = " and ".join(COLUMNS)
            raise InputError(source, f"unknown column '{name}', expected {known}{did_you_mean(name, COLUMNS)}")
    if len(set(columns)) < len(columns):
        raise InputError(source, expected="each column once", found=first_few(columns))
    if "input" not in columns:
        found = first_few(columns) or "no columns"
        raise InputError(source, expected="a column `input` with the path of each volume", found=found)


def _case(where: str, row: dict[str, str], folder: str) -> CohortCase:
    path = row["input"].strip()
    complete = path and absolute(join(folder, path))
    name = row["case"].strip() if "case" in row else _name_of(path)
    try:
        return msgspec.convert({"case": name, "input": complete}, CohortCase)
    except msgspec.ValidationError as error:
        expected = f"a path, and a name of at most {NAME_BYTES} bytes without slash, control character and leading dot"
        raise InputError(where, expected=expected, found=f"input '{path}', case '{name}'") from error


def _name_of(path: str) -> str:
    """Return the name of a volume's case; of one in a store by its path alone."""
    return case_name(on_disk(path) or Path(posixpath.basename(path.rstrip("/")))) if path else ""


def _is_pattern(source: str) -> bool:
    """Return whether a path is a pattern, rather than a file or folder. Raises InputError where it is neither."""
    if exists(source):
        return False
    if any(character in source for character in WILDCARDS):
        return True
    raise InputError(source, expected=SOURCES, found="no such file or folder")


def _in_folder(source: str) -> list[str]:
    """Return the volumes in a folder, or a single volume."""
    if (path := on_disk(source)) is None:
        if source.lower().endswith(REMOTE_SUFFIXES):
            return [source]
        found = matching(f"{glob.escape(source.rstrip('/'))}/*")
        return [path for path in found if path.lower().endswith(REMOTE_SUFFIXES)]
    volumes = find_sources(path, dangling=True)
    if not volumes and not path.is_dir():
        raise InputError(source, expected=SOURCES, found="another file")
    return [str(path) for path in volumes]


def _that_match(pattern: str, results: str | None) -> list[str]:
    found = matching(pattern)
    if results is not None:
        own = inside(found, results)
        found = [path for path in found if path not in own]
    if on_disk(pattern) is None:
        return [path for path in found if path.lower().endswith(REMOTE_SUFFIXES)]
    return [path for path in found if find_sources(Path(path)) == [Path(path)]]


def _check_inputs(source: str, cases: Sequence[CohortCase]) -> None:
    """Raise InputError for volumes that do not exist."""
    with ThreadPoolExecutor(QUESTIONS_AT_ONCE) as pool:
        found = list(pool.map(lambda case: exists(case.input), cases))
    if missing := [case.input for case, there in zip(cases, found, strict=True) if not there]:
        what = f"{len(missing)} of {len(cases)} volumes do not exist: {first_few(missing)}"
        raise InputError(source, what, hint="mend their paths, or leave them out")
