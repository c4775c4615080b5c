"""DICOM segmentations (SEG) of masks and probabilities, by highdicom."""

from __future__ import annotations

import numpy as np
from highdicom import PlanePositionSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import DSfloat

from pantherseg.dicom_results.making import (
    LONG_STRING,
    NOT_CLINICAL,
    PANCREAS_CATEGORY,
    PANCREAS_TYPE,
    SHORT_TEXT,
    TUMOUR_CATEGORY,
    TUMOUR_TYPE,
    Found,
    Making,
    stated,
)
from pantherseg.errors import OptionError
from pantherseg.labels import PANCREAS_NAME, TUMOUR_NAME

# Higher than the series of a scanner, so that results are listed behind them.
MASK_SERIES, PROBABILITY_SERIES = 9001, 9002
STEPS = 255
COLOURS = {TUMOUR_NAME: (230, 60, 60), PANCREAS_NAME: (240, 210, 120)}


def segmentation(found: Found, making: Making) -> Dataset:
    """Return the masks as a binary SEG with a segment each: 1 the tumour, 2 the pancreas.

    Every slice has its frame, so that viewers need not guess where others are. A tumour of which nothing was found is
    a segment without voxels whose description says so.
    """
    masks = found.masks
    array = np.stack([mask.array > 0 for mask in masks.values()], axis=-1).astype(np.uint8)
    numbered = enumerate(masks.items(), start=1)
    segments = [_segment(number, name, making, stated(name, mask)) for number, (name, mask) in numbered]
    said = stated(TUMOUR_NAME, found.tumour)
    return _made(array, segments, making, SegmentationTypeValues.BINARY, "tumour segmentation", MASK_SERIES, said)


def probability(found: Found, making: Making) -> Dataset:
    """Return the tumour's probability before post-processing as a fractional SEG in steps of 1/255."""
    assert found.probability is not None  # whoever asks for this format asks for it
    said = f"probability of the tumour before post-processing; {NOT_CLINICAL}"
    segments = [_segment(1, TUMOUR_NAME, making, said)]
    array = np.clip(found.probability.array, 0, 1)[..., np.newaxis].astype(np.float32)
    kind = SegmentationTypeValues.FRACTIONAL
    return _made(array, segments, making, kind, "tumour probability", PROBABILITY_SERIES, said)


def _segment(number: int, name: str, making: Making, said: str) -> SegmentDescription:
    category, kind = (TUMOUR_CATEGORY, TUMOUR_TYPE) if name == TUMOUR_NAME else (PANCREAS_CATEGORY, PANCREAS_TYPE)
    described = SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=making.algorithm,
        anatomic_regions=[PANCREAS_TYPE] if name == TUMOUR_NAME else None,
        display_color=CIELabColor.from_rgb(*COLOURS[name]),
    )
    described.SegmentDescription = said[:SHORT_TEXT]
    return described


def _made(
    array: NDArray[np.uint8] | NDArray[np.float32],
    segments: list[SegmentDescription],
    making: Making,
    kind: SegmentationTypeValues,
    name: str,
    series_number: int,
    said: str,
) -> Dataset:
    """Return the SEG of an array (z, y, x, segment).

    Raises OptionError for Enhanced MR in several files: highdicom makes segmentations about one multi-frame object.
    """
    headers = making.headers
    if making.source.is_multi_frame and len(headers.datasets) > 1:
        expected, found = "a series in one Enhanced MR file for a segmentation", f"{len(headers.datasets)} files"
        hint = "choose another output format, such as rtstruct or mha"
        raise OptionError(f"series {making.source.series_uid}", expected=expected, found=found, hint=hint)
    made = Segmentation(
        source_images=list(headers.datasets),
        pixel_array=array,
        # With these, and the directions and the spacing of `headers`, nothing about the geometry is guessed.
        plane_positions=[PlanePositionSequence("PATIENT", tuple(position)) for position in headers.positions],
        segmentation_type=kind,
        segment_descriptions=segments,
        max_fractional_value=STEPS,
        omit_empty_frames=False,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        content_label="TUMOUR",
        content_description=said[:LONG_STRING],
        **making.identification(name, series_number),
    )
    measures = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    # Scanners write other things here, such as the gap.
    measures.SpacingBetweenSlices = DSfloat(making.grid.spacing[0], auto_format=True)
    organization = making.uid(f"dimensions {name}")  # highdicom's is new each time
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    return making.finish(made)
