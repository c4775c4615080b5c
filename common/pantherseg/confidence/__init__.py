"""How sure the networks are of a case, and what Dice is to be expected of its mask."""
