"""Packing: model folders become bundles with the same weights in half the bytes, or an error of one line."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from conftest import ChangedModel, CopiedBundle, flip_a_bit, one_line_about
from pantherseg.cli.pack import summary
from pantherseg.errors import ModelError, OutputError, RecipeError
from pantherseg.model_sources.nnunet import CHECKPOINT, DATASET, PLANS, read_configuration
from pantherseg.models.bundle import Bundle, open_bundle
from pantherseg.models.find import ModelFolder, find_models, open_model_folder
from pantherseg.packing import graph as graph_module
from pantherseg.packing.graph import Graph
from pantherseg.packing.pack import Packer, as_bundle, pack, pack_models
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.recipe import Member, load_recipe

Weights = dict[str, torch.Tensor]
Damage = Callable[[Path], object]
NAME = "decoder.seg_layers.3.bias"
CONFIGURATION = ("configurations", "3d_fullres")
ARCHITECTURE = (*CONFIGURATION, "architecture")


@pytest.fixture(scope="module")
def graph(demo_folder: ModelFolder) -> Graph:
    configuration = read_configuration(demo_folder.path, "3d_fullres")
    return graph_module.make_graph(configuration.network(), (1, 1, *configuration.patch))


@pytest.fixture
def one_graph(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use one graph for every model, because making it takes longer than everything else in most tests."""
    monkeypatch.setattr(graph_module, "make_graph", lambda *_: graph)


ONE_GRAPH = pytest.mark.usefixtures("one_graph")


@pytest.fixture(scope="module")
def packed(demo_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return pack(demo_folder, tmp_path_factory.mktemp("packed") / "task1")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def change_json(path: Path, keys: tuple[str, ...], value: object) -> None:
    """Set the entry of a JSON file that nested keys name."""
    content = json.loads(path.read_text())
    entry = content
    for key in keys[:-1]:
        entry = entry[key]
    entry[keys[-1]] = value
    path.write_text(json.dumps(content))


def change_checkpoint(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def error_of(folder: Path, target: Path, named: Path) -> str:
    """Pack a folder, which must fail with one line that names a file, and leave nothing behind."""
    before = sorted(target.parent.iterdir())
    with pytest.raises(ModelError) as caught:
        pack(open_model_folder(folder), target)
    assert sorted(target.parent.iterdir()) == before
    return one_line_about(named, caught.value)


@pytest.mark.slow
def test_packing_a_model_folder_again_gives_the_demo_bundle(packed: Bundle) -> None:
    demo = open_bundle(DEMO_WEIGHTS / "task1")
    for fold in demo.folds:
        assert packed.weights_path(fold).read_bytes() == demo.weights_path(fold).read_bytes()
    # The output of OpenVINO may change with its version.
    versions = {name: version(name) for name in demo.manifest.provenance.versions if name != "pantherseg"}
    if versions.items() <= demo.manifest.provenance.versions.items():
        assert packed.graph_path.read_bytes() == demo.graph_path.read_bytes()
    same = {"provenance": demo.manifest.provenance, "sha256": demo.manifest.sha256}
    assert msgspec.structs.replace(packed.manifest, **same) == demo.manifest
    assert packed.manifest.provenance.files_sha256 == demo.manifest.provenance.files_sha256
    assert {path.stat().st_mode & 0o777 for path in packed.path.iterdir()} == {0o644}


@pytest.mark.slow
def test_a_bundle_has_the_weights_of_the_checkpoints(demo_folder: ModelFolder, packed: Bundle) -> None:
    for fold in packed.folds:
        weights = torch.load(demo_folder.checkpoint_path(fold), weights_only=True)["network_weights"]
        values = load_file(packed.verify(fold))
        for name in packed.manifest.tensors:
            assert (values[name] == weights[name].numpy()).all()


@pytest.mark.slow
def test_the_manifest_describes_the_checkpoints_and_the_plans(changed_model: ChangedModel, tmp_path: Path) -> None:
    folder = changed_model(
        folds=2, checkpoint="best.pth", trainer_name="nnUNetTrainerX", inference_allowed_mirroring_axes=(0, 2)
    )
    manifest = pack(open_model_folder(folder, checkpoint="best.pth"), tmp_path / "bundle").manifest
    plans = read_configuration(folder, "3d_fullres")
    assert (manifest.checkpoint, manifest.folds, manifest.mirroring_axes) == ("best.pth", ("0", "1"), (0, 2))
    assert (manifest.patch, manifest.labels, manifest.preprocessing) == (plans.patch, plans.labels, plans.preprocessing)
    assert manifest.provenance.record == {"configuration": "3d_fullres", "trainer": "nnUNetTrainerX"}
    assert manifest.provenance.versions["torch"] == version("torch")
    for name in (PLANS, DATASET):
        assert (tmp_path / "bundle" / name).read_bytes() == (folder / name).read_bytes()


@ONE_GRAPH
@pytest.mark.slow
def test_a_checkpoint_with_optimizer_state_becomes_half_as_large(
    changed_model: ChangedModel, demo_folder: ModelFolder, tmp_path: Path
) -> None:
    parameters = list(read_configuration(demo_folder.path, "3d_fullres").network().parameters())
    momenta = {number: {"momentum_buffer": torch.ones_like(value)} for number, value in enumerate(parameters)}
    model = open_model_folder(changed_model(folds=2, optimizer_state={"state": momenta, "param_groups": []}))
    bundle = pack(model, tmp_path / "bundle")
    before = sum(model.checkpoint_path(fold).stat().st_size for fold in model.folds)
    after = sum(bundle.weights_path(fold).stat().st_size for fold in bundle.folds)
    assert after <= 0.505 * before
    assert bundle.graph_path.stat().st_size < 500_000


@pytest.mark.fault("models", "a Git LFS pointer instead of a checkpoint", "an error that names it, and nothing packed")
def test_names_a_git_lfs_pointer(changed_model: ChangedModel, tmp_path: Path) -> None:
    folder = changed_model()
    path = folder / "fold_0" / CHECKPOINT
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "beginning with b'version https" in error_of(folder, tmp_path / "bundle", path)


def entries(**changes: object) -> Damage:
    """Change entries of a checkpoint."""
    return lambda path: change_checkpoint(path, lambda content: content.update(changes))


def weights(change: Callable[[Weights], object]) -> Damage:
    """Change the weights in a checkpoint."""
    return lambda path: change_checkpoint(path, lambda content: change(content["network_weights"]))


def one_weight(change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    return weights(lambda values: values.update({NAME: change(values[NAME])}))


def each_weight(change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    return weights(lambda values: values.update({name: change(value) for name, value in values.items()}))


NOT_FINITE = f"expected finite values in {NAME}, found NaN or infinite values"
OTHER_WEIGHTS = "the weights of the described network, found 1 "


@ONE_GRAPH
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (one_weight(lambda value: value * float("nan")), NOT_FINITE),
        (one_weight(lambda value: value / 0), NOT_FINITE),
        (weights(lambda values: values.pop(NAME)), f"{OTHER_WEIGHTS}missing: {NAME}"),
        (weights(lambda values: values.update(more=torch.ones(2))), f"{OTHER_WEIGHTS}unexpected: more"),
        (one_weight(lambda value: value[:2]), f"{OTHER_WEIGHTS}of another shape: {NAME} (2,) in place of (3,)"),
        (entries(init_args={"configuration": "2d"}), "as fold 0, found "),
        (entries(inference_allowed_mirroring_axes=(0,)), "as fold 0, found "),
    ],
)
def test_names_the_fold_with_wrong_content(
    changed_model: ChangedModel, tmp_path: Path, damage: Damage, message: str
) -> None:
    folder = changed_model(folds=2)
    path = folder / "fold_1" / CHECKPOINT
    damage(path)
    assert message in error_of(folder, tmp_path / "bundle", path)


@pytest.mark.fault(
    "models",
    "one fold of an nnU-Net folder was trained with batch norm, and the others with instance norm",
    "an error that names a checkpoint that does not fit the first fold",
)
@ONE_GRAPH
@pytest.mark.parametrize("fold", [0, 1])
def test_names_a_fold_that_does_not_fit_the_first_one(changed_model: ChangedModel, tmp_path: Path, fold: int) -> None:
    def add_statistics(values: Weights) -> None:
        for name, value in list(values.items()):
            norm, _, last = name.rpartition(".")
            if last == "weight" and value.ndim == 1:
                values[f"{norm}.running_mean"], values[f"{norm}.running_var"] = torch.zeros_like(value), value.abs()
                values[f"{norm}.num_batches_tracked"] = torch.tensor(3)

    folder = changed_model(folds=2)
    weights(add_statistics)(folder / f"fold_{fold}" / CHECKPOINT)
    message = error_of(folder, tmp_path / "bundle", folder / "fold_1" / CHECKPOINT)
    kind = "missing" if fold == 0 else "unexpected"
    assert re.search(rf"found \d+ {kind}: [\w.]+\.running_mean, [\w.]+\.running_var and \d+ more$", message)


def test_refuses_mirroring_axes_that_the_patch_does_not_have(changed_model: ChangedModel, tmp_path: Path) -> None:
    folder = changed_model(inference_allowed_mirroring_axes=(0, 3))
    message = error_of(folder, tmp_path / "bundle", folder / "fold_0" / CHECKPOINT)
    assert "expected mirroring axes below 3 for a patch of (48, 80, 112), found (0, 3)" in message


def make_unreadable(path: Path) -> None:
    """Make reading a checkpoint fail, as on a defective disk."""
    path.unlink()
    path.symlink_to("/proc/self/mem")


DAMAGES: dict[str, Damage] = {
    "no folder": lambda path: shutil.rmtree(path.parent),
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "flipped bit": flip_a_bit,  # torch itself does not notice it
    "unreadable": make_unreadable,
    "NaN": one_weight(lambda value: value * float("nan")),
    "architecture": one_weight(lambda value: value[:2]),
    "configuration": entries(init_args={"configuration": "2d"}),
    "unknown configuration": entries(init_args={"configuration": "5d"}),
    "mirroring": entries(inference_allowed_mirroring_axes=(0,)),
    "no weights": entries(network_weights=torch.ones(3)),
    "complex weights": each_weight(lambda value: value.to(torch.complex64)),
    "sparse weights": each_weight(lambda value: value.to_sparse()),
    "weights without values": each_weight(lambda value: value.to("meta")),
    "impossible mirroring": entries(inference_allowed_mirroring_axes=(0, 3)),
}


@pytest.mark.fault(
    "models",
    "one checkpoint of five in an nnU-Net folder is damaged, and the folder is used directly: [{id}]",
    "the other four packed, and an error that names the checkpoint when its fold is loaded",
)
@pytest.mark.slow
@ONE_GRAPH
@pytest.mark.parametrize("fold", [0, 2])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_leaves_a_damaged_fold_out_on_use_and_refuses_to_pack_it(
    demo_folder: ModelFolder, packed: Bundle, tmp_path: Path, damage: Damage, fold: int
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
    model = ModelFolder(folder, packed.folds, CHECKPOINT)
    with pytest.raises(ModelError):
        pack(model, tmp_path / "bundle")
    with pytest.raises(ModelError):
        as_bundle(model)
    assert not (tmp_path / "bundle").exists()


@ONE_GRAPH
@pytest.mark.parametrize(("damaged", "enough"), [([0, 1], True), ([0, 4], True), ([0, 1, 2], False), (range(5), False)])
def test_enough_folds_must_be_undamaged(
    demo_folder: ModelFolder, tmp_path: Path, damaged: list[int], enough: bool
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(demo_folder.path, folder)
    for fold in damaged:
        (folder / f"fold_{fold}" / CHECKPOINT).write_bytes(b"")
    model = open_model_folder(folder)
    if enough:
        assert [int(fold) for fold in as_bundle(model, 3).fold_errors] == damaged
        return
    with pytest.raises(ModelError) as caught:
        as_bundle(model, 3)
    one_line_about(folder / "fold_0" / CHECKPOINT, caught.value)


def test_an_error_in_the_plans_names_the_plans(changed_model: ChangedModel) -> None:
    folder = changed_model(folds=5)
    change_json(folder / PLANS, (*ARCHITECTURE, "network_class_name"), "my_networks.UNet")
    with pytest.raises(ModelError) as caught:
        as_bundle(open_model_folder(folder), 3)
    one_line_about(folder / PLANS, caught.value)


@pytest.mark.slow
@ONE_GRAPH
def test_packs_a_folder_that_members_share_once(changed_model: ChangedModel, packed: Bundle) -> None:
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


UNETS = "dynamic_network_architectures.architectures.unet"
BATCH_NORM = "torch.nn.modules.batchnorm.BatchNorm3d"


@pytest.mark.parametrize(
    ("file", "keys", "value", "named", "message"),
    [
        (PLANS, (*CONFIGURATION, "normalization_schemes"), ["MyNormalization"], "", "MyNormalization"),
        (PLANS, (*CONFIGURATION, "resampling_fn_data"), "my_resampling", "", "my_resampling"),
        (PLANS, (*CONFIGURATION, "preprocessor_name"), "MyPreprocessor", "", "preprocessor MyPreprocessor"),
        (PLANS, (*CONFIGURATION, "patch_size"), [24, 40, 48], "", "packed with a patch of (24, 40, 48), found "),
        (PLANS, (*CONFIGURATION, "previous_stage"), "3d_fullres", "", "cascade True"),
        (PLANS, ("image_reader_writer",), "NaturalImage2DIO", "", "reader NaturalImage2DIO"),
        (PLANS, ("configurations",), {"2d": {}}, "", "3d_fullres"),
        (PLANS, (*ARCHITECTURE, "network_class_name"), "my_networks.UNet", PLANS, "found my_networks.UNet"),
        (PLANS, (*ARCHITECTURE, "network_class_name"), f"{UNETS}.MyUNet", PLANS, "MyUNet can be built from"),
        (PLANS, (*ARCHITECTURE, "arch_kwargs", "depth_of_thought"), 3, PLANS, "depth_of_thought"),
        pytest.param(
            PLANS,
            (*ARCHITECTURE, "arch_kwargs", "norm_op"),
            BATCH_NORM,
            f"fold_0/{CHECKPOINT}",
            " missing: ",
            marks=pytest.mark.slow,
        ),
        (DATASET, ("channel_names",), {"0": "T1", "1": "T2"}, "", "channels 2"),
        (DATASET, ("labels",), {"background": 0, "pancreas": [1, 2], "tumour": [1]}, "", "regions True"),
        (DATASET, ("labels",), {"background": 0, "tumour": 1, "ignore": 2}, "", "ignore label True"),
    ],
)
def test_refuses_models_that_it_cannot_run(
    changed_model: ChangedModel,
    tmp_path: Path,
    file: str,
    keys: tuple[str, ...],
    value: object,
    named: str,
    message: str,
) -> None:
    folder = changed_model()
    change_json(folder / DATASET, ("regions_class_order",), [2, 1])
    change_json(folder / file, keys, value)
    assert message in error_of(folder, tmp_path / "bundle", folder / named)


@pytest.mark.fault("models", "models are packed into a folder that is not empty", "an error, and the folder unchanged")
def test_refuses_a_target_that_is_not_empty(demo_folder: ModelFolder, tmp_path: Path) -> None:
    folder, file, link = tmp_path / "folder", tmp_path / "file", tmp_path / "link"
    folder.mkdir()
    (folder / "mine").touch()
    file.touch()
    link.symlink_to(tmp_path / "gone")
    for target, found in ((folder, "a folder that is not empty"), (file, "a file"), (link, "a broken link")):
        with pytest.raises(OutputError, match=f"{target}: expected a new folder for the bundle, found {found}"):
            pack(demo_folder, target)
    assert sorted(tmp_path.rglob("*")) == [file, folder, folder / "mine", link]


def test_names_a_target_that_cannot_be_written(demo_folder: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/bundle: expected to write this bundle, found "):
        pack(demo_folder, tmp_path / "file" / "bundle")


def files_of(bundle: Bundle) -> set[str]:
    """Return the names of the files that a complete bundle has."""
    return {"manifest.json", *bundle.manifest.sha256, *bundle.manifest.provenance.files_sha256}


@ONE_GRAPH
def test_fills_an_empty_folder_and_makes_missing_parents(
    changed_model: ChangedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, empty = open_model_folder(changed_model()), tmp_path / "parent" / "empty"
    (empty / ".part").mkdir(parents=True)
    (empty / ".part" / "of_a_process_that_was_killed").touch()
    monkeypatch.chdir(empty)
    bundle = pack(model, Path())
    # The unfinished bundle of another process is neither an obstacle nor removed.
    assert {path.name for path in empty.iterdir()} == {".part", *files_of(bundle)}
    assert list(empty.parent.iterdir()) == [empty]
    assert pack(model, tmp_path / "c" / "d" / "e").folds == ("0",)


@ONE_GRAPH
@pytest.mark.parametrize("exists", [False, True])
def test_of_two_that_pack_to_one_target_the_first_to_finish_succeeds(
    changed_model: ChangedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph: Graph, exists: bool
) -> None:
    model, target = open_model_folder(changed_model()), tmp_path / "to" / "bundle"
    (target if exists else target.parent).mkdir(parents=True)
    calls = []

    def make_graph(*_: object) -> Graph:
        calls.append("")
        if len(calls) == 1:
            pack(model, target)
        return graph

    monkeypatch.setattr(graph_module, "make_graph", make_graph)
    with pytest.raises(OutputError) as caught:
        pack(model, target)
    one_line_about(target, caught.value)
    assert len(calls) == 2
    assert contents(target).keys() == files_of(open_bundle(target))
    assert list(target.parent.iterdir()) == [target]


def test_describes_a_bundle_with_its_labels() -> None:
    line = summary(open_bundle(DEMO_WEIGHTS / "task1"))
    assert f"of {CHECKPOINT}, labels 1 tumour, 2 pancreas, " in line
    manifest = open_bundle(DEMO_WEIGHTS / "task1").manifest
    many = msgspec.structs.replace(manifest, labels={f"part {number}": number for number in range(41)})
    described = Bundle(DEMO_WEIGHTS / "task1", many, ()).describe_labels()
    assert described.startswith("labels 1 part 1, 2 part 2, ")
    assert described.endswith("8 part 8 and 32 more")


@pytest.mark.fault("models", "a raw nnU-Net folder where torch is not installed", "an error that says what to do")
def test_without_torch_the_error_says_how_to_pack(
    demo_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pantherseg.packing.pack.find_spec", lambda name: None if name == "torch" else find_spec(name))
    attempts: list[Callable[[], Bundle]] = [
        lambda: pack(demo_folder, tmp_path / "bundle"),
        lambda: as_bundle(demo_folder),
    ]
    for attempt in attempts:
        with pytest.raises(ModelError, match="expected a bundle, found a model folder, and no torch to read") as caught:
            attempt()
        text = one_line_about(demo_folder.path, caught.value)
        assert f"run `pantherseg pack {demo_folder.path} BUNDLE` where they are installed" in text
    assert list(tmp_path.iterdir()) == []
    bundle = open_bundle(DEMO_WEIGHTS / "task1")
    assert as_bundle(bundle) is bundle, "a bundle does not need torch"


@ONE_GRAPH
def test_packs_every_model_of_a_recipe(demo_folder: ModelFolder, tmp_path: Path) -> None:
    root, target = tmp_path / "models", tmp_path / "bundles"
    shutil.copytree(demo_folder.path, root / "task2" / "results", ignore=shutil.ignore_patterns("fold_[1234]"))
    shutil.copytree(DEMO_WEIGHTS / "localizer", root / "localizer")
    bundles = pack_models(root, target, load_recipe(task_recipe(2)))
    assert [bundle.path for bundle in bundles] == [target / "task2", target / "localizer"]
    assert sorted(path.name for path in target.iterdir()) == ["localizer", "task2"]
    assert contents(target / "localizer") == contents(DEMO_WEIGHTS / "localizer"), "bundles are copied"
    with pytest.raises(OutputError, match=r"expected a new folder"):
        pack_models(root, target, load_recipe(task_recipe(2)))


@pytest.mark.parametrize("name", ["fold_2.safetensors", PLANS])
def test_checks_a_bundle_before_copying_it(copied_bundle: CopiedBundle, tmp_path: Path, name: str) -> None:
    flip_a_bit(copied_bundle.path / name)
    with pytest.raises(ModelError, match=f"{name}: expected SHA-256"):
        pack_models(copied_bundle.path.parent, tmp_path / "bundles", load_recipe(task_recipe(1)))
    assert not (tmp_path / "bundles").exists()


@ONE_GRAPH
@pytest.mark.parametrize("packed_before", [False, True])
@pytest.mark.slow
def test_refuses_a_model_without_the_label_of_the_recipe(
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
@pytest.mark.slow
def test_packs_all_folds_of_members_that_share_a_model(demo_folder: ModelFolder, tmp_path: Path) -> None:
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


def test_names_a_temporary_folder_that_cannot_be_made(
    demo_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    with pytest.raises(OutputError, match=r"temporary folder: expected room to pack a model, found .*pantherseg pack"):
        as_bundle(demo_folder)


@ONE_GRAPH
def test_names_a_full_disk(changed_model: ChangedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    folder = changed_model(folds=1)
    monkeypatch.setattr("pantherseg.packing.pack.save_file", full)
    with pytest.raises(OutputError, match=r"bundle: expected to write this bundle, found I/O error: No space left"):
        pack(open_model_folder(folder), tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
