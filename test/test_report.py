"""Pages of cases: which files belong together, what is said about a case, and what cannot be used."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from msgspec import convert

from conftest import one_line_about, run_python
from pantherseg.cli import main as pantherseg
from pantherseg.errors import InputError, OutputError, PantherSegError
from pantherseg.io import write_volume
from pantherseg.paths import ROOT
from pantherseg.report import write
from pantherseg.report.case_files import find_cases
from pantherseg.report.cases import Case
from pantherseg.report.run_report import read_run_report
from pantherseg.report.summary import DICE_EDGES, VOLUME_EDGES, histogram
from pantherseg.report.write import case_room, write_report
from pantherseg.results import CaseReport
from pantherseg.volume import Grid, Volume
from report_cases import GRID, HOSTILE, Cohort, confidence, image, mixed, run_report, tumour

UNKNOWN = confidence(None, None)


class Page(HTMLParser):
    """The text of a page by the headings of its cases, and its tags."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(self.source)
        self.articles = [re.sub(r"\s+", " ", part) for part in self.text.split("\f")[1:]]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.text += " "
        self.tags.append((tag, dict(attrs)))
        if tag == "article":
            self.text += "\f"

    def handle_data(self, data: str) -> None:
        # Scripts, styles and volumes are no text.
        if self.tags and self.tags[-1][0] in ("script", "style") and len(data) > 100:
            return
        self.text += data

    @property
    def names(self) -> list[str]:
        """The names of the cases in the order of the page."""
        return [article.split()[0] for article in self.articles]


def made(cohort: Cohort, output: Path, *, references: bool = True) -> tuple[Page, list[str]]:
    failed = write_report(cohort.images, cohort.masks, cohort.references if references else None, output)
    return Page(output), failed


def command(*arguments: object) -> Result:
    return CliRunner().invoke(pantherseg, ["report", *map(str, arguments)])


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return mixed(tmp_path_factory.mktemp("mixed"))


@pytest.fixture(scope="module")
def page(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return made(cohort, tmp_path_factory.mktemp("page") / "report.html")[0]


def test_cases_that_need_a_look_come_first(page: Page) -> None:
    assert page.names == [
        "damaged", "without", "empty", "poor", "uncertain", HOSTILE.split()[0].replace("/", "_"), "good", "x" * 200,
    ]  # fmt: skip


def test_a_case_has_its_figures_events_and_times(page: Page) -> None:
    poor = page.articles[page.names.index("poor")]
    for text in (
        "Predicted volume 3.20 ml",
        "Reference volume 6.40 ml",
        "Dice 0.333",
        "Expected Dice 0.450",
        "Agreement of folds 0.500",
        "Volume by single folds 3.10 to 4.20 ml",
        "Empty mask rescued: no tumour was found; <b>the most probable</b> was marked",
        "Time: 12.0 s",
        "members 10.2 s",
        "Recipe task1",
        "Searched voxels 0, 0, 0 up to 12, 40, 48 (z, y, x)",
        "Peak memory 400 MiB",
    ):
        assert text in poor


def test_a_case_has_what_the_localizer_found(page: Page) -> None:
    good = page.articles[page.names.index("good")]
    assert "Pancreas 61.2 ml around -12.5, 30.0, 4.2 mm (x, y, z), 2.5 ml elsewhere left out" in good
    assert "ml around" not in page.articles[page.names.index("poor")]


def test_the_summary_counts_what_needs_a_look(page: Page) -> None:
    summary = re.sub(r"\s+", " ", page.text.split("\f")[0])
    counts = ("Cases 8", "With problems 1", "Without a mask 1", "Empty mask rescued: 1 case")
    for text in ("Not for clinical use.", *counts, "The challenge's metrics over 4 cases with a reference"):
        assert text in summary


def test_an_empty_mask_and_an_unknown_report_are_said(page: Page) -> None:
    assert "Predicted volume no tumour" in page.articles[page.names.index("empty")]
    assert "Recipe" not in page.articles[page.names.index("x" * 200)]


@pytest.mark.fault(
    "inputs", "`report`: one of eight masks cannot be read", "a page that names it, with the other cases; exit code 1"
)
def test_a_file_that_cannot_be_read_is_named_and_the_rest_done(cohort: Cohort, page: Page, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    done = command(cohort.images, cohort.masks, output, "--references", cohort.references)
    assert done.exit_code == 1
    assert output.read_text() == page.source
    assert str(cohort.masks / "damaged.mha") in page.articles[0]
    assert len(page.articles) == 8


@pytest.mark.fault(
    "inputs",
    "`report`: the name of a case and texts of its report are HTML and scripts",
    "a page that shows them as text, and runs only its own scripts",
)
def test_names_and_reports_are_text(page: Page) -> None:
    name = HOSTILE.replace("/", "_")
    assert name in re.sub(r"\s+", " ", page.text)
    assert not [tag for tag, _ in page.tags if tag in ("b", "i")]
    assert "</script><i>recipe" in page.text
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert len([attributes for attributes in scripts if attributes.get("type") != "text/plain"]) == 1
    (policy,) = [a["content"] or "" for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert re.search(r"script-src( 'sha256-[A-Za-z0-9+/=]+'){2};", policy)


def test_the_page_names_no_other_file_and_no_address(page: Page) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "href", "data", "action", "poster", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/png;base64,")), (tag, value)
    assert "@import" not in page.source
    assert not re.findall(r"url\((?!#)", page.source.split("</style>")[0])


def test_pictures_and_figures_have_texts(page: Page) -> None:
    pictures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(pictures) > 20
    assert all(picture.get("role") == "img" and picture.get("aria-label") for picture in pictures)
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert headings[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(headings)), "no level is skipped"
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_the_same_files_give_the_same_bytes(cohort: Cohort, page: Page, tmp_path: Path) -> None:
    assert made(cohort, tmp_path / "again.html")[0].source == page.source
    assert [path.name for path in tmp_path.iterdir()] == ["again.html"]


def test_without_references_the_least_certain_come_first(cohort: Cohort, tmp_path: Path) -> None:
    page, failed = made(cohort, tmp_path / "report.html", references=False)
    assert failed == ["damaged"]
    assert page.names[:5] == ["damaged", "without", "poor", "uncertain", "good"]
    assert "Mean Dice" not in page.text


@pytest.mark.parametrize(
    ("values", "first"),
    [((0.4, 0.9), 0), ((0.9, 0.4), 1), ((None, 0.4), 1), ((0.4, None), 0)],
)
def test_urgency_follows_the_expected_dice_and_then_the_agreement(
    values: tuple[float | None, float | None], first: int
) -> None:
    for key in ("expected_dice", "pairwise_dice"):
        cases = [
            Case(number, f"case{number}", run=convert(run_report(confidence={**UNKNOWN, key: value}), CaseReport))
            for number, value in enumerate(values)
        ]
        assert min(cases, key=lambda case: case.urgency) is cases[first]


@pytest.mark.fault(
    "inputs", "`report`: the {which} of one of two cases is on another grid", "a page that says so, with the other case"
)
@pytest.mark.parametrize("which", ["mask", "reference"])
def test_another_grid_is_a_problem_of_its_case(tmp_path: Path, which: str) -> None:
    cohort = Cohort(tmp_path)
    other = tumour(grid=replace(GRID, spacing=(4.0, 2.0, 2.5)))
    cohort.add("moved", **{"mask": tumour(), "reference": tumour(), which: other})  # type: ignore[arg-type]
    cohort.add("good", tumour(), tumour())
    page, failed = made(cohort, tmp_path / "report.html")
    assert failed == ["moved"]
    assert page.names == ["moved", "good"]
    assert "the grid of the image" in page.articles[0]
    # Without its reference the case can still be seen.
    assert ("Slices through the tumour" in page.articles[0]) == (which == "reference")
    assert "Slices through the tumour" in page.articles[1]


@pytest.mark.fault("inputs", "`report`: a mask holds {kind}", "a page that says so, with the other case")
@pytest.mark.parametrize(
    ("kind", "values"), [("probabilities", np.float32(0.3)), ("NaN", np.float32("nan"))], ids=["probabilities", "nan"]
)
def test_a_mask_must_hold_labels(tmp_path: Path, kind: str, values: np.float32) -> None:
    cohort = Cohort(tmp_path)
    cohort.add("floats", Volume(np.full(GRID.shape, values), GRID), tumour())
    cohort.add("good", tumour().__class__(tumour().array.astype(np.float32), GRID), tumour())
    page, failed = made(cohort, tmp_path / "report.html")
    assert failed == ["floats"]
    assert "whole numbers as labels" in page.articles[0]
    assert "Dice 1.000" in page.articles[1]


@pytest.mark.fault(
    "inputs", "`report`: the reference of one of two cases has no tumour", "a page that says so and shows the case"
)
def test_a_reference_without_a_tumour_gives_no_metrics(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path)
    cohort.add("none", tumour(), tumour(0, 0))
    cohort.add("good", tumour(), tumour())
    page, failed = made(cohort, tmp_path / "report.html")
    assert failed == ["none"]
    assert "a reference mask with a tumour" in page.articles[0]
    assert "Slices through the tumour" in page.articles[0]


@pytest.mark.fault("inputs", "`report`: a case's own report is {what}", "a page that says so and shows the case")
@pytest.mark.parametrize(
    ("what", "content"),
    [
        ("of another version", b'{"schema": 99}'),
        ("no JSON", b"{"),
        ("binary", b"\xff\x00"),
        ("of another form", b'{"schema": 1, "seconds": "many"}'),
        ("deeply nested", b'{"x":' * 20000),
        ("a list", b"[1]"),
    ],
)
def test_a_damaged_report_is_a_problem_of_its_case(tmp_path: Path, what: str, content: bytes) -> None:
    cohort = Cohort(tmp_path)
    cohort.add("case", tumour())
    (cohort.masks / "case.json").write_bytes(content)
    page, failed = made(cohort, tmp_path / "report.html", references=False)
    assert failed == ["case"]
    assert f"{cohort.masks / 'case.json'}: expected the report of a case (JSON)" in page.articles[0]
    assert "Slices through the tumour" in page.articles[0]


@pytest.mark.fault(
    "inputs",
    "`report`: volumes as {order} in {suffix} files, masks in another order",
    "the page that files in LPS give",
)
@pytest.mark.parametrize(("order", "suffix"), [("RAS", ".nii.gz"), ("PIR", ".nrrd"), ("SAL", ".mha")])
def test_any_voxel_order_and_format_gives_the_same_page(tmp_path: Path, order: Any, suffix: str) -> None:
    straight, turned = Cohort(tmp_path / "straight"), Cohort(tmp_path / "turned")
    straight.add("case", tumour(), tumour(5, 9))
    write_volume(image().turned_to(order), turned.images / f"case{suffix}")
    write_volume(tumour().turned_to("LAI"), turned.masks / f"case{suffix}")
    write_volume(tumour(5, 9).turned_to("IPR"), turned.references / f"case{suffix}")
    # The viewer's volumes differ by the rounding of their origin; test_report_pictures.py compares them.
    volumes = re.compile(r'<script type="text/plain" class.*?</script>')
    pages = [volumes.sub("", made(each, tmp_path / "report.html")[0].source) for each in (straight, turned)]
    assert pages[0] == pages[1]


# --- Which files belong together.


def found(*paths: Path | None) -> list[tuple[str, str | None, str | None]]:
    images, masks, references = (*paths, None)[:3]
    assert images
    assert masks
    cases = find_cases(images, masks, references)
    return [(c.name, c.mask and c.mask.name, c.reference and c.reference.name) for c in cases]


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_files_are_matched_by_their_names_without_a_channel_number(tmp_path: Path) -> None:
    images = touched(tmp_path / "images", "b_0000.mha", "a_0000.nii.gz", "c.mha", "d.mha")
    masks = touched(tmp_path / "masks", "a_0000.nii.gz", "b.nrrd", "c.mha", "other.mha", "a_0000.json")
    references = touched(tmp_path / "references", "a.mha", "c.nii", ".hidden.mha")
    assert found(images, masks, references) == [
        ("a", "a_0000.nii.gz", "a.mha"),
        ("b", "b.nrrd", None),
        ("c", "c.mha", "c.nii"),
        ("d", None, None),
    ]


def test_files_of_any_name_belong_together_and_a_file_chooses_a_case(tmp_path: Path) -> None:
    images = touched(tmp_path / "images", "a.mha", "b.mha")
    masks = touched(tmp_path / "masks", "a.mha", "b.mha", "mask.mha")
    references = touched(tmp_path / "references", "b.mha")
    assert found(images / "a.mha", masks / "mask.mha") == [("a", "mask.mha", None)]
    assert found(images / "a.mha", masks / "mask.mha", references / "b.mha") == [("a", "mask.mha", "b.mha")]
    assert found(images, masks / "b.mha") == [("b", "b.mha", None)]
    assert found(images, masks, references / "b.mha") == [("b", "b.mha", "b.mha")]


def test_the_outputs_of_containers_are_found_in_subfolders_with_their_reports(tmp_path: Path) -> None:
    for task, name in (("task1", "u1"), ("task2", "u2")):
        write_volume(image(), tmp_path / "input" / task / "images" / "abdominal-t1-mri" / f"{name}.mha")
        write_volume(tumour(), tmp_path / "output" / task / "images" / "pancreatic-tumor-segmentation" / f"{name}.mha")
        report = run_report(recipe=task, mask=f"images/pancreatic-tumor-segmentation/{name}.mha")
        (tmp_path / "output" / task / "results.json").write_text(json.dumps(report))
    (tmp_path / "output" / "loop").symlink_to(tmp_path / "output")
    assert found(tmp_path / "input", tmp_path / "output") == [("u1", "u1.mha", None), ("u2", "u2.mha", None)]
    masks = [case.mask for case in find_cases(tmp_path / "input", tmp_path / "output", None)]
    reports = [read_run_report(mask) for mask in masks if mask]
    assert [report and report.recipe for report in reports] == ["task1", "task2"]
    # The report of another case, which the folder had before or has had since, is not this one's.
    assert masks[0]
    other = masks[0].rename(masks[0].with_name("other.mha"))
    assert read_run_report(other) is None


@pytest.mark.fault("inputs", "`report`: {what}", "an error that names the file or folder, and no page")
@pytest.mark.parametrize(
    ("what", "images", "masks", "where"),
    [
        ("the folder of volumes is empty", [], ["a.mha"], "images"),
        ("the folder of masks is empty", ["a.mha"], [], "masks"),
        ("all masks are those of other cases", ["a.mha", "b.mha"], ["c.mha"], "masks"),
        ("two masks belong to one case", ["a.mha"], ["a.mha", "a_0000.nii.gz"], "masks"),
    ],
)
def test_refuses_folders_without_cases(
    tmp_path: Path, what: str, images: list[str], masks: list[str], where: str
) -> None:
    for kind, names in (("images", images), ("masks", masks)):
        (tmp_path / kind).mkdir()
        touched(tmp_path / kind, *names)
    with pytest.raises(InputError) as error:
        write_report(tmp_path / "images", tmp_path / "masks", None, tmp_path / "report.html")
    one_line_about(tmp_path / where, error.value)
    assert not (tmp_path / "report.html").exists()


# --- The command, and the size of the file.


def test_the_command_draws_the_picture_of_a_single_case(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path)
    cohort.add("a", tumour(), tumour())
    assert command(cohort.images, cohort.masks, tmp_path / "a.png", "--references", cohort.references).exit_code == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    cohort.add("b", tumour())
    refused = command(cohort.images, cohort.masks, tmp_path / "b.png")
    assert refused.exit_code == 1
    assert "expected a single case for a picture, found 2 cases; write to an .html file" in refused.output
    assert not (tmp_path / "b.png").exists()


def test_the_command_names_a_bad_output(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path)
    cohort.add("a", tumour())
    refused = command(cohort.images, cohort.masks, tmp_path / "a.pdf")
    assert refused.exit_code == 2
    assert "expected a name that ends with .html or .png, found a.pdf" in refused.output
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/report\.html: failed to write"):
        write_report(cohort.images, cohort.masks, None, tmp_path / "file" / "report.html")


def test_the_file_keeps_to_its_size_by_smaller_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = Cohort(tmp_path)
    assert (case_room(1), case_room(1000)) == (1.5e6, 0.1e6)
    grid = Grid((12, 90, 90), (3.0, 1.0, 1.0))
    for name in "ab":
        write_volume(image(grid=grid), cohort.images / f"{name}.mha")
        array = np.zeros(grid.shape, np.uint8)
        array[2:10, 30:60, 30:60] = 1
        write_volume(Volume(array, grid), cohort.masks / f"{name}.mha")
    sizes = []
    for megabytes in (100.0, 0.1):
        monkeypatch.setattr(write, "FILE_MB", megabytes)
        page = made(cohort, tmp_path / "report.html", references=False)[0]
        parts = len(page.source.split("<article", 1)[1].rsplit("</article>", 1)[0])
        sizes.append(parts)
    # The text of two cases is no part of the limit.
    assert sizes[1] < 0.1e6 + 20_000 < sizes[0]
    assert "may take 0.05 MB of this file" in page.text
    assert "smaller and fewer to keep this file small" in page.text
    assert re.search("made coarser to keep this file small|left out to keep this file small", page.text)


def test_jinja2_is_asked_for_where_it_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(PantherSegError, match=r"expected the package jinja2.*pantherseg\[report\]"):
        write_report(tmp_path, tmp_path, None, tmp_path / "report.html")


def test_a_histogram_counts_every_value() -> None:
    dice = histogram("Dice", "", [0.0, 0.05, 0.3, 1.0], DICE_EDGES)
    assert [bar.cases for bar in dice.bars] == [2, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    volumes = histogram("Volume", "ml", [0.0, 12.0, 3e6], VOLUME_EDGES)
    assert volumes.cases == 3
    assert (volumes.bars[0].low, volumes.bars[-1].high, volumes.median) == (0.0, 1e4, 12.0)
    assert all(bar.low < bar.high for bar in volumes.bars)


def test_five_cases_have_distributions(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path)
    for number in range(5):
        cohort.add(f"case{number}", tumour(4, 5 + number), tumour(), run_report(confidence=confidence(0.7, None)))
    page = made(cohort, tmp_path / "report.html")[0]
    labels = [a["aria-label"] or "" for tag, a in page.tags if tag == "svg"]
    assert [text.split(" of 5 ")[0] for text in labels[:3]] == ["Predicted volume", "Dice", "Agreement of the folds"]
    assert "0.7 to 0.8: 5" in labels[2]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_cases(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path)
    cohort.add("case", tumour(), tumour())
    for kind in (cohort.images, cohort.masks, cohort.references):
        for number in range(300):
            (kind / f"case{number:03d}.mha").symlink_to(kind / "case.mha")
    code = """
import resource, sys
from pathlib import Path
from pantherseg.report.write import write_report
folder = Path(sys.argv[1])
peaks = []
for masks in ("masks/case.mha", "masks"):
    references = folder / masks.replace("masks", "references")
    write_report(folder / masks.replace("masks", "images"), folder / masks, references, folder / "report.html")
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
print(*peaks)
"""
    done = run_python("-c", code, tmp_path)
    assert done.returncode == 0, done.stderr
    one, many = map(int, done.stdout.split())
    page_mb = (tmp_path / "report.html").stat().st_size / 1e6
    assert page_mb > 10
    assert many - one < page_mb / 3


# --- NiiVue.


def test_the_viewer_is_named_in_the_list_of_components() -> None:
    components = json.loads(run_python("-m", "pantherseg", "sbom").stdout)["components"]
    (niivue,) = [component for component in components if component["name"] == "@niivue/niivue"]
    licences = (ROOT / "common/pantherseg/report/page/niivue/LICENSES.txt").read_text()
    assert licences.startswith(f"NiiVue {niivue['version']} ")
    assert niivue["purl"] == f"pkg:npm/%40niivue/niivue@{niivue['version']}"
