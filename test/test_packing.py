"""nnU-Net's model folders become bundles: the same numbers in half the bytes, or one line about why not."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from conftest import ChangedModel, CopiedBundle, one_line_about
from matrix import saw
from pantherseg.cli.pack import summary
from pantherseg.errors import ModelError, OutputError, RecipeError
from pantherseg.models.bundle import DATASET, PLANS, Bundle, open_bundle
from pantherseg.models.find import CHECKPOINT, ModelFolder, find_models, open_model_folder
from pantherseg.networks import read_plan
from pantherseg.packing import Packer, as_bundle, pack, pack_models
from pantherseg.packing import graph as graph_module
from pantherseg.packing.graph import Graph
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.recipe import Member, load_recipe

Json = dict[str, Any]


@pytest.fixture(scope="module")
def graph(demo_folder: ModelFolder) -> Graph:
    plan = read_plan(demo_folder.path, "3d_fullres")
    return graph_module.make_graph(plan.network(), (1, 1, *plan.patch))


@pytest.fixture
def one_graph(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use one graph for every model: making it takes longer than all the rest, and is not what the test is about."""
    monkeypatch.setattr(graph_module, "make_graph", lambda *_: graph)


ONE_GRAPH = pytest.mark.usefixtures("one_graph")


@pytest.fixture(scope="module")
def packed(demo_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return pack(demo_folder, tmp_path_factory.mktemp("packed") / "task1")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(folder: Path, target: Path, named: Path, *, checkpoint: str = CHECKPOINT) -> str:
    """Pack a folder, which must fail in one line that names a file and leave nothing behind."""
    before = sorted(target.parent.iterdir())
    with pytest.raises(ModelError) as caught:
        pack(open_model_folder(folder, checkpoint=checkpoint), target)
    text = one_line_about(named, caught.value)
    assert sorted(target.parent.iterdir()) == before
    return text


def test_the_demo_bundle_is_what_packing_its_folder_gives(packed: Bundle) -> None:
    demo = open_bundle(DEMO_WEIGHTS / "task1")
    for fold in demo.folds:
        assert packed.weights_path(fold).read_bytes() == demo.weights_path(fold).read_bytes()
    # What OpenVINO writes may change with its version.
    versions = {name: version(name) for name in demo.manifest.provenance.versions if name != "pantherseg"}
    if versions.items() <= demo.manifest.provenance.versions.items():
        assert packed.graph_path.read_bytes() == demo.graph_path.read_bytes()
    same = {"provenance": demo.manifest.provenance, "sha256": demo.manifest.sha256}
    assert msgspec.structs.replace(packed.manifest, **same) == demo.manifest


def test_packing_twice_gives_the_same_bytes(demo_folder: ModelFolder, packed: Bundle, tmp_path: Path) -> None:
    again = pack(demo_folder, tmp_path / "again")
    assert contents(again.path) == contents(packed.path)
    assert {path.stat().st_mode & 0o777 for path in again.path.iterdir()} == {0o644}


def test_the_numbers_are_the_checkpoints(demo_folder: ModelFolder, packed: Bundle) -> None:
    for fold in packed.folds:
        weights = torch.load(demo_folder.checkpoint_path(fold), weights_only=True)["network_weights"]
        values = load_file(packed.verify(fold))
        for name in packed.manifest.tensors:
            assert (values[name] == weights[name].numpy()).all()


def test_the_manifest_says_what_the_checkpoint_and_the_plans_say(changed_model: ChangedModel, tmp_path: Path) -> None:
    folder = changed_model(
        folds=2, checkpoint="best.pth", trainer_name="nnUNetTrainerX", inference_allowed_mirroring_axes=(0, 2)
    )
    model = open_model_folder(folder, checkpoint="best.pth")
    manifest = pack(model, tmp_path / "bundle").manifest
    plan = read_plan(folder, "3d_fullres")
    assert (manifest.checkpoint, manifest.folds, manifest.mirroring_axes) == ("best.pth", ("0", "1"), (0, 2))
    assert (manifest.patch, manifest.labels, manifest.preprocessing) == (plan.patch, plan.labels, plan.preprocessing)
    assert manifest.provenance.trainer == "nnUNetTrainerX"
    assert manifest.provenance.versions["torch"] == version("torch")
    for name in (PLANS, DATASET):
        assert (tmp_path / "bundle" / name).read_bytes() == (folder / name).read_bytes()


@ONE_GRAPH
def test_a_checkpoint_with_an_optimizers_state_becomes_half_as_large(
    changed_model: ChangedModel, demo_folder: ModelFolder, tmp_path: Path
) -> None:
    parameters = list(read_plan(demo_folder.path, "3d_fullres").network().parameters())
    momenta = {number: {"momentum_buffer": torch.ones_like(value)} for number, value in enumerate(parameters)}
    model = open_model_folder(changed_model(folds=2, optimizer_state={"state": momenta, "param_groups": []}))
    bundle = pack(model, tmp_path / "bundle")
    before = sum(model.checkpoint_path(fold).stat().st_size for fold in model.folds)
    after = sum(bundle.weights_path(fold).stat().st_size for fold in bundle.folds)
    assert after <= 0.505 * before
    assert bundle.graph_path.stat().st_size < 500_000


@ONE_GRAPH
def test_prefixes_of_compiled_networks_are_no_matter(
    changed_model: ChangedModel, demo_folder: ModelFolder, packed: Bundle, tmp_path: Path
) -> None:
    weights = torch.load(demo_folder.checkpoint_path("0"), weights_only=True)["network_weights"]
    folder = changed_model(network_weights={f"_orig_mod.{name}": value for name, value in weights.items()})
    bundle = pack(open_model_folder(folder), tmp_path / "bundle")
    assert bundle.weights_path("0").read_bytes() == packed.weights_path("0").read_bytes()


class Bomb:
    """Asks for a command to be run when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.target}'",)


def test_code_in_a_checkpoint_is_refused_and_not_run(changed_model: ChangedModel, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    folder = changed_model(trainer_name=Bomb(ran))
    text = refused(folder, tmp_path / "bundle", folder / "fold_0" / CHECKPOINT)
    assert "asks for code to be run on loading and was refused" in text
    assert not ran.exists()


@ONE_GRAPH
def test_code_in_a_later_fold_is_refused_too(changed_model: ChangedModel, tmp_path: Path) -> None:
    folder, ran = changed_model(folds=2), tmp_path / "ran"
    content = torch.load(folder / "fold_1" / CHECKPOINT, weights_only=True)
    torch.save(content | {"trainer_name": Bomb(ran)}, folder / "fold_1" / CHECKPOINT)
    assert "was refused" in refused(folder, tmp_path / "bundle", folder / "fold_1" / CHECKPOINT)
    assert not ran.exists()


@pytest.mark.parametrize("changes", [{"network_weights": {}}, {"init_args": {}}, {"init_args": None}], ids=str)
def test_a_checkpoint_that_lacks_something_is_named(
    changed_model: ChangedModel, tmp_path: Path, changes: dict[str, object]
) -> None:
    folder = changed_model(**changes)
    text = refused(folder, tmp_path / "bundle", folder / "fold_0" / CHECKPOINT)
    assert "network_weights, init_args.configuration" in text


@pytest.mark.fault(
    "models", "a pointer of git-lfs in a checkpoint's place", "an error that names it, and nothing packed"
)
def test_a_checkpoint_that_is_none_is_named(changed_model: ChangedModel, tmp_path: Path) -> None:
    folder = changed_model()
    path = folder / "fold_0" / CHECKPOINT
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "beginning with b'version https" in refused(folder, tmp_path / "bundle", path)


Weights = dict[str, torch.Tensor]
NAME = "decoder.seg_layers.3.bias"


def with_nan(weights: Weights) -> str:
    weights[NAME] = weights[NAME] * float("nan")
    return f"expected finite numbers in {NAME}, found NaN or infinite ones"


def with_infinity(weights: Weights) -> str:
    weights[NAME] = weights[NAME] / 0
    return f"expected finite numbers in {NAME}, found NaN or infinite ones"


def with_one_missing(weights: Weights) -> str:
    del weights[NAME]
    return f"the weights of the network in plans.json ({NAME}: (3,)), found 1 that differ ({NAME}: None)"


def with_one_more(weights: Weights) -> str:
    weights["more"] = torch.ones(2)
    return "the weights of the network in plans.json (more: None), found 1 that differ (more: (2,))"


def with_another_shape(weights: Weights) -> str:
    weights[NAME] = weights[NAME][:2]
    return f"({NAME}: (3,)), found 1 that differ ({NAME}: (2,))"


@ONE_GRAPH
@pytest.mark.parametrize("damage", [with_nan, with_infinity, with_one_missing, with_one_more, with_another_shape])
@pytest.mark.parametrize("fold", ["0", "1"])
def test_weights_that_do_not_fit_are_named(
    changed_model: ChangedModel, tmp_path: Path, damage: Callable[[Weights], str], fold: str
) -> None:
    folder = changed_model(folds=2)
    path = folder / f"fold_{fold}" / CHECKPOINT
    content = torch.load(path, weights_only=True)
    message = damage(content["network_weights"])
    torch.save(content, path)
    assert message in refused(folder, tmp_path / "bundle", path)


def test_an_axis_that_the_patch_has_not_cannot_be_mirrored(changed_model: ChangedModel, tmp_path: Path) -> None:
    folder = changed_model(folds=1, inference_allowed_mirroring_axes=(0, 3))
    message = refused(folder, tmp_path / "bundle", folder / "fold_0" / CHECKPOINT)
    assert "expected mirroring axes below 3, as a patch of (48, 80, 112) has, found (0, 3)" in message


@ONE_GRAPH
@pytest.mark.parametrize(
    "changes",
    [{"init_args": {"configuration": "2d"}}, {"inference_allowed_mirroring_axes": (0,)}],
    ids=["configuration", "mirroring"],
)
def test_folds_that_do_not_belong_together_are_refused(
    changed_model: ChangedModel, tmp_path: Path, changes: dict[str, object]
) -> None:
    folder = changed_model(folds=2)
    path = folder / "fold_1" / CHECKPOINT
    torch.save(torch.load(path, weights_only=True) | changes, path)
    assert "as fold 0, found " in refused(folder, tmp_path / "bundle", path)


def changed(**changes: object) -> Callable[[Path], None]:
    """Return what changes entries of a checkpoint."""
    return lambda path: torch.save(torch.load(path, weights_only=True) | changes, path)


def weights_changed(change: Callable[[Weights], str]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        change(content["network_weights"])
        torch.save(content, path)

    return damage


def weights_as(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        content["network_weights"] = {key: change(value) for key, value in content["network_weights"].items()}
        torch.save(content, path)

    return damage


def flipped(path: Path) -> None:
    """Change one number of the weights, which torch itself would not notice."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def unreadable(path: Path) -> None:
    """Make every read of a checkpoint an error, as on a disk that fails."""
    path.unlink()
    path.symlink_to("/proc/self/mem")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "no folder": lambda path: shutil.rmtree(path.parent),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "flipped": flipped,
    "unreadable": unreadable,
    "NaN": weights_changed(with_nan),
    "architecture": weights_changed(with_another_shape),
    "configuration": changed(init_args={"configuration": "2d"}),
    "unknown configuration": changed(init_args={"configuration": "5d"}),
    "mirroring": changed(inference_allowed_mirroring_axes=(0,)),
    "no weights": changed(network_weights=torch.ones(3)),
    "complex weights": weights_as(lambda value: value.to(torch.complex64)),
    "sparse weights": weights_as(lambda value: value.to_sparse()),
    "weights without values": weights_as(lambda value: value.to("meta")),
    "impossible mirroring": changed(inference_allowed_mirroring_axes=(0, 3)),
}


@pytest.mark.fault(
    "models",
    "one checkpoint of five in an nnU-Net folder, used as it is: [{id}]",
    "an error that names it when its turn comes, and the other four packed",
)
@ONE_GRAPH
@pytest.mark.parametrize("fold", [0, 2])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_fold_is_left_out_on_use_and_refused_in_a_bundle(
    demo_folder: ModelFolder, packed: Bundle, tmp_path: Path, damage: Callable[[Path], None], fold: int
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(demo_folder.path, folder)
    path = folder / f"fold_{fold}" / CHECKPOINT
    damage(path)
    bundle = as_bundle(open_model_folder(folder, folds=range(5), min_folds=3), 3)
    assert bundle.folds == packed.folds
    for name in set(packed.folds) - {str(fold)}:
        assert bundle.verify(name).read_bytes() == packed.weights_path(name).read_bytes()
    assert bundle.manifest.folds == tuple(name for name in packed.folds if name != str(fold))
    for _ in range(2):
        with pytest.raises(ModelError) as caught:
            bundle.verify(str(fold))
        one_line_about(path, caught.value)
    saw(f"{len(bundle.manifest.folds)} folds packed")
    model = ModelFolder(folder, packed.folds, CHECKPOINT)
    with pytest.raises(ModelError):
        pack(model, tmp_path / "bundle")
    with pytest.raises(ModelError):
        as_bundle(model)
    assert not (tmp_path / "bundle").exists()


@ONE_GRAPH
@pytest.mark.parametrize(("damaged", "sound"), [([0, 1], True), ([0, 4], True), ([0, 1, 2], False), (range(5), False)])
def test_as_many_folds_as_are_wanted_must_be_sound(
    demo_folder: ModelFolder, tmp_path: Path, damaged: list[int], sound: bool
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(demo_folder.path, folder)
    for fold in damaged:
        (folder / f"fold_{fold}" / CHECKPOINT).write_bytes(b"")
    model = open_model_folder(folder)
    if sound:
        assert [int(fold) for fold in as_bundle(model, 3).unpacked] == damaged
        return
    with pytest.raises(ModelError) as caught:
        as_bundle(model, 3)
    one_line_about(folder / "fold_0" / CHECKPOINT, caught.value)


def test_what_is_wrong_with_the_model_is_said_of_it(changed_model: ChangedModel) -> None:
    folder = changed_model(folds=5)
    plans = json.loads((folder / PLANS).read_text())
    unknown_network(plans, {})
    (folder / PLANS).write_text(json.dumps(plans))
    with pytest.raises(ModelError) as caught:
        as_bundle(open_model_folder(folder), 3)
    one_line_about(folder / PLANS, caught.value)


@ONE_GRAPH
def test_models_of_one_folder_are_packed_once(changed_model: ChangedModel, packed: Bundle) -> None:
    folder = changed_model(folds=5)
    for fold in (2, 4):
        (folder / f"fold_{fold}" / CHECKPOINT).write_bytes(b"")
    folds, few = [(0, 1, 2), (3, 0), (3, 4)], (2, 2, 1)
    models = [open_model_folder(folder, folds=names) for names in folds]
    packer = Packer([packed, *models])
    bundles = [packer.bundle(model, least) for model, least in zip(models, few, strict=True)]
    assert [bundle.folds for bundle in bundles] == [model.folds for model in models]
    assert len({bundle.path for bundle in bundles}) == 1
    assert bundles[0].manifest.folds == ("0", "1", "3")
    assert packer.bundle(packed) is packed
    with pytest.raises(ModelError) as caught:
        packer.bundle(models[2], 2)
    one_line_about(folder / "fold_4" / CHECKPOINT, caught.value)


def unknown_network(plans: Json, dataset: Json) -> str:
    architecture(plans)["network_class_name"] = "my_networks.UNet"
    return "found my_networks.UNet"


def network_that_is_not_there(plans: Json, dataset: Json) -> str:
    architecture(plans)["network_class_name"] = "dynamic_network_architectures.architectures.unet.MyUNet"
    return "MyUNet can be built from"


def unknown_argument(plans: Json, dataset: Json) -> str:
    architecture(plans)["arch_kwargs"]["depth_of_thought"] = 3
    return "depth_of_thought"


def unknown_normalization(plans: Json, dataset: Json) -> str:
    configuration(plans)["normalization_schemes"] = ["MyNormalization"]
    return "MyNormalization"


def unknown_resampling(plans: Json, dataset: Json) -> str:
    configuration(plans)["resampling_fn_data"] = "my_resampling"
    return "my_resampling"


def unknown_preprocessor(plans: Json, dataset: Json) -> str:
    configuration(plans)["preprocessor_name"] = "MyPreprocessor"
    return "preprocessor MyPreprocessor"


def unknown_reader(plans: Json, dataset: Json) -> str:
    plans["image_reader_writer"] = "NaturalImage2DIO"
    return "reader NaturalImage2DIO"


def two_channels(plans: Json, dataset: Json) -> str:
    dataset["channel_names"] = {"0": "T1", "1": "T2"}
    return "channels 2"


def regions(plans: Json, dataset: Json) -> str:
    dataset["labels"] = {"background": 0, "pancreas": [1, 2], "tumour": [1]}
    dataset["regions_class_order"] = [2, 1]
    return "regions True"


def ignore_label(plans: Json, dataset: Json) -> str:
    dataset["labels"] = {"background": 0, "tumour": 1, "ignore": 2}
    return "ignore label True"


def cascade(plans: Json, dataset: Json) -> str:
    configuration(plans)["previous_stage"] = "3d_lowres"
    plans["configurations"]["3d_lowres"] = json.loads(json.dumps(configuration(plans))) | {"previous_stage": None}
    return "cascade True"


def no_configuration(plans: Json, dataset: Json) -> str:
    plans["configurations"]["2d"] = plans["configurations"].pop("3d_fullres")
    return "3d_fullres"


def configuration(plans: Json) -> Json:
    found: Json = plans["configurations"]["3d_fullres"]
    return found


def architecture(plans: Json) -> Json:
    found: Json = configuration(plans)["architecture"]
    return found


@pytest.mark.parametrize(
    "change",
    [
        unknown_network,
        network_that_is_not_there,
        unknown_argument,
        unknown_normalization,
        unknown_resampling,
        unknown_preprocessor,
        unknown_reader,
        two_channels,
        regions,
        ignore_label,
        cascade,
        no_configuration,
    ],
)
def test_plans_that_cannot_be_run_are_refused(
    changed_model: ChangedModel, tmp_path: Path, change: Callable[[Json, Json], str]
) -> None:
    folder = changed_model()
    plans, dataset = (json.loads((folder / name).read_text()) for name in (PLANS, DATASET))
    message = change(plans, dataset)
    for name, content in ((PLANS, plans), (DATASET, dataset)):
        (folder / name).write_text(json.dumps(content))
    in_plans = change in (unknown_network, network_that_is_not_there, unknown_argument)
    assert message in refused(folder, tmp_path / "bundle", folder / PLANS if in_plans else folder)


def test_a_patch_that_the_network_cannot_take_is_refused(changed_model: ChangedModel, tmp_path: Path) -> None:
    folder = changed_model()
    plans = json.loads((folder / PLANS).read_text())
    configuration(plans)["patch_size"] = [24, 40, 48]
    (folder / PLANS).write_text(json.dumps(plans))
    assert "takes a patch of (24, 40, 48), found " in refused(folder, tmp_path / "bundle", folder)


def test_a_checkpoint_that_is_not_there_is_named(changed_model: ChangedModel, tmp_path: Path) -> None:
    folder = changed_model()
    named = folder / "fold_0" / "checkpoint_best.pth"
    text = refused(folder, tmp_path / "bundle", named, checkpoint="checkpoint_best.pth")
    assert "found checkpoint_final.pth in fold_0" in text


@pytest.mark.fault("models", "models are packed to where others are", "an error, and the others as they were")
def test_a_target_that_is_taken_is_left_as_it_is(demo_folder: ModelFolder, tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "mine").touch()
    file.touch()
    for target in (folder, file):
        with pytest.raises(OutputError, match=f"{target}: expected a new folder for the bundle, found ") as caught:
            pack(demo_folder, target)
        saw(caught.value)
    assert sorted(tmp_path.rglob("*")) == [file, folder, folder / "mine"]


def test_a_target_that_cannot_be_written_is_named(demo_folder: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/bundle: expected to write this bundle, found "):
        pack(demo_folder, tmp_path / "file" / "bundle")


@ONE_GRAPH
def test_an_empty_folder_is_a_target_and_missing_parents_are_made(changed_model: ChangedModel, tmp_path: Path) -> None:
    model, parent = open_model_folder(changed_model()), tmp_path / "a" / "b"
    (parent / "empty").mkdir(parents=True)
    (parent / "empty" / ".part").mkdir()
    (parent / "empty" / ".part" / "of_a_run_that_was_killed").touch()
    bundle = pack(model, parent / "empty")
    assert [path.name for path in parent.iterdir()] == ["empty"]
    # What another has not finished is no reason to stop, and not this one's to remove.
    assert {path.name for path in bundle.path.iterdir()} == {".part", "manifest.json", *bundle.manifest.sha256}
    assert pack(model, tmp_path / "c" / "d" / "e").folds == ("0",)


@ONE_GRAPH
@pytest.mark.parametrize("there", [False, True])
def test_of_two_that_pack_to_one_target_the_first_to_end_wins(
    changed_model: ChangedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    model, target = open_model_folder(changed_model()), tmp_path / "to" / "bundle"
    target.parent.mkdir()
    if there:
        target.mkdir()
    module = import_module("pantherseg.packing.pack")
    write = module._write_bundle
    calls = []

    def meanwhile(model: ModelFolder, spare: int, folder: Path) -> Any:
        written = write(model, spare, folder)
        calls.append(folder)
        if len(calls) == 1:
            pack(model, target)
            assert folder.is_dir(), "the other removes only its own"
        return written

    monkeypatch.setattr(module, "_write_bundle", meanwhile)
    with pytest.raises(OutputError) as caught:
        pack(model, target)
    one_line_about(target, caught.value)
    assert len(set(calls)) == 2
    bundle = open_bundle(target)
    assert {path.name for path in target.iterdir()} == {"manifest.json", *bundle.manifest.sha256}
    assert list(target.parent.iterdir()) == [target]


def test_a_link_that_leads_nowhere_is_no_target(demo_folder: ModelFolder, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.symlink_to(tmp_path / "gone")
    with pytest.raises(OutputError, match=r"expected a new folder for the bundle, found a link"):
        pack(demo_folder, target)


def test_the_line_of_a_bundle_names_its_labels() -> None:
    line = summary(open_bundle(DEMO_WEIGHTS / "task1"))
    assert f"of {CHECKPOINT}, labels 1 tumour, 2 pancreas, " in line
    manifest = open_bundle(DEMO_WEIGHTS / "task1").manifest
    many = msgspec.structs.replace(manifest, labels={f"part {number}": number for number in range(41)})
    said = Bundle(DEMO_WEIGHTS / "task1", many, ()).said_labels()
    assert said.startswith("labels 1 part 1, 2 part 2, ")
    assert said.endswith("8 part 8 and 32 more")


@pytest.mark.fault("models", "a raw nnU-Net folder where torch is not installed", "an error that says what to do")
def test_without_torch_the_error_says_where_to_pack(
    demo_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("pantherseg.packing.pack")
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    for attempt in (lambda: pack(demo_folder, tmp_path / "bundle"), lambda: as_bundle(demo_folder)):
        with pytest.raises(ModelError) as caught:
            attempt()
        saw(caught.value)
        text = str(caught.value)
        assert text.startswith(f"{demo_folder.path}: expected a bundle, found nnU-Net's checkpoints, and no torch to")
        assert f"run `pantherseg pack {demo_folder.path} BUNDLE` where they are installed" in text
    assert list(tmp_path.iterdir()) == []
    bundle = open_bundle(DEMO_WEIGHTS / "task1")
    assert as_bundle(bundle) is bundle, "a bundle needs no torch"


@ONE_GRAPH
def test_every_model_of_a_recipe_is_packed_to_its_role(demo_folder: ModelFolder, tmp_path: Path) -> None:
    root, target = tmp_path / "models", tmp_path / "bundles"
    shutil.copytree(demo_folder.path, root / "task2" / "results", ignore=shutil.ignore_patterns("fold_[1234]"))
    shutil.copytree(DEMO_WEIGHTS / "localizer", root / "localizer")
    bundles = pack_models(root, target, load_recipe(task_recipe(2)))
    assert [bundle.path for bundle in bundles] == [target / "task2", target / "localizer"]
    assert sorted(path.name for path in target.iterdir()) == ["localizer", "task2"]
    before = contents(DEMO_WEIGHTS / "localizer")
    del before["training.json"]
    assert contents(target / "localizer") == before, "what is a bundle already is copied"
    with pytest.raises(OutputError, match=r"expected a new folder"):
        pack_models(root, target, load_recipe(task_recipe(2)))


def test_a_bundle_is_checked_before_it_is_copied(copied_bundle: CopiedBundle, tmp_path: Path) -> None:
    path = copied_bundle.path / "fold_2.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"fold_2\.safetensors: expected SHA-256"):
        pack_models(copied_bundle.path.parent, tmp_path / "bundles", load_recipe(task_recipe(1)))
    assert not (tmp_path / "bundles").exists()


@ONE_GRAPH
@pytest.mark.parametrize("packed_before", [False, True])
def test_a_model_without_the_recipes_label_is_not_packed(
    demo_folder: ModelFolder, tmp_path: Path, packed_before: bool
) -> None:
    root, target = tmp_path / "models", tmp_path / "bundles"
    shutil.copytree(DEMO_WEIGHTS / "task1" if packed_before else demo_folder.path, root / "task2")
    shutil.copytree(DEMO_WEIGHTS / "localizer", root / "localizer")
    settings = load_recipe(task_recipe(2))
    assert settings.localizer is not None
    for change, model, message in (
        ({"tumour_label": 3}, "task2", "expected tumour_label between 1 and 2, found 3"),
        ({"localizer": msgspec.structs.replace(settings.localizer, label=99)}, "localizer", "expected label between"),
    ):
        with pytest.raises(RecipeError) as caught:
            pack_models(root, target, msgspec.structs.replace(settings, **change))
        assert message in one_line_about(root / model, caught.value)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["models"]


@ONE_GRAPH
def test_members_that_share_a_model_get_all_of_their_folds(demo_folder: ModelFolder, tmp_path: Path) -> None:
    shutil.copytree(demo_folder.path, tmp_path / "models" / "task1")
    settings = load_recipe(task_recipe(1))
    members = [Member(model="task1", folds=[2, 0]), Member(model="task1", folds=[0, 3])]
    shared = msgspec.structs.replace(settings, members=members)
    (bundle,) = pack_models(tmp_path / "models", tmp_path / "bundles", shared)
    assert bundle.folds == ("2", "0", "3")
    found = find_models(tmp_path / "bundles", shared)
    assert [model.folds for model in found.members] == [("2", "0"), ("0", "3")]
    for name in ("plans.json", "dataset.json"):
        assert (tmp_path / "bundles" / "task1" / name).is_file()
    for fold in ("0", "3"):
        shutil.copy(demo_folder.checkpoint_path(fold), tmp_path / "models" / "task1" / f"fold_{fold}" / "best.pth")
    members[1] = Member(model="task1", folds=[0, 3], checkpoint="best.pth")
    with pytest.raises(RecipeError, match=r"expected one checkpoint of task1, found checkpoint_final.pth and best.pth"):
        pack_models(tmp_path / "models", tmp_path / "others", msgspec.structs.replace(settings, members=members))


def test_norms_with_running_statistics_are_refused_by_name(changed_model: ChangedModel, tmp_path: Path) -> None:
    folder = changed_model(folds=1)
    plans = json.loads((folder / "plans.json").read_text())
    architecture = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    architecture["norm_op"] = "torch.nn.modules.batchnorm.BatchNorm3d"
    (folder / "plans.json").write_text(json.dumps(plans))
    assert "BatchNorm3d norm keeps running statistics" in refused(folder, tmp_path / "bundle", folder)


@ONE_GRAPH
def test_the_folder_one_stands_in_can_be_the_target(
    changed_model: ChangedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = changed_model(folds=1)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    pack(open_model_folder(folder), Path())
    assert open_bundle(tmp_path / "here").folds == ("0",)


def test_a_temporary_folder_that_cannot_be_made_is_named(
    demo_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    with pytest.raises(OutputError, match=r"temporary folder: expected room to pack a model, found .*pantherseg pack"):
        as_bundle(demo_folder)


def test_a_full_disk_is_named(changed_model: ChangedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    folder = changed_model(folds=1)
    monkeypatch.setattr(import_module("pantherseg.packing.pack"), "save_file", full)
    with pytest.raises(OutputError, match=r"bundle: expected to write this bundle, found I/O error: No space left"):
        pack(open_model_folder(folder), tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
