"""How much memory the activations of a network take in a forward pass."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    """Tracks the results of operations, and the largest size in bytes that existed at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self._alive[reference.cdata] = reference, storage.nbytes()
        alive = ((key, entry) for key, entry in self._alive.items() if not entry[0].expired())  # type: ignore[no-untyped-call]
        self._alive = dict(alive)
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


def peak_activations(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the largest number of features and logits that exist at the same time for an input of `shape`.

    Measured on torch's `meta` device, which follows shapes without computing. What a library needs for its convolutions
    beside them is not included.
    """
    on_meta = copy.deepcopy(network).to("meta")
    with torch.inference_mode(), PeakBytes() as bytes_:
        on_meta(torch.empty(shape, device="meta"))
    values: int = bytes_.peak // torch.float32.itemsize
    return values
