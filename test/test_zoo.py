"""The catalogue of published weights, and the files that an entry refers to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mrsegmentator.config import MODEL_REGISTRY

from conftest import one_line_about
from pantherseg.errors import DownloadError, RecipeError
from pantherseg.paths import ROOT, ZOO
from pantherseg.recipe import load_recipe
from pantherseg.weights import find_weights, load_zoo
from pantherseg.weights.downloads import Client
from pantherseg.weights.zoo import Release, find_release
from published import RECORD, ZOO_ENTRIES, run
from served import FileServer, Page

WINNER = find_weights(ZOO_ENTRIES, "winner-task1")


def serve_record(server: FileServer, record: Any) -> str:
    server.pages[f"/api/records/{RECORD}"] = Page(json.dumps(record).encode())
    return server.url("/api/records")


def file(server: FileServer, **changes: Any) -> dict[str, Any]:
    return {"key": "901.zip", "links": {"self": server.url("/901.zip")}} | changes


def refused(client: Client, zenodo: str, **options: Any) -> str:
    with pytest.raises(DownloadError) as caught:
        find_release(WINNER, client, zenodo=zenodo, **options)
    return one_line_about(f"{zenodo}/{RECORD}", caught.value)


@pytest.mark.parametrize("entry", [entry for entry in ZOO_ENTRIES if entry.role], ids=lambda entry: entry.name)
def test_has_a_recipe_that_uses_every_role(entry: Any) -> None:
    recipe = load_recipe(ROOT / entry.recipe)
    models = [member.model for member in recipe.members] + [recipe.localizer.model if recipe.localizer else None]
    assert entry.role in models
    assert entry.packed


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ('"winner-task2"', '"winner-task1"', "winner-task1 twice"),
        ('layout = "loose checkpoints"', 'layout = "loose"', r"weights\[4\]\.layout"),
    ],
)
def test_refuses_an_invalid_zoo(tmp_path: Path, before: str, after: str, found: str) -> None:
    path = tmp_path / "zoo.toml"
    path.write_text(ZOO.read_text().replace(before, after))
    with pytest.raises(RecipeError, match=found):
        load_zoo(path)


def test_chooses_a_file_by_pattern_or_name(client: Client, server: FileServer) -> None:
    pages = {name: Page(b"-") for name in ("a_901.zip", "b_901.zip", "c.zip")}
    zenodo = server.add_record(RECORD, pages)
    assert refused(client, zenodo).endswith(
        "expected one file that matches *901* or *Task1* or *task1*, "
        "found 2 among a_901.zip, b_901.zip, c.zip; choose one with --file NAME"
    )
    assert "found none among a_901.zip" in refused(client, zenodo, files=["d"])
    assert "expected different files, found c.zip twice" in refused(client, zenodo, files=["c.zip", "c.zip"])
    (found,) = find_release(WINNER, client, zenodo=zenodo, files=["c.zip"]).files
    assert (found.name, found.url) == ("c.zip", server.url(f"/api/records/{RECORD}/files/c.zip/content"))


@pytest.mark.parametrize("content", [b"<html>", b"{}", b'{"files": [{"key": 3}]}', b"\xff"])
def test_refuses_an_invalid_record(client: Client, server: FileServer, content: bytes) -> None:
    zenodo = server.url("/api/records")
    assert "HTTP 404" in refused(client, zenodo)
    server.pages[f"/api/records/{RECORD}"] = Page(content)
    assert "expected a Zenodo record" in refused(client, zenodo)
    assert "found a record without files" in refused(client, serve_record(server, {"files": []}))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"links": {"self": "http://[::1"}}, "http://[::1: the URL cannot be followed"),
        ({"key": "901\0.zip"}, r"expected a plain file name, found '901\x00.zip'"),
        ({"key": "901\x1b[2J\n.zip"}, r"expected a plain file name, found '901\x1b[2J\n.zip'"),
    ],
)
def test_prints_one_line_about_an_invalid_file(
    server: FileServer, tmp_path: Path, changes: dict[str, Any], found: str
) -> None:
    zenodo = serve_record(server, {"files": [file(server, **changes)]})
    for name, text in (("winner-task1", found), ("winner-task2", "choose one with --file NAME")):
        result = run("weights", "fetch", name, "--to", tmp_path, "--zenodo", zenodo)
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert line.isprintable()
        assert text in line


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        *((invalid, "see the record") for invalid in (None, [], {"license": None}, {"license": 3})),
        *(({"license": {"id": invalid}}, "see the record") for invalid in (None, "\x1b[2J")),
        ({"license": "cc-by"}, "cc-by"),
        ({"license": {"id": "cc-by-4.0"}}, "cc-by-4.0"),
    ],
)
def test_reads_the_licence_if_it_is_valid(client: Client, server: FileServer, metadata: Any, licence: str) -> None:
    zenodo = serve_record(server, {"files": [file(server)], "metadata": metadata})
    assert find_release(WINNER, client, zenodo=zenodo).licence == licence


def test_refuses_an_insecure_link_in_a_secure_record(server: FileServer) -> None:
    class SecureClient(Client):
        def read(self, url: str) -> bytes:
            return json.dumps({"files": [file(server)]}).encode()

    assert refused(SecureClient(), "https://zenodo.org/api/records").endswith(f"found {server.url('/901.zip')}")


def test_takes_the_localizer_from_the_mrsegmentator_package(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def release(**options: Any) -> Release:
        return find_release(find_weights(ZOO_ENTRIES, "mrsegmentator"), client, **options)

    (found,) = release().files
    assert found.url == MODEL_REGISTRY["base"]["url"]
    assert found.checksum == f"sha256:{MODEL_REGISTRY['base']['sha256']}"
    with pytest.raises(RecipeError, match="--file: expected weights from a Zenodo record, found mrsegmentator"):
        release(files=["x"])
    monkeypatch.delitem(MODEL_REGISTRY, "base")
    with pytest.raises(DownloadError, match="found no 'base' in mrsegmentator"):
        release()
