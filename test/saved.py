"""Archives as `docker save` writes them, made without an engine."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def tar(files: dict[str, bytes], *, mode: int = 0o644) -> bytes:
    """A tar archive of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.mode, info.size = mode, len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@dataclass
class Saved:
    """What an archive is made of; a test changes it before it is written."""

    layers: list[bytes] = field(default_factory=lambda: [tar({"usr/bin/run": b"\x7fELF"}), tar({"opt/code": b"code"})])
    config: dict[str, Any] = field(default_factory=lambda: {"User": "user", "Entrypoint": ["run", "/opt/code"]})
    about: dict[str, Any] = field(default_factory=lambda: {"architecture": "amd64", "os": "linux"})
    tags: list[str] | None = field(default_factory=lambda: ["mine:latest"])
    change: Callable[[dict[str, bytes]], object] = lambda members: None
    """Called with the members of the archive by name."""
    pack: Callable[[bytes], bytes] = lambda layer: layer
    """How a layer is stored."""

    def members(self) -> dict[str, bytes]:
        """The members of the archive, the manifest last as in Docker's."""
        sums = [hashlib.sha256(layer).hexdigest() for layer in self.layers]
        rootfs = {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in sums]}
        configuration = json.dumps({**self.about, "config": self.config, "rootfs": rootfs}).encode()
        name = f"{hashlib.sha256(configuration).hexdigest()}.json"
        members = {f"{digest}/layer.tar": self.pack(layer) for digest, layer in zip(sums, self.layers, strict=True)}
        members |= {f"{digest}/VERSION": b"1.0" for digest in sums}
        entry = {"Config": name, "RepoTags": self.tags, "Layers": [f"{digest}/layer.tar" for digest in sums]}
        members |= {name: configuration, "manifest.json": json.dumps([entry]).encode()}
        self.change(members)
        return members

    def content(self) -> bytes:
        """The archive."""
        return tar(self.members())

    def write(self, path: Path) -> Path:
        """Write the archive, compressed as its name says."""
        content = self.content()
        path.write_bytes(gzip.compress(content, 1) if path.name.endswith(".gz") else content)
        return path
