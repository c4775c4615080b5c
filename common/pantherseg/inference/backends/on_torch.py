"""A bundle's networks by torch: on CUDA devices, and on CPUs where there is no OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from pantherseg.allocator import keep_freed_memory
from pantherseg.bundle import Bundle
from pantherseg.cpus import usable_cpus
from pantherseg.errors import Event
from pantherseg.inference.accumulate import Network
from pantherseg.inference.backends import Mode
from pantherseg.networks import distinct_tensors, read_plan


def cuda_answers() -> bool:
    """Return whether torch has a CUDA device."""
    return torch.cuda.is_available()


class TorchBackend:
    """`exact` computes as nnU-Net does on that device: in float32 on a CPU, with float16 autocast on CUDA."""

    def __init__(self, device: str, mode: Mode = "exact", events: tuple[Event, ...] = ()) -> None:
        keep_freed_memory()
        self.device = device
        self.precision = "float16 autocast" if device == "cuda" else "float32"
        self.events = events
        if mode == "fast":
            self.events += (Event("fast_is_exact", f"fast computed in {self.precision} with torch, as exact does"),)
        torch.set_num_threads(usable_cpus())
        self._built: tuple[Path, nn.Module] | None = None

    def network(self, bundle: Bundle, fold: str) -> Network:
        """Return the network of one fold: the one of the fold before, with other weights. Raises ModelError."""
        if self._built is None or self._built[0] != bundle.path:
            plan = read_plan(bundle.path, bundle.manifest.provenance.configuration)
            self._built = bundle.path, plan.network().to(self.device)
        network = self._built[1]
        values = load_file(bundle.verify(fold))
        for name, tensor in distinct_tensors(network).items():
            tensor.copy_(values[name])
        return self._runner(network)

    def _runner(self, network: nn.Module) -> Network:
        cuda = self.device == "cuda"

        def run(tile: NDArray[np.float32]) -> NDArray[Any]:
            with torch.inference_mode(), torch.autocast("cuda", enabled=cuda):
                logits: NDArray[Any] = network(torch.from_numpy(tile).to(self.device)).cpu().numpy()
            return logits

        return run
