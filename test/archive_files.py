"""Archives for tests: tar files with any member, and images as `docker save` writes them, made without an engine."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


def entry(name: str, kind: bytes = tarfile.REGTYPE, *, target: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    """Return a member of a tar archive without content: an empty file, a folder, a link to `target`, a device."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, mode
    return info


def tar(files: dict[str, bytes], *entries: tarfile.TarInfo, compression: str = "") -> bytes:
    """Return a tar archive of files and of entries without content. compression: `gz`, `bz2`, `xz` or none."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in entries:
            archive.addfile(info)
    return buffer.getvalue()


def without_last_member(content: bytes) -> bytes:
    """Return a tar archive cut where its last member begins."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return content[: archive.getmembers()[-1].offset]


@dataclass
class ImageArchive:
    """The parts of an image's archive. change: called with the members by name. pack: how a layer is stored."""

    layers: list[bytes] = field(default_factory=lambda: [tar({"usr/bin/run": b"\x7fELF"}), tar({"opt/code": b"code"})])
    config: dict[str, Any] = field(default_factory=lambda: {"User": "user", "Entrypoint": ["run", "/opt/code"]})
    platform: dict[str, Any] = field(default_factory=lambda: {"architecture": "amd64", "os": "linux"})
    tags: list[str] | None = field(default_factory=lambda: ["mine:latest"])
    change: Callable[[dict[str, bytes]], object] = lambda members: None
    pack: Callable[[bytes], bytes] = bytes

    def members(self) -> dict[str, bytes]:
        """Return the members of the archive, the manifest last as in Docker's."""
        sums = [hashlib.sha256(layer).hexdigest() for layer in self.layers]
        rootfs = {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in sums]}
        configuration = json.dumps({**self.platform, "config": self.config, "rootfs": rootfs}).encode()
        name = f"{hashlib.sha256(configuration).hexdigest()}.json"
        members = {f"{digest}/layer.tar": self.pack(layer) for digest, layer in zip(sums, self.layers, strict=True)}
        members |= {f"{digest}/VERSION": b"1.0" for digest in sums}
        image = {"Config": name, "RepoTags": self.tags, "Layers": [f"{digest}/layer.tar" for digest in sums]}
        members |= {name: configuration, "manifest.json": json.dumps([image]).encode()}
        self.change(members)
        return members

    def content(self) -> bytes:
        """Return the archive."""
        return tar(self.members())
