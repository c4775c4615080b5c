"""An archive of `docker save`, read in one pass without unpacking it."""

from __future__ import annotations

import hashlib
import json
import posixpath
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

from pantherseg.archives import CHUNK_BYTES, ArchiveError, Budget, damage_reported, decompressed, tar_members

MANIFEST, OCI_INDEX = "manifest.json", "index.json"
MAX_DOCUMENT_BYTES = 4 << 20


@dataclass(frozen=True)
class Saved:
    """An archive of `docker save`.

    size: of its members in bytes. documents: its JSON files by name. layers: by name, the SHA-256 of each other file
    after decompression, or why there is none.
    """

    size: int
    documents: dict[str, bytes]
    layers: dict[str, str | ArchiveError]


def read_saved(file: BufferedReader, budget: Budget) -> Saved:
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


def find_image(saved: Saved) -> tuple[dict[str, Any], list[str]]:
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
    if not is_strings(layers or []) or not is_strings(tags or []):
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


def _json(saved: Saved, name: str) -> Any:
    try:
        return json.loads(saved.documents[name])
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{name}, which is not valid JSON") from error


def is_strings(values: object) -> bool:
    """Return whether this is a list of strings."""
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
