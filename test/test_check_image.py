"""The platform's rules for an image: its archive, and whether Docker can start it."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pantherseg.cli import main
from pantherseg.errors import UploadError
from pantherseg.grand_challenge.check_image import check_image
from pantherseg.grand_challenge.verdict import Verdict
from pantherseg.paths import ROOT
from saved import Saved, tar

ARCHIVE = "an archive of docker save"
ENGINE = "an image of Docker's engine"
ONE_IMAGE = "one image in manifest.json"
NOT_ROOT = "USER set, and not root"
ENTRY_POINT = "an entry point or a command"
STARTS = "the container starts"
RULES = 7


def broken(verdicts: list[Verdict]) -> dict[str, str]:
    return {verdict.rule: verdict.found for verdict in verdicts if not verdict.kept}


def only_fault(verdicts: list[Verdict], rule: str) -> str:
    """Return what was found where exactly one rule is broken, which must be this one."""
    faults = broken(verdicts)
    assert [name[: len(rule)] for name in faults] == [rule], faults
    (found,) = faults.values()
    assert len(found.splitlines()) == 1
    return found


def judged(saved: Saved, tmp_path: Path, name: str = "image.tar") -> list[Verdict]:
    return check_image(str(saved.write(tmp_path / name)))


@pytest.mark.parametrize("name", ["image.tar", "image.tar.gz"])
def test_accepts_a_good_image(tmp_path: Path, name: str) -> None:
    verdicts = judged(Saved(), tmp_path, name)
    assert broken(verdicts) == {}
    assert len(verdicts) == RULES


def test_accepts_compression_by_xz(tmp_path: Path) -> None:
    path = tmp_path / "image.tar.xz"
    path.write_bytes(lzma.compress(Saved().content(), preset=0))
    assert broken(check_image(str(path))) == {}


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("image.tar.gz", lambda content: content),
        ("image.tar", lambda content: gzip.compress(content, 1)),
        ("image.zip", lambda content: content),
        ("image.tgz", lambda content: gzip.compress(content, 1)),
    ],
)
def test_refuses_a_suffix_that_does_not_fit_the_compression(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / name
    path.write_bytes(pack(Saved().content()))
    assert name in only_fault(check_image(str(path)), ARCHIVE)


def truncated_gzip(content: bytes) -> bytes:
    return gzip.compress(content, 1)[:-200]


def changed_gzip(content: bytes) -> bytes:
    packed = bytearray(gzip.compress(content, 1))
    packed[-6] ^= 1
    return bytes(packed)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        pytest.param(
            "image.tar.gz",
            truncated_gzip,
            marks=pytest.mark.fault(
                "outputs", "an image's archive cut short", "the rule that it breaks, before the upload"
            ),
        ),
        ("image.tar.gz", changed_gzip),
        ("image.tar.xz", lambda content: lzma.compress(content, preset=0)[:-100]),
        ("image.tar", lambda content: content[: len(content) // 3]),
        ("image.tar", lambda content: content.rstrip(b"\0")[:-50]),
        ("image.tar", lambda content: b""),
        ("image.tar", lambda content: b"no archive" * 100),
        ("image.tar", lambda content: b"\x28\xb5\x2f\xfd" + bytes(2000)),
    ],
    ids=["gzip cut", "gzip changed", "xz cut", "tar cut", "tar cut late", "empty", "text", "zstd"],
)
def test_refuses_a_damaged_archive(tmp_path: Path, name: str, spoil: Callable[[bytes], bytes]) -> None:
    path = tmp_path / name
    path.write_bytes(spoil(Saved().content()))
    assert only_fault(check_image(str(path)), ARCHIVE).endswith("Could not decompress the container image file.")


def test_refuses_an_archive_that_ends_between_two_members(tmp_path: Path) -> None:
    content = Saved().content()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        last = archive.getmembers()[-1]
    path = tmp_path / "image.tar"
    path.write_bytes(content[: last.offset])
    assert "a damaged or truncated archive" in only_fault(check_image(str(path)), ARCHIVE)


def second_image(members: dict[str, bytes]) -> None:
    members["manifest.json"] = json.dumps(json.loads(members["manifest.json"]) * 2).encode()


def only_oci(members: dict[str, bytes]) -> None:
    del members["manifest.json"]
    members["index.json"] = b'{"schemaVersion": 2, "manifests": []}'
    members["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'


def drop(suffix: str) -> Callable[[dict[str, bytes]], object]:
    return lambda members: [members.pop(name) for name in list(members) if name.endswith(suffix)]


def other_configuration(members: dict[str, bytes]) -> None:
    name = next(name for name in members if name.endswith(".json") and name != "manifest.json")
    members[name] = members[name].replace(b'"user"', b'"User"')


def other_layer(members: dict[str, bytes]) -> None:
    name = [name for name in members if name.endswith("layer.tar")][-1]
    members[name] = tar({"opt/code": b"other code"})


def set_manifest(content: bytes) -> Callable[[dict[str, bytes]], object]:
    return lambda members: members.update({"manifest.json": content})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (second_image, "The container image file should only have 1 image. This file contains 2."),
        (set_manifest(b"[]"), "This file contains 0."),
        (only_oci, "no manifest.json but index.json: an OCI layout. Was this created with docker save?"),
        (drop("manifest.json"), "no manifest.json. Was this created with docker save?"),
        (set_manifest(b"{}"), "manifest.json without a list of images"),
        (set_manifest(b"[1]"), "manifest.json without a list of images"),
        (set_manifest(b"[{"), "manifest.json, which is not valid JSON"),
        (set_manifest(b"[" * 100_000), "manifest.json, which is not valid JSON"),
        (set_manifest(b'[{"Config": 3}]'), "no 3, the image's configuration"),
        (set_manifest(b'[{"Config": "x.json"}]'), "no x.json, the image's configuration"),
        (other_configuration, "a configuration whose SHA-256 is not its name"),
        (drop("layer.tar"), "/layer.tar, no such file"),
        (other_layer, "layers whose SHA-256 is not in the configuration"),
    ],
)
def test_refuses_an_archive_without_exactly_one_image(
    tmp_path: Path, change: Callable[[dict[str, bytes]], object], said: str
) -> None:
    assert said in only_fault(judged(Saved(change=change), tmp_path), ONE_IMAGE)


def test_refuses_an_image_without_layers(tmp_path: Path) -> None:
    assert only_fault(judged(Saved(layers=[]), tmp_path), ONE_IMAGE) == "no layers"


def test_accepts_layers_compressed_by_gzip(tmp_path: Path) -> None:
    assert broken(judged(Saved(pack=gzip.compress), tmp_path)) == {}


def zstd(layer: bytes) -> bytes:
    return subprocess.run(["zstd", "--quiet"], input=layer, capture_output=True, check=True).stdout


@pytest.mark.parametrize(
    ("pack", "said"),
    [
        (zstd, "/layer.tar, compression by zstd, which is not supported"),
        (lambda layer: gzip.compress(layer)[:-20], "/layer.tar, a damaged or truncated archive"),
        (lambda layer: layer[:700], "layers whose SHA-256 is not in the configuration"),
    ],
)
def test_refuses_layers_that_cannot_be_read(tmp_path: Path, pack: Callable[[bytes], bytes], said: str) -> None:
    if pack is zstd and shutil.which("zstd") is None:
        pytest.skip("zstd is not installed")
    assert said in only_fault(judged(Saved(pack=pack), tmp_path), ONE_IMAGE)


def test_accepts_the_layout_of_docker_25(tmp_path: Path) -> None:
    def as_blobs(members: dict[str, bytes]) -> None:
        (entry,) = json.loads(members["manifest.json"])
        moved = {name: f"blobs/sha256/{name.split('/')[0].removesuffix('.json')}" for name in entry["Layers"]}
        moved[entry["Config"]] = f"blobs/sha256/{entry['Config'].removesuffix('.json')}"
        for old, new in moved.items():
            members[new] = members.pop(old)
        entry |= {"Config": moved[entry["Config"]], "Layers": [moved[name] for name in entry["Layers"]]}
        members["manifest.json"] = json.dumps([entry]).encode()
        members["index.json"] = b"{}"

    assert broken(judged(Saved(change=as_blobs), tmp_path)) == {}


def test_accepts_a_link_in_place_of_an_equal_layer(tmp_path: Path) -> None:
    members = Saved().members()
    first = next(name for name in members if name.endswith("layer.tar"))
    members["moved/layer.tar"] = members.pop(first)
    buffer = io.BytesIO(tar(members))
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        link = tarfile.TarInfo(first)
        link.type, link.linkname = tarfile.SYMTYPE, "../moved/layer.tar"
        archive.addfile(link)
    path = tmp_path / "image.tar"
    path.write_bytes(buffer.getvalue())
    assert broken(check_image(str(path))) == {}


@pytest.mark.fault(
    "outputs", "an image's {where} of a few bytes that expands to 200 MB", "the rule that it breaks, before the upload"
)
@pytest.mark.parametrize("where", ["archive", "layer"])
def test_stops_reading_an_archive_that_was_made_to_fill_a_disk(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pantherseg.grand_challenge.check_image.MIN_ALLOWED_BYTES", 1 << 20)
    saved = Saved()
    saved.layers.append(tar({"zeros": bytes(200 << 20)}))
    name = "image.tar"
    if where == "archive":
        name = "image.tar.gz"
    else:
        saved.pack = lambda layer: gzip.compress(layer, 1)
    assert "made to fill a disk" in only_fault(judged(saved, tmp_path, name), ARCHIVE)


def test_refuses_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pantherseg.archives.MAX_MEMBERS", 5)
    assert "more than 5 members" in only_fault(judged(Saved(), tmp_path), ARCHIVE)


def test_refuses_a_header_that_states_more_than_the_archive_has(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    path = tmp_path / "image.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(100_000))
    only_fault(check_image(str(path)), ARCHIVE)


def with_config(**changes: Any) -> Saved:
    saved = Saved()
    saved.config |= changes
    return saved


@pytest.mark.parametrize(
    "user",
    [
        "",
        None,
        pytest.param(
            "root",
            marks=pytest.mark.fault(
                "outputs", "an image that runs as root", "the rule that it breaks, before the upload"
            ),
        ),
        "Root",
        "0",
        "0:0",
        "root:user",
        "00",
        ":1000",
    ],
)
def test_refuses_root(tmp_path: Path, user: str | None) -> None:
    assert "The container runs as root." in only_fault(judged(with_config(User=user), tmp_path), NOT_ROOT)


@pytest.mark.parametrize("user", ["user", "user:staff", "user:50", "1000", "1000:1000"])
def test_accepts_other_users(tmp_path: Path, user: str) -> None:
    assert broken(judged(with_config(User=user), tmp_path)) == {}


@pytest.mark.fault("outputs", "an image for other processors", "the rule that it breaks, before the upload")
def test_refuses_another_architecture(tmp_path: Path) -> None:
    saved = Saved(about={"architecture": "arm64", "os": "linux"})
    found = only_fault(judged(saved, tmp_path), "for linux/amd64")
    assert found == "linux/arm64. Architecture type 'arm64' is not supported."


@pytest.mark.parametrize(("tag", "kept"), [("Mine:latest", False), ("host:5000/a/mine:V1", True), ("a/Mine", False)])
def test_refuses_capitals_in_the_name(tmp_path: Path, tag: str, kept: bool) -> None:
    verdicts = judged(Saved(tags=[tag]), tmp_path)
    assert (only_fault(verdicts, "a name in lower case") == tag) if not kept else broken(verdicts) == {}


def test_accepts_an_image_without_a_name(tmp_path: Path) -> None:
    assert broken(judged(Saved(tags=None), tmp_path)) == {}


@pytest.mark.parametrize("config", [{"Entrypoint": None}, {"Entrypoint": [], "Cmd": []}, {"Entrypoint": "run"}])
def test_refuses_an_image_without_an_entry_point(tmp_path: Path, config: dict[str, Any]) -> None:
    assert only_fault(judged(with_config(**config), tmp_path), ENTRY_POINT) == "neither ENTRYPOINT nor CMD"


def test_accepts_a_command_without_an_entry_point(tmp_path: Path) -> None:
    assert broken(judged(with_config(Entrypoint=None, Cmd=["run"]), tmp_path)) == {}


def test_judges_a_configuration_with_unexpected_types(tmp_path: Path) -> None:
    odd = {"User": 5, "Entrypoint": "run.py", "Cmd": {}, "Volumes": [{}]}
    assert list(broken(judged(with_config(**odd), tmp_path))) == [ENTRY_POINT]
    saved = Saved(about={})
    saved.config.clear()
    assert list(broken(judged(saved, tmp_path))) == ["for linux/amd64", NOT_ROOT, ENTRY_POINT]


@pytest.mark.parametrize("volume", ["/input", "/output", "/tmp", "/opt/ml", "/opt/ml/model", "/opt"])
def test_refuses_volumes_on_the_platforms_paths(tmp_path: Path, volume: str) -> None:
    assert only_fault(judged(with_config(Volumes={volume: {}}), tmp_path), "no VOLUME on") == volume


def test_accepts_volumes_elsewhere(tmp_path: Path) -> None:
    assert broken(judged(with_config(Volumes={"/data": {}, "/outputs": {}}), tmp_path)) == {}


def test_the_command_prints_lines_or_json(tmp_path: Path) -> None:
    path = str(with_config(User="root").write(tmp_path / "image.tar"))
    lines = CliRunner().invoke(main, ["check", "image", path])
    assert lines.exit_code == 1
    assert [line.split()[0] for line in lines.stdout.splitlines()].count("BROKEN") == 1
    report = CliRunner().invoke(main, ["check", "image", path, "--json"])
    assert [verdict["kept"] for verdict in json.loads(report.stdout)].count(False) == 1
    good = CliRunner().invoke(main, ["check", "image", str(Saved().write(tmp_path / "good.tar"))])
    assert (good.exit_code, len(good.stdout.splitlines())) == (0, RULES)


def test_refuses_what_is_neither_a_file_nor_a_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UploadError, match="expected an archive of docker save, found a folder"):
        check_image(str(tmp_path))
    with pytest.raises(UploadError, match="expected a file, or the tag of an image, found neither"):
        check_image("--all")
    assert broken(check_image("Mine:latest")) == {ENGINE: "Mine:latest: Docker takes names in lower case only"}
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UploadError, match="no such file and no docker"):
        check_image("mine:latest")


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a `docker` into PATH that saves the default image and does the rest as it is told."""
    program, image = tmp_path / "docker", Saved().write(tmp_path / "image.tar")

    def write(*, save: str = "true", run: str = "true", kill: str = "false") -> None:
        cases = f"image) ;;\nsave) cat {image}\n{save} ;;\nrun) {run} ;;\nkill) {kill} ;;"
        program.write_text(f"#!/bin/sh\ncase $1 in\n{cases}\nesac\n")
        program.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return write


@pytest.mark.parametrize("size", [0, 3000, None])
def test_names_the_engines_error_while_it_saves(tmp_path: Path, engine: Callable[..., None], size: int | None) -> None:
    """Such as a full disk: the engine writes the whole image to a folder of its own before it sends it."""
    (tmp_path / "image.tar").write_bytes(Saved().content()[:size])
    engine(save="echo no space left on device >&2; exit 1")
    with pytest.raises(UploadError, match="expected docker save to write the image, found no space left on device"):
        check_image("mine:latest")


def test_refuses_a_damaged_image_of_the_engine(tmp_path: Path, engine: Callable[..., None]) -> None:
    (tmp_path / "image.tar").write_bytes(Saved().content()[:3000])
    engine()
    assert "docker save wrote a damaged or truncated archive" in only_fault(check_image("mine:latest"), ENGINE)


USAGE = "echo >&2; echo Run docker run --help >&2; exit 125"


@pytest.mark.parametrize(
    ("run", "starts", "found"),
    [
        ("exit 0", True, "exit code 0 with an empty /input"),
        ("echo no volume >&2; exit 1", True, "exit code 1 with an empty /input: no volume"),
        ("echo open x: no such file or directory >&2; exit 1", True, "no such file or directory"),
        (f"echo docker: unable to find user nobody >&2; {USAGE}", False, "docker: unable to find user nobody"),
        ("echo docker: permission denied >&2; exit 126", False, "exit code 126: docker: permission denied"),
        ("exit 127", False, "exit code 127"),
        ("echo exec /run.sh: no such file or directory >&2; exit 255", False, "/run.sh: no such file or directory"),
        ("echo exec /run: exec format error >&2; exit 1", False, "exit code 1: exec /run: exec format error"),
    ],
)
def test_tells_a_program_that_fails_from_one_that_does_not_start(
    engine: Callable[..., None], run: str, starts: bool, found: str
) -> None:
    engine(run=run)
    verdict = check_image("mine:latest")[-1]
    assert (verdict.rule, verdict.kept) == (STARTS, starts)
    assert verdict.found.endswith(found)


def test_stops_a_container_that_still_runs(engine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pantherseg.grand_challenge.check_image.START_SECONDS", 0.2)
    engine(run="exec sleep 60", kill="true")
    verdicts = check_image("mine:latest")
    assert broken(verdicts) == {}
    assert verdicts[-1].found == "still running after 0.2 s, then stopped"
    engine(run="exec sleep 60", kill="false")
    with pytest.raises(UploadError, match=r"expected a started container, found none within 0\.2 s"):
        check_image("mine:latest")


def needs_docker() -> None:
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no Docker engine answers")


@pytest.mark.docker
def test_accepts_the_projects_own_image() -> None:
    needs_docker()
    image = "pantherseg-task1-cpu"
    if subprocess.run(["docker", "image", "inspect", image], capture_output=True).returncode:
        pytest.skip(f"./do_build.sh has not built {image}")
    verdicts = check_image(image)
    assert broken(verdicts) == {}
    assert len(verdicts) == RULES + 1
    with pytest.raises(UploadError, match="No such image"):
        check_image("pantherseg-no-such-image")


def program_that_exits_with_its_user() -> bytes:
    """A tiny x86-64 Linux program whose exit code is the number of the user that runs it."""
    address, headers = 0x400000, 64 + 56
    getuid, move, exit_ = b"\xb8\x66\0\0\0\x0f\x05", b"\x89\xc7", b"\xb8\x3c\0\0\0\x0f\x05"
    code = getuid + move + exit_
    size = headers + len(code)
    elf = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, address + headers, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return elf + struct.pack("<IIQQQQQQ", 1, 5, 0, address, address, size, size, 4096) + code


@pytest.mark.docker
@pytest.mark.parametrize(
    ("user", "entry_point", "fault"),
    [
        ("user", "/run", ""),
        pytest.param(
            "nobody",
            "/run",
            "unable to find user nobody",
            marks=pytest.mark.fault(
                "outputs", "an image with an unknown user", "the rule that it breaks, before the upload"
            ),
            id="unknown user",
        ),
        pytest.param(
            "user",
            "/gone",
            "no such file or directory",
            marks=pytest.mark.fault(
                "outputs", "an image without its entry point", "the rule that it breaks, before the upload"
            ),
            id="missing entry point",
        ),
    ],
)
def test_starts_images_that_docker_built(tmp_path: Path, user: str, entry_point: str, fault: str) -> None:
    needs_docker()
    name = "pantherseg-check-test"
    (tmp_path / "passwd").write_text("user:x:42:42::/:/run\n")
    (tmp_path / "run").write_bytes(program_that_exits_with_its_user())
    (tmp_path / "run").chmod(0o755)
    dockerfile = f'FROM scratch\nCOPY passwd /etc/passwd\nCOPY run /run\nUSER {user}\nENTRYPOINT ["{entry_point}"]\n'
    (tmp_path / "Dockerfile").write_text(dockerfile)
    subprocess.run(["docker", "build", "--quiet", "--tag", name, str(tmp_path)], check=True, capture_output=True)
    try:
        verdicts = check_image(name)
    finally:
        subprocess.run(["docker", "rmi", "--force", name], check=True, capture_output=True)
    if fault:
        assert fault in only_fault(verdicts, STARTS)
    else:
        assert broken(verdicts) == {}
        assert verdicts[-1].found == "exit code 42 with an empty /input"


def test_the_projects_dockerfiles_keep_the_rules() -> None:
    for task in ("task1", "task2"):
        text = (ROOT / f"Dockerfile.{task}").read_text()
        assert "VOLUME" not in text
        assert "USER user" in text
