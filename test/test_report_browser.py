"""Pages of cases in headless Chromium: they draw, they can be used by keyboard, and they ask for nothing."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bench.browser import NO_WEBGL, chromium, chromium_path
from PIL import Image

from pantherseg.report.write import write_report
from report_cases import HOSTILE, Cohort, mixed, run_report, tumour

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Playwright

MISSING = "Chromium is not installed (apt-get install chromium)" if chromium_path() is None else ""
if importlib.util.find_spec("playwright") is None:
    MISSING = "playwright is not installed"
pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

# A slow machine makes WebGL in software wait for its shaders.
PATIENCE_MS = 120_000
PREDICTED, REFERENCE = (255, 176, 0), (64, 180, 255)


class Opened:
    """A page with what it has asked for and what it has complained of."""

    def __init__(self, page: Page, path: Path) -> None:
        self.page, self.address = page, path.as_uri()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(self.address)

    def _hear(self, kind: str, text: str) -> None:
        # What Chromium says about the speed of WebGL in software is not about the page.
        if kind in ("error", "warning") and "GPU stall" not in text:
            self.complaints.append(text)

    def check(self) -> None:
        """Check that the page has asked for nothing but itself, and that there was no error."""
        assert self.complaints == []
        assert [url for url in self.requests if url != self.address and not url.startswith("data:")] == []

    def case(self, name: str) -> Any:
        """Return the part of a case, scrolled to and drawn."""
        article = self.page.locator("article", has=self.page.locator(f"h3:has-text('{name}')")).first
        article.scroll_into_view_if_needed()
        return article


Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    with chromium(playwright) as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    cohort = mixed(folder)
    write_report(cohort.images, cohort.masks, cohort.references, folder / "report.html")
    return folder / "report.html"


@pytest.fixture
def opened(browser: Browser, report: Path) -> Iterator[Open]:
    """Return a function that opens the report, and check at the end that it asked for nothing and had no error."""
    with ExitStack() as stack:

        def open_report(path: Path = report, **options: Any) -> Opened:
            context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
            stack.callback(context.close)
            page = Opened(context.new_page(), path)
            stack.callback(page.check)
            return page

        yield open_report


def pixels(shot: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)


def near(shot: bytes, colour: Sequence[int], tolerance: int = 40) -> int:
    """Return how many pixels have about this colour."""
    return int((np.abs(pixels(shot) - colour).max(axis=-1) < tolerance).sum())


def test_pictures_are_drawn_when_they_are_scrolled_to(opened: Open) -> None:
    page = opened(viewport={"width": 1280, "height": 400}).page
    last = page.locator("article").last
    assert last.locator("figure > template").count() == 1
    assert last.locator(".strip li").count() == 0
    last.scroll_into_view_if_needed()
    last.locator(".current svg").wait_for()
    assert last.locator("figure > template").count() == 0


def test_a_case_shows_its_slices_with_both_contours(opened: Open) -> None:
    shot = opened().case("poor").locator(".current .picture").screenshot()
    assert pixels(shot).std() > 20
    assert near(shot, PREDICTED) > 100
    assert near(shot, REFERENCE) > 100


def test_keys_wheel_and_clicks_step_slices(opened: Open) -> None:
    page = opened()
    case = page.case("poor")
    slider, caption = case.locator("input[type=range]"), case.locator(".current p")
    caption.wait_for()  # pictures are drawn when they come near the screen
    slices = case.locator(".strip p").all_text_contents()
    main = slices.index(caption.text_content() or "")

    def shown() -> int:
        assert slider.get_attribute("aria-valuetext").startswith(caption.text_content())
        assert case.locator(".strip li.chosen p").all_text_contents() == [caption.text_content()]
        return slices.index(caption.text_content() or "")

    slider.focus()
    assert slider.evaluate("element => getComputedStyle(element).outlineStyle") == "solid", "the focus is visible"
    page.page.keyboard.press("ArrowRight")
    assert shown() == main + 1
    page.page.keyboard.press("ArrowLeft")
    page.page.keyboard.press("ArrowLeft")
    assert shown() == main - 1
    page.page.keyboard.press("End")
    page.page.keyboard.press("ArrowRight")
    assert shown() == len(slices) - 1
    case.locator(".strip li").first.click()
    assert shown() == 0
    case.locator(".current").click()
    page.page.mouse.wheel(0, 100)
    page.page.wait_for_timeout(300)
    assert shown() == 1


def test_the_wheel_scrolls_the_page_where_no_slider_has_the_focus(opened: Open) -> None:
    page = opened()
    case = page.case("poor")
    case.locator(".current").hover()
    before = page.page.evaluate("scrollY"), case.locator(".current p").text_content()
    page.page.mouse.wheel(0, 200)
    page.page.wait_for_timeout(500)
    assert page.page.evaluate("scrollY") > before[0]
    assert case.locator(".current p").text_content() == before[1]


def test_the_table_sorts_with_unknown_values_last(opened: Open) -> None:
    page = opened().page
    table = page.locator("table.sortable")

    def sort(heading: str) -> list[str]:
        button = table.get_by_role("button", name=heading, exact=True)
        button.focus()
        page.keyboard.press("Enter")
        column = table.locator("thead th button").all_text_contents().index(heading)
        return [cells.locator("th,td").nth(column).text_content().strip() for cells in table.locator("tbody tr").all()]

    ascending, descending = sort("Dice"), sort("Dice")
    numbers = [text for text in ascending if text != "-"]
    assert numbers == sorted(numbers, key=float)
    assert len(numbers) == 4
    assert ascending[4:] == descending[4:] == ["-"] * 4
    assert descending[:4] == numbers[::-1]
    assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    names = sort("Case")
    assert names.index("good") < names.index("poor") < names.index("uncertain")


def test_a_link_of_the_table_leads_to_its_case(opened: Open) -> None:
    page = opened().page
    page.locator("table.sortable a", has_text="uncertain").focus()
    page.keyboard.press("Enter")
    page.locator("article:target .current svg").wait_for()
    assert (page.locator("article:target h3").text_content() or "").strip() == "uncertain"


def test_names_are_shown_as_they_are_and_run_nothing(opened: Open) -> None:
    page = opened().page
    page.on("dialog", lambda dialog: pytest.fail(f"a name ran as a script: {dialog.message}"))
    name = HOSTILE.replace("/", "_")
    names = [text.strip() for text in page.locator("article h3").all_text_contents()]
    assert name in names
    assert "x" * 200 in names
    page.locator("article", has=page.locator("h3", has_text="größe")).locator(".open-viewer").click()
    page.locator("#viewer .views button").first.wait_for()
    assert page.locator("#viewer-title").text_content() == name


def test_the_viewer_draws_slices_and_the_volume_and_steps_by_keys(opened: Open) -> None:
    page = opened()
    case = page.case("poor")
    case.locator(".open-viewer").focus()
    page.page.keyboard.press("Enter")
    dialog = page.page.locator("#viewer")
    dialog.locator(".views button").first.wait_for()
    place, canvas = dialog.locator("output"), dialog.locator("canvas")
    first = place.text_content() or ""
    number, count = map(int, re.findall(r"\d+", first))
    shots = [canvas.screenshot()]
    assert pixels(shots[0]).std() > 20, "the canvas is blank"
    assert near(shots[0], PREDICTED) > 100
    page.page.keyboard.press("ArrowRight")
    assert place.text_content() == f"slice {number + 1} of {count}"
    shots.append(canvas.screenshot())
    for _ in range(count + 1):
        page.page.keyboard.press("ArrowLeft")
    assert place.text_content() == f"slice 1 of {count}"
    for key in "2345":
        page.page.keyboard.press(key)
        shots.append(canvas.screenshot())
    assert place.text_content() == "turned to 110°"
    page.page.keyboard.press("ArrowRight")
    assert place.text_content() == "turned to 120°"
    shots.append(canvas.screenshot())
    assert all(pixels(shot).std() > 5 for shot in shots), "a canvas is blank"
    assert len(set(shots)) == len(shots), "each key shows something else"
    page.page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_the_viewer_hides_a_mask(opened: Open) -> None:
    page = opened()
    page.case("poor").locator(".open-viewer").click()
    dialog = page.page.locator("#viewer")
    dialog.locator(".views button").first.wait_for()
    canvas = dialog.locator("canvas")
    both = canvas.screenshot()
    dialog.locator("label", has_text="predicted").click()
    without = canvas.screenshot()
    assert near(without, PREDICTED) < near(both, PREDICTED) / 4
    dialog.get_by_role("button", name="Coronal").click()
    assert near(canvas.screenshot(), PREDICTED) < 20, "it stays hidden in another view"


def test_cases_can_be_opened_one_after_the_other_and_while_another_is_loading(opened: Open) -> None:
    page = opened()
    canvas, buttons = page.page.locator("#viewer canvas"), page.page.locator("#viewer .views button")
    shots = []
    for name in ("empty", "poor", "empty", "poor"):
        page.case(name).locator(".open-viewer").click()
        if len(shots) == 0:  # closed before it has opened
            page.page.keyboard.press("Escape")
            page.case(name).locator(".open-viewer").click()
        buttons.first.wait_for()
        assert page.page.locator("#viewer-title").text_content() == name
        assert (buttons.count(), canvas.count()) == (5, 1)
        shots.append(canvas.screenshot())
        page.page.keyboard.press("Escape")
    assert near(shots[0], PREDICTED) == near(shots[2], PREDICTED) == 0
    assert near(shots[0], REFERENCE) > 100
    assert near(shots[1], PREDICTED) == near(shots[3], PREDICTED) > 100


def test_without_webgl_the_pictures_are_shown_and_a_sentence(playwright: Playwright, report: Path) -> None:
    with chromium(playwright, NO_WEBGL) as started:
        page = Opened(started.new_page(), report)
        page.page.locator("#no-webgl").wait_for()
        case = page.case("poor")
        assert "no WebGL 2" in (page.page.locator("#no-webgl").text_content() or "")
        assert case.locator(".open-viewer").is_disabled()
        assert near(case.locator(".current .picture").screenshot(), PREDICTED) > 100
        page.check()


def test_with_webgl_there_is_no_such_sentence(opened: Open) -> None:
    page = opened().page
    page.wait_for_timeout(500)
    assert not page.locator("#no-webgl").is_visible()
    assert page.locator(".open-viewer:disabled").count() == 0


def test_every_case_is_printed_with_its_pictures(opened: Open, tmp_path: Path) -> None:
    page = opened().page
    drawn = page.locator("figure.slices").count()
    pdf = page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert page.locator(".current svg").count() == drawn
    pictures = page.locator(".strip li, .cuts li").count()
    # Each picture is an object of the file, at least once.
    assert len(re.findall(rb"/Subtype\s*/Image", pdf)) >= pictures
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 3
    assert pdf.startswith(b"%PDF")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast_in_light_and_dark(opened: Open, scheme: str) -> None:
    page = opened(color_scheme=scheme).page

    def colour(name: str) -> list[float]:
        """Return the linear parts of a colour: https://www.w3.org/TR/WCAG22/#dfn-relative-luminance"""
        probe = f"(() => {{ const e = document.body.appendChild(document.createElement('i')); e.style.color = 'var({name})'; return getComputedStyle(e).color; }})()"  # noqa: E501
        parts = [int(part) / 255 for part in re.findall(r"\d+", page.evaluate(probe))[:3]]
        return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]

    def contrast(*names: str) -> float:
        light = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in map(colour, names))
        return (light[1] + 0.05) / (light[0] + 0.05)

    for text in ("--text", "--faint", "--accent", "--alert"):
        for ground in ("--page", "--card", "--alert-card"):
            assert contrast(text, ground) >= 4.5, (text, ground)
    assert contrast("--bar", "--page") >= 3


def test_a_narrow_phone_does_not_scroll_sideways(opened: Open) -> None:
    page = opened(viewport={"width": 360, "height": 780}).page
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_a_single_case_in_a_browser_without_javascript_has_its_figures(browser: Browser, tmp_path: Path) -> None:
    cohort = Cohort(tmp_path)
    cohort.add("case", tumour(), tumour(), run_report())
    write_report(cohort.images, cohort.masks, cohort.references, tmp_path / "report.html")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    text = page.locator("body").inner_text()
    assert "need JavaScript" in text
    assert "Dice" in text
    context.close()
