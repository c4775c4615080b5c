"""Choosing an ensemble: the best one is known beforehand, and what is chosen never sees the cases that judge it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pantherseg.errors import InputError
from pantherseg.evaluation.leaderboard import Team, standings
from pantherseg.evaluation.metrics import METRICS, Totals, score_case
from pantherseg.evaluation.metrics import totals as evaluation_totals
from pantherseg.postprocess import Components, Rescue
from pantherseg.selection import search
from pantherseg.selection.candidates import FUSIONS, Candidate, FusionName, Rule, mean_of, tumour_in
from pantherseg.selection.cases import Case, Scorer
from pantherseg.selection.nested import MEAN_RANK, nested, outer_folds
from pantherseg.selection.search import (
    DICE_ALONE,
    PROCEDURES,
    Selection,
    best_single,
    greedy,
    mean_ranks,
    select,
    totals,
)
from pantherseg.volume import Grid, Volume
from selections import GRID, MEMBERS, SHAPE, Makes, beside, name_of, probabilities, scorer_of, spot, tumour

CASES = 8


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    """Four members: the first two complement each other, the third is worse, the last is bad."""
    return scorer_of(tmp_path_factory.mktemp("members"), MEMBERS, CASES)


def counts_of(scorer: Scorer, members: dict[str, Makes], *names: str) -> tuple[int, ...]:
    return tuple(names.count(name) for name in members)


def test_the_complementary_pair_is_found(scorer: Scorer) -> None:
    chosen = select(scorer)
    assert chosen.candidate == Candidate((1, 1, 0, 0)), "perfect at one half, so no post-processing is chosen"
    assert chosen.path[0] == Candidate((1, 0, 0, 0)), "the best member alone"
    assert totals(scorer.scores([chosen.candidate]))[0].tolist() == [1, 1, 0, 0, 0]


def test_members_are_chosen_under_the_post_processing_that_will_be_used(tmp_path: Path) -> None:
    # The best member alone sees a spot, which is dropped. What touches the tumour stays, and only another member helps.
    spotted = {
        "a": lambda case: probabilities(tumour(case), beside(case, 1) | spot(5, 12, 14, size=1)),
        "b": lambda case: probabilities(tumour(case), beside(case, -1) | spot(5, 12, 14)),
    }
    chosen = select(scorer_of(tmp_path, spotted, 4))
    assert all(candidate.rule.components is not None for candidate in chosen.path)
    assert chosen.candidate.counts == (1, 1)


def test_a_larger_ensemble_ends_the_search_where_it_does_not_help(scorer: Scorer) -> None:
    path, best = greedy(scorer, Rule())
    assert best == 1
    assert len(path) == best + 1 + search.PATIENCE


def test_a_bad_member_is_never_chosen(scorer: Scorer) -> None:
    result = nested(scorer, folds=4, seed=0)
    for name in ("select", "best single member", "best by Dice alone"):
        assert [candidate.counts[3] for candidate in result.chosen[name]] == [0, 0, 0, 0]
    assert result.chosen["select"] == (Candidate((1, 1, 0, 0)),) * 4


def test_post_processing_is_chosen_where_it_helps(tmp_path: Path) -> None:
    # Alone, the member cannot be helped by others, but by dropping what is small.
    alone = scorer_of(tmp_path, {"a": lambda case: probabilities(tumour(case) | spot(5, 12, 14))}, 4)
    chosen = select(alone).candidate
    assert chosen.rule == Rule(components=Components(max_count=1))
    assert totals(alone.scores([chosen]))[0].tolist() == [1, 1, 0, 0, 0]


def test_a_threshold_is_chosen_where_it_helps(tmp_path: Path) -> None:
    unsure = {"a": lambda case: np.float32(0.42) * tumour(case) + np.float32(0.37) * spot(5, 12, 14)}
    chosen = select(scorer_of(tmp_path, unsure, 4)).candidate
    assert chosen.rule == Rule("mean_probability", 0.4)


def test_of_equal_members_the_first_is_chosen_alone(tmp_path: Path) -> None:
    twins = scorer_of(tmp_path, {"first": MEMBERS["a"], "second": MEMBERS["a"]}, 4)
    path, best = greedy(twins, Rule())
    assert (path[best], best) == (Candidate((1, 0)), 0)


def rotating(number: int) -> Makes:
    """Return one of five members: three just see the tumour of a case, and the other two are sure of something else."""
    return lambda case: (
        probabilities(np.zeros(SHAPE, bool), tumour(case)) * np.float32(0.65)
        if (case + number) % 5 < 3
        else probabilities(spot(5, 12, 14))
    )


def test_a_vote_is_chosen_where_no_mean_can_help(tmp_path: Path) -> None:
    scorer = scorer_of(tmp_path, {str(number): rotating(number) for number in range(5)}, 5)
    both = [Candidate((1,) * 5, Rule(fusion)) for fusion in FUSIONS]
    chosen = search.with_post_processing(both, scorer)
    assert chosen == Candidate((1,) * 5, Rule("vote"))
    assert totals(scorer.scores([chosen]))[0].tolist() == [1, 1, 0, 0, 0]


@st.composite
def ensembles(draw: st.DrawFn) -> Scorer:
    """Draw a few cases with the random probabilities of a few members."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    members, shape, cases = draw(st.integers(1, 4)), (3, 5, 5), []
    for number in range(draw(st.integers(1, 3))):
        mask = rng.random(shape) < 0.3
        mask[1, 2, 2] = True
        reference = Volume(np.pad(mask, 1).astype(np.uint8), Grid((5, 7, 7), (2.0, 1.0, 1.0)))
        values = np.rint(255 * np.clip(mask.ravel() * 0.4 + rng.normal(0.3, 0.25, (members, mask.size)), 0, 1))
        voxels = np.flatnonzero(np.pad(np.ones(shape, bool), 1)).astype(np.int32)
        empty = score_case(None, reference).official
        cases.append(Case(str(number), reference, voxels, values.astype(np.uint8), empty))
    return Scorer(tuple(cases))


@settings(max_examples=5, deadline=None)
@given(scorer=ensembles(), fusion=st.sampled_from(["mean_probability", "vote"]))
def test_the_chosen_ensemble_is_never_worse_than_a_smaller_one(scorer: Scorer, fusion: FusionName) -> None:
    rule = Rule(fusion)
    path, best = greedy(scorer, rule)
    ranks = mean_ranks(totals(scorer.scores(path)))
    assert ranks[best] == ranks.min()
    assert (ranks[:best] > ranks[best]).all()
    by_dice, best = greedy(scorer, rule, DICE_ALONE)
    dice = totals(scorer.scores(by_dice))[:, 0]
    assert dice[best] == dice.max()
    singles = totals(scorer.scores(search.single_members(scorer, rule)))[:, 0]
    assert dice[best] >= singles.max() == dice[0]


@given(st.lists(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=5, max_size=5), min_size=1, max_size=7))
def test_candidates_are_ranked_as_the_challenge_ranks_teams(values: list[list[float]]) -> None:
    teams = [Team(str(number), Totals(*row)) for number, row in enumerate(values)]
    expected = {standing.team.name: standing.mean_position for standing in standings(teams)}
    assert mean_ranks(np.array(values)).tolist() == pytest.approx([expected[team.name] for team in teams])


def test_totals_are_those_of_the_evaluation(scorer: Scorer) -> None:
    candidates = [*search.single_members(scorer), Candidate((1, 1, 1, 1))]
    found = totals(scorer.scores(candidates))
    for candidate, row in zip(candidates, found, strict=True):
        expected = evaluation_totals([case.score(candidate) for case in scorer.cases])
        assert row.tolist() == pytest.approx(list(expected.as_dict().values()), rel=1e-12)


def test_scores_of_the_kept_box_are_those_of_the_whole_volume(scorer: Scorer) -> None:
    for number, case in enumerate(scorer.cases):
        assert np.prod(case.reference.grid.shape) <= np.prod(SHAPE)
        reference = Volume(tumour(number).astype(np.uint8), GRID)
        for name, makes in MEMBERS.items():
            candidate = Candidate(counts_of(scorer, MEMBERS, name))
            whole = Volume((makes(number) >= 0.5).astype(np.uint8), GRID)
            assert case.score(candidate) == score_case(whole, reference).official


def test_an_empty_mask_gets_the_scores_of_the_whole_volume(tmp_path: Path) -> None:
    empty = scorer_of(tmp_path, {"none": lambda case: np.zeros(SHAPE, np.float32)}, 2)
    found = empty.scores([Candidate((1,))])[0]
    expected = score_case(None, Volume(tumour(0).astype(np.uint8), GRID)).official
    assert found[0].tolist() == [0, 0, expected.hd95_mm, expected.masd_mm, expected.volume_error_mm3]


def test_an_empty_mask_is_rescued_as_the_recipe_would(tmp_path: Path) -> None:
    shy = scorer_of(tmp_path, {"shy": lambda case: np.float32(0.2) * tumour(case)}, 2)
    rescuing = Scorer(shy.cases, (Rescue(),))
    assert totals(rescuing.scores([Candidate((1,))]))[0].tolist() == [1, 1, 0, 0, 0]
    nothing = scorer_of(tmp_path / "none", {"none": lambda case: np.zeros(SHAPE, np.float32)}, 1)
    assert Scorer(nothing.cases, (Rescue(),)).scores([Candidate((1,))])[0, 0, 0] == 0, "there is nothing to rescue"


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    counts=st.tuples(*[st.integers(0, 2)] * 4).filter(any),
    fusion=st.sampled_from(["mean_probability", "vote"]),
    level=st.sampled_from([0.1, *search.PROBABILITIES]),
    components=st.sampled_from(search.COMPONENTS),
)
def test_scores_by_the_likely_voxels_are_those_by_all(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    counts: tuple[int, ...],
    fusion: FusionName,
    level: float,
    components: Components | None,
) -> None:
    rng = np.random.default_rng(seed)
    strength = rng.uniform(0.2, 1, 4).astype(np.float32)
    noisy = {
        str(number): lambda case, share=share: share * (0.6 * tumour(case) + 0.4 * rng.random(SHAPE, np.float32))
        for number, share in enumerate(strength)
    }
    case = scorer_of(tmp_path_factory.mktemp("noisy"), noisy, 1).cases[0]
    assert case.likely is not None
    assert len(case.likely.voxels) <= len(case.voxels)
    candidate = Candidate(counts, Rule(fusion, level, components))
    assert case.score(candidate, [Rescue()]) == replace(case, likely=None).score(candidate, [Rescue()])


def test_only_voxels_with_a_probability_are_kept(scorer: Scorer, tmp_path: Path) -> None:
    small = scorer_of(tmp_path, {"a": MEMBERS["a"], "b": MEMBERS["b"]}, 1).cases[0]
    assert len(small.voxels) == np.count_nonzero(MEMBERS["a"](0) + MEMBERS["b"](0))
    assert small.values.dtype == np.uint8
    assert small.values.shape == (2, len(small.voxels))


def test_a_turned_reference_and_probability_are_compared_at_the_same_place(tmp_path: Path) -> None:
    from pantherseg.io import write_volume
    from pantherseg.io.probabilities import write_probability
    from pantherseg.selection.cases import read_case

    turned = Volume(tumour(0).astype(np.uint8), GRID).turned_to("RAS")
    write_volume(turned, tmp_path / "0.nii.gz")
    write_probability(Volume(MEMBERS["a"](0), GRID).turned_to("RAS"), tmp_path / "0.npz")
    case = read_case("0", tmp_path / "0.nii.gz", [tmp_path / "0.npz"])
    expected = score_case(
        Volume((MEMBERS["a"](0) >= 0.5).astype(np.uint8), GRID), Volume(tumour(0).astype(np.uint8), GRID)
    )
    assert case.score(Candidate((1,))) == expected.official


def test_the_outer_folds_divide_the_patients() -> None:
    patients = [str(number // 2) for number in range(22)]
    parts = outer_folds(patients, 4, seed=3)
    assert sorted(number for part in parts for number in part) == list(range(22))
    of_patients = [{patients[number] for number in part} for part in parts]
    assert sum(map(len, of_patients)) == 11, "both cases of a patient are in the same fold"
    assert max(map(len, of_patients)) - min(map(len, of_patients)) <= 1
    assert outer_folds(patients, 4, seed=3) == parts != outer_folds(patients, 4, seed=4)


@pytest.mark.fault("selection", "there are fewer patients than outer folds", "an error that says how many there are")
def test_refuses_fewer_patients_than_folds() -> None:
    with pytest.raises(InputError, match=r"at least one patient for each of 5 outer folds, found 2; .*--folds"):
        outer_folds(["a", "b", "a"], 5, seed=0)


def test_no_procedure_sees_the_cases_that_judge_it(scorer: Scorer) -> None:
    seen = []

    def spy(part: Scorer) -> Selection:
        seen.append({case.name for case in part.cases})
        return select(part)

    result = nested(scorer, folds=4, seed=1, procedures={"spy": spy})
    for names, part in zip(seen, result.folds, strict=True):
        assert names == {case.name for case in scorer.cases} - {scorer.cases[number].name for number in part}
    assert sorted(number for part in result.folds for number in part) == list(range(CASES))


def leaking(fold: tuple[int, ...]) -> Makes:
    """Return a member that knows the answers of one fold, and is a little worse than `a` elsewhere."""
    return lambda case: (
        probabilities(tumour(case)) if case in fold else probabilities(tumour(case), beside(case, 1) | spot(5, 12, 14))
    )


@pytest.mark.fault(
    "selection",
    "a member knows the answers of the cases of one outer fold",
    "it is not chosen where these cases are the judges",
)
def test_a_member_that_knows_the_answers_of_a_fold_is_of_no_use_there(tmp_path: Path) -> None:
    folds = outer_folds([name_of(case) for case in range(CASES)], 2, seed=0)
    members = {"a": MEMBERS["a"], **{f"leak{n}": leaking(fold) for n, fold in enumerate(folds)}}
    scorer = scorer_of(tmp_path, members, CASES)
    assert best_single(scorer).candidate != Candidate((1, 0, 0)), "with all cases the answers would win"
    result = nested(scorer, folds=2, seed=0, procedures={"best single member": best_single})
    assert result.folds == folds
    for number, chosen in enumerate(result.chosen["best single member"]):
        assert chosen.counts[1 + number] == 0, "the one that knows this fold's answers"


def test_intervals_hold_the_difference_and_are_the_same_for_a_seed(scorer: Scorer) -> None:
    result = nested(scorer, folds=4, seed=0)
    found = result.differences()
    assert set(found) == set(PROCEDURES) - {"select"}
    for intervals in found.values():
        assert tuple(intervals) == (*METRICS, MEAN_RANK)
        for one in intervals.values():
            assert one.interval[0] - 1e-9 <= one.value <= one.interval[1] + 1e-9
    against = found["best single member"]
    alone = result.totals["best single member"]
    assert against["dice"].value == pytest.approx(1 - alone[0])
    assert against["dice"].interval[0] > 0
    assert against["hd95_mm"].interval[1] < 0
    assert nested(scorer, folds=4, seed=0).differences() == found


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    counts=st.lists(st.integers(0, 4), min_size=3, max_size=3).filter(any),
    level=st.sampled_from(search.PROBABILITIES),
)
def test_counts_weigh_the_members(seed: int, counts: list[int], level: float) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (3, 200)).astype(np.uint8)
    repeated: NDArray[np.float64] = np.repeat(values / 255, counts, axis=0)
    candidate = Candidate(tuple(counts))
    mean = repeated.mean(axis=0)
    np.testing.assert_allclose(mean_of(values, candidate.counts), mean, atol=1e-6)
    clear = np.abs(mean - level) > 1e-9
    seen = tumour_in(values, candidate.counts, Rule("mean_probability", level))
    np.testing.assert_array_equal(seen[clear], (mean >= level)[clear])
    voted = tumour_in(values, candidate.counts, Rule("vote", level))
    np.testing.assert_array_equal(voted, 2 * (repeated >= level - 1e-9).sum(axis=0) > len(repeated))


def test_the_same_ensemble_has_one_form() -> None:
    assert Candidate((2, 4, 0)) == Candidate((1, 2, 0))
    assert Candidate((3, 0)).members == (0,)
    assert Candidate((1, 1), Rule(components=Components(max_count=1))) != Candidate((1, 1))
