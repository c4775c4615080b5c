"""Masks and models in any orientation: a mask does not depend on the order in which a file stores its voxels."""

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
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from conftest import ChangedModel, RealData, dice
from pantherseg.case import CaseOutput, run_case
from pantherseg.errors import ModelError
from pantherseg.events import EventCode
from pantherseg.inference.backends.openvino_backend import OpenVinoBackend
from pantherseg.inference.predictor import Predictor
from pantherseg.io import read_image, read_labels, write_volume
from pantherseg.localize import localize
from pantherseg.model_sources.nnunet import DATASET, PLANS
from pantherseg.models.bundle import Bundle, open_bundle
from pantherseg.models.find import ModelFolder, open_model_folder
from pantherseg.models.manifest import MANIFEST
from pantherseg.orientation import ORIENTATIONS, Orientation, Turn
from pantherseg.packing.pack import pack
from pantherseg.paths import DEMO_WEIGHTS, ROOT, task_recipe
from pantherseg.pipeline import Segmentation, segment
from pantherseg.preprocessing.intensity import IntensityScheme
from pantherseg.preprocessing.preprocess import Preprocessing
from pantherseg.preprocessing.resample import Resampling
from pantherseg.recipe import Recipe, load_recipe
from pantherseg.session import Session
from pantherseg.volume import Box, Grid, Volume

# The order of most NIfTI files, and one that moves every axis.
OTHER_ORDERS = ("RAS", "SRA")

Predicted = Callable[[Path], NDArray[Any]]


@pytest.fixture(scope="module")
def session(one_fold: Recipe) -> Session:
    return Session(one_fold, DEMO_WEIGHTS, device="cpu", many_cases=True)


def session_with(models: Path, recipe: Recipe) -> Session:
    return Session(recipe, models, device="cpu")


def segmented(volume: Volume, session: Session, code: Orientation) -> Segmentation:
    """Segment a volume that is stored in an orientation."""
    stored = volume.turned_to(code)
    result = segment(stored, session)
    assert result.mask.grid == stored.grid
    return result


def codes(result: Segmentation) -> list[EventCode]:
    return [event.code for event in result.events]


def sample(task: int) -> tuple[Volume, Volume]:
    """The sample volume of a task, and its reference mask."""
    image = next((ROOT / "test" / "input" / f"task{task}" / "images").rglob("*.mha"))
    return read_image(image)[0], read_labels(ROOT / "test" / "reference" / f"task{task}" / image.name)


def dice_of(mask: Volume, reference: Volume) -> float:
    return dice(mask.array == 1, reference.array == 1)


# Masks in the 48 orders


@pytest.mark.parametrize("code", ORIENTATIONS)
@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
def test_a_box_of_ones_comes_back_in_the_same_box(code: Orientation, transpose: tuple[int, int, int]) -> None:
    box = Box((1, 2, 0), (3, 4, 5))
    array = np.zeros((4, 6, 7), np.float32)
    array[box.slices] = 1
    stored = Volume(array, Grid(array.shape, (4.0, 2.0, 1.5))).turned_to(code)
    resampling = Resampling.from_plans(
        "resample_data_or_seg_to_shape", {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    )
    scheme = IntensityScheme.registry.decode({"scheme": "NoNormalization"})
    spacing = tuple((4.0, 2.0, 1.5)[axis] for axis in transpose)
    preprocessing = Preprocessing(
        spacing=spacing, transpose=transpose, normalization=scheme, images=resampling, logits=resampling
    )
    turn = stored.grid.turn_to("LPS")
    prepared = preprocessing.run(stored.array, stored.grid.spacing, turn)
    expected = array[box.slices].transpose(transpose)
    np.testing.assert_array_equal(prepared.data[0], expected, "the network sees the box alone, in its own axes")
    logits = np.stack([np.zeros_like(expected), 100 * expected]).astype(np.float16)
    depth = stored.grid.shape[0]
    slabs = [prepared.back.slab(logits, start, min(start + 2, depth)) for start in range(0, depth, 2)]
    labels = np.concatenate(slabs, axis=1).argmax(axis=0)
    assert Box.around(labels == 1) == box.turned(Turn.between("LPS", code), array.shape)
    assert (labels == 1).sum() == np.prod(box.shape)


@pytest.mark.fault(
    "inputs", "a sample volume of Task {task}, stored in each of the 48 voxel orders", "the same mask each time"
)
@pytest.mark.slow
@pytest.mark.parametrize("task", [pytest.param(1, marks=pytest.mark.full), 2])
def test_a_sample_has_the_same_mask_in_all_48_voxel_orders(task: int) -> None:
    image, tumour = sample(task)
    recipe = load_recipe(task_recipe(task))
    # One fold, and tiles that do not overlap, to save time.
    member = msgspec.structs.replace(recipe.members[0], folds=[0], step=1.0)
    recipe = msgspec.structs.replace(recipe, members=[member])
    session = Session(recipe, DEMO_WEIGHTS, device="cpu", many_cases=True)
    expected = segment(image, session)
    assert dice_of(expected.mask, tumour) > 0.6
    for code in ORIENTATIONS[1:]:
        result = segmented(image, session, code)
        np.testing.assert_array_equal(result.mask.turned_to("LPS").array, expected.mask.array, code)
        assert result.box == expected.box.turned(Turn.between("LPS", code), image.grid.shape)
        assert result.events == expected.events
        assert (result.pancreas is None) == (expected.pancreas is None) == (task == 1)
        if result.pancreas and expected.pancreas:
            back = result.pancreas.turned(Turn.between(code, "LPS"), result.mask.grid.shape)
            assert (back.box, back.ml) == (expected.pancreas.box, expected.pancreas.ml)
            np.testing.assert_allclose(back.centre_mm, expected.pancreas.centre_mm, atol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("task", [1, 2])
def test_the_dice_of_a_sample_is_the_same_in_all_48_voxel_orders_with_every_fold(task: int) -> None:
    """With the recipes as they are; the figures are printed with `-s`."""
    image, tumour = sample(task)
    session = Session(load_recipe(task_recipe(task)), DEMO_WEIGHTS, device="cpu", many_cases=True)
    found = {code: dice_of(segmented(image, session, code).mask, tumour.turned_to(code)) for code in ORIENTATIONS}
    print(f"task {task}: Dice {found['LPS']:.6f} in LPS, {len(set(found.values()))} value in {len(found)} orders")
    assert set(found.values()) == {found["LPS"]}
    assert found["LPS"] > 0.7


@pytest.mark.parametrize("code", OTHER_ORDERS)
def test_an_oblique_volume_has_the_same_mask_in_another_voxel_order(
    code: Orientation, pancreas: Volume, session: Session
) -> None:
    direction = sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.4).GetMatrix()
    rows = np.reshape(direction, (3, 3)).tolist()
    oblique = Volume(
        pancreas.array, Grid(pancreas.grid.shape, pancreas.grid.spacing, (3.0, 4.0, 5.0), tuple(map(tuple, rows)))
    )
    expected = segment(oblique, session)
    assert expected.mask.array.any()
    result = segmented(oblique, session, code)
    np.testing.assert_array_equal(result.mask.turned_to("LPS").array, expected.mask.array)


@pytest.mark.fault(
    "inputs", "a {suffix} file stored in the order {code}", "the mask of the same volume in LPS, voxel for voxel"
)
@pytest.mark.slow
@pytest.mark.parametrize("code", OTHER_ORDERS)
@pytest.mark.parametrize("suffix", [".mha", ".nii", ".nii.gz", ".nrrd"])
def test_files_of_each_format_have_the_same_mask_in_each_order(
    code: Orientation, suffix: str, pancreas: Volume, session: Session, tmp_path: Path
) -> None:
    expected = segment(pancreas, session).mask
    path = tmp_path / f"scan{suffix}"
    write_volume(pancreas.turned_to(code), path)
    output = CaseOutput(tmp_path / "masks" / path.name, tmp_path / "masks" / "scan.json")
    run_case(path, session, output)
    stored, mask = (sitk.ReadImage(str(file)) for file in (path, output.mask))
    for get in (sitk.Image.GetSize, sitk.Image.GetSpacing, sitk.Image.GetOrigin, sitk.Image.GetDirection):
        assert get(mask) == pytest.approx(get(stored), abs=1e-5)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.DICOMOrient(mask, "LPS")), expected.array)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "totalsegmentator/example_mr_sm.nii.gz",
        "chaos/image_1.nii.gz",
        "chaos/image_2.nii.gz",
        "ukat/siemens_01_mag_e1.nii.gz",
        "ukat/ge_01_mag_e1.nii.gz",
        "renal/test_sub_01.nii.gz",
    ],
)
def test_a_real_volume_has_the_same_mask_in_its_own_and_two_other_orders(
    name: str, real_data: RealData, session: Session
) -> None:
    volume, _ = read_image(real_data(name))
    own = volume.grid.orientation
    expected = segment(volume, session).mask
    assert expected.array.any(), "the challenge's recipe rescues an empty mask"
    for code in [other for other in ("LPS", "RAS", "SRA") if other != own][:2]:
        result = segmented(volume, session, code)
        np.testing.assert_array_equal(result.mask.turned_to(own).array, expected.array, code)


# What a model knows


@pytest.mark.slow
def test_a_member_trained_in_another_orientation_sees_the_volume_so(demo: Bundle, pancreas: Volume) -> None:
    one = msgspec.structs.replace(demo.manifest, orientation="RAS")
    turned = Predictor(Bundle(demo.path, one, ("0",)), OpenVinoBackend())
    assert turned.trained_orientation == "RAS"
    # The network that sees a volume turned to RAS, and another that sees the turned array as if it lay in LPS.
    as_lps = Volume(pancreas.turned_to("RAS").array, pancreas.grid)
    expected = Predictor(Bundle(demo.path, demo.manifest, ("0",)), OpenVinoBackend()).predict(as_lps).labels()
    assert (expected > 0).any()
    labels = turned.predict(pancreas).labels()
    np.testing.assert_array_equal(labels, Turn.between("RAS", "LPS").view(expected))
    overridden = Predictor(Bundle(demo.path, one, ("0",)), OpenVinoBackend(), orientation="LPS")
    assert not np.array_equal(overridden.predict(pancreas).labels(), labels)


@pytest.mark.slow
def test_members_of_two_orientations_are_fused_on_one_grid(pancreas: Volume, one_fold: Recipe, tmp_path: Path) -> None:
    for role in ("first", "second"):
        shutil.copytree(DEMO_WEIGHTS / "task1", tmp_path / role)
    member = one_fold.members[0]

    def mask(first: Orientation, second: Orientation, volume: Volume = pancreas) -> NDArray[Any]:
        members = [
            msgspec.structs.replace(member, model="first", orientation=first),
            msgspec.structs.replace(member, model="second", orientation=second),
        ]
        result = segment(volume, session_with(tmp_path, msgspec.structs.replace(one_fold, members=members)))
        assert [model.orientation for model in result.models] == [first, second]
        return result.mask.turned_to("LPS").array

    same = mask("LPS", "LPS")
    mixed = mask("LPS", "RAS")
    assert same.any()
    assert not np.array_equal(mixed, same)
    np.testing.assert_array_equal(mask("RAS", "LPS"), mixed, "the order of the members does not matter")
    np.testing.assert_array_equal(mask("LPS", "RAS", pancreas.turned_to("SRA")), mixed)


@pytest.mark.fault(
    "models", "a bundle does not say in which orientation it was trained", "the mask for LPS, and an event that says so"
)
@pytest.mark.slow
def test_an_unknown_orientation_is_assumed_with_an_event(
    pancreas: Volume, session: Session, one_fold: Recipe, tmp_path: Path
) -> None:
    shutil.copytree(DEMO_WEIGHTS / "task1", tmp_path / "task1")
    manifest = tmp_path / "task1" / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"orientation": None}))
    result = segmented(pancreas, session_with(tmp_path, one_fold), "RAS")
    assert codes(result)[0] == EventCode.ORIENTATION_ASSUMED
    assert "the orientation of the training volumes is not known, so LPS was assumed" in result.events[0].message
    np.testing.assert_array_equal(result.mask.turned_to("LPS").array, segment(pancreas, session).mask.array)
    stated = msgspec.structs.replace(one_fold.members[0], orientation="LPS")
    known = segmented(pancreas, session_with(tmp_path, msgspec.structs.replace(one_fold, members=[stated])), "RAS")
    assert EventCode.ORIENTATION_ASSUMED not in codes(known)


def changed_json(path: Path, **changes: object) -> None:
    content = {key: value for key, value in (json.loads(path.read_text()) | changes).items() if value is not None}
    path.write_text(json.dumps(content))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plans", "dataset", "validation", "expected"),
    [
        ({}, {}, (), None),
        ({}, {"orientation": "PIR"}, (), "PIR"),
        ({}, {"orientation": "PIR"}, ("RAS",), "RAS"),
        ({"image_reader_writer": "NibabelIO"}, {}, ("RAS", "RAS", "RAS"), "RAS"),
        ({}, {}, ("LAS",), "LAS"),
        ({}, {}, ("LPS", "RAS"), None),
        ({"image_reader_writer": "NibabelIOWithReorient"}, {"orientation": "LPS"}, ("LPS",), "RAS"),
        ({"image_reader_writer": "SimpleITKIOWithReorient"}, {}, (), "RAS"),
    ],
)
def test_packing_finds_the_orientation_of_the_training_volumes(
    changed_model: ChangedModel,
    tmp_path: Path,
    plans: dict[str, str],
    dataset: dict[str, str],
    validation: tuple[str, ...],
    expected: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = changed_model()
    changed_json(folder / PLANS, **plans)
    changed_json(folder / DATASET, **{"orientation": None, **dataset})
    for number, code in enumerate(validation):
        mask = Volume(np.zeros((2, 3, 4), np.uint8), Grid((2, 3, 4), (3.0, 1.0, 1.0))).turned_to(code)
        write_volume(mask, folder / "fold_0" / "validation" / f"case_{number}.nii.gz")
    model = open_model_folder(folder)
    assert pack(model, tmp_path / "bundle").manifest.orientation == expected
    contradicted = "image_reader_writer" not in plans and len({*validation, *dataset.values()}) > 1
    assert ("its validation masks lie in" in caplog.text) == contradicted
    if expected is None:
        assert pack(model, tmp_path / "given", orientation="ASR").manifest.orientation == "ASR"
    else:
        with pytest.raises(ModelError, match=f"the orientation {expected}, which the folder states, found ASR"):
            pack(model, tmp_path / "given", orientation="ASR")


@pytest.mark.fault(
    "models", "dataset.json names an orientation that does not exist", "an error that names the folder and the value"
)
def test_packing_refuses_an_unknown_orientation_in_dataset_json(changed_model: ChangedModel, tmp_path: Path) -> None:
    folder = changed_model()
    changed_json(folder / DATASET, orientation="LPX")
    with pytest.raises(ModelError, match="orientation 'LPX' instead of a code such as LPS"):
        pack(open_model_folder(folder), tmp_path / "bundle")


@pytest.mark.fault(
    "models",
    "an nnU-Net folder with the reader {reader}, which turns volumes, for a file stored as {code}",
    "nnU-Net's own mask, 0 voxels differ",
)
@pytest.mark.slow
@pytest.mark.parametrize("code", ["RAS", "LPS", "PIR"])
@pytest.mark.parametrize("reader", ["NibabelIOWithReorient", "SimpleITKIOWithReorient"])
def test_a_reader_that_turns_volumes_gives_nnunets_own_mask(
    reader: str, code: Orientation, demo_folder: ModelFolder, pancreas: Volume, tmp_path: Path, one_fold: Recipe
) -> None:
    import torch
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from pantherseg.training.folders import trainer_environment

    models = tmp_path / "models"
    shutil.copytree(demo_folder.path, models / "task1", ignore=shutil.ignore_patterns("fold_[1234]"))
    changed_json(models / "task1" / PLANS, image_reader_writer=reader)
    # The demo network was trained on the array as it lies in LPS, so a volume whose array lies so in RAS suits it.
    in_ras = Volume(
        pancreas.array,
        Grid(pancreas.grid.shape, pancreas.grid.spacing, (9.0, 8.0, 7.0), ((-1, 0, 0), (0, -1, 0), (0, 0, 1))),
    )
    path = tmp_path / "scan.nii.gz"
    write_volume(in_ras.turned_to(code), path)
    output = CaseOutput(tmp_path / "masks" / "scan.nii.gz", tmp_path / "masks" / "scan.json")
    run_case(path, session_with(models, one_fold.with_rescue(rescue=False)), output)

    own = recursive_find_reader_writer_by_name(reader)()
    predictor = nnUNetPredictor(
        device=torch.device("cpu"), use_mirroring=False, perform_everything_on_device=False, allow_tqdm=False
    )
    # nnU-Net looks for the class of the trainer that the checkpoint names.
    with trainer_environment():
        predictor.initialize_from_trained_model_folder(str(models / "task1"), ("0",), "checkpoint_final.pth")
    predictor.allowed_mirroring_axes = ()
    array, properties = own.read_images([str(path)])
    own.write_seg(predictor.predict_single_npy_array(array, properties), str(tmp_path / "nnunet.nii.gz"), properties)

    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(output.mask)))
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "nnunet.nii.gz"))) == 1
    assert expected.any()
    assert (mask != expected).sum() == 0


@pytest.mark.slow
@pytest.mark.parametrize("code", ["RAS", "PIR"])
def test_a_localizer_that_was_trained_in_another_orientation_finds_the_same_box(code: Orientation) -> None:
    """The localizer's bundle says LPS; a volume that lies so in another orientation suits a localizer that wants it."""
    image, _ = sample(2)
    recipe = load_recipe(task_recipe(2))
    assert recipe.localizer is not None
    localizer = Predictor(open_bundle(DEMO_WEIGHTS / "localizer"), OpenVinoBackend())
    expected = localize(image, localizer, recipe.localizer).box
    assert expected is not None
    # The same array, said to lie in the other orientation.
    direction = Grid((1, 1, 1), (1.0, 1.0, 1.0)).turned(Turn.between("LPS", code)).direction
    as_other = Volume(image.array, replace(image.grid, direction=direction))
    assert as_other.grid.orientation == code
    other = replace(localizer, orientation=code)
    for stored in (code, "LPS", "SAL"):
        box = localize(as_other.turned_to(stored), other, recipe.localizer).box
        assert box == expected.turned(Turn.between(code, stored), image.grid.shape)
