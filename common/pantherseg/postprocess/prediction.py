"""What a post-processing step gets, and what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from pantherseg.events import Event
from pantherseg.registry import Registry
from pantherseg.volume import Grid

Mask = NDArray[np.bool_]
# Who found a pancreas: the members that have a label for it, or the localizer.
PancreasOf = Literal["members", "localizer"]

# Volumes, in voxels, and distances, in mm, that differ from a limit by less than this, because of rounding, count as
# equal to it.
ROUNDING = 1e-6

# Voxels are connected that touch in a face, an edge or a corner.
CONNECTIVITY = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class Prediction:
    """One case after fusion: the tumour mask, which steps change, and what they may look at.

    mask: the tumour, (z, y, x); grid: of it; probability: computes the tumour's probability (z, y, x) when it is
    called; pancreases: the same for the pancreas, (z, y, x), by who found it; events: what the steps did.
    """

    mask: Mask
    grid: Grid
    probability: Callable[[], NDArray[np.float32]]
    pancreases: Mapping[PancreasOf, Callable[[], Mask]] = field(default_factory=dict)
    events: tuple[Event, ...] = ()

    def pancreas(self, of: PancreasOf = "members") -> Mask | None:
        """Return the pancreas, (z, y, x), None where there is nobody to find it."""
        return self.pancreases[of]() if of in self.pancreases else None

    @property
    def tumour_mm3(self) -> float:
        """Volume of the tumour mask."""
        return int(self.mask.sum()) * self.grid.voxel_mm3

    def changed(self, mask: Mask, *events: Event) -> Prediction:
        """Return the prediction with another mask, and with events that say why."""
        return replace(self, mask=mask, events=self.events + events)


class Step:
    """A post-processing step."""

    registry: ClassVar[Registry[Step]] = Registry("post-processing step")

    @property
    def needs(self) -> PancreasOf | None:
        """Whose pancreas the step looks at, None for steps that need none."""
        return None

    def apply(self, prediction: Prediction) -> Prediction:
        """Return the prediction with another mask, or as it is."""
        raise NotImplementedError
