"""How many numbers a network keeps at once on its way from a patch to logits."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Follows which results of operations are alive, and how large all of them together were at most."""

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


def live_values(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Return how many numbers of features and logits are alive at once while a network sees an input of a shape.

    Found on torch's `meta` device, which follows shapes and computes nothing. What a library wants for its
    convolutions beside them is not in it.
    """
    on_meta = copy.deepcopy(network).to("meta")
    with torch.inference_mode(), LiveBytes() as live:
        on_meta(torch.empty(shape, device="meta"))
    values: int = live.peak // torch.float32.itemsize
    return values
