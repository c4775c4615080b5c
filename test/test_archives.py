"""Archives of unknown content: what is unpacked, and what is refused before unpacking."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from archive_files import entry, tar
from pantherseg.archives import Archive, ArchiveError, opened
from pantherseg.errors import DownloadError, OutputError

Files = dict[str, bytes]
FILES: Files = {"model/plans.json": b"{}", "model/fold_0/weights.pth": bytes(range(256)) * 400}


def zipped(files: Files, *, deflate: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def zip_with_link(name: str, target: str) -> bytes:
    buffer = io.BytesIO(zipped(FILES))
    with zipfile.ZipFile(buffer, "a") as archive:
        link = zipfile.ZipInfo(name)
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, target)
    return buffer.getvalue()


def damaged(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 255 for byte in content[middle : middle + 9]) + content[middle + 9 :]


def write(folder: Path, content: bytes) -> Path:
    path = folder / "archive"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    [zipped(FILES), zipped(FILES, deflate=True), *(tar(FILES, compression=kind) for kind in ("", "gz", "bz2", "xz"))],
    ids=["zip", "deflated zip", "tar", "tar.gz", "tar.bz2", "tar.xz"],
)
def test_unpacks_chosen_files(tmp_path: Path, content: bytes) -> None:
    with opened(write(tmp_path, content)) as archive:
        assert archive.sizes == {name: len(content) for name, content in FILES.items()}
        archive.unpack({"model/fold_0/weights.pth": tmp_path / "new" / "weights.pth"})
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["weights.pth"]
    assert (tmp_path / "new" / "weights.pth").read_bytes() == FILES["model/fold_0/weights.pth"]


@pytest.mark.parametrize(
    "content",
    [
        tar(FILES, entry("model/link", tarfile.SYMTYPE, target="fold_0/weights.pth")),
        tar(FILES, entry("model/link", tarfile.LNKTYPE, target="model/fold_0/weights.pth")),
        zip_with_link("model/link", "fold_0/weights.pth"),
    ],
    ids=["symbolic", "hard", "zip"],
)
def test_unpacks_links_for_a_caller_who_asks(tmp_path: Path, content: bytes) -> None:
    archive = Archive(write(tmp_path, content))
    assert (archive.links, archive.refused) == ({"model/link": "model/fold_0/weights.pth"}, [])
    archive.unpack({name: tmp_path / "new" / name for name in (*archive.sizes, *archive.links)})
    link = tmp_path / "new" / "model" / "link"
    assert not link.is_symlink()
    assert link.read_bytes() == FILES["model/fold_0/weights.pth"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (zipped({**FILES, "../evil": b"-"}), "found ../evil"),
        (zipped({**FILES, "/tmp/evil": b"-"}), "found /tmp/evil"),
        (tar({**FILES, "a/../../evil": b"-"}), "found a/../../evil"),
        (tar({**FILES, "/evil": b"-"}), "found /evil"),
        (zip_with_link("a", "/etc"), r"found a \(a link to /etc\)"),
        (tar(FILES, entry("a", tarfile.SYMTYPE, target="/etc")), r"found a \(a link to /etc\)"),
        (tar(FILES, entry("a", tarfile.LNKTYPE, target="model/plans.json")), r"found a \(a link to model/plans.json\)"),
        (tar(FILES, entry("a", tarfile.CHRTYPE)), r"found a \(a device or pipe\)"),
        (zipped({**FILES, "./a": b"-", "a": b"-"}), "found 2 members with the name 'a'"),
        (tar({**FILES, "model": b"-"}), "found 'model' both as a file and as a folder"),
        (b"<!doctype html><title>Log in</title>", "a file that is not a tar archive and begins with b'<!doctype html>"),
        (b"", "not a tar archive and begins with b''"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "compression by zstd, which is not supported"),
        (tar(FILES, compression="gz")[:-20], r"a damaged or truncated archive \(EOFError"),
        (tar(FILES)[: -(10 << 10)], "a damaged or truncated archive"),
        (tar(FILES) + b"more", "data after its end"),
        (zipped(FILES).replace(b"weights", b"wEIGHTS", 1), r"a damaged or truncated archive \(BadZipFile"),
        (b"?star".join(tar(FILES).rsplit(b"ustar", 1)), "a damaged or truncated archive"),
        *((damaged(tar(FILES, compression=kind)), "a damaged or truncated archive") for kind in ("bz2", "gz", "xz")),
    ],
)
def test_refuses_archives_of_weights(tmp_path: Path, content: bytes, found: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DownloadError, match=found) as caught, opened(path):
        pass
    assert str(caught.value).startswith(f"{path}: expected ")


@pytest.mark.parametrize(
    "pack",
    [
        lambda zeros: zipped({"a": zeros}, deflate=True),
        lambda zeros: tar({"a": zeros}, compression="gz"),
        gzip.compress,
    ],
    ids=["zip", "tar", "empty blocks"],
)
def test_refuses_archives_made_to_fill_a_disk(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ArchiveError, match="made to fill a disk"):
        Archive(write(tmp_path, pack(bytes(70 << 20))))


def test_refuses_a_damaged_member_of_a_zip_archive(tmp_path: Path) -> None:
    archive = Archive(write(tmp_path, damaged(zipped(FILES))))
    with pytest.raises(ArchiveError, match="Bad CRC-32"):
        archive.unpack({name: tmp_path / "new" / name for name in archive.sizes})


def test_names_the_folder_that_cannot_be_written(tmp_path: Path) -> None:
    archive = Archive(write(tmp_path, zipped(FILES)))
    (tmp_path / "new").touch()
    with pytest.raises(OutputError, match="new/model: expected to unpack here"):
        archive.unpack({name: tmp_path / "new" / name for name in archive.sizes})
