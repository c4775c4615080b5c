"""Files from the web: resumed after an end at any time, and never taken for whole when they are not."""

from __future__ import annotations

import http.client
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from tqdm import tqdm

from pantherseg.errors import DownloadError, printable
from pantherseg.weights.partial import CHUNK, KEPT, BrokenError, Downloaded, Part, Wanted

logger = logging.getLogger(__name__)

RETRIES = 5
"""Attempts after the first without a byte more than before."""
LONGEST_PAUSE = 60.0
"""Between attempts, in seconds."""
TIMEOUT = (30.0, 60.0)
"""Seconds until a connection stands, and between two pieces of an answer."""
MAX_REDIRECTS = 10
MAX_TEXT = 16 << 20
PASSING = {408, 425, 429, 500, 502, 503, 504}


class Client:
    """Downloads over HTTP. pause: seconds before the first retry, doubled for each further one."""

    def __init__(self, *, retries: int = RETRIES, pause: float = 1.0) -> None:
        try:
            import requests
        except ImportError as error:
            hint = "pip install pantherseg[fetch]"
            raise DownloadError("download", expected="the package requests", found="none", hint=hint) from error
        self._requests, self._retries, self._pause = requests, retries, pause
        self._session = requests.Session()

    def close(self) -> None:
        """Close the connections that are kept."""
        self._session.close()

    def read(self, url: str) -> bytes:
        """Return a short text, such as JSON. Raises DownloadError."""
        failures = 0
        while True:
            try:
                with self._answer(url, {}) as answer:
                    return b"".join(_pieces(answer, MAX_TEXT))
            except BrokenError as error:
                failures += 1
                self._rest(url, error, failures, "an answer", "try again later")

    def download(self, wanted: Wanted, folder: Path) -> Downloaded:
        """Download a file into a folder, from where an earlier attempt ended.

        Raises DownloadError, where what has come is no beginning of the file wanted after removing it; OutputError.
        """
        part = Part(folder, wanted)
        whole = part.whole()
        best = failures = 0
        while whole is None:
            try:
                whole = self._attempt(wanted, part)
            except BrokenError as error:
                length = part.length()
                # Whoever goes on is waited for, however often; one who starts anew each time would never end.
                failures, best = (1, length) if length > best else (failures + 1, best)
                self._rest(wanted.url, error, failures, "the whole file", KEPT)
        return whole

    def _rest(self, url: str, error: BrokenError, failures: int, expected: str, hint: str) -> None:
        if failures > self._retries:
            found = f"{error}, after {self._retries} retries"
            raise DownloadError(url, expected=expected, found=found, hint=hint) from error
        pause = min(LONGEST_PAUSE, max(error.wait, self._pause * 2 ** (failures - 1)))
        logger.warning("%s; again in %.0f s", printable(f"{url}: {error}"), pause)
        time.sleep(pause)

    def _attempt(self, wanted: Wanted, part: Part) -> Downloaded:
        """Ask for what is missing and write what comes. Raises BrokenError if that is not all."""
        offset, note = part.length(), part.note()
        headers = {}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if note.validator:
                headers["If-Range"] = note.validator
        with self._answer(wanted.url, headers) as answer:
            if answer.status_code == 416 or (answer.status_code == 206 and not _continues(answer, offset, note.size)):
                part.discard()
                raise BrokenError(f"another file than before (HTTP {answer.status_code})")
            if "text/html" in answer.headers.get("Content-Type", ""):
                raise DownloadError(wanted.url, expected="a file", found="a web page")
            if answer.status_code != 206:
                offset = 0
                note = part.begin(_length(answer), _validator(answer))
            part.check_room(note.size)
            bar = tqdm(total=note.size, initial=offset, unit="B", unit_scale=True, desc=wanted.name, disable=None)
            with bar:
                for piece in part.written(_pieces(answer)):
                    bar.update(piece)
        return part.finish()

    @contextmanager
    def _answer(self, url: str, headers: dict[str, str]) -> Iterator[Any]:
        """Yield the answer to a request after redirects, with status 200, 206 or 416."""
        # Bytes as they are: a packed transfer has another length than the file.
        headers = {"Accept-Encoding": "identity", **headers}
        for _ in range(MAX_REDIRECTS):
            try:
                answer = self._session.get(url, headers=headers, stream=True, timeout=TIMEOUT, allow_redirects=False)
            except (self._requests.ConnectionError, self._requests.Timeout) as error:
                raise BrokenError(_reason(error)) from error
            except self._requests.RequestException as error:
                raise DownloadError(url, expected="an answer", found=_reason(error)) from error
            except ValueError as error:  # of this address, or of the one that it leads to
                raise DownloadError(url, expected="addresses that are some", found=str(error)) from error
            with answer:
                if not answer.is_redirect:
                    _check_status(url, answer)
                    yield answer
                    return
                after = _joined(url, answer.headers["Location"])
            check_still_safe(url, after)
            url = after
        raise DownloadError(url, expected="a file", found=f"more than {MAX_REDIRECTS} redirects")


def check_still_safe(before: str, after: str) -> None:
    """Raise DownloadError where an address that nobody on the way can change leads to one that anybody can."""
    try:
        schemes = urlsplit(before).scheme, urlsplit(after).scheme
    except ValueError as error:
        raise DownloadError(before, expected="an address to go on to", found=after) from error
    if schemes[1] not in ("http", "https") or schemes == ("https", "http"):
        raise DownloadError(before, expected="a way on to https", found=after)


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise DownloadError(url, expected="an address to go on to", found=location) from error


def _check_status(url: str, answer: Any) -> None:
    status = answer.status_code
    if status in PASSING:
        wait = answer.headers.get("Retry-After", "")
        raise BrokenError(f"HTTP {status} {answer.reason}", wait=float(wait) if wait.isdecimal() else 0.0)
    if status not in (200, 206, 416):
        raise DownloadError(url, expected="a file", found=f"HTTP {status} {answer.reason}")


def _continues(answer: Any, offset: int, size: int | None) -> bool:
    """Return whether a partial answer begins where the part ends, and is one of the same file."""
    span, _, total = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    return offset > 0 and span.startswith(f"{offset}-") and (size is None or total in ("*", str(size)))


def _length(answer: Any) -> int | None:
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() and len(length) < 20 else None


def _validator(answer: Any) -> str | None:
    """Return what marks a version of the file; a weak ETag says only that versions are alike."""
    etag: str = answer.headers.get("ETag", "")
    return (etag if not etag.startswith("W/") else "") or answer.headers.get("Last-Modified")


def _pieces(answer: Any, limit: int | None = None) -> Iterator[bytes]:
    from urllib3.exceptions import HTTPError

    length = 0
    try:
        for piece in answer.raw.stream(CHUNK, decode_content=False):
            length += len(piece)
            if limit is not None and length > limit:
                raise DownloadError(answer.url, expected=f"at most {limit} bytes", found="more")
            yield piece
    except (HTTPError, http.client.HTTPException, OSError) as error:
        raise BrokenError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """Return what went wrong in a connection; libraries wrap it into each other's errors."""
    cause: object = error
    while isinstance(cause, Exception) and (inner := getattr(cause, "reason", None) or next(iter(cause.args), None)):
        cause = inner if isinstance(inner, Exception | str) else str(cause)
    return f"a connection that broke ({type(error).__name__}: {str(cause)[:200]})"
