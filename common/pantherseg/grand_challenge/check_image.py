"""The platform's rules for a container image, checked before an upload that takes minutes.

An archive of `docker save` is read in one pass, without unpacking it. Where the platform has words of its own for a
broken rule, they are in the verdict; they are in grandchallenge/components/tasks.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator
from pathlib import Path, PurePosixPath

from pantherseg.archives import ArchiveError, Budget, compression
from pantherseg.errors import UploadError, os_reason
from pantherseg.grand_challenge.docker_engine import (
    ask_engine,
    last_line_of,
    saved_by_engine,
    start_once,
    start_server,
)
from pantherseg.grand_challenge.image_archive import MANIFEST, Saved, find_image, is_strings, read_saved
from pantherseg.verdict import Verdict

COMPRESSIONS = {"none": ".tar", "gzip": ".tar.gz", "xz": ".tar.xz"}
# A small image may unpack to this much, however small its archive is.
MIN_ALLOWED_BYTES = 1 << 30
# The platform mounts its own folders here, so that the image's volumes would be hidden or get in the way.
RESERVED = ("/input", "/output", "/opt/ml", "/tmp")
# The label by which an image says how it is run, and how it is started for a check; `exec` without a label.
API_METHOD = "org.grand-challenge.api-method"
STARTS = {"exec": start_once, "invoke": start_server}
# The platform ignores quotation marks in the label's value.
UNQUOTED = {ord("'"): None, ord('"'): None}


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
            saved = read_saved(file, Budget.of(size, at_least=MIN_ALLOWED_BYTES))
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
    if (answer := ask_engine(tag, "image", "inspect", "--format", "{{.Id}}", tag)).returncode:
        found = last_line_of(answer.stderr) or "an error without a message"
        raise UploadError(tag, expected="a file, or an image of Docker's engine", found=found)
    try:
        saved = saved_by_engine(tag)
    except ArchiveError as error:
        yield Verdict(rule, False, f"docker save wrote {error}")
        return
    yield Verdict(rule, True, f"{tag}, {saved.size / 1e6:.0f} MB unpacked")
    method = yield from _saved_verdicts(saved)
    if method is not None:
        yield STARTS[method](tag)


def _saved_verdicts(saved: Saved) -> Generator[Verdict, None, str | None]:
    """Check a saved image and return its contract, None where the platform would not know it."""
    rule = f"one image in {MANIFEST}, with its configuration and layers"
    try:
        configuration, tags = find_image(saved)
    except ArchiveError as error:
        yield Verdict(rule, False, str(error))
        return None
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
    label = _api_method(config.get("Labels"))
    method = next((known for known in STARTS if known == label.translate(UNQUOTED).strip().lower()), None)
    refusal = f"The label {API_METHOD} must be one of {list(STARTS)}, instead we found '{label}'."
    yield Verdict("a contract that the platform knows", method is not None, method or refusal)
    words = [word for key in ("Entrypoint", "Cmd") if is_strings(config.get(key)) for word in config[key]]
    yield Verdict("an entry point or a command", bool(words), " ".join(words) or "neither ENTRYPOINT nor CMD")
    volumes = sorted(config["Volumes"]) if isinstance(config.get("Volumes"), dict) else []
    wrong = [volume for volume in volumes if any(_overlap(volume, path) for path in RESERVED)]
    yield Verdict(f"no VOLUME on {', '.join(RESERVED)}", not wrong, ", ".join(wrong or volumes) or "none")
    return method


def _api_method(labels: object) -> str:
    """Return the value of the label that names the contract."""
    for key, value in labels.items() if isinstance(labels, dict) else ():
        if str(key).strip().lower() == API_METHOD:
            return str(value)
    return "exec"


def _has_capitals(tag: str) -> bool:
    """Return whether an image's name, which is what comes before the tag proper, has capitals."""
    head, _, last = tag.rpartition("/")
    name = f"{head}/{last.partition(':')[0]}"
    return name != name.lower()


def _overlap(one: str, other: str) -> bool:
    first, second = PurePosixPath(one), PurePosixPath(other)
    return first.is_relative_to(second) or second.is_relative_to(first)
