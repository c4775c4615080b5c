"""A picture of a case: the slice with most tumour, the masks on it, a close-up and the cuts across.

Drawn with Pillow alone: the container that makes masks has no plotting library.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from pantherseg.errors import InputError
from pantherseg.files import written_beside
from pantherseg.report.planes import Mask, Plane, Scene, cut, windowed
from pantherseg.volume import Volume

Colour = tuple[int, int, int]

# Pixels.
WIDTH = 1200
MARGIN = 24
GAP = 16
COLUMNS = 3
PANEL_WIDTH = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) // COLUMNS
MAX_PANEL_HEIGHT = 400
CAPTION_HEIGHT = 26
CONTOUR_WIDTH = 2
MIN_ANNOTATED = 60

# Orange and blue stay apart for colour-blind readers, and both from grey.
PREDICTED: Colour = (255, 176, 0)
REFERENCE: Colour = (64, 180, 255)
PAPER: Colour = (17, 19, 23)
INK: Colour = (235, 237, 240)
FAINT: Colour = (150, 155, 163)
FILL_OPACITY = 0.35
# A voxel that covers this share of a pixel or more is seen in it, so that single voxels survive shrinking.
MIN_COVER = 64
FOOTER = "pantherseg, not for clinical use"
TUMOUR = 1
ML_PER_MM3 = 1e-3


@dataclass(frozen=True)
class Panel:
    """One plane on the page: its caption, what is drawn on it, and the length of its scale bar in mm."""

    caption: str
    plane: Plane
    predicted: bool
    reference: bool
    filled: bool
    bar_mm: int


def draw_case(image: Volume, mask: Volume, reference: Volume | None, path: Path, *, title: str) -> None:
    """Write a PNG, 1200 pixels wide, of a case: image, mask and reference on the slice with most tumour, and cuts.

    All volumes are (z, y, x) on one grid, spacing in mm; label 1 of mask and reference is tumour. The slice is the one
    with most tumour of the reference, else of the mask, else the middle one. Every cut appears as radiologists see it
    (axial: anterior above, the patient's right on the left), with the patient's sides as letters at the edges.

    Raises InputError if the masks lie on another grid than the image, OutputError if the file cannot be written.
    """
    for name, other in (("mask", mask), ("reference", reference)):
        difference = image.grid.difference(other.grid) if other else ""
        if difference:
            raise InputError(f"{name} of {title}", expected="the grid of the image", found=difference)
    scene = Scene(
        grey=windowed(image),
        predicted=mask.array == TUMOUR,
        reference=None if reference is None else reference.array == TUMOUR,
        grid=image.grid,
    )
    panels = [(panel, _render(panel)) for panel in _panels(scene)]
    rows = [panels[i : i + COLUMNS] for i in range(0, len(panels), COLUMNS)]
    heights = [CAPTION_HEIGHT + max(picture.height for _, picture in row) for row in rows]
    header, footer = MARGIN + 66, 44
    page = Image.new("RGB", (WIDTH, header + sum(heights) + GAP * (len(rows) - 1) + footer), PAPER)
    draw = ImageDraw.Draw(page)
    _heading(draw, scene, title)
    top = header
    for row, height in zip(rows, heights, strict=True):
        for column, (panel, picture) in enumerate(row):
            left = MARGIN + column * (PANEL_WIDTH + GAP)
            draw.text((left, top), panel.caption, fill=INK, font=_font(16))
            page.paste(picture, (left + (PANEL_WIDTH - picture.width) // 2, top + CAPTION_HEIGHT))
        top += height + GAP
    draw.text((WIDTH - MARGIN, page.height - 14), FOOTER, fill=FAINT, font=_font(14), anchor="rs")
    with written_beside(path) as beside:
        page.save(beside, format="PNG")


def fitted_size(shape: tuple[int, int], spacing: tuple[float, float]) -> tuple[int, int]:
    """Return the pixels (width, height) of a plane of this shape and spacing (row, column, mm) in true proportions."""
    height_mm, width_mm = shape[0] * spacing[0], shape[1] * spacing[1]
    scale = min(PANEL_WIDTH / width_mm, MAX_PANEL_HEIGHT / height_mm)
    return max(1, round(width_mm * scale)), max(1, round(height_mm * scale))


def _panels(scene: Scene) -> list[Panel]:
    """Return what the page shows, in reading order."""
    own = cut(scene, 0)
    both = scene.reference is not None
    place = f"{own.name} slice {own.index + 1} of {own.count}"
    panels = [
        Panel(f"Input, {place}", own, predicted=False, reference=False, filled=False, bar_mm=50),
        Panel(
            _mask_caption("Predicted mask", own.predicted), own, predicted=True, reference=False, filled=True, bar_mm=50
        ),
    ]
    if own.reference is not None:
        caption = _mask_caption("Reference mask", own.reference)
        panels.append(Panel(caption, own, predicted=False, reference=True, filled=True, bar_mm=50))
    close = own.zoomed()
    if close:
        panels.append(Panel(f"Close-up, {place}", close, predicted=True, reference=both, filled=False, bar_mm=10))
    if own.count > 1:
        for axis in (1, 2):
            plane = cut(scene, axis)
            caption = f"{plane.name.capitalize()} cut {plane.index + 1} of {plane.count}"
            panels.append(Panel(caption, plane, predicted=True, reference=both, filled=False, bar_mm=50))
    return panels


def _mask_caption(name: str, mask: Mask) -> str:
    """Return the caption of a mask's panel, which may show none of it."""
    return name if mask.any() else f"{name}: none in this slice"


def _render(panel: Panel) -> Image.Image:
    """Return a panel's picture, scaled to true proportions."""
    plane = panel.plane
    size = fitted_size(plane.grey.shape, plane.spacing)
    grey = Image.fromarray(np.rint(plane.grey * 255).astype(np.uint8))
    shown = np.array(grey.resize(size, Image.Resampling.BICUBIC).convert("RGB"))
    # The prediction comes last: it is what the picture is about.
    if panel.reference and plane.reference is not None:
        _overlay(shown, plane.reference, REFERENCE, filled=panel.filled)
    if panel.predicted:
        _overlay(shown, plane.predicted, PREDICTED, filled=panel.filled)
    picture = Image.fromarray(shown)
    _annotate(picture, plane, panel.bar_mm)
    return picture


def _overlay(shown: NDArray[np.uint8], mask: Mask, colour: Colour, *, filled: bool) -> None:
    """Draw a mask (rows, columns) into a picture (height, width, 3): a contour around its voxels, and a fill."""
    height, width = shown.shape[:2]
    cover = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
    inside = np.asarray(cover) >= MIN_COVER
    if filled:
        shown[inside] = np.rint((1 - FILL_OPACITY) * shown[inside] + FILL_OPACITY * np.array(colour))
    # Half of the line lies outside, so that the smallest tumour shows.
    grown = ndimage.binary_dilation(inside, iterations=CONTOUR_WIDTH // 2)
    core = ndimage.binary_erosion(inside, iterations=CONTOUR_WIDTH - CONTOUR_WIDTH // 2, border_value=1)
    shown[grown & ~core] = colour


def _annotate(picture: Image.Image, plane: Plane, bar_mm: int) -> None:
    """Write the patient's sides at the edges and a scale bar, where they fit."""
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    if min(width, height) < MIN_ANNOTATED:
        return
    font = _font(14)
    left, right, top, bottom = plane.ends
    places = [((6, height // 2), left, "lm"), ((width - 6, height // 2), right, "rm")]
    places += [((width // 2, 5), top, "mt"), ((width // 2, height - 5), bottom, "mb")]
    for place, letter, anchor in places:
        draw.text(place, letter, fill=INK, font=font, anchor=anchor, stroke_width=2, stroke_fill=PAPER)
    length = round(bar_mm * width / (plane.grey.shape[1] * plane.spacing[1]))
    if length < width / 2 - 30:
        draw.rectangle((9, height - 13, 11 + length, height - 9), fill=PAPER)
        draw.rectangle((10, height - 12, 10 + length, height - 10), fill=INK)
        label = (10, height - 17)
        draw.text(label, f"{bar_mm} mm", fill=INK, font=_font(13), anchor="ls", stroke_width=2, stroke_fill=PAPER)


def _heading(draw: ImageDraw.ImageDraw, scene: Scene, title: str) -> None:
    """Write the title and the legend. A mask without tumour is told, not shown: no colour stands for nothing."""
    draw.text((MARGIN, MARGIN), _shortened(title, 24), fill=INK, font=_font(24), anchor="lt")
    masks = [("Predicted", scene.predicted, PREDICTED)]
    if scene.reference is not None:
        masks.append(("Reference", scene.reference, REFERENCE))
    left, middle = float(MARGIN), MARGIN + 44
    for name, mask, colour in masks:
        voxels = int(mask.sum())
        if voxels:
            box = (left, middle - 7, left + 22, middle + 7)
            tint = tuple(round(p + FILL_OPACITY * (c - p)) for p, c in zip(PAPER, colour, strict=True))
            draw.rectangle(box, fill=tint, outline=colour, width=CONTOUR_WIDTH)
            left += 30
        amount = f"{voxels * scene.grid.voxel_mm3 * ML_PER_MM3:.2f} ml" if voxels else "none"
        text = f"{name} tumour: {amount}"
        draw.text((left, middle), text, fill=INK if voxels else FAINT, font=_font(16), anchor="lm")
        left += draw.textlength(text, font=_font(16)) + 32


def _shortened(title: str, size: int) -> str:
    """Return the title, cut to the page's width."""
    font = _font(size)
    if font.getlength(title) <= WIDTH - 2 * MARGIN:
        return title
    while title and font.getlength(title + "...") > WIDTH - 2 * MARGIN:
        title = title[:-1]
    return title + "..."


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font, which is there wherever Pillow is."""
    return ImageFont.load_default(size)
