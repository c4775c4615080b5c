"""Archives as `docker save` writes them, made without an engine."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Member = tuple[str, int, bytes | str | None]
"""Name (a folder's ends with a slash), mode, and a file's bytes, a link's target or nothing."""

PASSWD = "root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/sh\ntoor:x:0:0::/root:/bin/sh\n"
GROUP = "root:x:0:\nuser:x:1000:\nstaff:x:50:user\n"
BASE: list[Member] = [
    ("etc/", 0o755, None),
    ("etc/passwd", 0o644, PASSWD.encode()),
    ("etc/group", 0o644, GROUP.encode()),
    ("usr/bin/", 0o755, None),
    ("usr/bin/python3.11", 0o755, b"\x7fELF"),
    ("usr/bin/python3", 0o777, "python3.11"),
    ("usr/bin/env", 0o755, b"\x7fELF"),
    ("bin", 0o777, "usr/bin"),
    ("tmp/", 0o777, None),
]
CODE: list[Member] = [
    ("opt/venv/bin/python", 0o777, "/usr/bin/python3"),
    ("opt/app/", 0o755, None),
    ("opt/app/run.py", 0o644, b"print()\n"),
    ("opt/app/start.sh", 0o755, b"#!/usr/bin/env python3\n"),
]


def tar(members: Sequence[Member], *, uid: int = 0) -> bytes:
    """A tar archive of these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, mode, content in members:
            info = tarfile.TarInfo(name.rstrip("/"))
            info.mode, info.uid, info.gid = mode, uid, uid
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
                continue
            info.type = tarfile.DIRTYPE if content is None else tarfile.SYMTYPE
            info.linkname = content or ""
            archive.addfile(info)
    return buffer.getvalue()


@dataclass
class Saved:
    """What an archive is made of; a test changes it before it is written."""

    layers: list[bytes] = field(default_factory=lambda: [tar(BASE), tar(CODE)])
    config: dict[str, Any] = field(
        default_factory=lambda: {
            "User": "user",
            "Entrypoint": ["/opt/venv/bin/python", "/opt/app/run.py"],
            "Env": ["PATH=/opt/venv/bin:/usr/bin"],
            "WorkingDir": "/opt/app",
        }
    )
    about: dict[str, Any] = field(default_factory=lambda: {"architecture": "amd64", "os": "linux"})
    tags: list[str] | None = field(default_factory=lambda: ["mine:latest"])
    change: Callable[[dict[str, bytes]], object] = lambda members: None
    """Called with the members of the archive by name."""
    pack: Callable[[bytes], bytes] = lambda layer: layer
    """How a layer is kept."""

    def members(self) -> dict[str, bytes]:
        """The members of the archive, the manifest last as Docker has it."""
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
        return tar([(name, 0o644, content) for name, content in self.members().items()])

    def write(self, path: Path) -> Path:
        """Write the archive, compressed as its name says."""
        content = self.content()
        path.write_bytes(gzip.compress(content, 1) if path.name.endswith(".gz") else content)
        return path
