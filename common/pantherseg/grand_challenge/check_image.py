"""The platform's rules for a container image, checked before minutes go into an upload."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pantherseg.errors import UploadError
from pantherseg.grand_challenge.file_system import EXECUTE, READ, FileSystem, Found, User, find_user
from pantherseg.grand_challenge.saved_image import Image, Saved, layer_fault, read_saved, the_image
from pantherseg.grand_challenge.stream import Refused
from pantherseg.grand_challenge.verdict import Verdict, first_few

SUFFIXES = (".tar", ".tar.gz", ".tar.xz")
COMPRESSIONS = {"none": ".tar", "gzip": ".tar.gz", "xz": ".tar.xz"}
# What the platform mounts, links or empties: an image's own files there are gone.
HIDDEN = ("/input", "/output", "/opt/ml")
EMPTIED = "/tmp"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Whose first argument is a file to run, behind flags that take no argument of their own.
INTERPRETER = re.compile(r"(python|bash|dash|sh)[0-9.]*")
PLAIN_FLAG = re.compile(r"-[bBdEhiIOPqsSuvxel]+")
ENGINE_SECONDS = 60


def check_image(source: str) -> list[Verdict]:
    """Check an archive of `docker save`, or an image of Docker's engine by its tag. Raises UploadError."""
    path = Path(source)
    if path.is_file():
        return list(_archive_verdicts(path))
    if path.exists():
        raise UploadError(path, expected="an archive of docker save", found="a folder")
    return list(_tag_verdicts(source))


def _archive_verdicts(path: Path) -> Iterator[Verdict]:
    rule = f"docker save's archive as {', '.join(SUFFIXES)}"
    suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            saved = read_saved(file, size=size)
    except OSError as error:
        raise UploadError(path, expected="a readable archive", found=error.strerror or str(error)) from error
    except Refused as refusal:
        yield Verdict(rule, False, f"{refusal}. Could not decompress the container image file.")
        return
    kept = suffix is not None and suffix == COMPRESSIONS.get(saved.compressed_by)
    kind = "not compressed" if saved.compressed_by == "none" else saved.compressed_by
    found = f"{path.name}, {kind}, {size / 1e6:.0f} MB, {saved.bytes_read / 1e6:.0f} MB unpacked"
    yield Verdict(rule, kept, found)
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
    try:
        command = ["docker", "image", "inspect", "--format", "{{.Id}}", tag]
        asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ENGINE_SECONDS)
    except subprocess.TimeoutExpired as error:
        found = f"no answer in {ENGINE_SECONDS} s"
        raise UploadError(tag, expected="Docker's engine to answer", found=found) from error
    if asked.returncode:
        lines = asked.stderr.strip().splitlines() or ["no reason"]
        raise UploadError(tag, expected="a file, or an image of Docker's engine", found=lines[-1])
    try:
        saved = _saved_by_engine(tag)
    except Refused as refusal:
        yield Verdict(rule, False, f"{refusal}, from docker save")
        return
    yield Verdict(rule, True, f"{tag}, {saved.bytes_read / 1e6:.0f} MB unpacked")
    yield from _saved_verdicts(saved)


def _saved_by_engine(tag: str) -> Saved:
    """Read what the engine saves as it comes. Raises Refused; UploadError where the engine fails on the way."""
    command = ["docker", "save", tag]
    result: Saved | Refused
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints) as engine,
    ):
        try:
            result = read_saved(engine.stdout, size=None)
        except Refused as error:
            result = error
            engine.kill()  # where it has not ended: what follows is not wanted
        failed = engine.wait() > 0  # below 0: killed
        complaints.seek(0)
        lines = complaints.read().decode("utf-8", errors="replace").strip().splitlines()
    if failed:
        raise UploadError(tag, expected="docker save to write the image", found=lines[-1] if lines else "a failure")
    if isinstance(result, Refused):
        raise result
    return result


def _saved_verdicts(saved: Saved) -> Iterator[Verdict]:
    rule = "one image in manifest.json, with its configuration and layers"
    try:
        image = the_image(saved)
        fault = layer_fault(image)
        if fault:
            raise Refused(fault)
    except Refused as refusal:
        yield Verdict(rule, False, str(refusal))
        return
    yield Verdict(rule, True, f"{len(image.layers)} layers, as their SHA-256 say")
    yield from _image_verdicts(image)


def _image_verdicts(image: Image) -> Iterator[Verdict]:
    tags = ", ".join(image.tags) or "untagged"
    yield Verdict("a name in lower case", not any(map(_has_capitals, image.tags)), tags)
    about = image.configuration
    place = f"{about.get('os')}/{about.get('architecture')}"
    refusal = "" if place == "linux/amd64" else f". Architecture type {about.get('architecture')!r} is not supported."
    yield Verdict("for linux/amd64", not refusal, place + refusal)
    config = about.get("config")
    config = config if isinstance(config, dict) else {}
    files = FileSystem(layer.entries for layer in image.layers)
    spec = str(config.get("User") or "")
    user = find_user(files, spec) if spec else "no USER"
    root = spec.partition(":")[0].lower() in ("", "root") or (isinstance(user, User) and user.uid == 0)
    said = f"{spec or 'no USER'}. The container runs as root."
    yield Verdict("USER set, and not root", not root, said if root else spec)
    if not root:
        yield _listed(user)
    # Where there is no such user, what anybody may do is what counts.
    anybody = User("anybody", -1, frozenset())
    yield from _file_verdicts(files, config, user if isinstance(user, User) else anybody)


def _listed(user: User | str) -> Verdict:
    rule = "USER in the image's /etc/passwd"
    if isinstance(user, str):
        return Verdict(rule, False, user)
    if not user.listed:
        return Verdict(rule, False, f"no uid {user.uid}: it has no name, and /root as its home")
    return Verdict(rule, True, f"uid {user.uid}, home {user.home}")


def _file_verdicts(files: FileSystem, config: dict[str, Any], user: User) -> Iterator[Verdict]:
    command = [*_words(config.get("Entrypoint")), *_words(config.get("Cmd"))]
    variables = dict(word.partition("=")[::2] for word in _words(config.get("Env")))
    folder = str(config.get("WorkingDir") or "/")
    needed: dict[str, str] = {"WORKDIR": folder}
    rule = "an entry point that USER may run"
    try:
        program = _program(files, command, variables.get("PATH", DEFAULT_PATH), folder, user)
        script = _script(files, command, folder, user)
    except Refused as refusal:
        yield Verdict(rule, False, str(refusal))
    else:
        yield Verdict(rule, True, " ".join(command))
        needed["the entry point"] = program.path
        if script is not None:
            needed["its script"] = script.path
    named = config.get("Volumes")
    volumes = sorted(named) if isinstance(named, dict) else []
    over = [volume for volume in volumes if any(_overlap(volume, path) for path in (*HIDDEN, EMPTIED))]
    places = ", ".join((*HIDDEN, EMPTIED))
    yield Verdict(f"no VOLUME on {places}", not over, ", ".join(over or volumes) or "none")
    for name, value in variables.items():
        for part in value.split(":"):
            if part.startswith("/") and files.find(part) is not None:
                needed[name] = part
    yield _below(files, needed)


def _below(files: FileSystem, needed: dict[str, str]) -> Verdict:
    """Whether something is lost where the platform's own folders lie; what is left over in /tmp is no loss."""
    rule = f"nothing needed below {', '.join((*HIDDEN, EMPTIED))}"
    lost = [path for place in HIDDEN for path in files.below(place)]
    lost += [f"{name} ({path})" for name, path in needed.items() if _is_below(path)]
    left = list(files.below(EMPTIED))
    if lost:
        return Verdict(rule, False, f"{first_few(lost)}: hidden or emptied when it runs")
    return Verdict(rule, True, f"only {first_few(left)}, which is removed" if left else "nothing there")


def _program(files: FileSystem, command: list[str], search: str, folder: str, user: User) -> Found:
    """Return what a command starts, interpreters of scripts included. Raises Refused where it cannot be."""
    if not command:
        raise Refused("neither ENTRYPOINT nor CMD: the upload is taken, and nothing can be started")
    name = command[0]
    places = [name] if "/" in name else [f"{place or '.'}/{name}" for place in search.split(":")]
    found = [one for place in places if (one := files.find(place, start=folder)) and one.node.kind == "file"]
    if not found:
        raise Refused(f"{name}: no such file" + ("" if "/" in name else f" in PATH ({search})"))
    runnable = [one for one in found if one.open_to(user, EXECUTE)]
    if not runnable:
        raise Refused(f"{found[0].path}: mode {found[0].node.mode:04o}, not for {user.name} to run")
    line = runnable[0].node.content.split(b"\n")[0]
    if line.startswith(b"#!"):
        if line.endswith(b"\r"):
            raise Refused(f"{runnable[0].path}: a script with Windows' line ends")
        words = line[2:].decode("utf-8", errors="replace").split()
        if not words or files.find(words[0]) is None:
            raise Refused(f"{runnable[0].path}: its interpreter {' '.join(words)!r} is missing")
        if PurePosixPath(words[0]).name == "env" and len(words) == 2:
            _program(files, words[1:], search, folder, user)
    return runnable[0]


def _script(files: FileSystem, command: list[str], folder: str, user: User) -> Found | None:
    """Return the file that an interpreter is given to run, None where it is given none. Raises Refused."""
    if not INTERPRETER.fullmatch(PurePosixPath(command[0]).name):
        return None
    words = list(itertools.dropwhile(PLAIN_FLAG.fullmatch, command[1:]))
    if not words or words[0].startswith("-"):
        return None
    found = files.find(words[0], start=folder)
    if found is None or found.node.kind == "other":
        raise Refused(f"{words[0]}, which {command[0]} is to run: no such file in {folder}")
    if found.node.kind == "file" and not found.open_to(user, READ):
        raise Refused(f"{found.path}: mode {found.node.mode:04o}, not for {user.name} to read")
    return found


def _words(value: object) -> list[str]:
    return [str(word) for word in value] if isinstance(value, list) else []


def _has_capitals(tag: str) -> bool:
    """Return whether the name, which is all before the tag proper, has capitals."""
    head, _, last = tag.rpartition("/")
    name = f"{head}/{last.partition(':')[0]}"
    return name != name.lower()


def _is_below(path: str) -> bool:
    return any(path.startswith(f"{place}/") for place in (*HIDDEN, EMPTIED))


def _overlap(one: str, other: str) -> bool:
    first, second = PurePosixPath(one), PurePosixPath(other)
    return first.is_relative_to(second) or second.is_relative_to(first)
