"""Training files: what they say, what is wrong with them, and the steps and fingerprints that follow from them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from pantherseg.errors import RecipeError
from pantherseg.paths import ROOT
from pantherseg.training.graph import Assumed, TrainingFile, load_training_file
from pantherseg.training.steps import Steps, choose, steps_of

# A network that needs little room on the disk, where what is tested is something else.
PLAN = "plan = { network = 'ResidualEncoderUNet', memory_gb = 0.1, base_features = 8, max_features = 32 }"
NOISY_STUDENT = f"""
schema = 2
name = "tiny"
[data.t1]
layout = "panther"
dataset_id = 1
[data.more]
layout = "panther-unlabelled"
dataset_id = 2
[stage.teacher]
data = ["t1"]
dataset_id = 3
folds = 2
{PLAN}
schedule = {{ epochs = 3 }}
[pseudo.round1]
data = "more"
by = "teacher"
dataset_id = 4
[stage.student]
data = ["t1", "round1"]
dataset_id = 5
start = "teacher"
folds = 2
plan = {{}}
schedule = {{ epochs = 2 }}
"""


def load(folder: Path, text: str = NOISY_STUDENT) -> TrainingFile:
    path = folder / "training.toml"
    path.write_text(text)
    return load_training_file(path)


@pytest.fixture
def graph(tmp_path: Path) -> TrainingFile:
    return load(tmp_path)


FILES = sorted(ROOT.glob("Task*/training/*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parts[-3]} {path.stem}")
def test_training_files_of_both_tasks_load(path: Path) -> None:
    assert len(FILES) == 15
    graph = load_training_file(path)
    role = {"localizer_demo": "localizer"}.get(path.stem, path.parts[-3].lower())
    assert list(graph.stage)[-1] == role, "the last stage is the model that the task's recipe uses"


def test_the_published_schedules_are_in_the_files() -> None:
    a, c = (load_training_file(ROOT / "Task2" / "training" / f"system_{name}.toml").stage for name in "ac")
    assert [(stage.schedule.learning_rate, stage.schedule.warm_up) for stage in a.values()] == [(1e-3, 50)] * 3
    assert {stage.plan.patch_size for stage in a.values()} == {(192, 192, 192)}
    assert [stage.start for stage in a.values()] == ["weights/multitalent-v2", "ct", "task1"]
    assert [(stage.schedule.epochs, stage.schedule.learning_rate) for stage in c.values()] == [
        (1000, 1e-2),
        (800, 5e-3),
        (1600, 3e-3),
        (500, 1e-3),
    ]
    assert [stage.crop for stage in a.values()] == [None] * 3, "system A looks at whole volumes"
    assert (c["task2"].folds, c["task2"].labels, c["teacher"].plan.network) == (3, "tumour", "ResEncM")


def test_every_step_comes_after_those_that_it_needs(graph: TrainingFile) -> None:
    steps = steps_of(graph).by_name
    names = list(steps)
    assert all(names.index(need) < names.index(name) for name, step in steps.items() for need in step.needs)
    assert {name for name in names if name.endswith("student") or "student." in name} == {
        *("data.student", "plan.student", "fold.student.0", "fold.student.1"),
        *("validate.student.0", "validate.student.1", "bundle.student"),
    }
    assert steps["plan.student"].needs == ("data.student", "plan.teacher")
    assert steps["fold.student.1"].needs == ("plan.student", "fold.teacher.1")
    assert steps["data.student"].needs == ("import.t1", "pseudo.round1")
    assert steps["pseudo.round1"].needs == ("import.more", "bundle.teacher")


def test_chooses_a_stage_a_fold_or_a_step_with_what_it_needs(graph: TrainingFile) -> None:
    steps = steps_of(graph)
    assert choose(steps) == list(steps.by_name)
    teacher = choose(steps, stage="teacher")
    assert teacher[-1] == "bundle.teacher"
    assert not [name for name in teacher if "student" in name or "more" in name]
    one = choose(steps, stage="teacher", fold=1)
    assert one == ["import.t1", "data.teacher", "plan.teacher", "fold.teacher.1", "validate.teacher.1"]
    assert choose(steps, step="import.more") == ["import.more"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "other"}, "--stage: expected one of student, teacher, found other"),
        ({"stage": "teacher", "fold": 2}, "--fold: expected one of 0, 1 of stage teacher, found 2"),
        ({"step": "plan.other"}, "--step: expected one of import.t1, "),
    ],
)
@pytest.mark.fault("training", "a stage, fold or step is chosen that there is not", "an error that lists them")
def test_refuses_a_step_that_there_is_not(graph: TrainingFile, options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        choose(steps_of(graph), **options)  # type: ignore[arg-type]


def changed(graph: TrainingFile, before: Steps, outside: dict[str, str] | None = None) -> set[str]:
    """Return the steps whose fingerprints differ from those of other steps without anything from outside."""
    found = steps_of(graph).fingerprints(outside or {})
    known = before.fingerprints({})
    return {name for name in found if found[name] != known[name]}


def test_a_change_concerns_only_what_depends_on_it(graph: TrainingFile) -> None:
    steps = steps_of(graph)
    stage = graph.stage["student"]
    longer = msgspec.structs.replace(stage, schedule=msgspec.structs.replace(stage.schedule, epochs=9))
    assert changed(msgspec.structs.replace(graph, stage=graph.stage | {"student": longer}), steps) == {
        *("fold.student.0", "fold.student.1", "validate.student.0", "validate.student.1", "bundle.student")
    }
    assert changed(graph, steps, {"data/more": "other"}) == {
        *("import.more", "pseudo.round1", "data.student", "plan.student", "fold.student.0", "fold.student.1"),
        *("validate.student.0", "validate.student.1", "bundle.student"),
    }
    assert len(changed(graph, steps, {"data/t1": "other"})) == len(steps.by_name) - 1, "all but import.more"


def test_a_stage_that_starts_from_another_is_planned_again_only_with_its_plan(graph: TrainingFile) -> None:
    stage = graph.stage["teacher"]
    longer = msgspec.structs.replace(stage, schedule=msgspec.structs.replace(stage.schedule, epochs=9))
    different = changed(msgspec.structs.replace(graph, stage=graph.stage | {"teacher": longer}), steps_of(graph))
    assert {"fold.teacher.0", "fold.student.0"} <= different
    assert "plan.teacher" not in different
    steps = steps_of(graph)
    assert steps.by_name["plan.student"].records == ("plan.teacher",)


def test_data_are_read_before_any_network_is_trained(graph: TrainingFile) -> None:
    names = list(steps_of(graph).by_name)
    assert names[:4] == ["import.t1", "import.more", "data.teacher", "plan.teacher"]
    assert names.index("data.student") > names.index("pseudo.round1")


def test_crops_depend_on_the_localizer_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = NOISY_STUDENT.replace('start = "teacher"', 'start = "teacher"\ncrop = { task = 2 }')
    graph = load(tmp_path, text)
    steps = steps_of(graph)
    assert steps.by_name["data.student"].settings["crop"]["localizer"]["margin_mm"] == 30
    assert steps.by_name["data.student"].outside == ("splits/student", "localizer/2")
    recipe = (ROOT / "Task2" / "recipe.toml").read_text().replace("margin_mm = 30.0", "margin_mm = 20.0")
    (tmp_path / "recipe.toml").write_text(recipe)
    monkeypatch.setattr("pantherseg.training.steps.task_recipe", lambda task: tmp_path / "recipe.toml")
    assert "data.student" in changed(graph, steps)


@pytest.mark.fault("training", "a stage crops by a recipe without a localizer", "an error that names the recipe")
def test_refuses_to_crop_by_a_recipe_without_a_localizer(tmp_path: Path) -> None:
    text = NOISY_STUDENT.replace('start = "teacher"', 'start = "teacher"\ncrop = { task = 1 }')
    with pytest.raises(RecipeError, match=r"recipe.toml: expected a localizer to crop the cases by, found none"):
        steps_of(load(tmp_path, text))


def test_what_is_only_assumed_changes_no_step(graph: TrainingFile) -> None:
    assumed = Assumed(cases=3, shape=(5, 5, 5), spacing=(1.0, 1.0, 1.0))
    data = graph.data | {"t1": msgspec.structs.replace(graph.data["t1"], assumed=assumed)}
    assert changed(msgspec.structs.replace(graph, data=data), steps_of(graph)) == set()


def test_a_file_takes_over_the_tables_of_another_one(tmp_path: Path, graph: TrainingFile) -> None:
    more = """
schema = 2
name = "both"
extends = "training.toml"
[stage.task2]
data = ["t1"]
dataset_id = 6
start = "student"
folds = 2
plan = {}
schedule = { epochs = 1 }
"""
    path = tmp_path / "more.toml"
    path.write_text(more)
    extended = load_training_file(path)
    assert list(extended.stage) == ["teacher", "student", "task2"]
    own, theirs = (steps_of(each).fingerprints({}) for each in (graph, extended))
    assert own.items() <= theirs.items(), "what was finished for the first file is finished for the second"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'data = ["t1"]',
            'data = ["t9"]',
            r"stage.teacher.data names 't9', which is not among the data sets: t1, more",
        ),
        (
            'start = "teacher"',
            'start = "tutor"',
            r"stage.student.start names 'tutor', which is neither weights/NAME nor",
        ),
        ('"panther-unlabelled"', '"none"', r"data.more.layout names 'none', which is not among the layouts: panther, "),
        ('by = "teacher"', 'by = "tutor"', r"pseudo.round1.by names 'tutor', which is not among the stages"),
        ('data = "more"', 'data = "less"', r"pseudo.round1.data names 'less', which is not among the data sets"),
        ('by = "teacher"', 'by = "student"', r"expected stages that do not depend on themselves, found .*student"),
        ("dataset_id = 5", "dataset_id = 1", r"data.t1 and stage.student have the same dataset_id 1"),
        ("[stage.student]", "[stage.more]", r"data.more and stage.more have the same name"),
        ('data = ["t1", "round1"]', 'data = ["round1"]', r"stage.student has no data set with labels by experts"),
        ('data = ["t1", "round1"]', 'data = ["t1", "more"]', r"stage.student.data names 'more', which has no labels"),
        (
            "plan = {}",
            'plan = {network = "ResEncL"}',
            r"stage.student needs either plan.network or start, and not both",
        ),
        ('start = "teacher"', "seed = 0", r"stage.student needs either plan.network or start"),
        ("plan = {}", 'trainer = "x"\nplan = {}', r"stage.student.trainer names 'x', which is not among the trainers"),
        ('start = "teacher"', 'labels = "organs"', r"stage.student learns organs, but 't1' has tumour\+pancreas"),
        ("epochs = 3", "epochs = 0", r"Expected `int` >= 1 - at `\$.stage.teacher.schedule.epochs`"),
        (
            "epochs = 3",
            "epochs = 3, warmup = 1",
            r"unknown key 'warmup' in `\$.stage.teacher.schedule`.* mean 'warm_up'\?",
        ),
        ("[stage.student]", "[stage.Student]", r"invalid content"),
        (
            "folds = 2\nplan = {}",
            "folds = 3\nplan = {}",
            r"stage.student has 3 folds, but 'teacher' has 2 to start from",
        ),
        (
            "folds = 2\nplan = {}",
            "folds = 2\ntrained_folds = 3\nplan = {}",
            r"stage.student.trained_folds is 3, but there are only 2 folds",
        ),
    ],
    ids=[
        *("a data set that there is not", "a start that there is not", "a layout that there is not"),
        "labels by a stage that there is not",
        *("labels for a data set that there is not", "a stage that depends on itself", "a number that is used twice"),
        *("a name that is used twice", "a stage without labels by experts", "a stage with a data set without labels"),
        *("a network and a start", "neither a network nor a start", "a trainer that there is not"),
        *("labels that the data do not have", "a value out of range", "an unknown key", "a name with a capital letter"),
        *("more folds than the start has", "more folds to train than there are"),
    ],
)
@pytest.mark.fault("training", "a training file: {id}", "an error that names the file and the key")
def test_refuses_a_file_that_cannot_be_run(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = NOISY_STUDENT.replace(old, new)
    assert text != NOISY_STUDENT
    with pytest.raises(RecipeError, match=message) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "training.toml"))


@pytest.mark.fault("training", "a file extends itself, or both define a stage", "an error that names the file")
def test_refuses_files_that_extend_each_other_in_a_circle_or_define_the_same(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="this file extends itself"):
        load(tmp_path, NOISY_STUDENT.replace("[data.t1]", 'extends = "training.toml"\n[data.t1]', 1))
    load(tmp_path)
    (tmp_path / "again.toml").write_text('extends = "training.toml"\n' + NOISY_STUDENT)
    with pytest.raises(RecipeError, match=r"\[data.more\] is also defined in training.toml"):
        load_training_file(tmp_path / "again.toml")
