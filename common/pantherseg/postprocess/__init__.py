"""Post-processing: an ordered list of steps that change the tumour mask of one prediction.

A step is a table of the recipe, for example

    [[postprocess]]
    kind = "components"
    min_mm3 = 50.0

and a new step is a class with one registration, and an import of its module here.
"""

from pantherseg.postprocess.components import Components, Near, Overlap
from pantherseg.postprocess.prediction import Mask, PancreasOf, Prediction, Step
from pantherseg.postprocess.probability import Rescue, Threshold, VolumeLimits
from pantherseg.postprocess.shape import Closing, FillHoles, Opening

__all__ = [
    "Closing",
    "Components",
    "FillHoles",
    "Mask",
    "Near",
    "Opening",
    "Overlap",
    "PancreasOf",
    "Prediction",
    "Rescue",
    "Step",
    "Threshold",
    "VolumeLimits",
]
