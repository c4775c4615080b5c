"""An image's files as they are when it runs: its layers on each other, looked at without unpacking them.

How layers hide what lies below them: https://github.com/opencontainers/image-spec/blob/main/layer.md
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

Kind = Literal["file", "folder", "link", "hard link", "other"]
READ, EXECUTE = 4, 1
MAX_LINKS = 40
WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"


@dataclass(frozen=True)
class Entry:
    """A member of a layer. path: its parts; target: of a link; content: what was kept of a file."""

    path: tuple[str, ...]
    kind: Kind
    mode: int
    uid: int
    gid: int
    target: str = ""
    content: bytes = b""


@dataclass
class Node:
    """A file, folder or link of the image."""

    kind: Kind
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    target: str = ""
    content: bytes = b""
    children: dict[str, Node] = field(default_factory=dict)


@dataclass(frozen=True)
class User:
    """Whom a container runs as. gids: with those of further groups; listed: in the image's passwd."""

    name: str
    uid: int
    gids: frozenset[int]
    home: str = ""
    listed: bool = True

    def may(self, node: Node, right: int) -> bool:
        """Return whether a node's own mode gives the user a right, READ or EXECUTE."""
        shift = 6 if self.uid == node.uid else 3 if node.gid in self.gids else 0
        return bool(node.mode >> shift & right)


@dataclass(frozen=True)
class Found:
    """Where a path leads. path: without links; folders: those that were passed on the way."""

    path: str
    node: Node
    folders: tuple[Node, ...]

    def open_to(self, user: User, right: int) -> bool:
        """Return whether a user has a right to it, and may pass every folder on the way."""
        return user.may(self.node, right) and all(user.may(folder, EXECUTE) for folder in self.folders)


class FileSystem:
    """The files of an image. layers: the lowest first."""

    def __init__(self, layers: Iterable[Iterable[Entry]]) -> None:
        self._root = Node("folder")
        for layer in layers:
            self._add(list(layer))

    def find(self, path: str, *, start: str = "/") -> Found | None:
        """Return what a path leads to, through every link, or None. start: of a path that is not absolute."""
        pending = list(reversed(PurePosixPath(start, path).parts[1:]))
        names: list[str] = []
        nodes = [self._root]
        links = 0
        while pending:
            name = pending.pop()
            if name == "..":
                names, nodes = names[:-1], nodes[:-1] or [self._root]
                continue
            child = nodes[-1].children.get(name)
            if child is None:
                return None
            if child.kind == "link":
                links += 1
                if links > MAX_LINKS:
                    return None
                target = PurePosixPath(child.target)
                if target.is_absolute():
                    names, nodes = [], [self._root]
                pending += reversed([part for part in target.parts if part != "/"])
                continue
            names.append(name)
            nodes.append(child)
        return Found("/" + "/".join(names), nodes[-1], tuple(nodes[:-1]))

    def below(self, path: str) -> Iterator[str]:
        """Yield the path of everything but folders in a folder and in those below it."""
        found = self.find(path)
        pending = [] if found is None else [(found.path, found.node)]
        while pending:
            place, node = pending.pop()
            for name, child in sorted(node.children.items()):
                if child.kind == "folder":
                    pending.append((f"{place.rstrip('/')}/{name}", child))
                else:
                    yield f"{place.rstrip('/')}/{name}"

    def text(self, path: str) -> str | None:
        """Return what was kept of a file, or None where there is none."""
        found = self.find(path)
        if found is None or found.node.kind != "file":
            return None
        return found.node.content.decode("utf-8", errors="replace")

    def _add(self, entries: list[Entry]) -> None:
        """Put a layer on the others; what it hides are their files, never its own."""
        for entry in entries:
            *parents, name = entry.path or ("",)
            if name == OPAQUE:
                self._folder(parents).children.clear()
            elif name.startswith(WHITEOUT):
                self._folder(parents).children.pop(name.removeprefix(WHITEOUT), None)
        for entry in entries:
            # The root itself is the engine's own folder, whatever a layer says of it.
            if entry.path and not entry.path[-1].startswith(WHITEOUT):
                self._put(entry)

    def _put(self, entry: Entry) -> None:
        *parents, name = entry.path
        folder = self._folder(parents)
        if entry.kind == "hard link":
            other = self.find(entry.target)
            folder.children[name] = other.node if other is not None else Node("other")
            return
        node = Node(entry.kind, entry.mode, entry.uid, entry.gid, entry.target, entry.content)
        before = folder.children.get(name)
        if before is not None and before.kind == entry.kind == "folder":
            node.children = before.children
        folder.children[name] = node

    def _folder(self, parts: list[str]) -> Node:
        """Return a folder, made where it is missing, as engines do when they unpack a layer."""
        node, path = self._root, ""
        for part in parts:
            path = f"{path}/{part}"
            found = self.find(path)
            if found is None or found.node.kind != "folder":
                node.children[part] = Node("folder")
                node = node.children[part]
            else:
                node = found.node
        return node


def find_user(files: FileSystem, spec: str) -> User | str:
    """Return the user that USER names as an engine finds it, or why there is none."""
    name, _, group = spec.partition(":")
    people = [line.split(":") for line in (files.text("/etc/passwd") or "").splitlines()]
    people = [person for person in people if len(person) >= 6 and person[2].isdigit() and person[3].isdigit()]
    groups = [line.split(":") for line in (files.text("/etc/group") or "").splitlines()]
    groups = [entry for entry in groups if len(entry) >= 4 and entry[2].isdigit()]
    person = next((person for person in people if person[0] == name), None)
    person = person or next((person for person in people if name.isdigit() and int(person[2]) == int(name)), None)
    if person is None and not name.isdigit():
        return f"no {name!r} in /etc/passwd: the container does not start"
    if group and not group.isdigit() and all(entry[0] != group for entry in groups):
        return f"no group {group!r} in /etc/group: the container does not start"
    if group:
        gids = {int(next((entry[2] for entry in groups if entry[0] == group), group))}
    elif person is not None:
        gids = {int(person[3]), *(int(entry[2]) for entry in groups if person[0] in entry[3].split(","))}
    else:
        gids = {0}
    if person is None:
        return User(name, int(name), frozenset(gids), listed=False)
    return User(person[0], int(person[2]), frozenset(gids), home=person[5])
