"""Events: what a user should know about a case that did not stop it. Their codes are part of the report's schema."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta


class EventCode(StrEnum):
    """Every event code."""

    FOURTH_AXIS_DROPPED = "fourth_axis_dropped"
    """The file has more than three axes; the others have length 1 and were dropped."""
    GEOMETRY_ASSUMED = "geometry_assumed"
    """The file does not state its spacing or its orientation; what its format takes for granted was assumed."""
    NEGATIVE_SPACING = "negative_spacing"
    """The NIfTI file states a negative spacing; its magnitude was used."""
    PIXDIM_CONTRADICTS_SFORM = "pixdim_contradicts_sform"
    """The NIfTI file states two spacings, in pixdim and in the sform; the sform's was used."""
    QFORM_CONTRADICTS_SFORM = "qform_contradicts_sform"
    """The NIfTI file states two positions, by its qform and its sform; the sform was used."""
    CONVERTED_TO_MM = "converted_to_mm"
    """The file gives lengths in metres or microns, which were converted to mm."""
    DIRECTION_CORRECTED = "direction_corrected"
    """The axes are not exactly at right angles; the nearest orthogonal directions were used."""
    SERIES_CHOSEN = "series_chosen"
    """The DICOM folder or archive has several series; one was chosen."""
    SLICES_FAR_APART = "slices_far_apart"
    """The slices of the DICOM series are further apart than its header says; some may be missing all along."""
    NON_FINITE_VOXELS = "non_finite_voxels"
    """NaN, infinite or far too large voxels were replaced by the smallest finite value."""
    CONSTANT_IMAGE = "constant_image"
    """Every voxel has the same value."""
    NO_CUDA = "no_cuda"
    """A GPU was found that cannot be used; the CPU was used."""
    NO_BFLOAT16 = "no_bfloat16"
    """The CPU has no bfloat16; `fast` computed in float32."""
    FAST_IS_EXACT = "fast_is_exact"
    """No longer written, but in earlier reports: this backend had no faster mode."""
    ORIENTATION_ASSUMED = "orientation_assumed"
    """A model does not say in which orientation it was trained; LPS was assumed, as in PANTHER's data."""
    TUMOUR_LABEL_NAMED_PANCREAS = "tumour_label_named_pancreas"
    """A model calls the recipe's `tumour_label` pancreas; the mask may be the pancreas instead of the tumour."""
    LOCALIZER_LABEL_NOT_PANCREAS = "localizer_label_not_pancreas"
    """The localizer calls another label pancreas than the recipe; the box may be around another organ."""
    NO_LOCALIZER = "no_localizer"
    """The model folder lacks the recipe's localizer; the whole volume was searched."""
    LOCALIZER_FAILED = "localizer_failed"
    """The localizer cannot be used, or did not finish in time; the whole volume was searched."""
    NO_PANCREAS_FOUND = "no_pancreas_found"
    """The localizer found no pancreas; the whole volume was searched."""
    IMPLAUSIBLE_BOX = "implausible_box"
    """The localizer's box cannot hold a pancreas; the whole volume was searched."""
    MEMBER_LEFT_OUT = "member_left_out"
    """A member was left out, because that was asked for, or because it cannot be used and the recipe allows it."""
    FOLD_LEFT_OUT = "fold_left_out"
    """A fold that is missing, damaged or unlike the others was left out."""
    MIRRORING_LEFT_OUT = "mirroring_left_out"
    """There was too little time for mirrored inputs."""
    FOLDS_SHORTENED = "folds_shortened"
    """There was too little time for all tiles of some folds."""
    FOLDS_LEFT_OUT = "folds_left_out"
    """There was too little time for some folds."""
    OVERLAP_LEFT_OUT = "overlap_left_out"
    """There was too little time for tiles that overlap as much as the recipe says."""
    TILES_LEFT_OUT = "tiles_left_out"
    """There was too little time for some tiles, whose voxels are background."""
    LOGITS_ON_HOST = "logits_on_host"
    """The GPU had too little memory for the logits; they were summed in the host's memory."""
    LOGITS_ON_DISK = "logits_on_disk"
    """Memory was too small for the logits; they were summed in a temporary file."""
    LESS_PRECISE = "less_precise"
    """Memory was too small for float32; the networks computed in bfloat16, as the recipe allows."""
    DEVICE_FULL = "device_full"
    """The GPU had too little memory for this case; the CPU was used."""
    FLOAT16_TOO_SMALL = "float16_too_small"
    """Float16, in which a GPU computes, was too small for the network's values; the CPU was used."""
    DEVICE_FAILED = "device_failed"
    """The GPU failed; the CPU was used, also for later cases, which report it too."""
    COMPONENTS_DROPPED = "components_dropped"
    """Post-processing dropped components of the tumour mask."""
    VOLUME_LIMITED = "volume_limited"
    """The tumour mask was smaller or larger than the recipe allows, and was emptied or cut."""
    STEP_SKIPPED = "step_skipped"
    """A step of post-processing could not be applied, such as one that looks at the pancreas where none was found."""
    EMPTY_MASK_RESCUED = "empty_mask_rescued"
    """No tumour was found; the most probable component was marked."""
    EMPTY_MASK = "empty_mask"
    """No tumour was found, and the mask is empty."""

    @property
    def in_words(self) -> str:
        """The code as a phrase for readers, such as `Empty mask rescued`."""
        return self.value.replace("_", " ").capitalize()


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that a user should know about a case: a code and a sentence."""

    code: EventCode
    message: Annotated[str, Meta(description="What happened, in a sentence.")]

    def __str__(self) -> str:
        """Return the event as it is logged."""
        return f"{self.code}: {self.message}"
