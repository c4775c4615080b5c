"""`check output` compared with panimg, the library that the platform itself reads outputs with."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from pantherseg.grand_challenge.check import check_output
from pantherseg.recipe import Sockets
from verdicts import broken

panimg = pytest.importorskip("panimg", reason="panimg is not installed, or its system libraries are not")

SOCKETS = Sockets(input="abdominal-t1-mri", output="pancreatic-tumor-segmentation")
MASK = np.zeros((4, 5, 6), np.uint8)
MASK[1:3, 2:4, 2:4] = 1
Write = Callable[[Path], object]


def image(array: Any, name: str = "mask.mha", *, vector: bool = False, compressed: bool = True) -> Write:
    """Write an array with ITK under a file name."""

    def write(folder: Path) -> None:
        made = sitk.GetImageFromArray(array, isVector=vector)
        if made.GetDimension() == 3:
            made.SetSpacing((1.5, 1.5, 3.0))
        sitk.WriteImage(made, str(folder / name), useCompression=compressed)

    return write


def renamed(name: str) -> Write:
    """Write a MetaImage under another name."""

    def write(folder: Path) -> None:
        image(MASK)(folder)
        (folder / "mask.mha").rename(folder / name)

    return write


def changed(change: Callable[[bytes], bytes], *, compressed: bool = True) -> Write:
    """Write a MetaImage and change its bytes."""

    def write(folder: Path) -> None:
        image(MASK, compressed=compressed)(folder)
        path = folder / "mask.mha"
        before = path.read_bytes()
        after = change(before)
        assert after != before
        path.write_bytes(after)

    return write


def header(old: bytes, new: bytes) -> Write:
    return changed(lambda content: content.replace(old, new, 1))


def several(*writes: Write) -> Write:
    return lambda folder: [write(folder) for write in writes]


def plain(name: str, content: bytes) -> Write:
    return lambda folder: (folder / name).write_bytes(content)


def tiff(array: Any, *, name: str = "mask.tif", extremes: bool = True, spacing: bool = True) -> Write:
    """Write a TIFF with the tags that panimg asks for, or without some of them."""

    def write(folder: Path) -> None:
        import tifffile

        tags = [(340, 3, 1, 0, True), (341, 3, 1, int(array.max()), True)] if extremes else []
        units: Any = {"resolution": (10 / 1.5, 10 / 1.5), "resolutionunit": "CENTIMETER"} if spacing else {}
        tifffile.imwrite(folder / name, array, extratags=tags, photometric="minisblack", **units)

    return write


def missing_data(folder: Path) -> None:
    image(MASK, "mask.mhd")(folder)
    (folder / "mask.zraw").unlink()


def in_a_folder(folder: Path) -> None:
    (folder / "deeper").mkdir()
    image(MASK)(folder / "deeper")


def by_a_link(folder: Path) -> None:
    image(MASK)(folder.parent.parent)
    (folder / "mask.mha").symlink_to(folder.parent.parent / "mask.mha")


CASES: dict[str, Write] = {
    "mask": image(MASK),
    "not compressed": image(MASK, compressed=False),
    "int8": image(MASK.astype(np.int8)),
    "empty mask": image(MASK * 0),
    "full mask": image(MASK * 0 + 1),
    "one slice": image(MASK[:1]),
    "one voxel": image(MASK[1:2, 2:3, 2:3]),
    **{kind: image(MASK.astype(kind)) for kind in ("int16", "uint16", "int32", "uint32", "int64", "uint64", "float32")},
    "label 2": image(MASK * 2),
    "label 255": image(MASK * 255),
    "label -1": image(-MASK.astype(np.int8)),
    "2-D": image(MASK[1]),
    "4-D of one": image(MASK[None]),
    "4-D of three": image(np.stack([MASK] * 3)),
    "two channels": image(np.stack([MASK] * 2, -1), vector=True),
    "three channels": image(np.stack([MASK] * 3, -1), vector=True),
    "five channels": image(np.stack([MASK] * 5, -1), vector=True),
    "nii.gz": image(MASK, "mask.nii.gz"),
    "nrrd": image(MASK, "mask.nrrd"),
    "png": image(MASK[1], "mask.png"),
    "ITK's TIFF": image(MASK, "mask.tif"),
    "TIFF": tiff(MASK),
    "TIFF of one slice": tiff(MASK[1]),
    "TIFF named mha": tiff(MASK, name="mask.mha"),
    "TIFF without extremes": tiff(MASK, extremes=False),
    "TIFF without spacing": tiff(MASK, spacing=False),
    "TIFF with label 2": tiff(MASK * 2),
    "MetaImage named tif": renamed("mask.tif"),
    "MetaImage named nii.gz": renamed("mask.nii.gz"),
    "MetaImage named MHA": renamed("mask.MHA"),
    "MetaImage without suffix": renamed("mask"),
    "truncated": changed(lambda content: content[:-6]),
    "truncated, not compressed": changed(lambda content: content[:-6], compressed=False),
    "longer": changed(lambda content: content + b"more", compressed=False),
    "header only": changed(lambda content: content[: content.index(b"LOCAL\n") + 6]),
    "part of a header": changed(lambda content: content[:60]),
    "damaged": changed(lambda content: content[:-10] + bytes([content[-10] ^ 0xFF]) + content[-9:]),
    "no ObjectType": header(b"ObjectType = Image\n", b""),
    "negative spacing": header(b"ElementSpacing = 1.5", b"ElementSpacing = -1.5"),
    "spacing 0": header(b"ElementSpacing = 1.5", b"ElementSpacing = 0"),
    "size 0": header(b"DimSize = 6", b"DimSize = 0"),
    "origin NaN": header(b"Offset = 0", b"Offset = nan"),
    "skewed axes": header(b"TransformMatrix = 1 0 0", b"TransformMatrix = 1 1 0"),
    "other type named": header(b"MET_UCHAR", b"MET_LONG_LONG"),
    "an unknown key": header(b"NDims", b"Key = x\nNDims"),
    "an invalid window": header(b"NDims", b"WindowCenter = x\nNDims"),
    "a window": header(b"NDims", b"WindowCenter = 1\nNDims"),
    "not UTF-8": header(b"NDims", b"Comment = \xe9\nNDims"),
    "a colon": header(b"ElementDataFile = LOCAL", b"ElementDataFile: LOCAL"),
    "Windows' line ends": header(b"\nNDims", b"\r\nNDims"),
    "an empty first line": changed(lambda content: b"\n" + content),
    "no file": lambda folder: None,
    "an empty file": plain("mask.mha", b""),
    "text": plain("mask.mha", b"mask"),
    "two masks": several(image(MASK), image(MASK, "second.mha")),
    "two masks, one in a folder": several(image(MASK), in_a_folder),
    "a text beside": several(image(MASK), plain("notes.txt", b"notes")),
    "a truncated mask beside": several(renamed("first.mha"), plain("second.mha", b"ObjectType = Image\n")),
    "a nii.gz beside": several(image(MASK), image(MASK, "second.nii.gz")),
    "in a folder": in_a_folder,
    "by a link": by_a_link,
    "header and data apart": image(MASK, "mask.mhd"),
    "header without its data": missing_data,
}
# Accepted by the platform but refused by the check, and why. The opposite never happens.
STRICTER = {
    "2-D": "a mask is scored as a volume on its input's grid",
    "4-D of one": "the platform reads the fourth axis as labels",
    "TIFF": "the platform reads pages as resolution levels, so that only one slice remains",
    "TIFF of one slice": "the same",
    "TIFF named mha": "the same",
    "negative spacing": "ITK drops the sign, so that the mask is elsewhere than intended",
    "origin NaN": "ITK reads it as 0",
    "an empty first line": "not every reader of MetaImages accepts it",
    "a text beside": "the platform ignores other files, but one mask alone was intended",
    "a truncated mask beside": "it is not clear which of the two was intended",
    "a nii.gz beside": "the same",
    "header and data apart": "the evaluation is given the name of one file only",
}


def platforms_refusal(folder: Path, scratch: Path) -> str:
    """Return why the platform refuses an output, or an empty string.

    It converts the output with panimg and then checks it in grandchallenge/components: `_create_images_result` and
    `_validate_voxel_values`.
    """
    from panimg.image_builders import image_builder_mhd, image_builder_tiff  # type: ignore[import-untyped]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # panimg leaves TIFFs open
        try:
            result = panimg.convert(
                input_directory=folder, output_directory=scratch, builders=[image_builder_mhd, image_builder_tiff]
            )
        except Exception as error:  # after any error the platform has no image
            return f"{type(error).__name__}: {error}"
        finally:
            gc.collect()
    if len(result.new_images) != 1:
        return f"{len(result.new_images)} images"
    (found,) = result.new_images
    if found.segments is None:
        return "Image segments could not be determined"
    return "" if set(found.segments) <= {0, 1} else f"values {sorted(found.segments)}"


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_check_refuses_what_the_platform_refuses(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "output" / "images" / SOCKETS.output
    folder.mkdir(parents=True)
    CASES[name](folder)
    refused = broken(check_output(tmp_path / "output", SOCKETS))
    refusal = platforms_refusal(folder, tmp_path / "scratch")
    if name in STRICTER:
        assert refused
        assert refusal == "", "the platform refuses it as well: it is not an exception any more"
    else:
        assert bool(refused) == bool(refusal), (refused, refusal)
