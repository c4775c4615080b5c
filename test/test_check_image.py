"""What the platform asks of an image, found in the archive that is uploaded."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from matrix import quoted, saw
from pantherseg.cli import main
from pantherseg.errors import UploadError
from pantherseg.grand_challenge.check_image import check_image
from pantherseg.grand_challenge.verdict import Verdict
from pantherseg.paths import ROOT
from saved import BASE, CODE, Member, Saved, tar

ARCHIVE = "docker save's archive"
ONE_IMAGE = "one image in manifest.json"
LISTED = "USER in the image's /etc/passwd"
ENTRY_POINT = "an entry point that USER may run"
HIDDEN = "nothing needed below"
RULES = 9


def broken(verdicts: list[Verdict]) -> dict[str, str]:
    return {verdict.rule: verdict.found for verdict in verdicts if not verdict.kept}


def only_fault(verdicts: list[Verdict], rule: str) -> str:
    """Return what was found where exactly one rule is broken, which must be this one."""
    faults = broken(verdicts)
    saw(*(quoted(f"{name}: {found}") for name, found in faults.items()))
    assert [name[: len(rule)] for name in faults] == [rule], faults
    (found,) = faults.values()
    assert len(found.splitlines()) == 1
    return found


def judged(saved: Saved, tmp_path: Path, name: str = "image.tar") -> list[Verdict]:
    return check_image(str(saved.write(tmp_path / name)))


@pytest.mark.parametrize("name", ["image.tar", "image.tar.gz"])
def test_a_good_image_keeps_every_rule(tmp_path: Path, name: str) -> None:
    verdicts = judged(Saved(), tmp_path, name)
    assert broken(verdicts) == {}
    assert len(verdicts) == RULES


def test_xz_is_taken(tmp_path: Path) -> None:
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
def test_a_name_that_is_not_what_the_file_is(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
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
def test_a_damaged_archive_is_said_to_be_one(tmp_path: Path, name: str, spoil: Callable[[bytes], bytes]) -> None:
    path = tmp_path / name
    path.write_bytes(spoil(Saved().content()))
    assert only_fault(check_image(str(path)), ARCHIVE).endswith("Could not decompress the container image file.")


def test_an_archive_that_ends_between_two_members_is_truncated(tmp_path: Path) -> None:
    content = Saved().content()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        last = archive.getmembers()[-1]
    path = tmp_path / "image.tar"
    path.write_bytes(content[: last.offset])
    assert "ends before its end is marked" in only_fault(check_image(str(path)), ARCHIVE)


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
    members[name] = tar(CODE[:-1])


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
        (set_manifest(b"[{"), "manifest.json that is no JSON"),
        (set_manifest(b"[" * 100_000), "manifest.json that is no JSON"),
        (set_manifest(b'[{"Config": 3}]'), "no 3, the image's configuration"),
        (set_manifest(b'[{"Config": "x.json"}]'), "no x.json, the image's configuration"),
        (other_configuration, "a configuration with another SHA-256"),
        (drop("layer.tar"), "no layer "),
        (other_layer, "layers whose SHA-256 the configuration does not name"),
    ],
)
def test_an_archive_without_its_one_image(
    tmp_path: Path, change: Callable[[dict[str, bytes]], object], said: str
) -> None:
    assert said in only_fault(judged(Saved(change=change), tmp_path), ONE_IMAGE)


def test_an_image_without_layers(tmp_path: Path) -> None:
    assert only_fault(judged(Saved(layers=[]), tmp_path), ONE_IMAGE) == "no layers"


def test_layers_may_be_compressed_by_gzip(tmp_path: Path) -> None:
    assert broken(judged(Saved(pack=gzip.compress), tmp_path)) == {}


def zstd(layer: bytes) -> bytes:
    return subprocess.run(["zstd", "--quiet"], input=layer, capture_output=True, check=True).stdout


@pytest.mark.parametrize(
    ("pack", "said"),
    [
        (zstd, "in a layer: zstd, which is not looked into"),
        (truncated_gzip, "a damaged layer"),
        (lambda layer: layer[:700], "in a layer: an archive that ends before its end is marked"),
    ],
)
def test_layers_that_cannot_be_read(tmp_path: Path, pack: Callable[[bytes], bytes], said: str) -> None:
    if pack is zstd and shutil.which("zstd") is None:
        pytest.skip("zstd is not installed")
    assert said in only_fault(judged(Saved(pack=pack), tmp_path), ONE_IMAGE)


def test_docker_25_keeps_layers_as_blobs(tmp_path: Path) -> None:
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


def test_equal_layers_may_be_links_to_one(tmp_path: Path) -> None:
    saved = Saved()
    saved.layers.append(tar([]))
    members: list[Member] = [(name, 0o644, content) for name, content in saved.members().items()]
    first = next(name for name, _, _ in members if name.endswith("layer.tar"))
    members = [
        ("moved/layer.tar", mode, content) if name == first else (name, mode, content)
        for name, mode, content in members
    ]
    members.append((first, 0o777, "../moved/layer.tar"))
    path = tmp_path / "image.tar"
    path.write_bytes(tar(members))
    assert broken(check_image(str(path))) == {}


@pytest.mark.fault(
    "outputs", "an image's {where} of a few bytes that expands to 200 MB", "the rule that it breaks, before the upload"
)
@pytest.mark.parametrize("where", ["archive", "layer"])
def test_a_bomb_is_read_no_further_than_was_allowed(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pantherseg.grand_challenge.saved_image.ALWAYS_ALLOWED", 1 << 20)
    saved = Saved()
    saved.layers.append(tar([("zeros", 0o644, bytes(200 << 20))]))
    name = "image.tar"
    if where == "archive":
        name = "image.tar.gz"
    else:
        saved.pack = lambda layer: gzip.compress(layer, 1)
    assert "made to fill disks" in only_fault(judged(saved, tmp_path, name), ARCHIVE)


def test_an_archive_of_endless_names_is_not_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pantherseg.grand_challenge.saved_image.MAX_ENTRIES", 100)
    saved = Saved(layers=[tar(BASE), tar(CODE), tar([(f"f{i}", 0o644, b"") for i in range(200)])])
    assert "more entries than any image" in only_fault(judged(saved, tmp_path), ARCHIVE)


def test_a_header_larger_than_any_is_not_read_into_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    path = tmp_path / "image.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(100_000))
    assert "a header of 1073741824 bytes" in only_fault(check_image(str(path)), ARCHIVE)


def with_config(**changes: Any) -> Saved:
    saved = Saved()
    saved.config |= changes
    return saved


ROOT_SAID = "The container runs as root."


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
        "toor",
        "00",
        ":1000",
    ],
)
def test_root_is_root_under_any_name(tmp_path: Path, user: str | None) -> None:
    assert ROOT_SAID in only_fault(judged(with_config(User=user), tmp_path), "USER set, and not root")


@pytest.mark.parametrize("user", ["user", "user:staff", "user:50", "1000", "1000:1000"])
def test_users_that_the_image_knows(tmp_path: Path, user: str) -> None:
    assert broken(judged(with_config(User=user), tmp_path)) == {}


@pytest.mark.parametrize(
    ("user", "said"),
    [
        pytest.param(
            "nobody",
            "no 'nobody' in /etc/passwd: the container does not start",
            marks=pytest.mark.fault(
                "outputs", "an image whose user it does not know", "the rule that it breaks, before the upload"
            ),
        ),
        ("user:nobody", "no group 'nobody' in /etc/group"),
        ("12345", "no uid 12345: it has no name, and /root as its home"),
        ("12345:12345", "no uid 12345"),
    ],
)
def test_users_that_the_image_does_not_know(tmp_path: Path, user: str, said: str) -> None:
    assert said in only_fault(judged(with_config(User=user), tmp_path), LISTED)


def test_an_image_without_passwd(tmp_path: Path) -> None:
    saved = Saved(layers=[tar([member for member in BASE if member[0] != "etc/passwd"]), tar(CODE)])
    assert "no 'user' in /etc/passwd" in only_fault(judged(saved, tmp_path), LISTED)


@pytest.mark.fault("outputs", "an image for other processors", "the rule that it breaks, before the upload")
def test_another_architecture(tmp_path: Path) -> None:
    saved = Saved(about={"architecture": "arm64", "os": "linux"})
    found = only_fault(judged(saved, tmp_path), "for linux/amd64")
    assert found == "linux/arm64. Architecture type 'arm64' is not supported."


@pytest.mark.parametrize(("tag", "kept"), [("Mine:latest", False), ("host:5000/a/mine:V1", True), ("a/Mine", False)])
def test_names_are_in_lower_case(tmp_path: Path, tag: str, kept: bool) -> None:
    verdicts = judged(Saved(tags=[tag]), tmp_path)
    assert (only_fault(verdicts, "a name in lower case") == tag) if not kept else broken(verdicts) == {}


def test_an_image_may_have_no_name(tmp_path: Path) -> None:
    assert broken(judged(Saved(tags=None), tmp_path)) == {}


START = ["/opt/app/start.sh"]


@pytest.mark.parametrize(
    "config",
    [
        {"Entrypoint": START},
        {"Entrypoint": ["start.sh"], "Env": ["PATH=/usr/bin:/opt/app"]},
        {"Entrypoint": ["./start.sh"]},
        {"Entrypoint": None, "Cmd": ["python3", "run.py"]},
        {"Entrypoint": ["python3"], "Cmd": ["-u", "run.py"]},
        {"Entrypoint": ["/bin/python3", "-m", "app"]},
        {"Entrypoint": ["python3", "-c", "print()"]},
        {"Entrypoint": ["python3", "-W", "ignore", "gone.py"]},
        {"Entrypoint": ["python3"], "Env": []},
    ],
)
def test_entry_points_that_run(tmp_path: Path, config: dict[str, Any]) -> None:
    assert broken(judged(with_config(**config), tmp_path)) == {}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"Entrypoint": None}, "neither ENTRYPOINT nor CMD"),
        ({"Entrypoint": []}, "neither ENTRYPOINT nor CMD"),
        ({"Entrypoint": ["/opt/app/gone"]}, "/opt/app/gone: no such file"),
        ({"Entrypoint": ["gone"]}, "gone: no such file in PATH (/opt/venv/bin:/usr/bin)"),
        ({"Entrypoint": ["/opt/app"]}, "/opt/app: no such file"),
        ({"Entrypoint": ["/opt/app/run.py"]}, "/opt/app/run.py: mode 0644, not for user to run"),
        ({"Entrypoint": ["python3", "gone.py"]}, "gone.py, which python3 is to run: no such file in /opt/app"),
        ({"Entrypoint": ["python3", "gone.py", "-c"]}, "gone.py, which python3 is to run: no such file in /opt/app"),
        ({"Entrypoint": ["python3", "-u", "/gone.py"]}, "/gone.py, which python3 is to run: no such file"),
    ],
)
def test_entry_points_that_do_not_run(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    assert said in only_fault(judged(with_config(**config), tmp_path), ENTRY_POINT)


def test_a_configuration_of_other_types_is_judged_all_the_same(tmp_path: Path) -> None:
    odd = {"User": 5, "Entrypoint": "run.py", "Cmd": {}, "Env": 3, "WorkingDir": [], "Volumes": [{}]}
    assert list(broken(judged(with_config(**odd), tmp_path))) == [LISTED, ENTRY_POINT]
    saved = Saved(about={})
    saved.config.clear()
    assert list(broken(judged(saved, tmp_path))) == ["for linux/amd64", "USER set, and not root", ENTRY_POINT]


def top_layer(*members: Member, uid: int = 0, **config: Any) -> Saved:
    saved = with_config(**config)
    saved.layers.append(tar(members, uid=uid))
    return saved


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        (top_layer(("opt/app/.wh.run.py", 0o644, b"")), "run.py, which /opt/venv/bin/python is to run"),
        (top_layer(("opt/.wh.app", 0o644, b"")), "no such file"),
        (top_layer(("opt/app/.wh..wh..opq", 0o644, b"")), "no such file"),
        (top_layer(("usr/bin/.wh.python3.11", 0o644, b"")), "/opt/venv/bin/python: no such file"),
        (top_layer(("opt/app/", 0o700, None)), "/opt/app/run.py: mode 0644, not for user to read"),
        (top_layer(("opt/app/run.py", 0o600, b"x")), "/opt/app/run.py: mode 0600, not for user to read"),
        (top_layer(("opt/app", 0o644, b"a file")), "no such file"),
        (top_layer(("opt/venv/bin/python", 0o777, "/opt/venv/bin/python")), "no such file"),
        (top_layer(("opt/app/start.sh", 0o755, b"#!/bin/gone -x\n"), Entrypoint=START), "'/bin/gone -x' is missing"),
        (top_layer(("opt/app/start.sh", 0o755, b"#!/bin/env\r\n"), Entrypoint=START), "Windows' line ends"),
        (top_layer(("opt/app/start.sh", 0o755, b"#!/bin/env gone\n"), Entrypoint=START), "gone: no such file in PATH"),
    ],
)
def test_what_a_later_layer_takes_away(tmp_path: Path, saved: Saved, said: str) -> None:
    assert said in only_fault(judged(saved, tmp_path), ENTRY_POINT)


def test_a_layer_hides_only_what_lies_below_it(tmp_path: Path) -> None:
    opaque: list[Member] = [("opt/app/run.py", 0o644, b"new"), ("opt/app/.wh..wh..opq", 0o644, b"")]
    assert broken(judged(top_layer(*opaque), tmp_path)) == {}
    back = top_layer(("opt/.wh.app", 0o644, b""))
    back.layers.append(tar([("opt/app/run.py", 0o644, b"again")]))
    assert broken(judged(back, tmp_path)) == {}


def test_rights_are_those_of_the_user_and_of_every_group(tmp_path: Path) -> None:
    private: list[Member] = [("opt/app/", 0o700, None), ("opt/app/run.py", 0o400, b"x")]
    assert broken(judged(top_layer(*private, uid=1000), tmp_path)) == {}
    shared: list[Member] = [("opt/app/run.py", 0o640, b"x")]
    assert broken(judged(top_layer(*shared, uid=50), tmp_path)) == {}
    assert "mode 0640" in only_fault(judged(top_layer(*shared, uid=51), tmp_path), ENTRY_POINT)
    assert "mode 0640" in only_fault(judged(top_layer(*shared, uid=50, User="user:user"), tmp_path), ENTRY_POINT)


@pytest.mark.parametrize("volume", ["/input", "/output", "/tmp", "/opt/ml", "/opt/ml/model", "/opt"])
def test_volumes_on_the_platforms_paths(tmp_path: Path, volume: str) -> None:
    assert only_fault(judged(with_config(Volumes={volume: {}}), tmp_path), "no VOLUME on") == volume


def test_volumes_elsewhere(tmp_path: Path) -> None:
    assert broken(judged(with_config(Volumes={"/data": {}, "/outputs": {}}), tmp_path)) == {}


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        (top_layer(("opt/ml/model/fold_0.pth", 0o644, b"x")), "/opt/ml/model/fold_0.pth"),
        (top_layer(("input/a.mha", 0o644, b"x")), "/input/a.mha"),
        (top_layer(("output/a", 0o777, "/etc")), "/output/a"),
        (top_layer(("tmp/run.py", 0o644, b"x"), Entrypoint=["python3", "/tmp/run.py"]), "its script (/tmp/run.py)"),
        (top_layer(WorkingDir="/tmp/work"), "WORKDIR (/tmp/work)"),
        (top_layer(("tmp/nnunet/x", 0o644, b"x"), Env=["R=/tmp/nnunet"]), "R (/tmp/nnunet)"),
    ],
)
def test_what_lies_where_the_platform_puts_its_own(tmp_path: Path, saved: Saved, said: str) -> None:
    found = only_fault(judged(saved, tmp_path), HIDDEN)
    assert said in found
    assert "hidden or emptied when it runs" in found


def test_leftovers_in_tmp_are_named_and_no_fault(tmp_path: Path) -> None:
    saved = top_layer(*((f"tmp/left{i}", 0o644, b"x") for i in range(7)), Env=["PATH=/usr/bin", "MPLCONFIGDIR=/tmp"])
    verdicts = judged(saved, tmp_path)
    assert broken(verdicts) == {}
    assert verdicts[-1].found.endswith("/tmp/left4 and 2 more, which is removed")


def test_the_command_says_the_same_as_lines_and_as_json(tmp_path: Path) -> None:
    path = str(with_config(User="root").write(tmp_path / "image.tar"))
    lines = CliRunner().invoke(main, ["check", "image", path])
    assert lines.exit_code == 1
    assert [line.split()[0] for line in lines.stdout.splitlines()].count("BROKEN") == 1
    report = CliRunner().invoke(main, ["check", "image", path, "--json"])
    assert [verdict["kept"] for verdict in json.loads(report.stdout)].count(False) == 1
    good = CliRunner().invoke(main, ["check", "image", str(Saved().write(tmp_path / "good.tar"))])
    assert (good.exit_code, len(good.stdout.splitlines())) == (0, RULES)


def test_what_is_neither_a_file_nor_a_tag_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UploadError, match="expected an archive of docker save, found a folder"):
        check_image(str(tmp_path))
    with pytest.raises(UploadError, match="expected a file, or the tag of an image, found neither"):
        check_image("--all")
    assert broken(check_image("Mine:latest")) == {
        "an image of Docker's engine": "Mine:latest: Docker takes names in lower case only"
    }
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UploadError, match="no such file and no docker"):
        check_image("mine:latest")


@pytest.mark.parametrize("size", [0, 3000, None])
def test_an_engine_that_fails_on_the_way_says_why(
    tmp_path: Path, size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one whose disk is full: it writes a whole image to a folder of its own before it sends it."""
    engine, part = tmp_path / "docker", tmp_path / "part"
    part.write_bytes(Saved().content()[:size])
    engine.write_text(f"#!/bin/sh\n[ $1 = image ] || {{ cat {part}; echo no space left on device >&2; exit 1; }}\n")
    engine.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UploadError, match="expected docker save to write the image, found no space left on device"):
        check_image("mine:latest")


@pytest.mark.docker
def test_the_engines_images_are_looked_at_by_their_tags(tmp_path: Path) -> None:
    image = "pantherseg-task1-cpu"
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "image", "inspect", image], capture_output=True).returncode
    ):
        pytest.skip(f"no Docker engine answers, or ./do_build.sh has not built {image}")
    verdicts = check_image(image)
    assert broken(verdicts) == {}
    assert len(verdicts) == RULES
    with pytest.raises(UploadError, match="No such image"):
        check_image("pantherseg-no-such-image")


@pytest.mark.docker
def test_what_docker_saves_is_judged_as_what_is_made_here(tmp_path: Path) -> None:
    """An image that the engine itself built of the same files, with one fault."""
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no Docker engine answers")
    name = "pantherseg-check-test"
    dockerfile = (
        'FROM scratch\nADD base.tar /\nADD code.tar /\nUSER user\nVOLUME /output\nENTRYPOINT ["/opt/app/start.sh"]\n'
    )
    (tmp_path / "Dockerfile").write_text(dockerfile)
    (tmp_path / "base.tar").write_bytes(tar(BASE))
    (tmp_path / "code.tar").write_bytes(tar(CODE))
    subprocess.run(["docker", "build", "--quiet", "--tag", name, str(tmp_path)], check=True, capture_output=True)
    try:
        assert only_fault(check_image(name), "no VOLUME on") == "/output"
    finally:
        subprocess.run(["docker", "rmi", name], check=True, capture_output=True)


def test_the_repositorys_own_dockerfiles_keep_the_rules_that_a_dockerfile_decides() -> None:
    for task in ("task1", "task2"):
        text = (ROOT / f"Dockerfile.{task}").read_text()
        assert "VOLUME" not in text
        assert "USER user" in text
