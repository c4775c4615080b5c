"""Whether a text names a patient: by name in other spellings and orders, by number, or by date of birth."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import permutations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset

# What identifies the patient, and is looked for in the names of files and folders.
NAMES = ("PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName")
NUMBERS = ("PatientID", "OtherPatientIDs", "OtherPatientIDsSequence")
BIRTH_DATE = "PatientBirthDate"
IDENTITY = (*NAMES, *NUMBERS, BIRTH_DATE)
STUDY_NUMBER = "AccessionNumber"  # of the patient's visit, and looked for as well
# Shorter parts of names and numbers are found in other words by chance. Names in other scripts are often as short as
# two characters; two Latin letters count where they stand alone, or beside another part of the name.
MIN_LETTERS, MIN_OTHER_SCRIPT, MIN_PAIR = 3, 2, 4
# Letters that are not a plain one with an accent, and what is written for others in German and the Nordic languages.
LETTERS = str.maketrans({"æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th"})
UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe"})
# How names of months begin in English, German, French and Spanish, without accents.
MONTHS = (
    *(("jan", "ene"), ("feb", "fev"), ("mar", "mrz"), ("apr", "avr", "abr"), ("may", "mai"), ("jun", "juin")),
    *(("jul", "juil"), ("aug", "aou", "ago"), ("sep",), ("oct", "okt"), ("nov",), ("dec", "dez", "dic")),
)


def identifies(text: str, header: Dataset) -> bool:
    """Return whether the name of a file or a description contains what a header has about the patient's identity."""
    names, numbers = tuple(_values(header, NAMES)), tuple(_values(header, (*NUMBERS, STUDY_NUMBER)))
    return _identifies(text, names, numbers, str(header.get(BIRTH_DATE) or ""))


def _values(header: Dataset, keys: Iterable[str]) -> Iterator[str]:
    for key in keys:
        if key not in header or not header[key].value:
            continue
        element = header[key]
        if element.VR == "SQ":
            yield from (str(item.get("PatientID") or "") for item in element.value)
        else:
            yield from map(str, element.value if element.VM > 1 else [element.value])


@lru_cache(maxsize=1024)
def _identifies(text: str, names: tuple[str, ...], numbers: tuple[str, ...], birth_date: str) -> bool:
    groups = [group for name in names for group in name.split("=")]  # the same name in up to three scripts
    return any(
        any(_has_name(spelling, name) for name in _all_spellings(groups))
        or any(_has_number(spelling, number) for number in _all_spellings(numbers))
        or _has_date(spelling, birth_date)
        for spelling in _spellings(text)
    )


def _all_spellings(values: Iterable[str]) -> set[str]:
    return {spelling for value in values for spelling in _spellings(value)}


def _spellings(text: str) -> set[str]:
    """Return a text in small letters without accents, and also with two letters for an umlaut."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return {_without_accents(one.translate(LETTERS)) for one in (folded, folded.translate(UMLAUTS))}


def _without_accents(text: str) -> str:
    letters = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return unicodedata.normalize("NFC", "".join(letters))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)


def _is_long(word: str) -> bool:
    return len(word) >= (MIN_LETTERS if word.isascii() else MIN_OTHER_SCRIPT)


def _has_name(text: str, name: str) -> bool:
    words, joined = _words(name), "".join(_words(text))
    alone = set(re.findall(r"[^\W\d_]+", text))
    pairs = ("".join(pair) for pair in permutations(words, 2))
    return (
        any(word in text for word in words if _is_long(word))
        or any(word in alone for word in words if len(word) == MIN_LETTERS - 1)
        or any(pair in joined for pair in pairs if len(pair) >= MIN_PAIR or not pair.isascii())
    )


def _has_number(text: str, number: str) -> bool:
    joined = "".join(_words(number))
    return any(word in text for word in _words(number) if _is_long(word)) or (
        _is_long(joined) and joined in "".join(_words(text))
    )


def _has_date(text: str, date: str) -> bool:
    """Return whether a text has a date (YYYYMMDD) in any order, also with a year of two digits or a month by name."""
    found = re.fullmatch(r"(\d{4})\W?(\d{2})\W?(\d{2})", date.strip())
    if found is None:
        return bool(date.strip()) and _has_number(text, date)
    year, month, day = found.groups()
    if any("".join(order) in "".join(_words(text)) for order in _orders(year, month, day)):
        return True
    parts = re.findall(r"\d+|[^\W\d_]+", text)
    if any("".join(order) in parts for order in _orders(year[2:], month, day)):
        return True
    windows = zip(parts, parts[1:], parts[2:], strict=False)
    return any(_is_date(window, year, int(month), int(day)) for window in windows)


def _orders(year: str, month: str, day: str) -> tuple[tuple[str, str, str], ...]:
    return (year, month, day), (day, month, year), (month, day, year)


def _is_date(parts: tuple[str, str, str], year: str, month: int, day: int) -> bool:
    numbers = [int(part) if part.isdecimal() and len(part) <= len(year) else _month(part) for part in parts]
    return any(
        parts[first] in (year, year[2:]) and (numbers[1], numbers[last]) in ((month, day), (day, month))
        for first, last in ((0, 2), (2, 0))
    )


def _month(word: str) -> int | None:
    return next((number for number, names in enumerate(MONTHS, start=1) if word.startswith(names)), None)
