"""What `docker save` writes, read in one pass: the manifest, the configuration and the names in every layer.

The manifest comes last, so every member that may be a layer is looked into.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pantherseg.grand_challenge.file_system import Entry, Kind
from pantherseg.grand_challenge.stream import (
    BLOCK_BYTES,
    DAMAGED,
    Budget,
    Forward,
    Joined,
    Refused,
    begun,
    compression,
    decompressed,
    link_target,
    members,
    reason,
)

MANIFEST, OCI_INDEX = "manifest.json", "index.json"
MAX_DOCUMENT_BYTES = 4 << 20
# Of which users and groups are read, whole; of a script, the line that names its interpreter.
KEPT_WHOLE = {("etc", "passwd"), ("etc", "group")}
SCRIPT, MAX_SCRIPT_BYTES = b"#!", 256
MAX_ENTRIES = 1_000_000
# Images shrink to a third; one that grows beyond this was made to fill disks.
MAX_GROWTH, ALWAYS_ALLOWED = 20, 1 << 30


@dataclass(frozen=True)
class Layer:
    """A layer's entries. digest: SHA-256 of the tar archive, as the configuration's diff_ids; fault: why not read."""

    entries: tuple[Entry, ...]
    digest: str
    fault: str = ""


@dataclass(frozen=True)
class Saved:
    """An archive that was read to its end. documents: the JSON files in it; bytes_read: after decompression."""

    compressed_by: str
    bytes_read: int
    documents: Mapping[str, bytes]
    layers: Mapping[str, Layer]


@dataclass(frozen=True)
class Image:
    """The one image of an archive: its configuration, its tags, and its layers, the lowest first."""

    configuration: dict[str, Any]
    tags: tuple[str, ...]
    layers: tuple[Layer, ...]


def read_saved(source: Any, *, size: int | None) -> Saved:
    """Read an archive of `docker save` from an open file. Raises Refused.

    size: of the file in bytes, which says how much it may unpack to; None for a stream that an engine makes.
    """
    allowed = 1 << 62 if size is None else ALWAYS_ALLOWED + MAX_GROWTH * size
    budget = Budget(allowed, MAX_ENTRIES)
    kind, packed = begun(source)
    documents: dict[str, bytes] = {}
    layers: dict[str, Layer] = {}
    aliases: dict[str, str] = {}
    try:
        stream = Forward(decompressed(packed, kind), budget)
        for member, archive in members(stream, budget):
            name = posixpath.normpath(member.name)
            if member.issym() or member.islnk():  # of layers that are the same
                aliases[name] = link_target(member, name)
            elif member.isfile():
                _look_into(name, archive.extractfile(member), member.size, budget, documents, layers)
    except DAMAGED as error:
        raise Refused(f"a damaged archive ({reason(error)})") from error
    layers |= {name: layers[target] for name, target in aliases.items() if target in layers}
    return Saved(kind, stream.tell(), documents, layers)


def the_image(saved: Saved) -> Image:
    """Return the one image that an archive's manifest names. Raises Refused, in the platform's words where it has any.

    They are in grandchallenge/components/tasks.py.
    """
    if MANIFEST not in saved.documents:
        also = " but index.json: an OCI layout" if OCI_INDEX in saved.documents else ""
        raise Refused(f"no {MANIFEST}{also}. Was this created with docker save?")
    manifest = _json(saved, MANIFEST)
    if not isinstance(manifest, list) or not all(isinstance(entry, dict) for entry in manifest):
        raise Refused(f"{MANIFEST} without a list of images")
    if len(manifest) != 1:
        raise Refused(f"The container image file should only have 1 image. This file contains {len(manifest)}.")
    (entry,) = manifest
    name, places, tags = entry.get("Config"), entry.get("Layers") or [], entry.get("RepoTags") or []
    if not isinstance(name, str) or posixpath.normpath(name) not in saved.documents:
        raise Refused(f"no {name}, the image's configuration. Was this created with docker save?")
    if not _strings(places) or not _strings(tags):
        raise Refused(f"{MANIFEST} with layers {places!r} and tags {tags!r}")
    digest = name.split("/")[-1].removesuffix(".json").removeprefix("sha256:")
    configuration = _json(saved, posixpath.normpath(name))
    if digest != hashlib.sha256(saved.documents[posixpath.normpath(name)]).hexdigest():
        raise Refused(f"{name}, a configuration with another SHA-256")
    if not isinstance(configuration, dict):
        raise Refused(f"{name}, a configuration that is no JSON object")
    missing = [place for place in places if posixpath.normpath(place) not in saved.layers]
    if missing or not places:
        raise Refused(f"no layer {missing[0]}" if missing else "no layers")
    return Image(configuration, tuple(tags), tuple(saved.layers[posixpath.normpath(place)] for place in places))


def layer_fault(image: Image) -> str:
    """Return what is wrong with an image's layers, or an empty string."""
    faults = [layer.fault for layer in image.layers if layer.fault]
    if faults:
        return faults[0]
    system = image.configuration.get("rootfs")
    expected = system.get("diff_ids") if isinstance(system, dict) else None
    if expected != [f"sha256:{layer.digest}" for layer in image.layers]:
        return "layers whose SHA-256 the configuration does not name: damaged, or of another image"
    return ""


def _look_into(
    name: str, file: Any, size: int, budget: Budget, documents: dict[str, bytes], layers: dict[str, Layer]
) -> None:
    """Keep a member that is JSON, list one that is a layer, and pass any other."""
    head = file.read(BLOCK_BYTES)
    if head[:1] in (b"{", b"["):
        if size <= MAX_DOCUMENT_BYTES:
            documents[name] = head + file.read()
    elif compression(head) != "none" or head[257:262] == b"ustar" or (head and not head.strip(b"\0")):
        layers[name] = _layer(Joined(head, file), compression(head), budget)


def _layer(source: Any, kind: str, budget: Budget) -> Layer:
    digest = hashlib.sha256()
    entries: list[Entry] = []
    try:
        stream = Forward(decompressed(source, kind), None if kind == "none" else budget, digest=digest)
        for member, archive in members(stream, budget):
            entries.append(_entry(member, archive))
    except Refused as error:
        return Layer((), "", f"in a layer: {error}")
    except DAMAGED as error:
        return Layer((), "", f"a damaged layer ({reason(error)})")
    return Layer(tuple(entries), digest.hexdigest())


def _entry(member: tarfile.TarInfo, archive: tarfile.TarFile) -> Entry:
    path = tuple(part for part in member.name.split("/") if part not in ("", "."))
    if ".." in path:
        raise Refused(f"a layer with {member.name!r}, which leads out of it")
    kinds: dict[bytes, Kind] = {tarfile.DIRTYPE: "folder", tarfile.SYMTYPE: "link", tarfile.LNKTYPE: "hard link"}
    kind: Kind = "file" if member.isfile() else kinds.get(member.type, "other")
    content = b""
    if kind == "file" and member.size and (path in KEPT_WHOLE or member.mode & 0o111):
        file = archive.extractfile(member)
        assert file is not None  # of a regular file
        content = file.read(MAX_SCRIPT_BYTES)
        if path in KEPT_WHOLE:
            content += file.read(MAX_DOCUMENT_BYTES)
        elif not content.startswith(SCRIPT):
            content = b""
    target = member.linkname if kind in ("link", "hard link") else ""
    return Entry(path, kind, member.mode, member.uid, member.gid, target, content)


def _json(saved: Saved, name: str) -> Any:
    try:
        return json.loads(saved.documents[name])
    except (ValueError, RecursionError) as error:
        raise Refused(f"{name} that is no JSON") from error


def _strings(values: object) -> bool:
    return isinstance(values, Sequence) and all(isinstance(value, str) for value in values)
