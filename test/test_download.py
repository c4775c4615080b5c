"""Downloads arrive complete or not at all, whatever the server does, and continue where they ended."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import SmallDisk, flip_a_bit, one_line_about
from pantherseg.errors import DownloadError, PantherSegError
from pantherseg.weights.downloads import Client
from pantherseg.weights.partial import RemoteFile, check_secure
from published import RETRIES, fault
from served import FileServer, Page

CONTENT = random.Random(0).randbytes(1_000_000)
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
HALF = 500_000


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Downloads:
    """Downloads w.zip of the server into a folder, and expects success or an error."""

    def __init__(self, server: FileServer, client: Client, folder: Path) -> None:
        self.server, self.client, self.folder = server, client, folder
        self.remote = RemoteFile("w.zip", server.url("/w.zip"), len(CONTENT), SHA256)

    def serve(self, content: bytes = CONTENT, **behaviour: Any) -> Page:
        page = self.server.pages["/w.zip"] = Page(content, **behaviour)
        return page

    def succeeds(self, **changes: Any) -> None:
        path = self.client.download(replace(self.remote, **changes), self.folder)
        assert path.read_bytes() == CONTENT
        assert names(self.folder) == ["w.zip", "w.zip.json"]

    def fails(self, where: object = None, *, left: Any = (), **changes: Any) -> str:
        """Return the error. left: the names of the files that must be left in the folder."""
        remote = replace(self.remote, **changes)
        with pytest.raises(PantherSegError) as caught:
            self.client.download(remote, self.folder)
        assert names(self.folder) == list(left)
        return one_line_about(where or remote.url, caught.value)


PARTIAL = ["w.zip.json", "w.zip.part"]


@pytest.fixture
def downloads(server: FileServer, client: Client, tmp_path: Path) -> Downloads:
    return Downloads(server, client, tmp_path)


@pytest.mark.parametrize("checksum", [None, SHA256, MD5, MD5.upper()])
@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_downloads_a_file_once(downloads: Downloads, checksum: str | None, size: int | None) -> None:
    page = downloads.serve()
    downloads.succeeds(checksum=checksum, size=size)
    downloads.succeeds(checksum=checksum, size=size)
    assert page.requests == [None]


@fault("the connection breaks; ETag: {etag}", "the whole file, continued where it ended")
@pytest.mark.parametrize("etag", ['"1"', 'W/"1"'])
def test_continues_a_broken_transfer(downloads: Downloads, etag: str) -> None:
    """A weak ETag is enough together with a checksum."""
    page = downloads.serve(etag=etag, cuts=[HALF, None])
    downloads.succeeds()
    assert page.requests == [None, f"bytes={HALF}-"]


def test_does_not_limit_attempts_that_make_progress(downloads: Downloads) -> None:
    page = downloads.serve(cuts=[150_000])
    downloads.succeeds()
    assert len(page.requests) > 1 + RETRIES


@fault("the connection breaks every time; then no longer; ranges: {ranges}", "an error after retries; then the file")
@pytest.mark.parametrize(("ranges", "cut"), [(False, HALF), (True, 0)])
def test_gives_up_after_retries_without_progress(downloads: Downloads, ranges: bool, cut: int) -> None:
    page = downloads.serve(ranges=ranges, cuts=[cut])
    text = downloads.fails(left=PARTIAL)
    assert text.endswith("after 2 retries; run the command again to continue")
    assert len(page.requests) == 1 + RETRIES
    downloads.serve(ranges=ranges)
    downloads.succeeds()


@fault("the connection breaks, and the server cannot continue", "the whole file")
def test_restarts_where_the_server_has_no_ranges(downloads: Downloads) -> None:
    page = downloads.serve(ranges=False, cuts=[HALF, None])
    downloads.succeeds()
    assert len(page.requests) == 2


@pytest.mark.parametrize(
    ("before", "after", "checksum", "requests"),
    [
        pytest.param('"0"', '"1"', None, [f"bytes={HALF}-"], id="another ETag"),
        pytest.param('"0"', '"1"', SHA256, [f"bytes={HALF}-"], id="another ETag, checksum"),
        pytest.param(None, None, None, [None], id="neither ETag nor checksum"),
        pytest.param(None, '"1"', None, [None], id="new ETag"),
    ],
)
def test_restarts_unless_the_version_is_the_same(
    downloads: Downloads, before: str | None, after: str | None, checksum: str | None, requests: list[str | None]
) -> None:
    downloads.serve(bytes(len(CONTENT)), etag=before, cuts=[HALF, 0])
    downloads.fails(left=PARTIAL, checksum=checksum)
    page = downloads.serve(etag=after)
    downloads.succeeds(checksum=checksum)
    assert page.requests == requests


@fault("the file changes between two halves of a download", "an error, and no file; then the whole file")
def test_removes_halves_of_two_versions(downloads: Downloads) -> None:
    downloads.serve(bytes(len(CONTENT)), etag=None, cuts=[HALF, 0])
    downloads.fails(left=PARTIAL)
    downloads.serve(etag=None)
    assert "it was removed" in downloads.fails()
    downloads.succeeds()


@fault("the server has {size} bytes where 1000000 are expected", "an error, before anything is received")
@pytest.mark.parametrize("size", [len(CONTENT) + 7, len(CONTENT) - 7])
def test_refuses_another_size_at_once(downloads: Downloads, size: int) -> None:
    page = downloads.serve(announced=size)
    assert downloads.fails().endswith(f"expected 1000000 bytes, found {size} bytes on the server")
    assert len(page.requests) == 1


@fault("the server sends less than it announced", "an error that says so, and no file")
def test_refuses_less_than_announced(downloads: Downloads) -> None:
    downloads.serve(announced=len(CONTENT) + 100_000, ranges=False)
    assert "100000 more expected" in downloads.fails(left=PARTIAL, size=None, checksum=None)


@fault("the file received {id}", "an error, and no file")
@pytest.mark.parametrize(
    ("checksum", "page"),
    [
        pytest.param(SHA256, Page(bytes(len(CONTENT))), id="has another SHA-256"),
        pytest.param(MD5, Page(bytes(len(CONTENT))), id="has another MD5"),
        pytest.param(SHA256, Page(CONTENT, announced=HALF), id="is cut by its announced size"),
    ],
)
def test_removes_a_file_with_another_checksum(downloads: Downloads, checksum: str, page: Page) -> None:
    downloads.server.pages["/w.zip"] = page
    text = downloads.fails(size=None, checksum=checksum)
    assert f" bytes with {checksum}, found " in text


def test_ignores_an_invalid_content_length(downloads: Downloads) -> None:
    downloads.serve(announced="\xb2")  # str.isdigit() is true, int() fails
    downloads.succeeds()


@fault("the server sends a web page instead of the file", "an error that says so, and no file")
def test_refuses_a_web_page(downloads: Downloads) -> None:
    downloads.serve(b"<!doctype html>log in first", content_type="text/html; charset=utf-8")
    assert downloads.fails(size=None, checksum=None).endswith("expected a file, found a web page")


@fault("the file does not exist, or is not public", "an error that says so, and no file")
def test_does_not_retry_a_refusal(downloads: Downloads) -> None:
    assert downloads.fails().endswith("expected a file, found HTTP 404 Not Found")
    page = downloads.serve(statuses=[403])
    assert downloads.fails().endswith("expected a file, found HTTP 403 Forbidden")
    assert len(page.requests) == 1


@fault("the server is busy for a while, then always", "the whole file; then an error")
def test_retries_when_the_server_is_busy(downloads: Downloads, tmp_path: Path) -> None:
    page = downloads.serve(statuses=[503, 429])
    downloads.succeeds()
    assert len(page.requests) == 3
    downloads.folder = tmp_path / "other"
    page = downloads.serve(statuses=[503] * 9)
    assert downloads.fails().endswith("found HTTP 503 Service Unavailable; try again later")
    assert len(page.requests) == 1 + RETRIES


def test_waits_as_long_as_the_server_asks(downloads: Downloads) -> None:
    downloads.serve(statuses=[429], retry_after="1")
    start = time.monotonic()
    downloads.succeeds()
    assert time.monotonic() - start >= 1


@fault("no network, or no server", "an error that says so, and no file")
def test_names_a_server_that_does_not_answer(downloads: Downloads) -> None:
    with FileServer() as stopped:
        url = stopped.url("/w.zip")
    assert downloads.fails(url=url).endswith("Connection refused); check the network")
    with pytest.raises(DownloadError) as caught:
        downloads.client.read(url)
    assert one_line_about(url, caught.value).endswith("Connection refused); check the network")


def test_reads_a_document_again_after_a_broken_transfer(server: FileServer, client: Client) -> None:
    server.pages["/record"] = Page(b"{}" * 1000, cuts=[10, None])
    assert client.read(server.url("/record")) == b"{}" * 1000


@fault("the server redirects: twice, in a circle, to a local file", "the whole file; an error for the others")
def test_follows_redirects(downloads: Downloads, server: FileServer, tmp_path: Path) -> None:
    server.pages |= {"/a": Page(location="/b"), "/b": Page(location=server.url("/w.zip"))}
    downloads.serve(cuts=[HALF, None])
    downloads.succeeds(url=server.url("/a"))
    downloads.folder = tmp_path / "other"
    server.pages |= {"/loop": Page(location="/loop"), "/local": Page(location="file:///etc/passwd")}
    assert "Exceeded 10 redirects" in downloads.fails(url=server.url("/loop"))
    assert "file:///etc/passwd" in downloads.fails(url=server.url("/local"))


@pytest.mark.parametrize("after", ["http://a/x", "ftp://a/x", "file:///x"])
def test_refuses_to_go_from_https_to_another_scheme(after: str) -> None:
    for before in ("https://a/x", "HTTPS://a/x"):
        check_secure(before, "HTTPS://b/x")
        with pytest.raises(DownloadError) as caught:
            check_secure(before, after)
        assert one_line_about(before, caught.value).endswith(f"expected a link to an https URL, found {after}")


@pytest.mark.parametrize("url", ["http://[::1", "//[::1/x", "http://.a/x", "http://a:99999999/x"])
def test_refuses_an_invalid_url(downloads: Downloads, url: str) -> None:
    downloads.server.pages["/w.zip"] = Page(location=url)
    assert ": the URL cannot be followed (" in downloads.fails()
    assert ": the URL cannot be followed (" in downloads.fails(url=url)


@fault("the file is named {name!r}", "an error, and no file")
@pytest.mark.parametrize("name", ["../w.zip", "a/w.zip", "..", ".w", "", "a\0b", "a\nb", "\x1b[2Jw.zip"])
def test_refuses_a_name_with_a_path_or_control_characters(name: str) -> None:
    with pytest.raises(DownloadError) as caught:
        RemoteFile(name, "http://a/x")
    assert "expected a plain file name" in one_line_about("http://a/x", caught.value)


def test_refuses_an_unknown_checksum() -> None:
    with pytest.raises(DownloadError, match="expected a checksum by md5 or sha256, found crc:1"):
        RemoteFile("w.zip", "http://a/x", checksum="crc:1")


def cut_short(folder: Path) -> None:
    (folder / "w.zip").write_bytes(CONTENT[:-1])


def changed_in_one_bit(folder: Path) -> None:
    flip_a_bit(folder / "w.zip")


def without_a_valid_record(folder: Path) -> None:
    (folder / "w.zip.json").write_text("{")


@fault("a complete file is later {damage}", "the whole file, downloaded again")
@pytest.mark.parametrize("damage", [cut_short, changed_in_one_bit, without_a_valid_record])
def test_downloads_a_damaged_file_again(downloads: Downloads, damage: Callable[[Path], None], tmp_path: Path) -> None:
    page = downloads.serve()
    downloads.succeeds()
    damage(tmp_path)
    downloads.succeeds()
    assert page.requests == [None, None]


def test_does_not_request_a_complete_file_that_was_not_renamed(downloads: Downloads, tmp_path: Path) -> None:
    page = downloads.serve()
    downloads.succeeds()
    (tmp_path / "w.zip").rename(tmp_path / "w.zip.part")
    downloads.succeeds()
    assert len(page.requests) == 1


@fault("no room on the disk", "an error that says how much is needed, before anything is received")
def test_refuses_a_file_larger_than_the_disk(downloads: Downloads, tmp_path: Path) -> None:
    page = downloads.serve(announced=1 << 60)
    text = downloads.fails(tmp_path / "w.zip.part", left=PARTIAL, size=None, checksum=None)
    assert "expected 1152921504607 MB of disk space, found " in text
    assert len(page.requests) == 1


@fault("the disk fills up during the download; then it has room", "an error; then the whole file, continued")
def test_continues_after_the_disk_was_full(downloads: Downloads, small_disk: SmallDisk) -> None:
    downloads.folder = small_disk(600_000)
    page = downloads.serve(announced="")
    part = downloads.folder / "w.zip.part"
    text = downloads.fails(part, left=PARTIAL, size=None)
    assert "found No space left on device; what was received is kept" in text
    received = part.stat().st_size
    assert received > HALF
    small_disk(2_000_000)
    downloads.succeeds(size=None)
    assert page.requests == [None, f"bytes={received}-"]
