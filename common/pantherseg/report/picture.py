"""Draws a picture of a case: the slice with the most tumour, the masks on it, a close-up and two orthogonal cuts.

Only Pillow is used, because the inference container has no plotting library.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from pantherseg.files import written_beside
from pantherseg.report.planes import Mask, Plane, Scene, cut
from pantherseg.volume import Volume

Colour = tuple[int, int, int]

# In pixels.
WIDTH = 1200
MARGIN = 24
GAP = 16
COLUMNS = 3
PANEL_WIDTH = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) // COLUMNS
MAX_PANEL_HEIGHT = 400
CAPTION_HEIGHT = 26
CONTOUR_WIDTH = 2
MIN_ANNOTATED = 60

# Colour-blind readers can tell orange and blue from each other and from grey.
PREDICTED: Colour = (255, 176, 0)
REFERENCE: Colour = (64, 180, 255)
PAGE_COLOUR: Colour = (17, 19, 23)
TEXT: Colour = (235, 237, 240)
FAINT_TEXT: Colour = (150, 155, 163)
FILL_OPACITY = 0.35
# A pixel belongs to a mask if the mask covers this much of it, of 255, so that single voxels stay visible when shrunk.
MIN_COVER = 64
FOOTER = "pantherseg, not for clinical use"
ML_PER_MM3 = 1e-3


@dataclass(frozen=True)
class Panel:
    """One plane on the page: its caption, which masks to draw, whether to fill them, and its scale bar in mm."""

    caption: str
    plane: Plane
    predicted: bool = False
    reference: bool = False
    filled: bool = False
    bar_mm: int = 50


def draw_case(image: Volume, mask: Volume, reference: Volume | None, path: Path, *, title: str) -> None:
    """Write a PNG of a case, 1200 pixels wide, with the image, the mask, the reference mask and orthogonal cuts.

    All volumes are (z, y, x) on one grid, spacing in mm, each in any voxel order; they are drawn in LPS. The main
    picture cuts across the axis with the largest spacing, where the reference has most tumour; without one, the mask;
    without either, in the middle. Cuts are displayed in radiological convention (axial: anterior at the top, the
    patient's right on the left), with the patient's sides as letters at the edges.

    Raises InputError if a mask is not on the grid of the image, OutputError if the file cannot be written.
    """
    scene = Scene.of(image, mask, reference, title=title)
    panels = [(panel, _render(panel)) for panel in _panels(scene)]
    rows = [panels[i : i + COLUMNS] for i in range(0, len(panels), COLUMNS)]
    heights = [CAPTION_HEIGHT + max(picture.height for _, picture in row) for row in rows]
    header, footer = MARGIN + 66, 44
    page = Image.new("RGB", (WIDTH, header + sum(heights) + GAP * (len(rows) - 1) + footer), PAGE_COLOUR)
    draw = ImageDraw.Draw(page)
    _heading(draw, scene, title)
    top = header
    for row, height in zip(rows, heights, strict=True):
        for column, (panel, picture) in enumerate(row):
            left = MARGIN + column * (PANEL_WIDTH + GAP)
            draw.text((left, top), panel.caption, fill=TEXT, font=_font(16))
            page.paste(picture, (left + (PANEL_WIDTH - picture.width) // 2, top + CAPTION_HEIGHT))
        top += height + GAP
    draw.text((WIDTH - MARGIN, page.height - 14), FOOTER, fill=FAINT_TEXT, font=_font(14), anchor="rs")
    with written_beside(path) as beside:
        page.save(beside, format="PNG")


def fitted_size(shape: tuple[int, int], spacing: tuple[float, float]) -> tuple[int, int]:
    """Return the pixel size (width, height) of a plane (rows, columns) with a spacing in mm, in true proportions."""
    height_mm, width_mm = shape[0] * spacing[0], shape[1] * spacing[1]
    scale = min(PANEL_WIDTH / width_mm, MAX_PANEL_HEIGHT / height_mm)
    return max(1, round(width_mm * scale)), max(1, round(height_mm * scale))


def _panels(scene: Scene) -> list[Panel]:
    """Return the panels of the page in reading order."""
    axis = scene.main_axis
    main = cut(scene, axis)
    position = f"{main.name} slice {main.index + 1} of {main.count}"
    panels = [
        Panel(f"Input, {position}", main),
        Panel(_mask_caption("Predicted mask", main.predicted), main, predicted=True, filled=True),
    ]
    if main.reference is not None:
        panels.append(Panel(_mask_caption("Reference mask", main.reference), main, reference=True, filled=True))
    close_up = main.zoomed()
    if close_up:
        panels.append(Panel(f"Close-up, {position}", close_up, predicted=True, reference=True, bar_mm=10))
    if main.count > 1:
        for plane in (cut(scene, other) for other in range(3) if other != axis):
            caption = f"{plane.name.capitalize()} cut {plane.index + 1} of {plane.count}"
            panels.append(Panel(caption, plane, predicted=True, reference=True))
    return panels


def _mask_caption(name: str, mask: Mask) -> str:
    """Return the caption of a mask's panel, which says so if the mask is empty in this slice."""
    return name if mask.any() else f"{name}: none in this slice"


def _render(panel: Panel) -> Image.Image:
    """Return the picture of a panel in true proportions."""
    plane = panel.plane
    size = fitted_size(plane.grey.shape, plane.spacing)
    grey = Image.fromarray(np.rint(plane.grey * 255).astype(np.uint8))
    shown = np.array(grey.resize(size, Image.Resampling.BICUBIC).convert("RGB"))
    # The prediction is drawn last, so that nothing hides it.
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
    # Half of the line lies outside of the mask, so that the smallest tumour is visible.
    grown = ndimage.binary_dilation(inside, iterations=CONTOUR_WIDTH // 2)
    core = ndimage.binary_erosion(inside, iterations=CONTOUR_WIDTH - CONTOUR_WIDTH // 2, border_value=1)
    shown[grown & ~core] = colour


def _annotate(picture: Image.Image, plane: Plane, bar_mm: int) -> None:
    """Draw the letters of the patient's sides and a scale bar, if there is room for them."""
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    if min(width, height) < MIN_ANNOTATED:
        return
    font = _font(14)
    left, right, top, bottom = plane.ends
    letters = [((6, height // 2), left, "lm"), ((width - 6, height // 2), right, "rm")]
    letters += [((width // 2, 5), top, "mt"), ((width // 2, height - 5), bottom, "mb")]
    for position, letter, anchor in letters:
        draw.text(position, letter, fill=TEXT, font=font, anchor=anchor, stroke_width=2, stroke_fill=PAGE_COLOUR)
    length = round(bar_mm * width / (plane.grey.shape[1] * plane.spacing[1]))
    if length < width / 2 - 30:
        draw.rectangle((9, height - 13, 11 + length, height - 9), fill=PAGE_COLOUR)
        draw.rectangle((10, height - 12, 10 + length, height - 10), fill=TEXT)
        label = (10, height - 17)
        draw.text(
            label, f"{bar_mm} mm", fill=TEXT, font=_font(13), anchor="ls", stroke_width=2, stroke_fill=PAGE_COLOUR
        )


def _heading(draw: ImageDraw.ImageDraw, scene: Scene, title: str) -> None:
    """Draw the title and the legend. The legend of an empty mask is text without a colour."""
    draw.text((MARGIN, MARGIN), _shortened(title, 24), fill=TEXT, font=_font(24), anchor="lt")
    masks = [("Predicted", scene.predicted, PREDICTED)]
    if scene.reference is not None:
        masks.append(("Reference", scene.reference, REFERENCE))
    left, middle = float(MARGIN), MARGIN + 44
    for name, mask, colour in masks:
        voxels = int(mask.sum())
        if voxels:
            box = (left, middle - 7, left + 22, middle + 7)
            tint = tuple(round(p + FILL_OPACITY * (c - p)) for p, c in zip(PAGE_COLOUR, colour, strict=True))
            draw.rectangle(box, fill=tint, outline=colour, width=CONTOUR_WIDTH)
            left += 30
        amount = f"{voxels * scene.grid.voxel_mm3 * ML_PER_MM3:.2f} ml" if voxels else "none"
        text = f"{name} tumour: {amount}"
        draw.text((left, middle), text, fill=TEXT if voxels else FAINT_TEXT, font=_font(16), anchor="lm")
        left += draw.textlength(text, font=_font(16)) + 32


def _shortened(title: str, size: int) -> str:
    """Return the title, shortened to the width of the page."""
    font = _font(size)
    if font.getlength(title) <= WIDTH - 2 * MARGIN:
        return title
    while title and font.getlength(title + "...") > WIDTH - 2 * MARGIN:
        title = title[:-1]
    return title + "..."


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font that comes with Pillow."""
    return ImageFont.load_default(size)
