"""The study on phantoms: its design, its differences and the tables of its page."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bench.study.analysis import BEGIN, END, PAGE, differences, insert, tables
from bench.study.design import DOMAINS, SIZES, first_seed, key_of, training_file
from bench.study.questions import QUESTIONS, Contrast, measured

from pantherseg.evaluation.metrics import METRICS
from pantherseg.selection.nested import MEAN_RANK
from pantherseg.training.graph import problems
from pantherseg.training.steps import choose, steps_of

NAMES = (*METRICS, MEAN_RANK)


def repetitions(a: list[float], b: list[float]) -> list[dict[str, Any]]:
    """Return repetitions whose arms have the same value in every metric."""
    return [
        {
            "arms": {
                name: dict.fromkeys((*NAMES, "masks", "empty masks"), value)
                for name, value in zip("ab", pair, strict=True)
            }
        }
        for pair in zip(a, b, strict=True)
    ]


@pytest.mark.parametrize(
    ("gains", "shown"), [([0.1, 0.12, 0.09, 0.11, 0.1], 1), ([0.1, -0.1, 0.2, -0.2, 0.01], 0), ([0.0] * 5, 0)]
)
def test_a_difference_is_shown_if_both_intervals_are_on_one_side(gains: list[float], shown: int) -> None:
    base = [0.5, 0.4, 0.6, 0.5, 0.45]
    found = repetitions(base, [value + gain for value, gain in zip(base, gains, strict=True)])
    higher = differences(found, Contrast("b", "a"), "dice")
    assert higher["shown"] == shown
    assert higher["better"] == sum(gain > 0 for gain in gains)
    # Of distances and ranks, lower ones are better.
    for metric in ("hd95_mm", MEAN_RANK):
        assert differences(found, Contrast("b", "a"), metric)["shown"] == -shown
    assert differences(found, Contrast("a", "b"), "dice")["mean"] == pytest.approx(-higher["mean"])


def test_a_wide_t_interval_is_not_hidden_by_a_narrow_bootstrap() -> None:
    found = differences(repetitions([0.0] * 5, [0.01, 0.01, 0.02, 0.9, 0.01]), Contrast("b", "a"), "dice")
    assert found["bootstrap"][0] > 0 > found["t"][0]
    assert found["shown"] == 0


def test_one_repetition_shows_nothing() -> None:
    assert differences(repetitions([0.1], [0.9]), Contrast("b", "a"), "dice")["shown"] == 0


def test_no_phantom_is_in_two_domains_or_repetitions() -> None:
    for size in SIZES.values():
        seeds = [
            range(first := first_seed(name, number), first + getattr(size, domain.cases))
            for number, (name, domain) in itertools.product(range(20), DOMAINS.items())
        ]
        assert len(set().union(*seeds)) == sum(map(len, seeds))


def test_a_changed_design_or_another_repetition_has_another_folder() -> None:
    size = SIZES["cpu"]
    changed = msgspec.structs.replace(size, epochs=size.epochs + 1)
    assert len({key_of(size, 0), key_of(size, 1), key_of(changed, 0)}) == 3


@pytest.mark.parametrize("size", SIZES.values(), ids=list(SIZES))
def test_the_stages_give_every_network_that_a_question_needs(size: Any) -> None:
    graph = training_file(size, 0)
    assert list(problems(graph)) == []
    steps = steps_of(graph)
    for question in QUESTIONS.values():
        for one in question.needs:
            assert choose(steps, stage=one if isinstance(one, str) else one.stage)


def test_what_is_compared_has_as_many_batches() -> None:
    stages = training_file(SIZES["cpu"], 0).stage
    chain = sum(stages[name].schedule.epochs for name in ("from_ct", "ct_t1", "ct_t1_t2"))
    assert stages["scratch_t2_long"].schedule.epochs == chain
    assert stages["scratch_t2"].schedule.epochs == stages["ct_t1_t2"].schedule.epochs
    for number in "12":
        assert stages[f"student{number}"].schedule == stages[f"continued{number}"].schedule


@pytest.mark.parametrize("question", QUESTIONS)
def test_tables_go_to_their_place_on_the_page(question: str, tmp_path: Path) -> None:
    page, contrasts = tmp_path / "page.md", QUESTIONS[question].contrasts
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    arms = {arm: dict.fromkeys((*NAMES, "masks", "empty masks"), 0.5) for one in contrasts for arm in (one.a, one.b)}
    result = {"size": "cpu", "device": "cpu", "machine": {"cpu": "a CPU"}}
    text = tables(question, result | {"repetitions": [{"minutes": 1.0, "arms": arms}] * 5})
    for _ in range(2):  # again, in place of the first
        insert(question, text, page)
        found = page.read_text(encoding="utf-8")
        assert found.count(text) == 1
        between = found.partition(BEGIN.format(question))[2].partition(END.format(question))[0]
        assert between.strip() == text
    for other in QUESTIONS.keys() - {question}:
        assert found.count(BEGIN.format(other)) == found.count(END.format(other)) == 1


def test_a_page_without_a_place_for_the_tables_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Another page\n")
    with pytest.raises(ValueError, match="tables of mixed"):
        insert("mixed", "text", page)
    assert page.read_text() == "# Another page\n"


@pytest.mark.full
def test_every_question_runs_at_the_smallest_size_and_goes_on(tmp_path: Path) -> None:
    for name, question in QUESTIONS.items():
        found = measured(name, tmp_path, "smoke", 0, "cpu")
        assert {arm for one in question.contrasts for arm in (one.a, one.b)} <= found["arms"].keys()
        for contrast in question.contrasts:
            for metric in (*contrast.metrics, *contrast.also):
                assert differences([found], contrast, metric)["shown"] == 0
        kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("checkpoint_final.pth")}
        assert measured(name, tmp_path, "smoke", 0, "cpu") == found
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("checkpoint_final.pth")} == kept
