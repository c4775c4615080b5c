"""Members of different label maps, networks and folders: what is fused, what is refused, and who may be missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import pantherseg
from conftest import flip_a_bit, valid_report
from pantherseg.cli import main
from pantherseg.ensemble import load_ensemble
from pantherseg.errors import ModelError, RecipeError
from pantherseg.events import EventCode
from pantherseg.fusion import Fusion, MeanLogits, MeanProbability, Staple, Vote
from pantherseg.grand_challenge.check_model import check_model
from pantherseg.io import write_volume
from pantherseg.labels import PANCREAS, TUMOUR
from pantherseg.models.bundle import Bundle
from pantherseg.models.label_maps import LabelMap, fused_labels
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.pipeline import Segmentation, segment
from pantherseg.postprocess import Near, Overlap
from pantherseg.recipe import Member, Recipe, load_recipe
from pantherseg.session import Session
from pantherseg.volume import Volume
from test_confidence import logits_of
from test_fusion import Member as Given

TASK1 = load_recipe(task_recipe(1))
# One fold each, with tiles that do not overlap, to save time.
ONE, OTHER, BINARY = (
    Member(model=model, folds=[fold], step=1.0, name=name)
    for name, model, fold in (("one", "task1", 0), ("other", "task1", 1), ("binary", "task2", 0))
)
FUSIONS = (MeanLogits(), MeanProbability(), Vote(), Staple())


def recipe_of(*members: Member, **changes: Any) -> Recipe:
    return msgspec.structs.replace(TASK1, members=list(members), **changes)


def load(recipe: Recipe, root: Path = DEMO_WEIGHTS) -> Any:
    return load_ensemble(recipe, root, device="cpu")


def segmented(recipe: Recipe, volume: Volume, root: Path = DEMO_WEIGHTS, **options: Any) -> Segmentation:
    return segment(volume, Session(recipe, root, device="cpu", **options))


def codes(segmentation: Segmentation) -> list[EventCode]:
    return [event.code for event in segmentation.events]


def test_members_without_a_name_have_that_of_their_model() -> None:
    a, b = Member(model="a"), Member(model="b")
    assert recipe_of(a, b, a, a).member_names == ("a", "b", "a-2", "a-3")
    assert recipe_of(a, msgspec.structs.replace(a, name="mine"), a).member_names == ("a", "mine", "a-2")


@pytest.mark.parametrize(
    ("names", "left"),
    [(["a"], ["a"]), (["a-2", "b"], ["b", "a-2"]), (["-a"], ["b", "a-2"]), (["-b", "-a"], ["a-2"])],
)
def test_members_are_chosen_by_name_and_keep_it(names: list[str], left: list[str]) -> None:
    recipe = recipe_of(Member(model="a"), Member(model="b", weight=2.0), Member(model="a", step=0.7), min_members=3)
    chosen = recipe.with_members(names)
    assert list(chosen.member_names) == left
    assert chosen.min_members == len(left)
    assert {member.name: member.model for member in chosen.members} == {name: name[0] for name in left}


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["tsak1"], "expected names among task1, task2, found tsak1; did you mean 'task1'?"),
        (["task1", "x"], "expected names among task1, task2, found x"),
        (["-task3"], "expected names among task1, task2, found task3; did you mean 'task2'?"),
        (
            ["-task1", "task2"],
            "expected names that all have a minus in front, or none of them, found -task1 beside others",
        ),
        (["-task1", "-task2"], "expected at least one member, found none"),
        ([], "expected at least one member, found none"),
    ],
)
def test_refuses_names_that_no_member_has(names: list[str], problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_of(Member(model="task1"), Member(model="task2")).with_members(names)
    assert str(caught.value) == f"members of the recipe task1: {problem}"


def relabelled(bundle: Bundle, labels: dict[str, int]) -> Bundle:
    """Return a bundle with another label map, as far as its manifest tells."""
    return Bundle(
        bundle.path, msgspec.structs.replace(bundle.manifest, labels=labels, classes=len(labels)), bundle.folds
    )


PANTHER = {"background": 0, "tumour": 1, "pancreas": 2}
DECATHLON = {"background": 0, "pancreas": 1, "cancer": 2}
TUMOUR_ONLY = {"background": 0, "tumour": 1}


def test_equal_label_maps_stay_as_they_are(demo: Bundle) -> None:
    recipe = recipe_of(Member(model="a"), Member(model="b"), tumour_label=2)
    found = fused_labels([relabelled(demo, DECATHLON)] * 2, recipe)
    assert found.common == LabelMap(3, tumour=2, pancreas=1)
    assert [one.order_as(found.common) for one in found.members] == [None, None]


def test_other_label_maps_are_put_into_the_order_of_panther(demo: Bundle) -> None:
    members = Member(model="a"), Member(model="b", tumour_label=2), Member(model="c", pancreas_label=7, tumour_label=3)
    labels = PANTHER, DECATHLON, {"background": 0} | {f"organ {k}": k for k in range(1, 9)}
    recipe = recipe_of(*members, fusion=MeanProbability())
    found = fused_labels([relabelled(demo, one) for one in labels], recipe)
    assert (found.common.tumour, found.common.pancreas) == (TUMOUR, PANCREAS)
    assert [one.order_as(found.common) for one in found.members] == [None, (0, 2, 1), (0, 3, 7, 1, 2, 4, 5, 6, 8)]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_classes_in_another_order_are_fused_by_what_they_mean(fusion: Fusion) -> None:
    first, second = logits_of(1), logits_of(2)
    swapped = replace(second, values=second.values[[0, 2, 1]], class_order=(0, 2, 1))
    expected, found = fusion.fuse([first, second]), fusion.fuse([first, swapped])
    for label in (TUMOUR, PANCREAS):
        assert expected.mask(label).any()
        np.testing.assert_array_equal(found.mask(label), expected.mask(label))
        np.testing.assert_array_equal(found.probability(label), expected.probability(label))


@settings(max_examples=15, deadline=None)
@given(
    fusion=st.sampled_from(FUSIONS),
    classes=st.lists(st.sampled_from([2, 3, 5]), min_size=1, max_size=4),
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_any_fusion_of_equal_members_is_the_member_and_their_order_does_not_matter(
    fusion: Any, classes: list[int], seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    if fusion.same_classes:
        classes = classes[:1] * len(classes)
    members = [Given(rng.normal(scale=2, size=(count, 3, 4, 5)).astype(np.float32)) for count in classes]
    mixed = data.draw(st.permutations(members))
    probability = fusion.fuse(members).probability(1)
    np.testing.assert_allclose(fusion.fuse(mixed).probability(1), probability, rtol=0, atol=1e-6)
    assert ((probability >= 0) & (probability <= 1 + 1e-6)).all()
    if len(classes) < 2 or isinstance(fusion, Vote | Staple):
        np.testing.assert_array_equal(fusion.fuse(mixed).mask(1), fusion.fuse(members).mask(1))
    alone = fusion.fuse(members[:1])
    same = fusion.fuse([members[0]] * len(classes))
    np.testing.assert_array_equal(same.mask(1), alone.mask(1))


@pytest.mark.fault(
    "models", "mean_logits is asked to fuse members of two and of three classes", "an error before computing"
)
def test_members_that_cannot_be_fused_are_refused_before_computing() -> None:
    with pytest.raises(ModelError, match=r"task2: expected 3 classes, as in .*task1, found 2; use another fusion"):
        load(recipe_of(ONE, BINARY))
    assert len(load(recipe_of(ONE, BINARY, fusion=MeanProbability())).members) == 2
    verdicts = {one.rule: one for one in check_model(DEMO_WEIGHTS, recipe_of(ONE, BINARY))}
    verdict = verdicts["members for mean_logits and the steps"]
    assert not verdict.kept
    assert "expected 3 classes" in verdict.found


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tumour_label": 3}, "expected tumour_label between 1 and 2, found 3"),
        ({"pancreas_label": 3}, "expected pancreas_label between 1 and 2, found 3"),
    ],
)
def test_a_label_that_the_members_model_lacks_is_refused(changes: dict[str, int], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        load(recipe_of(ONE, msgspec.structs.replace(OTHER, **changes)))


@pytest.mark.parametrize("step", [Near(max_mm=6.0), Overlap(min_share=0.15)])
@pytest.mark.fault("models", "a step looks at the pancreas, and no member has one", "an error before computing")
def test_a_step_that_needs_a_pancreas_is_refused_without_one(step: Any) -> None:
    recipe = recipe_of(ONE, BINARY, fusion=MeanProbability(), postprocess=(step,))
    assert load(recipe).labels == LabelMap(3, TUMOUR, PANCREAS)
    with pytest.raises(RecipeError, match=r"for the step '\w+' a member whose model .* found none among binary$"):
        Session(recipe, DEMO_WEIGHTS, device="cpu", members=["-one"]).load()


def test_a_recipe_made_in_python_is_checked_when_its_models_are_loaded() -> None:
    with pytest.raises(RecipeError, match="recipe task1: invalid content: the fusion mean_logits has no use for"):
        load(recipe_of(msgspec.structs.replace(ONE, threshold=0.3)))


@pytest.mark.slow
def test_the_pancreas_is_that_of_the_members_that_have_one(pancreas: Volume) -> None:
    near = {"postprocess": (Near(max_mm=30.0),), "fusion": MeanProbability()}
    mixed = segmented(recipe_of(ONE, BINARY, **near), pancreas)
    assert mixed.tumour_ml > 0.1
    assert EventCode.STEP_SKIPPED not in codes(mixed)
    assert [model.name for model in mixed.models] == ["one", "binary"]
    swapped = msgspec.structs.replace(ONE, tumour_label=2, pancreas_label=1)
    other = segmented(recipe_of(swapped, BINARY, **near), pancreas)
    assert [model.tumour_label for model in other.models] == [2, 1]
    assert (other.mask.array != mixed.mask.array).any()


@pytest.mark.slow
@pytest.mark.parametrize("fusion", FUSIONS)
def test_leaving_a_member_out_is_a_recipe_without_it(fusion: Any, pancreas: Volume) -> None:
    alone = segmented(recipe_of(ONE, fusion=fusion), pancreas)
    left = segmented(recipe_of(ONE, OTHER, fusion=fusion), pancreas, members=["-other"])
    np.testing.assert_array_equal(left.mask.array, alone.mask.array)
    assert left.confidence == alone.confidence
    assert codes(left) == [EventCode.MEMBER_LEFT_OUT, *codes(alone)]
    assert left.events[0].message == "the member 'other' was left out: the caller did not want it"


@pytest.mark.slow
def test_a_calibration_is_of_the_members_that_took_part(pancreas: Volume) -> None:
    base = TASK1.members[0]
    both = recipe_of(base, BINARY, fusion=MeanProbability())
    assert segmented(recipe_of(base), pancreas).confidence.expected_dice is not None
    assert segmented(both, pancreas).confidence.expected_dice is None
    assert segmented(both, pancreas, members=["task1"]).confidence.expected_dice is not None


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder of models in which `good` and `bad` are Task 1's demo model, and `absent` is missing."""
    for name in ("good", "bad"):
        shutil.copytree(DEMO_WEIGHTS / "task1", tmp_path / "models" / name)
    return tmp_path / "models"


GOOD, BAD, ABSENT = (Member(model=name, folds=[0], step=1.0) for name in ("good", "bad", "absent"))


def without_manifest(model: Path) -> None:
    (model / "manifest.json").unlink()


def without_fold(model: Path) -> None:
    (model / "fold_0.safetensors").unlink()


def with_another_fold(model: Path) -> None:
    flip_a_bit(model / "fold_0.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("damage", [without_manifest, without_fold, with_another_fold])
@pytest.mark.fault(
    "models", "one of two members is damaged, and one is enough for the recipe", "the other's mask, and an event"
)
def test_a_member_that_cannot_be_used_is_left_out(damage: Callable[[Path], None], root: Path, pancreas: Volume) -> None:
    damage(root / "bad")
    with pytest.raises(ModelError, match="bad"):
        segmented(recipe_of(GOOD, BAD), pancreas, root)
    found = segmented(recipe_of(GOOD, BAD, min_members=1), pancreas, root)
    assert codes(found)[0] == EventCode.MEMBER_LEFT_OUT
    assert found.events[0].message.startswith("the member 'bad' was left out: ")
    assert [model.name for model in found.models] == ["good"]
    alone = segmented(recipe_of(GOOD), pancreas, root)
    np.testing.assert_array_equal(found.mask.array, alone.mask.array)
    assert found.confidence == alone.confidence


@pytest.mark.fault("models", "more members are missing than the recipe allows", "an error that names the first")
def test_too_few_members_are_an_error(root: Path) -> None:
    recipe = recipe_of(ABSENT, GOOD, BAD, min_members=2)
    loaded = load(recipe, root)
    assert [member.name for member in loaded.members] == ["good", "bad"]
    assert [event.code for event in loaded.events] == [EventCode.MEMBER_LEFT_OUT]
    shutil.rmtree(root / "bad")
    with pytest.raises(ModelError, match="absent"):
        load(recipe, root)
    with pytest.raises(ModelError, match="absent"):
        load(recipe_of(GOOD, ABSENT), root)


def test_an_upload_must_have_every_member(root: Path) -> None:
    broken = [verdict for verdict in check_model(root, recipe_of(GOOD, ABSENT, min_members=1)) if not verdict.kept]
    assert len(broken) == 1
    assert "absent" in broken[0].found


@pytest.mark.slow
def test_predict_and_the_python_interface_take_members(pancreas: Volume, tmp_path: Path) -> None:
    source, recipe = tmp_path / "scan.mha", tmp_path / "recipe.toml"
    write_volume(pancreas, source)
    text = task_recipe(1).read_text().replace('model = "task1"', 'model = "task1"\nname = "a"')
    second = '\n[[members]]\nmodel = "task1"\nname = "b"\nfolds = [1]\nstep = 1.0\n'
    recipe.write_text(text + second)
    arguments = ["predict", str(source), str(tmp_path / "out"), "--recipe", str(recipe), "--device", "cpu"]
    result = CliRunner().invoke(main, [*arguments, "--members", "b"])
    assert result.exit_code == 0
    report = valid_report(tmp_path / "out" / "scan.json")
    assert [(model["name"], model["tumour_label"], model["folds"]) for model in report["models"]] == [("b", 1, ["1"])]
    assert [event["code"] for event in report["events"]] == ["member_left_out"]
    session = pantherseg.load(recipe=recipe, members=["-a"], device="cpu")
    assert pantherseg.segment(pancreas, session).report(input_name="", mask_path="").models[0].name == "b"
    wrong = CliRunner().invoke(main, [*arguments, "--members", "c"])
    assert wrong.exit_code == 1
    assert wrong.stderr.rstrip().endswith("expected names among a, b, found c")
    assert json.loads((tmp_path / "out" / "scan.json").read_text()) == report, "nothing is computed for a wrong name"
