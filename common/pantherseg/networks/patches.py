"""Which sizes of patches a network can process."""

from __future__ import annotations


def check_patch(patch: tuple[int, ...], *, divisor: int, deepest: int) -> None:
    """Raise ValueError for a patch (z, y, x) that a network cannot divide, or of which one voxel is left in the end.

    divisor: what each side must be a multiple of. deepest: by how much the coarsest features are smaller than the
    patch; an instance norm needs two voxels of them.
    """
    sizes = ", ".join(map(str, patch))
    if any(side % divisor for side in patch):
        raise ValueError(f"the patch must be a multiple of {divisor} along each axis for this network, got {sizes}")
    if all(side <= deepest for side in patch):
        raise ValueError(f"the patch must be more than {deepest} along an axis for this network, got {sizes}")
