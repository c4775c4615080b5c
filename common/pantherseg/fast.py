"""The settings of the mode `fast`: which work is left out because it can hardly change the mask."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from pantherseg.tables import NotNegative, Table


class Fast(Table, frozen=True):
    """What `fast` leaves out. A margin is the label's logit minus the largest of the other labels."""

    edge_logits: NotNegative = 4.0
    """Later folds look at the edges of marked places: where the mean margin is nearer to 0 than this."""
    doubt_logits: NotNegative = 2.0
    """They look at unmarked places, too, that the folds to come would mark if each had this margin there."""
    bfloat16: bool = True
    """Networks compute in bfloat16 where the CPU has it. Rounding then changes more of a mask than what is left out."""
    left_out_share: Annotated[float, Meta(ge=0, le=1)] = 0.01
    """At each place, tiles are left out that together have at most this share of its weight, the lightest first."""


USUAL = Fast()
