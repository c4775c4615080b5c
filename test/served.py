"""A web server for tests, as unreliable as real ones: files with ranges, and what goes wrong with them."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

PIECE = 1 << 16


@dataclass
class Page:
    """One address.

    breaks: for each request in turn after how many bytes the connection ends, the last for all further ones; None =
    never. sized: whether there is a Content-Length; length: what it says in place of the truth. statuses: for each of
    the first requests an error. pause: seconds between two pieces.
    """

    content: bytes = b""
    etag: str | None = '"1"'
    ranges: bool = True
    breaks: list[int | None] = field(default_factory=lambda: [None])
    length: int | None = None
    sized: bool = True
    statuses: list[int] = field(default_factory=list)
    location: str | None = None
    kind: str = "application/octet-stream"
    pause: float = 0.0
    asked: list[str | None] = field(default_factory=list)
    """The Range of each request that came."""


class Handler(BaseHTTPRequestHandler):
    server: Served

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        page = self.server.pages.get(unquote(self.path))
        if page is None:
            self.send_error(404)
            return
        page.asked.append(self.headers["Range"])
        self.close_connection = True
        if page.statuses:
            self.send_error(page.statuses.pop(0))
        elif page.location is not None:
            self.send_response(302)
            self.send_header("Location", page.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.answer(page)

    def answer(self, page: Page) -> None:
        start, asked = 0, self.headers["Range"]
        same = self.headers["If-Range"] in (None, page.etag)
        if asked and page.ranges and same:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(page.content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(page.content) - 1}/{len(page.content)}")
        else:
            self.send_response(200)
        if page.etag:
            self.send_header("ETag", page.etag)
        self.send_header("Content-Type", page.kind)
        if page.sized:
            self.send_header("Content-Length", str(len(page.content) - start if page.length is None else page.length))
        self.end_headers()
        limit = page.breaks.pop(0) if len(page.breaks) > 1 else page.breaks[0]
        content = page.content[start:] if limit is None else page.content[start : start + limit]
        for place in range(0, len(content), PIECE):
            self.wfile.write(content[place : place + PIECE])
            time.sleep(page.pause)


class Served(ThreadingHTTPServer):
    """Pages by their path, served while the block runs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, Page] = {}
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Served:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, *_: Any) -> None:
        """A client that was killed is no error of the server's."""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def record(self, number: int, files: dict[str, Page], licence: str | None = "cc-by-4.0") -> str:
        """Serve a Zenodo record, and return the address of all records."""
        entries = []
        for name, page in files.items():
            path = f"/api/records/{number}/files/{name}/content"
            self.pages[path] = page
            checksum = f"md5:{hashlib.md5(page.content).hexdigest()}"
            entry = {"id": name, "key": name, "size": len(page.content), "checksum": checksum}
            entries.append({**entry, "links": {"self": self.url(path)}})
        metadata: dict[str, Any] = {"title": "weights"} | ({"license": {"id": licence}} if licence else {})
        content = json.dumps({"id": number, "files": entries, "metadata": metadata}).encode()
        self.pages[f"/api/records/{number}"] = Page(content, kind="application/json")
        return self.url("/api/records")
