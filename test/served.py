"""A web server for tests that serves files with ranges, and fails in the ways that real servers do."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

CHUNK_BYTES = 1 << 16


@dataclass
class Page:
    """The response to a path.

    cuts: for each request in turn, the number of bytes after which the connection is cut, None for never; the last
    one holds for all further requests. announced: the Content-Length to send, "" for none, None for the true one.
    statuses: errors to answer the first requests with. pause: seconds between two chunks.
    """

    content: bytes = b""
    etag: str | None = '"1"'
    ranges: bool = True
    cuts: list[int | None] = field(default_factory=lambda: [None])
    announced: int | str | None = None
    statuses: list[int] = field(default_factory=list)
    retry_after: str | None = None
    location: str | None = None
    content_type: str = "application/octet-stream"
    pause: float = 0.0
    requests: list[str | None] = field(default_factory=list)
    """The Range header of each request so far."""


class Handler(BaseHTTPRequestHandler):
    server: FileServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        page = self.server.pages.get(unquote(self.path))
        if page is None:
            self.send_error(404)
            return
        page.requests.append(self.headers["Range"])
        self.close_connection = True
        if page.statuses:
            self.send_headers(page.statuses.pop(0), {"Retry-After": page.retry_after})
        elif page.location is not None:
            self.send_headers(302, {"Location": page.location, "Content-Length": "0"})
        else:
            self.send_file(page)

    def send_headers(self, status: int, headers: dict[str, str | None]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def send_file(self, page: Page) -> None:
        status, start, size, content_range = 200, 0, len(page.content), None
        requested = self.headers["Range"]
        if requested and page.ranges and self.headers["If-Range"] in (None, page.etag):
            start = int(requested.removeprefix("bytes=").removesuffix("-"))
            if start >= size:
                self.send_error(416)
                return
            status, content_range = 206, f"bytes {start}-{size - 1}/{size}"
        length = str(size - start if page.announced is None else page.announced) or None
        headers = {"ETag": page.etag, "Content-Type": page.content_type, "Content-Length": length}
        self.send_headers(status, headers | {"Content-Range": content_range})
        cut = page.cuts.pop(0) if len(page.cuts) > 1 else page.cuts[0]
        content = page.content[start:] if cut is None else page.content[start : start + cut]
        for offset in range(0, len(content), CHUNK_BYTES):
            self.wfile.write(content[offset : offset + CHUNK_BYTES])
            time.sleep(page.pause)


class FileServer(ThreadingHTTPServer):
    """Serves pages by their path while the `with` block runs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, Page] = {}
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, *_: Any) -> None:
        """Ignore clients that were killed."""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def add_record(self, number: int, files: dict[str, Page], licence: str | None = "cc-by-4.0") -> str:
        """Serve a Zenodo record, and return the URL of all records."""
        entries = []
        for name, page in files.items():
            path = f"/api/records/{number}/files/{name}/content"
            self.pages[path] = page
            checksum = f"md5:{hashlib.md5(page.content).hexdigest()}"
            link = {"self": self.url(path)}
            entries.append({"key": name, "size": len(page.content), "checksum": checksum, "links": link})
        metadata = {"title": "weights"} | ({"license": {"id": licence}} if licence else {})
        content = json.dumps({"id": number, "files": entries, "metadata": metadata}).encode()
        self.pages[f"/api/records/{number}"] = Page(content, content_type="application/json")
        return self.url("/api/records")
