"""The platform's rules for a container image, checked before an upload that takes minutes.

An archive of `docker save` is read in one pass, without unpacking it. Where the platform has words of its own for a
broken rule, they are in the verdict; they are in grandchallenge/components/tasks.py.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from pantherseg.archives import (
    CHUNK_BYTES,
    ArchiveError,
    Budget,
    compression,
    damage_reported,
    decompressed,
    tar_members,
)
from pantherseg.errors import UploadError, os_reason
from pantherseg.grand_challenge.verdict import Verdict

COMPRESSIONS = {"none": ".tar", "gzip": ".tar.gz", "xz": ".tar.xz"}
MANIFEST, OCI_INDEX = "manifest.json", "index.json"
MAX_DOCUMENT_BYTES = 4 << 20
# A small image may unpack to this much, however small its archive is.
MIN_ALLOWED_BYTES = 1 << 30
# The platform mounts its own folders here, so that the image's volumes would be hidden or get in the way.
RESERVED = ("/input", "/output", "/opt/ml", "/tmp")
ENGINE_SECONDS, START_SECONDS = 60, 60
# Exit codes of `docker run`: an error of the engine, an entry point that cannot be executed, and one that is missing.
NOT_STARTED_CODES = (125, 126, 127)
# What a container prints where the kernel refuses to execute its entry point, such as a script without interpreter.
NOT_EXECUTED = re.compile(
    r"(standard_init_linux\.go:\d+: )?exec .*: (exec format error|no such file or directory|permission denied)"
)
MAX_OUTPUT_BYTES = 64 << 10


@dataclass(frozen=True)
class Saved:
    """An archive of `docker save`.

    size: of its members in bytes. documents: its JSON files by name. layers: by name, the SHA-256 of each other file
    after decompression, or why there is none.
    """

    size: int
    documents: dict[str, bytes]
    layers: dict[str, str | ArchiveError]


def check_image(source: str) -> list[Verdict]:
    """Check an archive of `docker save`, or an image of Docker's engine by its tag, which is also started once.

    Raises UploadError.
    """
    path = Path(source)
    if path.is_file():
        return list(_archive_verdicts(path))
    if path.exists():
        raise UploadError(path, expected="an archive of docker save", found="a folder")
    return list(_tag_verdicts(source))


def _archive_verdicts(path: Path) -> Iterator[Verdict]:
    rule = f"an archive of docker save as {', '.join(COMPRESSIONS.values())}"
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            kind = compression(file)
            saved = _read_saved(file, Budget.of(size, at_least=MIN_ALLOWED_BYTES))
    except OSError as error:
        raise UploadError(path, expected="a readable archive", found=os_reason(error)) from error
    except ArchiveError as error:
        yield Verdict(rule, False, f"{error}. Could not decompress the container image file.")
        return
    suffix = next((suffix for suffix in COMPRESSIONS.values() if path.name.endswith(suffix)), None)
    compressed = "not compressed" if kind == "none" else kind
    found = f"{path.name}, {compressed}, {size / 1e6:.0f} MB, {saved.size / 1e6:.0f} MB unpacked"
    yield Verdict(rule, suffix is not None and suffix == COMPRESSIONS.get(kind), found)
    yield from _saved_verdicts(saved)


def _tag_verdicts(tag: str) -> Iterator[Verdict]:
    rule = "an image of Docker's engine"
    if _has_capitals(tag):
        yield Verdict(rule, False, f"{tag}: Docker takes names in lower case only")
        return
    if not tag or tag.startswith("-"):
        raise UploadError(repr(tag), expected="a file, or the tag of an image", found="neither")
    if shutil.which("docker") is None:
        raise UploadError(tag, expected="a file, or Docker's engine for a tag", found="no such file and no docker")
    if (answer := _ask_engine(tag, "image", "inspect", "--format", "{{.Id}}", tag)).returncode:
        found = _last_line(answer.stderr) or "an error without a message"
        raise UploadError(tag, expected="a file, or an image of Docker's engine", found=found)
    try:
        saved = _saved_by_engine(tag)
    except ArchiveError as error:
        yield Verdict(rule, False, f"docker save wrote {error}")
        return
    yield Verdict(rule, True, f"{tag}, {saved.size / 1e6:.0f} MB unpacked")
    yield from _saved_verdicts(saved)
    yield _start(tag)


def _ask_engine(tag: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of docker. Raises UploadError, about an image, where it does not end."""
    try:
        return subprocess.run(
            ["docker", *arguments], capture_output=True, text=True, check=False, timeout=ENGINE_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        found = f"none within {ENGINE_SECONDS} s"
        raise UploadError(tag, expected="an answer of Docker's engine", found=found) from error


def _saved_by_engine(tag: str) -> Saved:
    """Read an image while the engine writes it. Raises ArchiveError; UploadError where the engine fails."""
    result: Saved | ArchiveError
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(["docker", "save", tag], stdout=subprocess.PIPE, stderr=errors) as engine,
    ):
        try:
            result = _read_saved(cast(BufferedReader, engine.stdout), Budget(sys.maxsize))
        except ArchiveError as error:
            result = error
            engine.kill()  # without effect on an engine that has failed already
        failed = engine.wait() > 0  # negative where it was killed
        message = _last_line(_text(errors))
    if failed:
        raise UploadError(tag, expected="docker save to write the image", found=message or "an error without a message")
    if isinstance(result, ArchiveError):
        raise result
    return result


def _start(tag: str) -> Verdict:
    """Start an image once as the platform does, but with an empty input. Raises UploadError."""
    rule = "the container starts"
    name = f"pantherseg-check-{uuid.uuid4().hex}"
    command = ["docker", "run", "--rm", "--name", name, "--network", "none", "--tmpfs", "/input:ro", tag]
    null = subprocess.DEVNULL
    with tempfile.TemporaryFile() as errors:
        try:
            code = subprocess.run(command, stdin=null, stdout=null, stderr=errors, timeout=START_SECONDS).returncode
        except subprocess.TimeoutExpired:
            code = None
        finally:
            # No container is left behind after an interruption either. The command fails where it has ended already.
            running = _ask_engine(tag, "kill", name).returncode == 0
        output = _text(errors)
    if code is None:
        if running:
            return Verdict(rule, True, f"still running after {START_SECONDS} s, then stopped")
        raise UploadError(tag, expected="a started container", found=f"none within {START_SECONDS} s")
    # Help on usage may follow Docker's own message.
    message = next((line for line in output.splitlines() if line.startswith("docker: ")), _last_line(output))
    started = code not in NOT_STARTED_CODES and not NOT_EXECUTED.match(output)
    found = f"exit code {code} with an empty /input" if started else f"exit code {code}"
    return Verdict(rule, started, f"{found}: {message}" if message else found)


def _read_saved(file: BufferedReader, budget: Budget) -> Saved:
    """Read an archive of `docker save`. Its manifest comes last, so every file may be a layer. Raises ArchiveError."""
    size = 0
    documents: dict[str, bytes] = {}
    layers: dict[str, str | ArchiveError] = {}
    links: dict[str, str] = {}
    with damage_reported():
        for member, content in tar_members(file, budget):
            size += member.size
            if content is None:
                links[member.name] = member.target  # between equal layers
            elif content.peek(1)[:1] in (b"{", b"[") and member.size <= MAX_DOCUMENT_BYTES:
                documents[member.name] = content.read()
            else:
                layers[member.name] = _digest(content, budget)
    layers |= {name: layers[target] for name, target in links.items() if target in layers}
    return Saved(size, documents, layers)


def _digest(content: BufferedReader, budget: Budget) -> str | ArchiveError:
    """Return the SHA-256 of a layer after decompression, as in the configuration's diff_ids, or why there is none."""
    digest = hashlib.sha256()
    try:
        with damage_reported():
            layer = decompressed(content, budget)
            while data := layer.read(CHUNK_BYTES):
                digest.update(data)
    except ArchiveError as error:  # where the budget is spent, the archive itself cannot be read on either
        return error
    return f"sha256:{digest.hexdigest()}"


def _find_image(saved: Saved) -> tuple[dict[str, Any], list[str]]:
    """Return the configuration and the tags of the one image in an archive. Raises ArchiveError."""
    if MANIFEST not in saved.documents:
        also = f" but {OCI_INDEX}: an OCI layout" if OCI_INDEX in saved.documents else ""
        raise ArchiveError(f"no {MANIFEST}{also}. Was this created with docker save?")
    manifest = _json(saved, MANIFEST)
    if not isinstance(manifest, list) or not all(isinstance(entry, dict) for entry in manifest):
        raise ArchiveError(f"{MANIFEST} without a list of images")
    if len(manifest) != 1:
        raise ArchiveError(f"The container image file should only have 1 image. This file contains {len(manifest)}.")
    name, layers, tags = (manifest[0].get(key) for key in ("Config", "Layers", "RepoTags"))
    if not isinstance(name, str) or (name := posixpath.normpath(name)) not in saved.documents:
        raise ArchiveError(f"no {name}, the image's configuration. Was this created with docker save?")
    if not _is_strings(layers or []) or not _is_strings(tags or []):
        raise ArchiveError(f"{MANIFEST} with layers {layers!r} and tags {tags!r}")
    configuration = _json(saved, name)
    digest = posixpath.basename(name).removesuffix(".json").removeprefix("sha256:")
    if digest != hashlib.sha256(saved.documents[name]).hexdigest() or not isinstance(configuration, dict):
        raise ArchiveError(f"{name}, a configuration whose SHA-256 is not its name")
    if not layers:
        raise ArchiveError("no layers")
    _check_layers(saved, layers, configuration.get("rootfs"))
    return configuration, tags or []


def _check_layers(saved: Saved, names: list[str], rootfs: Any) -> None:
    """Raise ArchiveError unless every layer is there and has the SHA-256 that the configuration states."""
    digests = []
    for name in names:
        digest = saved.layers.get(posixpath.normpath(name), ArchiveError("no such file"))
        if isinstance(digest, ArchiveError):
            raise ArchiveError(f"for the layer {name}, {digest}")
        digests.append(digest)
    if not isinstance(rootfs, dict) or rootfs.get("diff_ids") != digests:
        raise ArchiveError("layers whose SHA-256 is not in the configuration: damaged, or of another image")


def _saved_verdicts(saved: Saved) -> Iterator[Verdict]:
    rule = f"one image in {MANIFEST}, with its configuration and layers"
    try:
        configuration, tags = _find_image(saved)
    except ArchiveError as error:
        yield Verdict(rule, False, str(error))
        return
    layers = len(configuration["rootfs"]["diff_ids"])
    yield Verdict(rule, True, f"{layers} layers that match their SHA-256")
    yield Verdict("a name in lower case", not any(map(_has_capitals, tags)), ", ".join(tags) or "untagged")
    system, architecture = configuration.get("os"), configuration.get("architecture")
    supported = (system, architecture) == ("linux", "amd64")
    refusal = "" if supported else f". Architecture type {architecture!r} is not supported."
    yield Verdict("for linux/amd64", supported, f"{system}/{architecture}{refusal}")
    config = configuration.get("config")
    config = config if isinstance(config, dict) else {}
    user = str(config.get("User") or "")
    name = user.partition(":")[0].lower()
    root = name == "root" or not name.strip("0")
    found = f"{user or 'no USER'}. The container runs as root." if root else user
    yield Verdict("USER set, and not root", not root, found)
    words = [word for key in ("Entrypoint", "Cmd") if _is_strings(config.get(key)) for word in config[key]]
    yield Verdict("an entry point or a command", bool(words), " ".join(words) or "neither ENTRYPOINT nor CMD")
    volumes = sorted(config["Volumes"]) if isinstance(config.get("Volumes"), dict) else []
    wrong = [volume for volume in volumes if any(_overlap(volume, path) for path in RESERVED)]
    yield Verdict(f"no VOLUME on {', '.join(RESERVED)}", not wrong, ", ".join(wrong or volumes) or "none")


def _json(saved: Saved, name: str) -> Any:
    try:
        return json.loads(saved.documents[name])
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{name}, which is not valid JSON") from error


def _is_strings(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _has_capitals(tag: str) -> bool:
    """Return whether an image's name, which is what comes before the tag proper, has capitals."""
    head, _, last = tag.rpartition("/")
    name = f"{head}/{last.partition(':')[0]}"
    return name != name.lower()


def _overlap(one: str, other: str) -> bool:
    first, second = PurePosixPath(one), PurePosixPath(other)
    return first.is_relative_to(second) or second.is_relative_to(first)


def _text(file: IO[bytes]) -> str:
    """Return the beginning of what was written to a file."""
    file.seek(0)
    return file.read(MAX_OUTPUT_BYTES).decode("utf-8", errors="replace")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
