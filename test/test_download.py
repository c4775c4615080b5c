"""Downloads come whole or not at all, whatever the server does, and go on where they ended."""

from __future__ import annotations

import hashlib
import random
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import SmallDisk, one_line_about
from matrix import saw
from pantherseg.errors import DownloadError, OutputError, PantherSegError
from pantherseg.weights.downloads import Client, _length, check_still_safe
from pantherseg.weights.partial import Wanted
from served import Page, Served

CONTENT = random.Random(0).randbytes(1_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()
HALF = 500_000


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client(retries=2, pause=0.01)
    yield made
    made.close()


@pytest.fixture
def wanted(server: Served) -> Wanted:
    return Wanted("w.zip", server.url("/w.zip"), len(CONTENT), f"sha256:{SHA256}")


def refused(client: Client, wanted: Wanted, folder: Path, *, where: object = None) -> str:
    with pytest.raises(PantherSegError) as caught:
        client.download(wanted, folder)
    return one_line_about(where or wanted.url, caught.value)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def check(client: Client, wanted: Wanted, folder: Path) -> None:
    file = client.download(wanted, folder)
    assert file.path.read_bytes() == CONTENT
    saw(f"the file, {file.path.stat().st_size} bytes")
    assert (file.size, file.sha256) == (len(CONTENT), SHA256)
    assert names(folder) == ["w.zip", "w.zip.json"]


@pytest.mark.parametrize("checksum", [None, f"sha256:{SHA256}", f"md5:{MD5}"])
@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_file_comes_whole(
    server: Served, client: Client, wanted: Wanted, tmp_path: Path, checksum: str | None, size: int | None
) -> None:
    page = server.pages["/w.zip"] = Page(CONTENT)
    wanted = replace(wanted, checksum=checksum, size=size)
    check(client, wanted, tmp_path)
    check(client, wanted, tmp_path)
    assert page.asked == [None], "what has come is not asked for again"


@pytest.mark.fault("downloads", "the connection breaks", "the whole file, taken up where it ended")
def test_a_connection_that_breaks_once_is_taken_up_where_it_ended(
    server: Served, client: Client, wanted: Wanted, tmp_path: Path
) -> None:
    page = server.pages["/w.zip"] = Page(CONTENT, breaks=[HALF, None])
    check(client, wanted, tmp_path)
    offset = int((page.asked[1] or "").removeprefix("bytes=").removesuffix("-"))
    assert page.asked[0] is None
    assert HALF - (1 << 16) <= offset <= HALF


def test_one_that_breaks_again_and_again_but_goes_on_arrives(
    server: Served, client: Client, wanted: Wanted, tmp_path: Path
) -> None:
    page = server.pages["/w.zip"] = Page(CONTENT, breaks=[150_000])
    check(client, wanted, tmp_path)
    assert len(page.asked) > 1 + 2, "more often than retries without progress are allowed"


@pytest.mark.parametrize(
    ("ranges", "breaks"),
    [
        pytest.param(
            *(False, HALF),
            marks=pytest.mark.fault(
                "downloads",
                "the connection breaks every time; then no more",
                "an error after some tries; then the whole file",
            ),
        ),
        (True, 0),
    ],
)
def test_one_that_never_gets_further_is_given_up_after_the_stated_retries(
    server: Served, client: Client, wanted: Wanted, tmp_path: Path, ranges: bool, breaks: int
) -> None:
    page = server.pages["/w.zip"] = Page(CONTENT, ranges=ranges, breaks=[breaks])
    text = refused(client, wanted, tmp_path)
    assert "after 2 retries; what has come is kept: fetch again to go on" in text
    assert len(page.asked) == 3
    assert names(tmp_path) == ["w.zip.json", "w.zip.part"]
    server.pages["/w.zip"] = Page(CONTENT, ranges=ranges)
    check(client, wanted, tmp_path)


@pytest.mark.fault("downloads", "the connection breaks, and the server cannot go on where it ended", "the whole file")
def test_a_server_without_ranges_starts_again_cleanly(
    server: Served, client: Client, wanted: Wanted, tmp_path: Path
) -> None:
    page = server.pages["/w.zip"] = Page(CONTENT, ranges=False, breaks=[HALF, None])
    check(client, wanted, tmp_path)
    assert len(page.asked) == 2
    assert page.asked[1] is not None


@pytest.mark.parametrize("checksum", [None, f"sha256:{SHA256}"])
def test_a_file_that_was_changed_meanwhile_is_not_put_together_of_two(
    server: Served, client: Client, wanted: Wanted, tmp_path: Path, checksum: str | None
) -> None:
    wanted = replace(wanted, checksum=checksum)
    other = bytes(len(CONTENT))
    page = server.pages["/w.zip"] = Page(other, etag='"0"', breaks=[HALF])
    hasty = Client(retries=0, pause=0)
    refused(hasty, wanted, tmp_path)
    hasty.close()
    assert (tmp_path / "w.zip.part").stat().st_size > 0
    page = server.pages["/w.zip"] = Page(CONTENT)
    check(client, wanted, tmp_path)
    assert page.asked[0] is not None


def test_a_part_without_a_mark_or_checksum_is_not_gone_on_with(
    server: Served, client: Client, wanted: Wanted, tmp_path: Path
) -> None:
    wanted = replace(wanted, checksum=None)
    server.pages["/w.zip"] = Page(CONTENT, etag=None, breaks=[HALF])
    hasty = Client(retries=0, pause=0)
    refused(hasty, wanted, tmp_path)
    hasty.close()
    page = server.pages["/w.zip"] = Page(CONTENT, etag=None)
    check(client, wanted, tmp_path)
    assert page.asked == [None]


def test_a_weak_mark_does_not_count(server: Served, client: Client, wanted: Wanted, tmp_path: Path) -> None:
    page = server.pages["/w.zip"] = Page(CONTENT, etag='W/"1"', breaks=[HALF, None])
    check(client, wanted, tmp_path)
    assert page.asked[1] is not None, "the checksum tells whether the halves fit"


@pytest.mark.fault(
    "downloads", "the file changes between two halves of a download", "an error, and no file; then the whole file"
)
def test_halves_that_do_not_fit_are_removed(server: Served, client: Client, wanted: Wanted, tmp_path: Path) -> None:
    server.pages["/w.zip"] = Page(bytes(len(CONTENT)), etag=None, breaks=[HALF])
    hasty = Client(retries=0, pause=0)
    refused(hasty, wanted, tmp_path)
    hasty.close()
    server.pages["/w.zip"] = Page(CONTENT, etag=None)
    assert "it was removed" in refused(client, wanted, tmp_path)
    assert names(tmp_path) == []
    check(client, wanted, tmp_path)


@pytest.mark.fault(
    "downloads", "the server has {length} bytes where 1000000 are wanted", "an error, before anything comes"
)
@pytest.mark.parametrize("length", [len(CONTENT) + 7, len(CONTENT) - 7])
def test_a_length_other_than_the_one_wanted_is_refused_at_once(
    server: Served, client: Client, wanted: Wanted, tmp_path: Path, length: int
) -> None:
    page = server.pages["/w.zip"] = Page(CONTENT, length=length)
    text = refused(client, wanted, tmp_path)
    assert f"expected {len(CONTENT)} bytes, found an answer of {length}" in text
    assert names(tmp_path) == []
    assert len(page.asked) == 1


@pytest.mark.fault("downloads", "less comes than was promised", "an error that says so, and no file")
def test_a_length_that_promises_more_than_comes_is_noticed(
    server: Served, client: Client, wanted: Wanted, tmp_path: Path
) -> None:
    server.pages["/w.zip"] = Page(CONTENT, length=len(CONTENT) + 100_000, ranges=False)
    assert "after 2 retries" in refused(client, replace(wanted, size=None, checksum=None), tmp_path)
    assert "w.zip" not in names(tmp_path)


def test_a_length_that_hides_the_end_is_noticed_by_the_checksum(
    server: Served, client: Client, wanted: Wanted, tmp_path: Path
) -> None:
    server.pages["/w.zip"] = Page(CONTENT, length=HALF)
    assert f"expected {HALF} bytes, sha256:{SHA256}, found {HALF} bytes, sha256:" in refused(
        client, replace(wanted, size=None), tmp_path
    )
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "checksum",
    [
        pytest.param(
            f"sha256:{SHA256}",
            marks=pytest.mark.fault("downloads", "another file comes than the checksum says", "an error, and no file"),
        ),
        f"md5:{MD5}",
    ],
)
def test_a_wrong_file_is_refused_and_removed(
    server: Served, client: Client, wanted: Wanted, tmp_path: Path, checksum: str
) -> None:
    server.pages["/w.zip"] = Page(bytes(len(CONTENT)))
    assert f"{checksum}, found" in refused(client, replace(wanted, checksum=checksum), tmp_path)
    assert names(tmp_path) == []


@pytest.mark.fault("downloads", "a web page comes in the file's place", "an error that says so, and no file")
def test_a_web_page_in_a_files_place_is_refused(server: Served, client: Client, wanted: Wanted, tmp_path: Path) -> None:
    server.pages["/w.zip"] = Page(b"<!doctype html>log in first", kind="text/html; charset=utf-8")
    text = refused(client, replace(wanted, size=None, checksum=None), tmp_path)
    assert text.endswith("expected a file, found a web page")
    assert names(tmp_path) == []


@pytest.mark.fault("downloads", "the file is not there, or not for everybody", "an error that says so, and no file")
def test_a_missing_file_is_named_and_not_asked_for_again(
    server: Served, client: Client, wanted: Wanted, tmp_path: Path
) -> None:
    assert refused(client, wanted, tmp_path).endswith("expected a file, found HTTP 404 Not Found")
    page = server.pages["/w.zip"] = Page(CONTENT, statuses=[403])
    assert "HTTP 403" in refused(client, wanted, tmp_path)
    assert len(page.asked) == 1


@pytest.mark.fault("downloads", "the server is busy: for a while, then for good", "the whole file; then an error")
def test_a_server_that_is_busy_is_asked_again(server: Served, client: Client, wanted: Wanted, tmp_path: Path) -> None:
    page = server.pages["/w.zip"] = Page(CONTENT, statuses=[503, 429])
    check(client, wanted, tmp_path)
    assert len(page.asked) == 3
    page = server.pages["/other"] = Page(CONTENT, statuses=[503] * 9)
    assert "HTTP 503" in refused(client, Wanted("other", server.url("/other")), tmp_path)
    assert len(page.asked) == 3


@pytest.mark.fault("downloads", "no network, or no server", "an error that says so, and no file")
def test_a_server_that_is_not_there_is_named(client: Client, tmp_path: Path) -> None:
    with Served() as gone:
        url = gone.url("/w.zip")
    assert "a connection that broke (ConnectionError" in refused(client, Wanted("w.zip", url), tmp_path)


@pytest.mark.fault(
    "downloads",
    "the server sends elsewhere: twice, in a circle, to a file of this machine",
    "the whole file; an error for the others",
)
def test_redirects_are_followed(server: Served, client: Client, wanted: Wanted, tmp_path: Path) -> None:
    server.pages["/a"] = Page(location="/b")
    server.pages["/b"] = Page(location=server.url("/w.zip"))
    server.pages["/w.zip"] = Page(CONTENT, breaks=[HALF, None])
    check(client, replace(wanted, url=server.url("/a")), tmp_path)
    server.pages["/loop"] = Page(location="/loop")
    assert "more than 10 redirects" in refused(client, Wanted("loop", server.url("/loop")), tmp_path)
    server.pages["/away"] = Page(location="file:///etc/passwd")
    assert "found file:///etc/passwd" in refused(client, Wanted("away", server.url("/away")), tmp_path)


def test_no_redirect_leads_from_https_to_http() -> None:
    check_still_safe("http://a/x", "http://b/x")
    check_still_safe("http://a/x", "https://b/x")
    check_still_safe("https://a/x", "https://b/x")
    for after in ("http://a/x", "ftp://a/x"):
        with pytest.raises(DownloadError) as caught:
            check_still_safe("https://a/x", after)
        assert one_line_about("https://a/x", caught.value).endswith(f"found {after}")


@pytest.mark.parametrize("location", ["http://[::1", "//[::1/x"])
def test_a_redirect_to_no_address_is_refused(
    server: Served, client: Client, wanted: Wanted, tmp_path: Path, location: str
) -> None:
    server.pages["/w.zip"] = Page(location=location)
    assert refused(client, wanted, tmp_path).endswith("expected addresses that are some, found Invalid IPv6 URL")


@pytest.mark.parametrize("url", ["http://[::1", "http://.a/x", "http://a:99999999/x"])
def test_what_is_no_address_is_refused(client: Client, tmp_path: Path, url: str) -> None:
    refused(client, Wanted("w.zip", url), tmp_path)
    with pytest.raises(DownloadError):
        check_still_safe("https://a/x", "http://[::1")


def test_a_length_that_is_no_number_is_no_length() -> None:
    # isdigit, but int() does not take it.
    assert _length(SimpleNamespace(headers={"Content-Length": "\xb2"})) is None


def test_without_a_network_a_short_text_is_an_answer_that_did_not_come(client: Client) -> None:
    with Served() as gone:
        url = gone.url("/record")
    with pytest.raises(DownloadError) as caught:
        client.read(url)
    assert one_line_about(url, caught.value).startswith(f"{url}: expected an answer, found a connection that broke")


def test_errors_do_nothing_to_a_terminal() -> None:
    error = DownloadError("a", expected="b\nb", found="\x1b[2J\x00\x9b", hint="ü")
    assert str(error) == "a: expected b b, found \\x1b[2J\\x00\\x9b; ü"


@pytest.mark.parametrize("checksum", [f"MD5:{MD5.upper()}", f"sha256:{SHA256.upper()}"])
def test_a_checksum_in_capitals_is_the_same(
    server: Served, client: Client, wanted: Wanted, tmp_path: Path, checksum: str
) -> None:
    page = server.pages["/w.zip"] = Page(CONTENT, breaks=[HALF, None])
    wanted = replace(wanted, checksum=checksum)
    check(client, wanted, tmp_path)
    check(client, wanted, tmp_path)
    assert len(page.asked) == 2


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            "../w.zip", marks=pytest.mark.fault("downloads", "the file's name leads elsewhere", "an error, and no file")
        ),
        "a/w.zip",
        "..",
        ".w",
        "",
        "a\0b",
        "a\nb",
        "\x1b[2Jw.zip",
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(client: Client, wanted: Wanted, tmp_path: Path, name: str) -> None:
    assert "a file's plain name" in refused(client, replace(wanted, name=name), tmp_path)
    assert names(tmp_path) == []


def test_a_checksum_of_an_unknown_kind_is_refused(client: Client, wanted: Wanted, tmp_path: Path) -> None:
    assert "found crc:1" in refused(client, replace(wanted, checksum="crc:1"), tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        "end",
        pytest.param(
            "middle",
            marks=pytest.mark.fault(
                "downloads", "the file is damaged after it has come", "the whole file, asked for again"
            ),
        ),
        "note",
    ],
)
def test_a_file_that_was_damaged_after_it_came_is_asked_for_again(
    server: Served, client: Client, wanted: Wanted, tmp_path: Path, damage: str
) -> None:
    page = server.pages["/w.zip"] = Page(CONTENT)
    check(client, wanted, tmp_path)
    if damage == "note":
        (tmp_path / "w.zip.json").write_text("{")
    else:
        (tmp_path / "w.zip").write_bytes(CONTENT[:-1] if damage == "end" else CONTENT[:9] + b"?" + CONTENT[10:])
    check(client, wanted, tmp_path)
    assert len(page.asked) == 2


def test_a_file_that_came_but_had_no_name_yet_is_not_asked_for_again(
    server: Served, client: Client, wanted: Wanted, tmp_path: Path
) -> None:
    page = server.pages["/w.zip"] = Page(CONTENT)
    check(client, wanted, tmp_path)
    (tmp_path / "w.zip").rename(tmp_path / "w.zip.part")
    check(client, wanted, tmp_path)
    assert len(page.asked) == 1


@pytest.mark.fault("downloads", "no room on the disk", "an error that says how much is wanted, before anything comes")
def test_a_disk_without_room_is_named_beforehand(client: Client, server: Served, tmp_path: Path) -> None:
    page = server.pages["/w.zip"] = Page(CONTENT, length=1 << 60)
    text = refused(client, Wanted("w.zip", server.url("/w.zip")), tmp_path, where=tmp_path / "w.zip.part")
    assert "expected room for 1152921504607 MB, found " in text
    assert len(page.asked) == 1


@pytest.mark.fault(
    "downloads", "the disk fills up on the way; then there is room", "an error, what came is kept; then the whole file"
)
def test_a_disk_that_fills_up_is_named_and_what_came_is_kept(
    client: Client, server: Served, wanted: Wanted, small_disk: SmallDisk
) -> None:
    folder = small_disk(600_000)
    page = server.pages["/w.zip"] = Page(CONTENT, sized=False)
    wanted = replace(wanted, size=None)
    text = refused(client, wanted, folder, where=folder / "w.zip.part")
    assert "found No space left on device; what has come is kept" in text
    came = (folder / "w.zip.part").stat().st_size
    assert came > HALF
    small_disk(2_000_000)
    check(client, wanted, folder)
    assert page.asked == [None, f"bytes={came}-"]


def test_a_write_that_fails_half_way_keeps_what_came(
    client: Client, server: Served, wanted: Wanted, tmp_path: Path
) -> None:
    page = server.pages["/w.zip"] = Page(CONTENT)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, limits[1]))
    try:
        with pytest.raises(OutputError) as caught:
            client.download(wanted, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large; what has come is kept" in one_line_about(tmp_path / "w.zip.part", caught.value)
    assert (tmp_path / "w.zip.part").stat().st_size == HALF
    check(client, wanted, tmp_path)
    assert page.asked == [None, f"bytes={HALF}-"]
