"""Draws a comparison of two sets of masks: the difference of every case, metric by metric, in both conventions.

Only Pillow is used, because the inference container has no plotting library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pantherseg.evaluation.comparison import CASE_HEADINGS, Comparison, Difference
from pantherseg.evaluation.metrics import METRICS
from pantherseg.evaluation.tables import CONVENTIONS, FORMATS
from pantherseg.files import written_beside

Colour = tuple[int, int, int]

# Steps of an axis are compared with this relative tolerance.
ROUNDING = 1e-9
# In pixels of the page; it is drawn larger and then shrunk, which smooths lines and dots.
WIDTH, MARGIN, HEAD, ROW, FOOT = 1400, 28, 124, 124, 56
LABEL, FIGURES, GAP, BAR = 150, 152, 30, 22
SCALE = 2
DOT = 4
# Blue and orange can be told from each other, and from grey, by colour-blind readers.
BETTER: Colour = (0, 90, 181)
WORSE: Colour = (211, 84, 0)
SAME: Colour = (140, 140, 140)
TEXT: Colour = (25, 28, 33)
FAINT: Colour = (105, 110, 118)
LINE: Colour = (210, 213, 218)
PAGE: Colour = (255, 255, 255)
TICKS = 2
FOOTER = "pantherseg, not for clinical use"


def draw_differences(comparison: Comparison, path: Path, *, name_a: str, name_b: str) -> None:
    """Write a PNG of a comparison, 1400 pixels wide: one dot for each case at B minus A, in a row for each metric.

    The bar is the mean difference with its 95 % bootstrap interval. Blue dots are cases in which B is better. Raises
    OutputError if the file cannot be written.
    """
    height = HEAD + ROW * len(METRICS) + FOOT
    page = Image.new("RGB", (WIDTH * SCALE, height * SCALE), PAGE)
    draw = ImageDraw.Draw(page)
    _text(draw, (MARGIN, 24), "B minus A, case by case", 24)
    half = (WIDTH - 2 * MARGIN - LABEL) // 2
    _text(draw, (MARGIN, 54), f"{len(comparison.cases)} cases", 15, FAINT)
    _text(draw, (MARGIN + LABEL, 54), _shortened(f"A: {name_a}", 15, half - GAP), 15, FAINT)
    _text(draw, (MARGIN + LABEL + half, 54), _shortened(f"B: {name_b}", 15, half), 15, FAINT)
    width = (WIDTH - 2 * MARGIN - LABEL - GAP) // len(CONVENTIONS)
    for column, convention in enumerate(CONVENTIONS):
        left = MARGIN + LABEL + column * (width + GAP)
        _text(draw, (left, 90), convention, 17)
        for row, (metric, difference) in enumerate(getattr(comparison, convention).items()):
            top = HEAD + row * ROW
            if column == 0:
                _text(draw, (MARGIN, top + ROW // 2 - 16), CASE_HEADINGS[metric], 16)
                better = "higher is better" if METRICS[metric] else "lower is better"
                _text(draw, (MARGIN, top + ROW // 2 + 6), better, 12, FAINT)
            _draw_row(draw, (left, top), width, metric, difference)
    _legend(draw, height - 30)
    with written_beside(path) as beside:
        page.resize((WIDTH, height), Image.Resampling.LANCZOS).save(beside, format="PNG")


def _draw_row(draw: ImageDraw.ImageDraw, at: tuple[int, int], width: int, metric: str, difference: Difference) -> None:
    """Draw one metric: axis, dots, mean and interval, and the figures on the right."""
    left, top = at
    right, bottom = left + width - FIGURES, top + ROW - 34
    middle, bar = top + (ROW - 34 - BAR) // 2, bottom - BAR // 2
    step = _tick_step(max(abs(value) for value in difference.values))
    reach = step * TICKS * 1.12

    def x(value: float) -> float:
        return (left + right) / 2 + value / reach * (right - left) / 2

    _line(draw, (left, bottom), (right, bottom), LINE)
    for number in range(-TICKS, TICKS + 1):
        _line(draw, (x(number * step), top + 4), (x(number * step), bottom), FAINT if number == 0 else LINE)
        _text(draw, (x(number * step), bottom + 5), f"{number * step:+,.6g}" if number else "0", 12, FAINT, side="m")
    for value, offset in zip(difference.values, _offsets([x(v) for v in difference.values]), strict=True):
        gain = value if METRICS[metric] else -value
        colour = BETTER if gain > 0 else WORSE if gain < 0 else SAME
        _dot(draw, (x(value), middle + offset), colour)
    if difference.interval is not None:
        low, high = difference.interval
        _line(draw, (x(low), bar), (x(high), bar), TEXT, 3)
        for bound in (low, high):
            _line(draw, (x(bound), bar - 4), (x(bound), bar + 4), TEXT, 3)
    mean = x(difference.mean_difference)
    _line(draw, (mean, bar - 8), (mean, bar + 8), TEXT, 6)
    figures = (
        f"mean {difference.mean_difference:+{FORMATS[metric]}}",
        f"better {difference.better}, worse {difference.worse}",
        f"p {difference.p_value:.2g}, Holm {difference.p_holm:.2g}",
    )
    for number, figure in enumerate(figures):
        _text(draw, (right + 14, top + 12 + number * 20), figure, 13, TEXT if number == 0 else FAINT)


def _tick_step(largest: float) -> float:
    """Return a round distance of ticks, of which TICKS on each side of 0 cover the largest difference."""
    if largest == 0:
        return 1.0
    exact = largest / TICKS
    power = 10.0 ** math.floor(math.log10(exact))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= exact * (1 - ROUNDING))


def _offsets(positions: Sequence[float]) -> list[float]:
    """Return how far each dot is moved up or down, so that few cover each other: to the free place nearest the axis."""
    limit, step = (ROW - 34 - BAR) // 2 - DOT, DOT * 1.5
    places = sorted((sign * step * n for n in range(int(limit // step) + 1) for sign in (1, -1)), key=abs)
    free: dict[float, float] = dict.fromkeys(places, -math.inf)
    offsets = [0.0] * len(positions)
    for index in sorted(range(len(positions)), key=lambda i: positions[i]):
        place = next((p for p in places if positions[index] - free[p] >= 2 * DOT), min(free, key=lambda p: free[p]))
        offsets[index], free[place] = place, positions[index]
    return offsets


def _legend(draw: ImageDraw.ImageDraw, top: int) -> None:
    left = float(MARGIN)
    for colour, words in ((BETTER, "B is better"), (WORSE, "B is worse"), (SAME, "equal")):
        _dot(draw, (left + DOT, top + 5), colour)
        _text(draw, (left + 16, top), words, 13, FAINT)
        left += 30 + _font(13).getlength(words) / SCALE
    _text(draw, (left, top), "bar: mean difference with its 95 % bootstrap interval", 13, FAINT)
    _text(draw, (WIDTH - MARGIN, top), FOOTER, 13, FAINT, side="r")


def _shortened(text: str, size: int, width: int) -> str:
    """Return a text that is not wider than some pixels, without its beginning if it was."""
    font = _font(size)
    if font.getlength(text) <= width * SCALE:
        return text
    # The end of a path tells more than its beginning.
    while text and font.getlength("..." + text) > width * SCALE:
        text = text[1:]
    return "..." + text


def _text(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int,
    colour: Colour = TEXT,
    side: str = "l",
) -> None:
    """Draw a line of text whose capitals begin at a height; side: l, m or r, the part of it that is at the position."""
    baseline = at[1] + 0.75 * size
    draw.text((at[0] * SCALE, baseline * SCALE), text, fill=colour, font=_font(size), anchor=f"{side}s")


def _line(
    draw: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], colour: Colour, width: int = 2
) -> None:
    draw.line([(x * SCALE, y * SCALE) for x, y in (start, end)], fill=colour, width=width)


def _dot(draw: ImageDraw.ImageDraw, at: tuple[float, float], colour: Colour) -> None:
    draw.circle((at[0] * SCALE, at[1] * SCALE), DOT * SCALE, fill=colour, outline=PAGE)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font that comes with Pillow, in the size of the enlarged page."""
    return ImageFont.load_default(size * SCALE)
