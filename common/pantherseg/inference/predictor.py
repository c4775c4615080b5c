"""The folds of one nnU-Net model over one volume, with nnU-Net's own predictor in this process.

Preprocessing, tiles, Gaussian weights, mirroring, the mean of the folds' logits and the way back to the volume's
grid are nnU-Net's (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z).
"""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pantherseg.bundle import ModelFolder
from pantherseg.errors import DeviceError, InputError, ModelError
from pantherseg.networks import build_network
from pantherseg.packing import check_fit, read_checkpoint
from pantherseg.volume import Volume

with contextlib.redirect_stdout(io.StringIO()):  # stdout belongs to results; nnU-Net greets there on import
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

# A logit at which the background is certain: where nnU-Net's crop to non-zero voxels has cut the volume.
CERTAIN = 50.0
READERS = ("SimpleITKIO", "NibabelIO")


def choose_device(wanted: str) -> str:
    """Return `cpu` or `cuda` for `auto`, `cpu` or `cuda`. Raises DeviceError where `cuda` does not answer."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise DeviceError("device", expected="a CUDA device", found="none that answers", hint="use --device cpu")
    if wanted == "auto":
        return "cuda" if available else "cpu"
    return wanted


@dataclass(frozen=True)
class Predictor:
    """A model folder's folds, loaded. device: `cpu` or `cuda`; step: distance of tiles as a fraction of the patch."""

    model: ModelFolder
    network: nnUNetPredictor

    @classmethod
    def load(cls, model: ModelFolder, *, device: str, step: float = 0.5, mirroring: bool = False) -> Predictor:
        """Read plans and checkpoints and build the network, whatever trainer made them. Raises ModelError."""
        checkpoints = [read_checkpoint(model.checkpoint_path(fold)) for fold in model.folds]
        first = checkpoints[0]
        plans, dataset = model.plans(), model.dataset()
        try:
            manager = PlansManager(plans)
            configuration = manager.get_configuration(first.configuration)
            channels = determine_num_input_channels(manager, configuration, dataset)
            labels = manager.get_label_manager(dataset)
            reader = plans["image_reader_writer"]
            _ = manager.transpose_forward, manager.transpose_backward  # read here, where a lack of them is named
            cascaded, regions = configuration.previous_stage_name is not None, labels.has_regions
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, AssertionError) as error:
            raise ModelError(
                model.path, expected=f"plans.json and dataset.json with {first.configuration}", found=repr(error)
            ) from error
        if channels != 1 or cascaded or regions or reader not in READERS:
            found = f"{channels} channels, cascade {cascaded}, regions {regions}, reader {reader}"
            raise ModelError(model.path, expected="one channel, one stage, labels, SimpleITKIO", found=found)
        network = build_network(
            model.path / "plans.json", configuration, channels=channels, classes=labels.num_segmentation_heads
        )
        for fold, checkpoint in zip(model.folds, checkpoints, strict=True):
            check_fit(model.checkpoint_path(fold), network.state_dict(), checkpoint.weights)
        with contextlib.redirect_stdout(io.StringIO()):
            predictor = nnUNetPredictor(
                tile_step_size=step,
                use_mirroring=mirroring,
                device=torch.device(device),
                allow_tqdm=sys.stderr.isatty(),
            )
        predictor.manual_initialization(
            network,
            manager,
            configuration,
            [checkpoint.weights for checkpoint in checkpoints],
            dataset,
            first.trainer,
            first.mirroring_axes or None,
        )
        return cls(model, predictor)

    def logits(self, volume: Volume) -> NDArray[np.float32]:
        """Return the mean logits of all folds, (class, z, y, x) on the volume's grid."""
        configuration, manager = self.network.configuration_manager, self.network.plans_manager
        properties: dict[str, Any] = {"spacing": list(volume.grid.spacing)}
        self._check_size(volume)
        preprocessor = configuration.preprocessor_class(verbose=False)
        data, _, properties = preprocessor.run_case_npy(
            volume.array[None], None, properties, manager, configuration, self.network.dataset_json
        )
        logits = self.network.predict_logits_from_preprocessed_data(torch.from_numpy(data))
        if not bool(torch.isfinite(logits).all()):
            raise ModelError(self.model.path, expected="finite logits", found="NaN or infinite ones; a fold is damaged")
        return self._on_grid(logits, properties, volume.grid.shape)

    @property
    def classes(self) -> int:
        """Number of classes, the background's included."""
        return int(self.network.label_manager.num_segmentation_heads)

    def _check_size(self, volume: Volume) -> None:
        """Raise InputError for a volume of which nothing is left at the model's spacing."""
        spacing = [volume.grid.spacing[axis] for axis in self.network.plans_manager.transpose_forward]
        shape = [volume.grid.shape[axis] for axis in self.network.plans_manager.transpose_forward]
        target = self.network.configuration_manager.spacing
        scaled = zip(shape[-len(target) :], spacing[-len(target) :], target, strict=True)
        if any(round(n * old / new) < 1 for n, old, new in scaled):
            raise InputError(
                "volume",
                expected=f"at least half a voxel a side at the model's spacing {list(target)} mm (z, y, x)",
                found=volume.grid.describe(),
            )

    def _on_grid(
        self, logits: torch.Tensor, properties: dict[str, Any], shape: tuple[int, int, int]
    ) -> NDArray[np.float32]:
        """Resample logits to the volume's voxels and undo nnU-Net's crop to non-zero voxels and its transposition."""
        configuration, manager = self.network.configuration_manager, self.network.plans_manager
        cropped = properties["shape_after_cropping_and_before_resampling"]
        spacing = [properties["spacing"][axis] for axis in manager.transpose_forward]
        # A 2-D configuration keeps the slices where they are.
        from_spacing = [spacing[0], *configuration.spacing][-len(cropped) :]
        resampled = np.asarray(configuration.resampling_fn_probabilities(logits, cropped, from_spacing, spacing))
        whole = np.zeros((len(resampled), *properties["shape_before_cropping"]), np.float32)
        whole[0] = CERTAIN
        box = tuple(slice(start, stop) for start, stop in properties["bbox_used_for_cropping"])
        whole[(slice(None), *box)] = resampled
        result = whole.transpose([0, *(axis + 1 for axis in manager.transpose_backward)])
        if result.shape[1:] != shape:
            raise RuntimeError(f"logits of shape {result.shape[1:]} came back for a volume of shape {shape}")
        return result
