"""The platform's rules for an image: its archive, and whether Docker can start it."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import re
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from archive_files import ImageArchive, entry, tar, without_last_member
from pantherseg.cli import main
from pantherseg.errors import UploadError
from pantherseg.grand_challenge.check_image import check_image
from pantherseg.verdict import Verdict
from shim.image import built
from verdicts import broken, only_fault, upload_case, upload_fault

ARCHIVE = "an archive of docker save"
ENGINE = "an image of Docker's engine"
ONE_IMAGE = "one image in manifest.json"
NOT_ROOT = "USER set, and not root"
ENTRY_POINT = "an entry point or a command"
CONTRACT = "a contract that the platform knows"
STARTS = "the container starts"
SERVES = "the server answers GET /health"
API_METHOD = "org.grand-challenge.api-method"
RULES = 8
ZSTD = b"\x28\xb5\x2f\xfd"
Check = Callable[..., list[Verdict]]
Members = dict[str, bytes]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Check an archive under a file name."""

    def check(image: ImageArchive | bytes, name: str = "image.tar") -> list[Verdict]:
        path = tmp_path / name
        path.write_bytes(image.content() if isinstance(image, ImageArchive) else image)
        return check_image(str(path))

    return check


def zipped(content: bytes) -> bytes:
    return gzip.compress(content, 1)


def with_config(**changes: Any) -> ImageArchive:
    image = ImageArchive()
    image.config |= changes
    return image


def as_blobs(members: Members) -> None:
    """Lay the members out as Docker 25 does."""
    (image,) = json.loads(members["manifest.json"])
    moved = {name: f"blobs/sha256/{name.split('/')[0].removesuffix('.json')}" for name in image["Layers"]}
    moved[image["Config"]] = f"blobs/sha256/{image['Config'].removesuffix('.json')}"
    for old, new in moved.items():
        members[new] = members.pop(old)
    image |= {"Config": moved[image["Config"]], "Layers": [moved[name] for name in image["Layers"]]}
    members["manifest.json"] = json.dumps([image]).encode()
    members["index.json"] = b"{}"


def with_a_link_for_a_layer() -> bytes:
    members = ImageArchive().members()
    first = next(name for name in members if name.endswith("layer.tar"))
    members["moved/layer.tar"] = members.pop(first)
    return tar(members, entry(first, tarfile.SYMTYPE, target="../moved/layer.tar"))


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (ImageArchive(), "image.tar"),
        (zipped(ImageArchive().content()), "image.tar.gz"),
        (lzma.compress(ImageArchive().content(), preset=0), "image.tar.xz"),
        (ImageArchive(pack=zipped), "image.tar"),
        (ImageArchive(change=as_blobs), "image.tar"),
        (with_a_link_for_a_layer(), "image.tar"),
        (ImageArchive(tags=None), "image.tar"),
        (ImageArchive(tags=["host:5000/a/mine:V1"]), "image.tar"),
        *((with_config(User=user), "image.tar") for user in ("user:staff", "user:50", "1000", "1000:1000")),
        (with_config(Entrypoint=None, Cmd=["run"]), "image.tar"),
        (with_config(Volumes={"/data": {}, "/outputs": {}}), "image.tar"),
        *((with_config(Labels={API_METHOD: method}), "image.tar") for method in ("exec", "invoke", " 'Invoke' ")),
        (with_config(Labels={API_METHOD.title(): "invoke"}), "image.tar"),
        (with_config(Labels=None), "image.tar"),
    ],
)
def test_accepts_a_good_image(check: Check, image: ImageArchive | bytes, name: str) -> None:
    verdicts = check(image, name)
    assert broken(verdicts) == {}
    assert len(verdicts) == RULES


@pytest.mark.parametrize(
    ("name", "pack"), [("image.tar.gz", bytes), ("image.tar", zipped), ("image.zip", bytes), ("image.tgz", zipped)]
)
def test_refuses_a_suffix_that_does_not_fit_the_compression(
    check: Check, name: str, pack: Callable[[bytes], bytes]
) -> None:
    assert name in only_fault(check(pack(ImageArchive().content()), name), ARCHIVE)


def with_another_checksum(content: bytes) -> bytes:
    packed = bytearray(zipped(content))
    packed[-6] ^= 1
    return bytes(packed)


def with_a_header_of_a_larger_member(_: bytes) -> bytes:
    info = entry("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    info.size = 1 << 30
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(100_000)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        upload_case("an image's archive cut short", "image.tar.gz", lambda content: zipped(content)[:-200]),
        ("image.tar.gz", with_another_checksum),
        ("image.tar.xz", lambda content: lzma.compress(content, preset=0)[:-100]),
        ("image.tar", lambda content: content[: len(content) // 3]),
        ("image.tar", lambda content: content.rstrip(b"\0")[:-50]),
        ("image.tar", without_last_member),
        ("image.tar", with_a_header_of_a_larger_member),
        ("image.tar", lambda content: b""),
        ("image.tar", lambda content: b"no archive" * 100),
        ("image.tar", lambda content: ZSTD + bytes(2000)),
    ],
)
def test_refuses_a_damaged_archive(check: Check, name: str, damage: Callable[[bytes], bytes]) -> None:
    found = only_fault(check(damage(ImageArchive().content()), name), ARCHIVE)
    assert found.endswith("Could not decompress the container image file.")


def second_image(members: Members) -> None:
    members["manifest.json"] = json.dumps(json.loads(members["manifest.json"]) * 2).encode()


def oci_layout(members: Members) -> None:
    del members["manifest.json"]
    members["index.json"] = b'{"schemaVersion": 2, "manifests": []}'


def without(suffix: str) -> Callable[[Members], object]:
    return lambda members: [members.pop(name) for name in list(members) if name.endswith(suffix)]


def other_configuration(members: Members) -> None:
    name = next(name for name in members if name.endswith(".json") and name != "manifest.json")
    members[name] = members[name].replace(b'"user"', b'"User"')


def other_layer(members: Members) -> None:
    name = [name for name in members if name.endswith("layer.tar")][-1]
    members[name] = tar({"opt/code": b"other code"})


def manifest(content: bytes) -> Callable[[Members], object]:
    return lambda members: members.update({"manifest.json": content})


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"change": second_image}, "The container image file should only have 1 image. This file contains 2."),
        ({"change": manifest(b"[]")}, "This file contains 0."),
        ({"change": oci_layout}, "no manifest.json but index.json: an OCI layout. Was this created with docker save?"),
        ({"change": without("manifest.json")}, "no manifest.json. Was this created with docker save?"),
        ({"change": manifest(b"{}")}, "manifest.json without a list of images"),
        ({"change": manifest(b"[1]")}, "manifest.json without a list of images"),
        ({"change": manifest(b"[{")}, "manifest.json, which is not valid JSON"),
        ({"change": manifest(b"[" * 100_000)}, "manifest.json, which is not valid JSON"),
        ({"change": manifest(b'[{"Config": 3}]')}, "no 3, the image's configuration"),
        ({"change": manifest(b'[{"Config": "x.json"}]')}, "no x.json, the image's configuration"),
        ({"change": other_configuration}, "a configuration whose SHA-256 is not its name"),
        ({"change": without("layer.tar")}, "/layer.tar, no such file"),
        ({"change": other_layer}, "layers whose SHA-256 is not in the configuration"),
        ({"layers": []}, "no layers"),
        ({"pack": lambda layer: ZSTD + layer}, "/layer.tar, compression by zstd, which is not supported"),
        ({"pack": lambda layer: zipped(layer)[:-20]}, "/layer.tar, a damaged or truncated archive"),
        ({"pack": lambda layer: layer[:700]}, "layers whose SHA-256 is not in the configuration"),
    ],
)
def test_refuses_an_archive_without_exactly_one_image(check: Check, changes: dict[str, Any], found: str) -> None:
    assert found in only_fault(check(ImageArchive(**changes)), ONE_IMAGE)


@upload_fault("an image's {where} of a few bytes that expands to 30 MB")
@pytest.mark.parametrize("where", ["archive", "layer"])
def test_stops_reading_an_archive_that_was_made_to_fill_a_disk(
    check: Check, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pantherseg.grand_challenge.check_image.MIN_ALLOWED_BYTES", 1 << 20)
    image = ImageArchive(pack=zipped if where == "layer" else bytes)
    image.layers.append(tar({"zeros": bytes(30 << 20)}))
    verdicts = check(image) if where == "layer" else check(zipped(image.content()), "image.tar.gz")
    assert "made to fill a disk" in only_fault(verdicts, ARCHIVE)


def test_refuses_too_many_members(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pantherseg.archives.MAX_MEMBERS", 5)
    assert "more than 5 members" in only_fault(check(ImageArchive()), ARCHIVE)


RUNS_AS_ROOT = "The container runs as root."
ARM = {"architecture": "arm64", "os": "linux"}
REFUSED_ARM = "linux/arm64. Architecture type 'arm64' is not supported."
ROOT_USERS = ("", None, "Root", "0", "0:0", "root:user", "00", ":1000")
NO_COMMAND: tuple[dict[str, Any], ...] = ({"Entrypoint": None}, {"Entrypoint": [], "Cmd": []}, {"Entrypoint": "run"})
UNKNOWN = "The label org.grand-challenge.api-method must be one of ['exec', 'invoke'], instead we found 'serve'."
RESERVED = ("/input", "/output", "/tmp", "/opt/ml", "/opt/ml/model", "/opt")


@pytest.mark.parametrize(
    ("image", "rule", "found"),
    [
        upload_case("an image that runs as root", with_config(User="root"), NOT_ROOT, "root. " + RUNS_AS_ROOT),
        *((with_config(User=user), NOT_ROOT, f"{user or 'no USER'}. {RUNS_AS_ROOT}") for user in ROOT_USERS),
        upload_case("an image for other processors", ImageArchive(platform=ARM), "for linux/amd64", REFUSED_ARM),
        upload_case("an image with an unknown contract", with_config(Labels={API_METHOD: "serve"}), CONTRACT, UNKNOWN),
        *((ImageArchive(tags=[tag]), "a name in lower case", tag) for tag in ("Mine:latest", "a/Mine")),
        *((with_config(**config), ENTRY_POINT, "neither ENTRYPOINT nor CMD") for config in NO_COMMAND),
        *((with_config(Volumes={path: {}}), "no VOLUME on", path) for path in RESERVED),
    ],
)
def test_names_the_broken_rule_of_a_configuration(check: Check, image: ImageArchive, rule: str, found: str) -> None:
    assert only_fault(check(image), rule) == found


def test_judges_a_configuration_with_unexpected_types(check: Check) -> None:
    odd = {"User": 5, "Entrypoint": "run.py", "Cmd": {}, "Volumes": [{}], "Labels": [5]}
    assert list(broken(check(with_config(**odd)))) == [ENTRY_POINT]
    empty = ImageArchive(platform={}, config={})
    assert list(broken(check(empty))) == ["for linux/amd64", NOT_ROOT, ENTRY_POINT]


def test_the_command_prints_lines_or_json(tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(with_config(User="root").content())
    lines = CliRunner().invoke(main, ["check", "image", str(path)])
    assert lines.exit_code == 1
    assert [line.split()[0] for line in lines.stdout.splitlines()].count("BROKEN") == 1
    report = CliRunner().invoke(main, ["check", "image", str(path), "--json"])
    assert [verdict["kept"] for verdict in json.loads(report.stdout)].count(False) == 1
    path.write_bytes(ImageArchive().content())
    good = CliRunner().invoke(main, ["check", "image", str(path)])
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
    """Put a `docker` into PATH that saves the default image, cut to a size, and runs the given shell commands.

    method: the value of the image's label for the contract.
    """
    program, image = tmp_path / "docker", tmp_path / "image.tar"

    def write(*, size: int | None = None, save: str = "true", method: str = "exec", **commands: str) -> None:
        image.write_bytes(with_config(Labels={API_METHOD: method}).content()[:size])
        cases = {"kill": "false", "save": f"cat {image}\n{save}", **commands}
        lines = "\n".join(f"{name}) {command} ;;" for name, command in cases.items())
        program.write_text(f"#!/bin/sh\ncase $1 in\n{lines}\nesac\n")
        program.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return write


@pytest.mark.parametrize("size", [0, 3000, None])
def test_names_the_engines_error_while_it_saves(engine: Callable[..., None], size: int | None) -> None:
    """For example a full disk: the engine writes the whole image to a temporary folder before it sends it."""
    engine(size=size, save="echo no space left on device >&2; exit 1")
    with pytest.raises(UploadError, match="expected docker save to write the image, found no space left on device"):
        check_image("mine:latest")


def test_refuses_a_damaged_image_of_the_engine(engine: Callable[..., None]) -> None:
    engine(size=3000)
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
    monkeypatch.setattr("pantherseg.grand_challenge.docker_engine.START_SECONDS", 0.2)
    engine(run="exec sleep 60", kill="true")
    verdicts = check_image("mine:latest")
    assert broken(verdicts) == {}
    assert verdicts[-1].found == "still running after 0.2 s, then stopped"
    engine(run="exec sleep 60", kill="false")
    with pytest.raises(UploadError, match=r"expected a started container, found none within 0\.2 s"):
        check_image("mine:latest")


ENDED, SERVING = "echo false 1", "echo true 0"


@pytest.mark.parametrize(
    ("commands", "healthy", "found"),
    [
        ({"exec": "echo status 200"}, True, "status 200"),
        ({"exec": "sleep 0.7; echo status 200"}, False, "status 200"),
        ({"exec": "echo status 503"}, False, "status 503"),
        ({"exec": "echo 'ConnectionRefusedError(111)'"}, False, "ConnectionRefusedError(111)"),
        ({"exec": "exit 1"}, False, "no answer"),
        ({"exec": "echo status 307"}, False, "status 307"),
        (
            {"exec": "exit 1", "container": ENDED, "logs": "echo error: no models >&2"},
            False,
            "exit code 1 with an empty /input and no model: error: no models",
        ),
        ({"run": f"echo docker: unable to find user nobody >&2; {USAGE}"}, False, "docker: unable to find user nobody"),
    ],
)
def test_asks_a_server_for_its_health(
    engine: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    commands: dict[str, str],
    healthy: bool,
    found: str,
) -> None:
    monkeypatch.setattr("pantherseg.grand_challenge.docker_engine.SERVER_SECONDS", 0.5)
    monkeypatch.setattr("pantherseg.grand_challenge.docker_engine.PAUSE_SECONDS", 0.1)
    engine(method="invoke", **{"container": SERVING, "rm": f"echo $3 >>{tmp_path}/removed", **commands})
    verdict = check_image("mine:latest")[-1]
    assert (verdict.rule, verdict.kept) == (SERVES, healthy)
    assert re.sub(r", \d+ s after the start$", "", verdict.found).endswith(found)
    (removed,) = (tmp_path / "removed").read_text().splitlines()
    assert removed.startswith("pantherseg-check-")


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        ({"exec": "echo no python3 >&2; exit 127"}, r"expected python3 in the image, .+, found no python3"),
        ({"exec": "true", "container": "echo it is gone >&2; exit 1"}, r"expected a container .+, found it is gone"),
    ],
)
def test_says_why_a_server_cannot_be_asked(
    engine: Callable[..., None], commands: dict[str, str], expected: str
) -> None:
    engine(method="invoke", **{"container": SERVING, **commands})
    with pytest.raises(UploadError, match=expected):
        check_image("mine:latest")


def test_waits_until_a_server_is_healthy(
    engine: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pantherseg.grand_challenge.docker_engine.PAUSE_SECONDS", 0.05)
    asked = tmp_path / "asked"
    answer = f"echo >>{asked}; test $(wc -l <{asked}) -lt 3 && echo status 503 || echo status 200"
    engine(method="invoke", container=SERVING, exec=answer)
    assert broken(check_image("mine:latest")) == {}
    assert len(asked.read_text()) == 3


def test_does_not_start_an_image_with_an_unknown_contract(engine: Callable[..., None], tmp_path: Path) -> None:
    engine(method="serve", run=f"touch {tmp_path}/started")
    assert [verdict.rule for verdict in check_image("mine:latest")][-1] == "no VOLUME on /input, /output, /opt/ml, /tmp"
    assert not (tmp_path / "started").exists()


@pytest.mark.docker
@pytest.mark.parametrize(("name", "rule"), [("task1-cpu", STARTS), ("task1-cpu-invoke", SERVES)])
def test_accepts_the_projects_own_images(name: str, rule: str) -> None:
    built(name)
    verdicts = check_image(f"pantherseg-{name}")
    assert broken(verdicts) == {}
    assert (len(verdicts), verdicts[-1].rule) == (RULES + 1, rule)


@pytest.mark.docker
def test_names_an_image_that_the_engine_does_not_have() -> None:
    built("task1-cpu")
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
        upload_case("an image with an unknown user", "nobody", "/run", "unable to find user nobody"),
        upload_case("an image without its entry point", "user", "/gone", "no such file or directory"),
    ],
)
def test_starts_images_that_docker_built(tmp_path: Path, user: str, entry_point: str, fault: str) -> None:
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no Docker engine answers")
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
