"""Recipes: the shipped ones load, and a mistake in one is a line that names the file and the key."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from pantherseg.cli import main
from pantherseg.errors import RecipeError
from pantherseg.fusion import MeanLogits, Staple
from pantherseg.paths import task_recipe
from pantherseg.postprocess import Components, Rescue
from pantherseg.recipe import Member, load_recipe

MINIMAL = """
schema = 1
name = "mine"
[sockets]
input = "in"
output = "out"
[[members]]
model = "m"
"""


def write_recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def reason(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert len(text.splitlines()) == 1
    return text


def test_task_1_searches_the_whole_volume() -> None:
    recipe = load_recipe(task_recipe(1))
    assert (recipe.name, recipe.sockets.input) == ("task1", "abdominal-t1-mri")
    assert recipe.localizer is None
    assert [member.model for member in recipe.members] == ["task1"]


def test_task_2_searches_around_the_pancreas() -> None:
    recipe = load_recipe(task_recipe(2))
    assert (recipe.name, recipe.sockets.input) == ("task2", "abdominal-t2-mri")
    assert recipe.localizer is not None
    assert (recipe.localizer.model, recipe.localizer.label, recipe.localizer.margin_mm) == ("localizer", 7, 30.0)
    assert [member.model for member in recipe.members] == ["task2"]


@pytest.mark.parametrize("task", [1, 2])
def test_challenge_recipes_rescue_empty_masks_and_allow_bfloat16(task: int) -> None:
    recipe = load_recipe(task_recipe(task))
    assert recipe.sockets.output == "pancreatic-tumor-segmentation"
    assert recipe.postprocess == (Rescue(),)
    assert recipe.allow_bfloat16


def test_refuses_a_task_without_a_recipe() -> None:
    with pytest.raises(RecipeError, match=r"Task3.*--recipe"):
        task_recipe(3)


def test_defaults_of_a_minimal_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, MINIMAL))
    assert recipe.fusion == MeanLogits()
    assert recipe.postprocess == (Rescue(),)
    assert not recipe.allow_bfloat16


def test_reads_the_steps_in_their_order(tmp_path: Path) -> None:
    steps = """
[[postprocess]]
kind = "rescue"
max_mm3 = 500.0
[[postprocess]]
kind = "components"
min_mm3 = 50.0
max_count = 2
"""
    recipe = load_recipe(write_recipe(tmp_path, MINIMAL + steps))
    assert recipe.postprocess == (Rescue(max_mm3=500.0), Components(min_mm3=50.0, max_count=2))
    assert load_recipe(write_recipe(tmp_path, "postprocess = []" + MINIMAL)).postprocess == ()


def test_with_rescue_adds_or_removes_the_last_step() -> None:
    components, rescue = Components(min_mm3=50.0), Rescue(max_mm3=5.0)
    recipe = msgspec.structs.replace(load_recipe(task_recipe(1)), postprocess=(components,))
    assert recipe.with_rescue(rescue=True).postprocess == (components, Rescue())
    recipe = msgspec.structs.replace(recipe, postprocess=(rescue, components))
    assert recipe.with_rescue(rescue=True).postprocess == (components, rescue)
    assert recipe.with_rescue(rescue=False).postprocess == (components,)


STEP = '[[postprocess]]\nkind = "components"\n'


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('name = "mine"', 'name = "mine"\ncolour = 1', "colour"),
        ('model = "m"', 'model = "m"\nfold = 1', r"fold.*\$\.members\[0\]"),
        ('name = "mine"', "", "name"),
        ('output = "out"', "", r"output.*\$\.sockets"),
        ('name = "mine"', "name = 3", r"\$\.name"),
        ('model = "m"', 'model = "m"\nfolds = "some"', r"\$\.members\[0\]\.folds"),
        ('model = "m"', 'model = "m"\nfolds = [1, 2, 1]', r"folds \[1, 2, 1\] must be named once each"),
        ('model = "m"', 'model = "m"\nfolds = [0.5]', r"\$\.members\[0\]\.folds"),
        ('model = "m"', 'model = "m"\nstep = "half"', r"\$\.members\[0\]\.step"),
        ("schema = 1", "schema = 2", r"\$\.schema"),
        ("schema = 1", "schema = 1\nallow_bfloat16 = 1", r"\$\.allow_bfloat16"),
        ("schema = 1", "schema = 1\nfast = { left_out_share = 2 }", r"<= 1.*\$\.fast\.left_out_share"),
        ("schema = 1", "schema = 1\nfast = { tiles = 2 }", r"unknown key 'tiles'.*\$\.fast"),
        ('[[members]]\nmodel = "m"', STEP, "members"),
        ('[[members]]\nmodel = "m"', '[members]\nmodel = "m"', r"\$\.members"),
        ("schema = 1", 'schema = 1\nfusion = "mean_logits"', r"Expected a fusion: .* 'kind' .*\$\.fusion"),
        ("schema = 1", 'schema = 1\nfusion = { kind = "mode" }', r"Unknown fusion 'mode', .*mean_logits.*\$\.fusion"),
        ("schema = 1", 'schema = 1\nfusion = { kind = "vote", probability = 0 }', r"> 0.*probability.*\$\.fusion"),
        ('model = "m"', 'model = "m"\nweight = 0', r"> 0.*\$\.members\[0\]\.weight"),
        ('model = "m"', 'model = "m"\nweight = -1.0', r"> 0.*\$\.members\[0\]\.weight"),
        (
            'model = "m"',
            'model = "m"\n[[postprocess]]\nkind = "threshold"',
            r"threshold.*probability.*postprocess\[0\]",
        ),
        (
            'model = "m"',
            'model = "m"\n[[postprocess]]\nkind = "threshold"\nprobability = 1.5',
            r"threshold.*<= 1.*probability.*postprocess\[0\]",
        ),
        ("schema = 1", 'schema = 1\nfusion = { kind = "mean_logits", power = 2 }', r"power.*\$\.fusion"),
        ('model = "m"', 'model = "m"\n[postprocess]\nkind = "rescue"', r"\$\.postprocess"),
        ('model = "m"', 'model = "m"\n[[postprocess]]\nmin_mm3 = 1', r"Expected a post-.*\$\.postprocess\[0\]"),
        ('model = "m"', 'model = "m"\n[[postprocess]]\nkind = "blur"', r"'blur', .*components, .*rescue.*\[0\]"),
        ('model = "m"', f'model = "m"\n{STEP}max_mm3 = 1', r"components.*max_mm3.*\$\.postprocess\[0\]"),
        ('model = "m"', f'model = "m"\n{STEP}{STEP}max_count = 0', r">= 1.*max_count.*\$\.postprocess\[1\]"),
        ('model = "m"', f'model = "m"\n{STEP}min_mm3 = -1', r">= 0.*min_mm3"),
        ('model = "m"', f'model = "m"\n{STEP}min_mm3 = "1"', r"float.*min_mm3"),
    ],
)
def test_names_the_file_and_key_of_a_mistake(tmp_path: Path, old: str, new: str, named: str) -> None:
    assert old in MINIMAL
    assert re.search(rf": invalid content: .*{named}", reason(write_recipe(tmp_path, MINIMAL.replace(old, new))))


def test_reads_lengths_of_one_or_of_three_axes(tmp_path: Path) -> None:
    text = task_recipe(2).read_text().replace("margin_mm = 30.0", "margin_mm = [15, 50, 100.0]\nmin_extent_mm = 120")
    localizer = load_recipe(write_recipe(tmp_path, text)).localizer
    assert localizer is not None
    assert (localizer.margin_mm, localizer.min_extent_mm) == ((15.0, 50.0, 100.0), 120.0)
    assert (localizer.components, localizer.min_component_mm3, localizer.mirroring) == ("all", 1000.0, False)


def test_refuses_a_recipe_without_members(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "members = []" + MINIMAL.replace('[[members]]\nmodel = "m"', ""))
    assert "at least one entry in members, found none" in reason(path)


def test_refuses_a_file_that_is_not_toml(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    endless = (b"a = " + b"1" * 5000, b"a = " + b"[" * 20_000)
    for content in (b"schema = ", b"\xff\xfe", b"a = 1\na = 2", b"{}", *endless):
        path.write_bytes(content)
        assert "invalid TOML: " in reason(path)
    assert "failed to read this file: No such file or directory" in reason(tmp_path / "missing.toml")
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path, tmp_path / "pipe"):
        assert "expected a TOML file, found a folder, device or pipe" in reason(other)


def test_reads_a_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(MINIMAL, encoding="utf-8-sig")
    assert load_recipe(path).member_names == ("m",)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("step = 0.5", "step = 0", "$.members[0].step"),
        ("step = 0.5", "step = 2.0", "$.members[0].step"),
        ("margin_mm = 30.0", "margin_mm = -1.0", "$.localizer.margin_mm"),
        ("margin_mm = 30.0", "margin_mm = inf", "$.localizer.margin_mm"),
        ("spacing = [6.0, 3.0, 3.0]", "spacing = [0, 3.0, 3.0]", "$.localizer.spacing[0]"),
        ("spacing = [6.0, 3.0, 3.0]", "spacing = [6.0, nan, 3.0]", "$.localizer.spacing[1]"),
        ("margin_mm = 30.0", "margin_mm = [15, -50, 100]", "$.localizer.margin_mm[1]"),
        ("margin_mm = 30.0", "margin_mm = [15, 50]", "$.localizer.margin_mm"),
        ("margin_mm = 30.0", "margin_mm = [15, 50, 100, 100]", "$.localizer.margin_mm"),
        ("margin_mm = 30.0", "margin_mm = 30.0\nmin_extent_mm = -1", "$.localizer.min_extent_mm"),
        ("margin_mm = 30.0", 'margin_mm = 30.0\ncomponents = "biggest"', "$.localizer.components"),
        ("margin_mm = 30.0", "margin_mm = 30.0\nhalf_resolution = true", "$.localizer"),
        ('folds = "all"', "folds = []", "$.members[0].folds"),
        ('folds = "all"', 'folds = "all"\ncheckpoint = "../fold_1/final.pth"', "$.members[0]"),
        ('kind = "rescue"', 'kind = "rescue"\nmax_mm3 = 0', "$.max_mm3` - at `$.postprocess[0]"),
        ('kind = "rescue"', 'kind = "rescue"\nmax_mm3 = nan', "$.postprocess[0].max_mm3"),
    ],
)
def test_refuses_a_value_out_of_range(tmp_path: Path, old: str, new: str, key: str) -> None:
    text = task_recipe(2).read_text()
    assert old in text
    assert f" at `{key}`" in reason(write_recipe(tmp_path, text.replace(old, new)))


MEMBER = '[[members]]\nmodel = "m"\n'
NEAR = '[[postprocess]]\nkind = "near"\nmax_mm = 6.0\n'


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            f"{MEMBER}mirorring = true\n",
            "unknown key 'mirorring' in `$.members[0]`, expected one of model, name, folder, checkpoint, folds, step, "
            "mirroring, min_folds, orientation, weight, threshold, tumour_label, pancreas_label; "
            "did you mean 'mirroring'?",
        ),
        (
            f"fusion = {{ kind = 'staple', probabilty = 0.4 }}\n{MEMBER}",
            "fusion 'staple': unknown key 'probabilty', expected one of kind, probability, consensus; "
            "did you mean 'probability'? - at `$.fusion`",
        ),
        (
            f"fusion = {{ kind = 'mean_logit' }}\n{MEMBER}",
            "Unknown fusion 'mean_logit', expected one of mean_logits, mean_probability, vote, staple; "
            "did you mean 'mean_logits'? - at `$.fusion`",
        ),
        (
            f"{MEMBER}{NEAR.replace('max_mm', 'max_cm')}",
            "post-processing step 'near': unknown key 'max_cm', expected one of kind, max_mm, of; "
            "did you mean 'max_mm'? - at `$.postprocess[0]`",
        ),
        (
            f"{MEMBER}{NEAR.replace('near', 'neer')}",
            "Unknown post-processing step 'neer', expected one of components, overlap, near, opening, closing, "
            "fill_holes, threshold, volume, rescue; did you mean 'near'? - at `$.postprocess[0]`",
        ),
        (
            f"{MEMBER}{NEAR}of = 'localiser'\n",
            "post-processing step 'near': expected one of localizer, members, found 'localiser'; did you mean "
            "'localizer'? - at `of` - at `$.postprocess[0]`",
        ),
        (
            f"{MEMBER}{NEAR}of = 'localizer'\n",
            "the step 'near' looks at the localizer's pancreas, and the recipe has no localizer "
            "- at `$.postprocess[0]`",
        ),
        (
            f"{MEMBER}[localizer]\nmodel = 'l'\nlabel = 7\nmargin_mm = 30.0\ncrop = false\n",
            "nothing uses the localizer: leave out `crop`, or add a step with `of` localizer - at `$.localizer.crop`",
        ),
        (
            f"{MEMBER}name = 'a'\n{MEMBER}name = 'a'\n",
            "two members are called 'a': give each a `name` of its own - at `$.members[1]`",
        ),
        (
            f"{MEMBER}pancreas_label = 1\n",
            "label 1 cannot be both tumour and pancreas - at `$.members[0]`",
        ),
        (
            f"{MEMBER}threshold = 0.3\n",
            "the fusion mean_logits has no use for a `threshold` of a member, only vote and staple have "
            "- at `$.members[0]`",
        ),
        (
            f"fusion = {{ kind = 'staple' }}\n{MEMBER}{MEMBER}weight = 2.0\n",
            "the fusion staple finds weights of its own, so members cannot have different ones - at `$.members[1]`",
        ),
        (
            f"fusion = {{ kind = 'staple' }}\n{17 * MEMBER}",
            "the fusion staple takes at most 16 members, and these are 17",
        ),
        (f"min_members = 2\n{MEMBER}", "min_members is 2, and the members are 1 - at `$.min_members`"),
        (
            f"{MEMBER}name = '-a'\n",
            "expected a name without commas that does not begin with a minus, found '-a' - at `$.members[0].name`",
        ),
        (
            f"{MEMBER}orientation = 'lps'\n",
            "expected one of AIL, AIR, ALI, ALS, ARI, ARS, ASL, ASR, IAL, IAR, ILA, ILP and 36 more, found 'lps'; "
            "did you mean 'LPS'? - at `$.members[0].orientation`",
        ),
        (
            f"{MEMBER}step = 0.01\n",
            "Expected `float` >= 0.1 - at `$.members[0].step`",
        ),
        (
            f"{MEMBER}[[postprocess]]\nkind = 'closing'\nmm = 1e6\n",
            "post-processing step 'closing': Expected `float` <= 100.0 - at `$.mm` - at `$.postprocess[0]`",
        ),
        (
            f"{MEMBER}[[postprocess]]\nkind = 'volume'\nmin_mm3 = 9\nmax_mm3 = 5\n",
            "post-processing step 'volume': max_mm3 = 5.0 is less than min_mm3 = 9.0 - at `$.postprocess[0]`",
        ),
        (
            f"{MEMBER}[localiser]\nmodel = 'x'\n",
            "unknown key 'localiser' in `$`, expected one of schema, name, sockets, members, time_budget_s, "
            "tumour_label, series, localizer, min_members, fusion, postprocess, fast, allow_bfloat16; "
            "did you mean 'localizer'?",
        ),
    ],
)
@pytest.mark.fault("models", "a recipe with a mistake: {line}", "one line with the file, the key and what is allowed")
def test_a_mistake_is_a_line_with_what_is_allowed_and_the_nearest_name(tmp_path: Path, text: str, line: str) -> None:
    head, _, tail = MINIMAL.partition("[sockets]")
    tables = text.partition("[")
    path = write_recipe(tmp_path, head + tables[0] + "[sockets]" + tail.partition("[[")[0] + tables[1] + tables[2])
    assert reason(path) == f"{path}: invalid content: {line}"
    result = CliRunner().invoke(main, ["check", "recipe", str(path)])
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [f"BROKEN  {RULE}: {path}: invalid content: {line}"]


RULE = "a recipe whose members can be fused and whose steps can be applied"


@pytest.mark.parametrize("task", [1, 2])
def test_check_recipe_needs_no_weights(task: int) -> None:
    result = CliRunner().invoke(main, ["check", "recipe", str(task_recipe(task))])
    assert result.exit_code == 0
    assert result.stdout == f"ok      {RULE}: task{task}: task{task}; mean_logits; rescue\n"
    wrong = CliRunner().invoke(main, ["check", "recipe", str(task_recipe(task)), "--members", "tusk1", "--json"])
    assert wrong.exit_code == 1
    assert (
        f"expected names among task{task}, found tusk1; did you mean 'task{task}'?"
        in json.loads(wrong.stdout)[0]["found"]
    )


def test_reads_members_with_names_labels_and_thresholds(tmp_path: Path) -> None:
    text = MINIMAL + "name = 'a'\ntumour_label = 2\npancreas_label = 1\nthreshold = 0.3\n"
    recipe = load_recipe(
        write_recipe(tmp_path, "fusion = { kind = 'staple', consensus = 0.6 }\nmin_members = 1" + text)
    )
    assert recipe.members == [Member(model="m", name="a", tumour_label=2, pancreas_label=1, threshold=0.3)]
    assert (recipe.fusion, recipe.tumour_label_of(recipe.members[0])) == (Staple(consensus=0.6), 2)


@pytest.mark.parametrize("what", ["recipe", "report", "model", "calibration", "zoo"])
def test_a_process_that_has_read_a_table_ends_well(what: str) -> None:
    # msgspec 0.22 frees memory twice for some types, which shows when the process ends.
    read = {
        "recipe": "from pantherseg.recipe import load_recipe as read; from pantherseg.paths import task_recipe;"
        "read(task_recipe(1))",
        "report": "from pantherseg.results import CaseReport; import msgspec\n"
        "try: msgspec.json.decode(b'{}', type=CaseReport)\nexcept msgspec.ValidationError: pass",
        "model": "from pantherseg.models.bundle import open_bundle; from pantherseg.paths import DEMO_WEIGHTS;"
        "open_bundle(DEMO_WEIGHTS / 'task1')",
        "calibration": "from pantherseg.models.calibration import read_calibrations as read;"
        "from pantherseg.paths import DEMO_WEIGHTS; read(DEMO_WEIGHTS)",
        "zoo": "from pantherseg.weights.zoo import load_zoo; from pantherseg.paths import ZOO; load_zoo(ZOO)",
    }
    done = subprocess.run(
        [sys.executable, "-c", read[what]],
        env=os.environ | {"PYTHONMALLOC": "malloc"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
