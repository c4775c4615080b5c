"""Writes a report: one HTML file that needs no other file and no network.

A case at a time is read and drawn; its part of the page waits in a temporary file, because the cases that need a look
come first.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pantherseg import __version__
from pantherseg.errors import OutputError, PantherSegError, first_few, os_reason
from pantherseg.evaluation.tables import HEADINGS
from pantherseg.files import written_beside
from pantherseg.io.dicom.choice import ANY_SERIES, SeriesChoice
from pantherseg.report.case_files import CaseFiles, find_cases
from pantherseg.report.cases import Case, read_case
from pantherseg.report.planes import Scene
from pantherseg.report.summary import Summary, known_columns
from pantherseg.report.tiles import tiles_of
from pantherseg.report.viewer_volumes import viewer_volumes

if TYPE_CHECKING:
    from jinja2 import Environment

logger = logging.getLogger(__name__)

# The most that the pictures and volumes of a case, and those of all cases, may add to the file.
MB = 1_000_000
CASE_MB, FILE_MB = 1.5, 100.0
# Pictures are what everybody sees, so they go first; the viewer's volumes get what they leave.
PICTURES_SHARE = 0.6
PAGE = "page"
NIIVUE = "niivue/niivue.umd.js.gz"


@dataclass(frozen=True)
class Part:
    """A case's parts of the page in a temporary file: text and pictures from `start`, volumes from `volumes`."""

    start: int
    volumes: int
    stop: int


def write_report(
    images: Path, masks: Path, references: Path | None, output: Path, *, series: SeriesChoice = ANY_SERIES
) -> list[str]:
    """Write the report (HTML) of the cases in files or folders, and return the names of those with problems.

    series: which one is shown of a DICOM study. Which files belong together: see `case_files.find_cases`. Raises
    InputError if there is nothing to report, and what `write_page` raises.
    """
    check_can_report()
    return write_page(find_cases(images, masks, references), output, series=series)


def write_page(files: Sequence[CaseFiles], output: Path, *, series: SeriesChoice = ANY_SERIES) -> list[str]:
    """Write the report (HTML) of cases, and return the names of those with problems.

    A file that cannot be used is named on the page and in the log, and the rest is done. Cases with the lowest Dice
    come first, or else with the lowest expected Dice, or else with the folds that agree least. The same files give the
    same bytes.

    Raises OutputError for a file that cannot be written, PantherSegError if jinja2 is not installed.
    """
    page = _environment()
    with written_beside(output) as beside, _temporary(output) as parts_file:
        cases: list[Case] = []
        parts: dict[int, Part] = {}
        for number, case_files in enumerate(files, start=1):
            case, scene = _logged(case_files, number, len(files), series)
            parts[number] = _write_part(page, parts_file, case, scene, room=case_room(len(files)))
            cases.append(case)
        cases.sort(key=lambda case: case.urgency)
        with beside.open("w", encoding="utf-8") as file:
            file.writelines(_page(page, cases, parts_file, [parts[case.number] for case in cases]))
    failed = [case.name for case in cases if case.problems]
    if failed:
        logger.error(
            "error: %d of %d cases have files that cannot be used: %s", len(failed), len(cases), first_few(failed)
        )
    return failed


def case_room(cases: int) -> float:
    """Return how many bytes the pictures and volumes of each of some cases may add to the file."""
    return MB * min(CASE_MB, FILE_MB / cases)


def _logged(files: CaseFiles, number: int, count: int, series: SeriesChoice) -> tuple[Case, Scene | None]:
    case, scene = read_case(files, number, series)
    for problem in case.problems:
        logger.error("error: %s", problem)
    state = "no mask" if case.missing else "" if case.dice is None else f"Dice {case.dice:.3f}"
    logger.info("case %d of %d: %s", number, count, ", ".join(filter(None, (case.name, state))))
    return case, scene


def _temporary(output: Path) -> IO[bytes]:
    """Return a file without a name on the disk of the output."""
    try:
        return tempfile.TemporaryFile(dir=output.parent)
    except OSError as error:
        raise OutputError(output, f"failed to write beside this file: {os_reason(error)}") from error


def _write_part(page: Environment, file: IO[bytes], case: Case, scene: Scene | None, *, room: float) -> Part:
    tiles = volumes = None
    if scene is not None:
        tiles = tiles_of(scene, max_bytes=PICTURES_SHARE * room)
        left = room - sum(tile.bytes_on_page for tile in (*tiles.slices, *tiles.cuts))
        volumes = viewer_volumes(scene, max_bytes=left)
    known = {"case": case, "tiles": tiles, "volumes": volumes, "headings": HEADINGS}
    start = file.tell()
    file.write(page.get_template("case.html.jinja").render(known).encode())
    middle = file.tell()
    if volumes is not None:
        file.write(page.get_template("volumes.html.jinja").render(known).encode())
    return Part(start, middle, file.tell())


def _read(file: IO[bytes], start: int, stop: int) -> str:
    file.seek(start)
    return file.read(stop - start).decode()


def _page(page: Environment, cases: Sequence[Case], file: IO[bytes], parts: Sequence[Part]) -> Iterator[str]:
    """Yield the text of the page piece by piece. parts: of the cases, in their order, in the file."""
    scripts = "\n".join(_text(name) for name in ("viewer.js", "page.js"))
    niivue = (resources.files(__package__) / PAGE / NIIVUE).read_bytes()
    return page.get_template("report.html.jinja").generate(
        cases=cases,
        parts=(_read(file, part.start, part.volumes) for part in parts),
        volumes=(_read(file, part.volumes, part.stop) for part in parts),
        summary=Summary.of(cases),
        columns=known_columns(cases),
        headings=HEADINGS,
        version=__version__,
        case_mb=case_room(len(cases)) / MB,
        file_mb=FILE_MB,
        style=_text("page.css"),
        script=scripts,
        # Only these two scripts may run, whatever a file's name or a report contains.
        script_hashes=[_csp_hash(scripts.encode()), _csp_hash(gzip.decompress(niivue))],
        niivue=niivue,
        licences=_text("niivue/LICENSES.txt"),
    )


def _text(name: str) -> str:
    return (resources.files(__package__) / PAGE / name).read_text(encoding="utf-8")


def _csp_hash(script: bytes) -> str:
    """Return the hash of a script as a content security policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}"


def check_can_report() -> None:
    """Raise PantherSegError unless jinja2, by which pages are written, is installed."""
    _environment()


def _environment() -> Environment:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise PantherSegError(
            "report", expected="the package jinja2", found="not installed", hint="pip install 'pantherseg[report]'"
        ) from error
    page = Environment(
        loader=PackageLoader("pantherseg.report", PAGE),
        autoescape=True,
        auto_reload=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters.update(fixed=_fixed, base64=lambda data: base64.b64encode(data).decode())
    return page


def _fixed(value: float | None, digits: int = 2) -> str:
    """Return a number with so many decimals; a dash where it is unknown."""
    return "-" if value is None else f"{value:.{digits}f}"
