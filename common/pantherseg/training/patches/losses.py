"""The loss of a training: a weighted sum of Dice, cross-entropy, focal and boundary loss, with weights of slices.

Every part is a weighted mean over voxels, or a Dice of weighted sums, where the weight w of a voxel is that of its
slice. Logits are (n, class, z, y, x); targets are (n, 1 + k, z, y, x): the labels, and for the boundary loss the signed
distance to the border of each of the k labels.
"""

from __future__ import annotations

import numpy as np
import torch
from monai.losses import FocalLoss, MaskedDiceLoss
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn
from torch.nn import functional

from pantherseg.training.lightning_recipe import LossSettings


class PatchLoss(nn.Module):
    """The sum of the parts that the settings give a weight. classes: number of labels, background included."""

    def __init__(self, settings: LossSettings, *, classes: int) -> None:
        super().__init__()
        self._settings, self._classes = settings, classes
        # Of the whole batch, so that patches without a label do not have a Dice of their own. MONAI's mask multiplies
        # the probability p and the label; as the weight w is 1 wherever something is labelled, labels stay what they
        # are, and for a reference g the result is 1 - 2 sum(w p g) / (sum(w p) + sum(w g)).
        self._dice = MaskedDiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
        # With softmax and two classes, this is the focal loss of Lin et al. (arXiv 1708.02002) on the tumour.
        self._focal = FocalLoss(
            to_onehot_y=True,
            use_softmax=True,
            alpha=settings.focal_alpha,
            gamma=settings.focal_gamma,
            reduction="none",
        )

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss of a batch."""
        settings, labels, distances = self._settings, target[:, :1], target[:, 1:]
        weight = slice_weights(labels, settings.empty_slices)
        loss = logits.new_zeros(())
        if settings.dice:
            loss = loss + settings.dice * self._dice(logits, labels, weight)
        if settings.cross_entropy:
            voxels = functional.cross_entropy(logits, labels[:, 0].long(), reduction="none")[:, None]
            loss = loss + settings.cross_entropy * _mean(voxels, weight)
        if settings.focal:
            voxels = self._focal(logits, labels).sum(1, keepdim=True)  # one class of each voxel is not 0
            loss = loss + settings.focal * _mean(voxels, weight)
        if settings.boundary:
            voxels = (logits.softmax(1)[:, 1:] * distances).mean(1, keepdim=True)
            loss = loss + settings.boundary * _mean(voxels, weight)
        return loss


def slice_weights(labels: torch.Tensor, empty: float) -> torch.Tensor:
    """Return the weight of each voxel: 1 in slices across z with a labelled voxel, `empty` in others.

    labels: (n, 1, z, y, x), as the result.
    """
    labelled = labels.amax((3, 4), keepdim=True) > 0
    return torch.where(labelled, 1.0, empty).expand_as(labels)


def signed_distances(labels: NDArray[np.uint8], classes: int, spacing: tuple[float, ...]) -> NDArray[np.float32]:
    """Return the signed distance of each voxel (z, y, x) to the border of each label, (classes - 1, z, y, x).

    Kervadec et al., "Boundary loss for highly unbalanced segmentation", MIDL 2019, equation 5: the loss is the sum over
    voxels q of phi(q) s(q), where s is the predicted probability and phi(q) the distance to the border of the
    reference, negative inside. It is 0 for a label that the patch does not have, or has alone. spacing: in mm.

    Our choice: phi is divided by its largest magnitude in the patch, so that the loss is between -1 and 1 like the
    other parts, whatever the size of the patch.
    """
    result = np.zeros((classes - 1, *labels.shape), np.float32)
    for label in range(1, classes):
        inside = labels == label
        if inside.any() and not inside.all():
            distance = ndimage.distance_transform_edt(~inside, sampling=spacing)
            distance -= ndimage.distance_transform_edt(inside, sampling=spacing)
            result[label - 1] = distance / np.abs(distance).max()
    return result


def _mean(voxels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (voxels * weight).sum() / weight.sum()
