"""The recipe of a selection: it is read as it was written, and its masks are those that the selection scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from pantherseg.case import CaseOutput, run_case
from pantherseg.fusion import MeanLogits, MeanProbability, Vote
from pantherseg.io import read_labels, write_volume
from pantherseg.io.probabilities import STEPS
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.postprocess import Components, Rescue, Step, Threshold
from pantherseg.recipe import Member, Recipe, load_recipe
from pantherseg.selection.candidates import FUSIONS, Candidate, Rule, tumour_in
from pantherseg.selection.cases import Case, read_case
from pantherseg.selection.recipe_file import kept_steps, recipe_of, recipe_text, write_recipe
from pantherseg.session import Session
from pantherseg.volume import Box, Volume
from test_fusion import Member as Logits

TASK1, TASK2 = load_recipe(task_recipe(1)), load_recipe(task_recipe(2))
# Probabilities are kept in steps of 1/255, so each is off by at most half a step, and so is any mean of them.
ROUNDING = 1 / (2 * STEPS) + 1e-6
# Of all voxels of the masks of a phantom by four recipes; none did when this was written.
MAX_DIFFERING = 1

members = st.builds(
    Member,
    model=st.sampled_from(["task1", "a b", 'quoted"', "é\\n"]),
    checkpoint=st.none() | st.just("checkpoint_best.pth"),
    folds=st.just("all") | st.lists(st.integers(0, 9), min_size=1, unique=True),
    step=st.floats(0.1, 1),
    mirroring=st.booleans(),
    orientation=st.none() | st.sampled_from(["LPS", "RAS"]),
    weight=st.floats(1e-5, 1e6),
)
steps = st.one_of(
    st.builds(Threshold, probability=st.floats(0.01, 1)),
    st.builds(Components, min_mm3=st.floats(0, 1e4), max_count=st.none() | st.integers(1, 5)),
    st.builds(Rescue, max_mm3=st.floats(1, 1e5)),
)


@settings(max_examples=50)
@given(
    members=st.lists(members, min_size=1, max_size=3),
    fusion=st.sampled_from([MeanLogits(), MeanProbability()]) | st.builds(Vote, probability=st.floats(0.1, 1)),
    postprocess=st.lists(steps, max_size=3),
    base=st.sampled_from([TASK1, TASK2]),
)
def test_a_recipe_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, members: list[Member], fusion: Any, postprocess: list[Step], base: Recipe
) -> None:
    recipe = msgspec.structs.replace(base, members=members, fusion=fusion, postprocess=tuple(postprocess))
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    write_recipe(recipe, path, ["a remark", "and another"])
    assert load_recipe(path) == recipe
    assert path.read_text().startswith("# a remark\n# and another\n")


def test_a_recipe_has_what_was_chosen_and_the_rest_of_the_base() -> None:
    candidate = Candidate((2, 0, 1), Rule("mean_probability", 0.45, Components(max_count=1)))
    base = msgspec.structs.replace(TASK2, postprocess=(Components(min_mm3=5), Rescue(max_mm3=9)))
    recipe = recipe_of(candidate, [Member(model=name) for name in "abc"], base, name="mine")
    assert recipe.members == [Member(model="a", weight=2.0), Member(model="c", weight=1.0)]
    assert recipe.fusion == MeanProbability()
    assert recipe.postprocess == (Threshold(probability=0.45), Components(max_count=1), Rescue(max_mm3=9))
    assert (recipe.name, recipe.localizer, recipe.sockets) == ("mine", TASK2.localizer, TASK2.sockets)
    assert recipe_text(recipe).count("[[members]]") == 2


def test_a_vote_needs_no_threshold_step() -> None:
    recipe = recipe_of(Candidate((1, 1), Rule("vote", 0.6)), [Member(model=name) for name in "ab"], TASK1, name="mine")
    assert (recipe.fusion, recipe.postprocess) == (Vote(probability=0.6), (Rescue(),))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    counts=st.lists(st.integers(0, 3), min_size=3, max_size=3).filter(any),
    fusion=st.sampled_from(FUSIONS),
    level=st.sampled_from([0.3, 0.45, 0.5, 0.7]),
)
def test_masks_differ_only_where_rounding_decides(seed: int, counts: list[int], fusion: Any, level: float) -> None:
    rng = np.random.default_rng(seed)
    logits = [rng.normal(scale=1.5, size=(classes, 4, 5, 6)).astype(np.float32) for classes in (3, 2, 3)]
    exact = np.stack([special.softmax(values.astype(np.float64), axis=0)[1] for values in logits])
    candidate = Candidate(tuple(counts), Rule(fusion, level))
    stored = np.rint(exact * STEPS).astype(np.uint8)
    simulated = tumour_in(stored.reshape(3, -1), candidate.counts, candidate.rule).reshape(4, 5, 6)
    recipe = recipe_of(candidate, [Member(model=name) for name in "abc"], TASK1, name="mine")
    used = [Logits(logits[number], recipe.members[place].weight) for place, number in enumerate(candidate.members)]
    fused = recipe.fusion.fuse(used)
    real = fused.mask(1) if fusion == "vote" else fused.probability(1) >= level
    if fusion == "vote":
        unclear = (np.abs(exact[list(candidate.members)] - level) <= ROUNDING).any(axis=0)
    else:
        unclear = np.abs(np.average(exact, axis=0, weights=counts) - level) <= ROUNDING
    assert not (simulated != real)[~unclear].any()


def whole(case: Case, mask: Any, reference: Volume) -> Any:
    """Return a mask of the box that a selection keeps of a case as one of the volume."""
    origin = np.subtract(case.reference.grid.origin, reference.grid.origin) / reference.grid.spacing[::-1]
    z, y, x = np.rint(origin[::-1]).astype(int)
    found = np.zeros(reference.grid.shape, bool)
    found[Box((z, y, x), (z + mask.shape[0], y + mask.shape[1], x + mask.shape[2])).slices] = mask
    return found


@pytest.mark.slow
def test_the_mask_of_the_recipe_is_the_one_that_was_scored(
    labelled_pancreas: tuple[Volume, Volume], tmp_path: Path
) -> None:
    image, labels = labelled_pancreas
    source, truth = tmp_path / "scan.mha", tmp_path / "truth.mha"
    write_volume(image, source)
    write_volume(labels, truth)
    members = [Member(model="task1", folds=[0]), Member(model="task1", folds=[1]), Member(model="task1", step=1.0)]
    files = []
    for number, member in enumerate(members):
        output = CaseOutput(tmp_path / "m" / "scan.mha", tmp_path / "m" / "s.json", tmp_path / "m" / f"{number}.npz")
        run_case(source, Session(msgspec.structs.replace(TASK1, members=[member]), DEMO_WEIGHTS, device="cpu"), output)
        files.append(cast(Path, output.probability))
    case = read_case("scan", truth, files)
    differing = 0
    for counts, rule in (
        ((1, 0, 0), Rule()),
        ((2, 1, 0), Rule("mean_probability", 0.45, Components(max_count=1))),
        ((1, 1, 1), Rule("vote", 0.4)),
        ((3, 1, 1), Rule("mean_probability", 0.7)),
    ):
        candidate = Candidate(counts, rule)
        recipe = recipe_of(candidate, members, TASK1, name="mine")
        path = tmp_path / "recipe.toml"
        write_recipe(recipe, path, [])
        output = CaseOutput(tmp_path / "r" / "scan.mha", tmp_path / "r" / "scan.json")
        segmentation = run_case(source, Session(load_recipe(path), DEMO_WEIGHTS, device="cpu"), output).segmentation
        real, simulated = (
            read_labels(output.mask).array == 1,
            whole(case, case.mask(candidate, kept_steps(TASK1)), labels),
        )
        assert segmentation.tumour_ml > 0.5
        differing += int((real != simulated).sum())
    assert differing <= MAX_DIFFERING
