"""Events: what happened on the way of a case without stopping it. Their codes are the schema of `results.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum


class EventCode(StrEnum):
    """Every code that an event can have, in the order of a case."""

    FOURTH_AXIS_DROPPED = "fourth_axis_dropped"
    """The file has a fourth axis of length 1, which was dropped."""
    NON_FINITE_VOXELS = "non_finite_voxels"
    """NaN, infinite or far too large voxels were replaced by the smallest finite value."""
    CONSTANT_IMAGE = "constant_image"
    """Every voxel has the same value."""
    NO_CUDA = "no_cuda"
    """There seems to be a GPU, but it cannot be used; the CPU was used."""
    NO_BFLOAT16 = "no_bfloat16"
    """The CPU has no bfloat16, so `fast` computed as `exact` does."""
    FAST_IS_EXACT = "fast_is_exact"
    """The backend has nothing faster than `exact`."""
    NO_LOCALIZER = "no_localizer"
    """The recipe has a localizer and the model folder has none; the whole volume was searched."""
    LOCALIZER_FAILED = "localizer_failed"
    """The localizer could not be used, or not in time; the whole volume was searched."""
    NO_PANCREAS_FOUND = "no_pancreas_found"
    """The localizer found no pancreas; the whole volume was searched."""
    IMPLAUSIBLE_BOX = "implausible_box"
    """The localizer's box cannot hold a pancreas; the whole volume was searched."""
    FOLD_LEFT_OUT = "fold_left_out"
    """A damaged fold is not in the mask."""
    MIRRORING_LEFT_OUT = "mirroring_left_out"
    """There was no time for mirrored inputs."""
    FOLDS_LEFT_OUT = "folds_left_out"
    """There was no time for some folds."""
    OVERLAP_LEFT_OUT = "overlap_left_out"
    """There was no time for tiles that overlap as the recipe says."""
    TILES_LEFT_OUT = "tiles_left_out"
    """There was no time for some tiles; the voxels in them are background."""
    LOGITS_ON_HOST = "logits_on_host"
    """The GPU had too little memory for the logits; they were summed in the host's memory."""
    LOGITS_ON_DISK = "logits_on_disk"
    """Memory was too small for the logits; they were summed in a temporary file."""
    LESS_PRECISE = "less_precise"
    """Memory was too small for float32; the networks computed in bfloat16, as the recipe allows."""
    DEVICE_FULL = "device_full"
    """The GPU had too little memory for this case; the CPU was used."""
    DEVICE_FAILED = "device_failed"
    """The GPU failed; the CPU was used, also for later cases."""
    COMPONENTS_DROPPED = "components_dropped"
    """Post-processing dropped components of the tumour mask."""
    EMPTY_MASK_RESCUED = "empty_mask_rescued"
    """No tumour was found; the most probable component was marked."""
    EMPTY_MASK = "empty_mask"
    """No tumour was found, and the mask is empty."""


@dataclass(frozen=True)
class Event:
    """Something unusual on the way of a case that did not stop it: a code and a sentence."""

    code: EventCode
    message: str

    def as_dict(self) -> dict[str, str]:
        """Return the event for `results.json`."""
        return asdict(self)
