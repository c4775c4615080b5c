"""Downloads over HTTP: retried, continued where an earlier attempt ended, and verified before they get their name."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.exceptions import HTTPError, MaxRetryError, ProtocolError
from urllib3.util import Retry

from pantherseg.errors import DownloadError, printable
from pantherseg.weights.partial import PartialFile, RemoteFile, check_secure

logger = logging.getLogger(__name__)

RETRIES = 5
"""Of one request, and of a transfer that breaks without a further byte."""
MAX_PAUSE = 60
"""Seconds between two attempts, also where the server asks for more by Retry-After."""
TIMEOUT = (30.0, 60.0)
"""Seconds to connect, and between two chunks of a response."""
RETRIED_STATUSES = (408, 425, 429, 500, 502, 503, 504)
MAX_DOCUMENT_BYTES = 16 << 20
CHUNK_BYTES = 1 << 16


class Client:
    """Downloads files. pause: the unit of the seconds between retries, which are 0, 2, 4, 8, ... times as long."""

    def __init__(self, *, retries: int = RETRIES, pause: float = 1.0) -> None:
        self._retry = Retry(
            retries,
            status_forcelist=RETRIED_STATUSES,
            raise_on_status=False,
            backoff_factor=pause,
            backoff_max=MAX_PAUSE,
            retry_after_max=MAX_PAUSE,
        )
        self._session = requests.Session()
        self._session.max_redirects = 10
        # A compressed transfer would have another length than the file.
        self._session.headers["Accept-Encoding"] = "identity"
        self._session.hooks["response"].append(self._check_redirect)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=self._retry))

    def close(self) -> None:
        """Close the connections that are kept open."""
        self._session.close()

    def read(self, url: str) -> bytes:
        """Return a short document, such as JSON, or its beginning if it is not short. Raises DownloadError."""
        retry = self._retry
        while True:
            try:
                with self._get(url) as response:
                    content: bytes = response.raw.read(MAX_DOCUMENT_BYTES, decode_content=True)
                    return content
            except HTTPError as error:
                retry = self._next_attempt(retry, url, error)

    def download(self, remote: RemoteFile, folder: Path) -> Path:
        """Download a file into a folder, continuing an earlier attempt, and return its path.

        Raises DownloadError, after removing what was received if it cannot belong to this file; OutputError.
        """
        partial = PartialFile(folder, remote)
        retry, length = self._retry, 0
        while not partial.complete():
            try:
                self._transfer(remote, partial)
            except HTTPError as error:
                if partial.length > length:  # as long as bytes arrive, the number of attempts has no limit
                    retry, length = self._retry, partial.length
                retry = self._next_attempt(retry, remote.url, error)
        return partial.path

    def _next_attempt(self, retry: Retry, url: str, error: HTTPError) -> Retry:
        """Pause after a broken transfer, which urllib3 does not retry itself. Raises DownloadError after too many."""
        try:
            retry = retry.increment("GET", url, error=error)
        except MaxRetryError:
            found = f"{_reason(error)} after {self._retry.total} retries"
            hint = "run the command again to continue"
            raise DownloadError(url, expected="a complete transfer", found=found, hint=hint) from error
        logger.warning("%s", printable(f"{url}: {_reason(error)}; trying again"))
        retry.sleep()
        return retry

    def _transfer(self, remote: RemoteFile, partial: PartialFile) -> None:
        """Request the missing bytes and write what arrives. Raises HTTPError if that is not all of them."""
        offset, validator, size = partial.length, partial.progress.validator, partial.progress.size
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        if offset and validator is not None:
            headers["If-Range"] = validator
        with self._get(remote.url, headers) as response:
            status, told = response.status_code, response.headers
            span, _, total = told.get("Content-Range", "").removeprefix("bytes ").partition("/")
            continues = offset and span.startswith(f"{offset}-") and (size is None or total in ("*", str(size)))
            if status == 416 or (status == 206 and not continues):
                partial.discard()
                raise ProtocolError(f"the file on the server has changed (HTTP {status})")
            if "text/html" in told.get("Content-Type", ""):
                raise DownloadError(remote.url, expected="a file", found="a web page")
            if status == 200:
                offset, etag = 0, told.get("ETag", "")
                # A weak ETag only says that two versions are equivalent, not that their bytes are the same.
                validator = etag if etag and not etag.startswith("W/") else told.get("Last-Modified")
                partial.start(response.raw.length_remaining, validator)
            size = partial.progress.size
            with tqdm(total=size, initial=offset, unit="B", unit_scale=True, desc=remote.name, disable=None) as bar:
                for length in partial.append(response.raw.stream(CHUNK_BYTES, decode_content=False)):
                    bar.update(length)
        if size is not None and partial.length < size:
            raise ProtocolError(f"the server sent only {partial.length} of {size} bytes")

    @contextmanager
    def _get(self, url: str, headers: dict[str, str] | None = None) -> Iterator[Any]:
        """Yield the response to a request, after redirects, with status 200, 206 or 416. Raises DownloadError."""
        try:
            response = self._session.get(url, headers=headers, stream=True, timeout=TIMEOUT)
        except (requests.ConnectionError, requests.Timeout) as error:
            found = f"none after {self._retry.total} retries ({_reason(error)})"
            raise DownloadError(url, expected="a response", found=found, hint="check the network") from error
        except (requests.RequestException, ValueError) as error:  # about this URL, or one that it redirects to
            raise DownloadError(url, f"the URL cannot be followed ({_reason(error)})") from error
        with response:
            status = response.status_code
            if status not in (200, 206, 416):
                hint = "try again later" if status in RETRIED_STATUSES else ""
                raise DownloadError(url, expected="a file", found=f"HTTP {status} {response.reason}", hint=hint)
            yield response

    def _check_redirect(self, response: Any, **_: object) -> None:
        if target := self._session.get_redirect_target(response):
            try:
                check_secure(response.url, urljoin(response.url, target))
            except (DownloadError, ValueError):
                response.close()
                raise


def _reason(error: Exception) -> str:
    """Return the message of the error that an error of requests or urllib3 wraps."""
    inner = error.args[0] if error.args else error
    return str(getattr(inner, "reason", None) or inner)
