"""Networks by torch: on CUDA devices, and on CPUs where OpenVINO is not installed."""

from __future__ import annotations

import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from pantherseg.errors import DeviceMemoryError, LostDeviceError
from pantherseg.events import Event, EventCode
from pantherseg.inference.accumulate import Network
from pantherseg.inference.backends.backend import Mode, VerifiedFolds
from pantherseg.machine.allocator import keep_freed_memory
from pantherseg.machine.cpus import usable_cpus
from pantherseg.machine.memory import MB, NO_LIMIT
from pantherseg.models.bundle import Bundle
from pantherseg.models.manifest import MANIFEST
from pantherseg.networks import build_network, distinct_tensors

# An allowance for the workspace of cuDNN's convolutions, which depends on the device.
CONVOLUTION_BYTES = 1024 * MB
# Parts of torch's messages about failures of the device, as opposed to errors of the code.
DEVICE_WORDS = ("CUDA", "cuDNN", "CUBLAS", "NVIDIA")
# Parts of torch's messages about too little memory. The last two appear when no algorithm of cuDNN found enough.
MEMORY_WORDS = ("out of memory", "ALLOC_FAILED", "unable to find an engine", "Unable to find a valid cuDNN algorithm")

Values = dict[str, torch.Tensor]


def cuda_problem() -> str:
    """Return why torch cannot compute on a CUDA device, in one line, or an empty string if it can."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if not torch.cuda.is_available():
                return _first_sentence(caught[-1].message) if caught else "no device was found"
            # A small convolution fails with an old driver, an unsupported device or no free memory.
            ones = torch.ones(1, 1, 4, 4, 4, dtype=torch.float16, device="cuda")
            functional.conv3d(ones, ones).item()
        except RuntimeError as error:
            return f"the device fails ({_first_sentence(error)})"
    return ""


class TorchBackend:
    """Networks by torch on a CPU or a CUDA device.

    Both modes compute as nnU-Net does on that device: in float32 on a CPU, with float16 autocast on CUDA.
    device_memory_mb: limit on the memory of the device that may be used.
    """

    roomier_event = EventCode.LOGITS_ON_HOST

    def __init__(
        self, device: str, mode: Mode = "exact", events: tuple[Event, ...] = (), *, device_memory_mb: int | None = None
    ) -> None:
        keep_freed_memory()
        torch.set_num_threads(usable_cpus())
        self.device, self.mode, self.events = device, mode, events
        self.precision = "float32"
        self._limit = None if device_memory_mb is None else device_memory_mb * MB
        if device == "cuda":
            self._prepare_cuda()
        self.memory_name = device
        self._verified = VerifiedFolds()
        self._built: tuple[Path, nn.Module] | None = None
        self._reader = ThreadPoolExecutor(1)
        self._ahead: tuple[Path, Future[Values]] | None = None

    def network(self, bundle: Bundle, fold: str, upcoming: str | None = None, *, keep: bool = False) -> Network:
        """Return the network of one fold: that of the fold before with other weights. Raises ModelError.

        upcoming: a fold to read and verify in the background; keep: no effect, as all folds share one network.
        """
        values = self._values(bundle, fold)
        network = self._network_of(bundle)
        for name, tensor in distinct_tensors(network).items():
            tensor.copy_(values[name], non_blocking=True)
        if upcoming is not None:
            self._ahead = bundle.weights_path(upcoming), self._reader.submit(self._read, bundle, upcoming)
        return as_network(network, self.device)

    def make_room(self, bundle: Bundle) -> None:
        """Free the network of another bundle."""
        if self._built is not None and self._built[0] != bundle.path:
            self._built = None

    def keeps(self, bundle: Bundle) -> bool:
        """Return False: all folds share one network."""
        return False

    def release_networks(self) -> None:
        """Do nothing, because no networks are kept."""

    def network_bytes(self, bundle: Bundle) -> int:
        """Return an estimate of the memory for weights, their copies in float16, features and cuDNN's workspace."""
        weights = bundle.manifest.weights
        half = torch.float16.itemsize
        is_built = self._built is not None and self._built[0] == bundle.path
        per_weight = half if is_built else half + torch.float32.itemsize
        return per_weight * weights + half * bundle.manifest.peak_activations + CONVOLUTION_BYTES

    def free_bytes(self) -> int:
        """Return how much of the device's memory this process may still allocate."""
        if self.device == "cuda":
            free, _ = torch.cuda.mem_get_info()
            free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
            return free if self._limit is None else min(free, self._limit - torch.cuda.memory_allocated())
        return NO_LIMIT if self._limit is None else self._limit

    def place(self, data: NDArray[np.float32]) -> torch.Tensor | None:
        """Return a prepared volume on the device, None if another process has taken the memory meanwhile."""
        try:
            return torch.from_numpy(data).to(self.device)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return None

    def place_with_more_room(self, data: NDArray[np.float32]) -> torch.Tensor:
        """Return a prepared volume in the host's memory."""
        return torch.from_numpy(data)

    def in_bfloat16(self) -> None:
        """Return None: CUDA computes in float16 already, and torch on a CPU has no memory limit."""

    def explain(self, error: Exception) -> LostDeviceError | None:
        """Return the error of the device that caused `error`, None if the cause was not the device."""
        if isinstance(error, LostDeviceError):
            return error
        text = _first_sentence(error)
        memory = any(word in text for word in MEMORY_WORDS)
        if not isinstance(error, RuntimeError) or not (memory or any(word in text for word in DEVICE_WORDS)):
            return None
        if memory and self.device == "cuda":
            torch.cuda.empty_cache()
        if memory:
            return DeviceMemoryError(self.device, f"there was too little memory: {text}")
        return LostDeviceError(self.device, f"the device failed: {text}")

    def _prepare_cuda(self) -> None:
        self.precision = "float16 autocast"
        torch.backends.cudnn.benchmark = True  # as in nnU-Net's predictor
        if self._limit is not None:
            _, total = torch.cuda.mem_get_info()
            torch.cuda.set_per_process_memory_fraction(min(1.0, self._limit / total))

    def _network_of(self, bundle: Bundle) -> nn.Module:
        """Return the network of a bundle on the device; its weights are those of any fold, or the initial ones."""
        if self._built is None or self._built[0] != bundle.path:
            manifest = bundle.manifest
            # Not on torch's device `meta`: parameters that modules share, and constants, would not survive it.
            network = build_network(bundle.path / MANIFEST, manifest.architecture, classes=manifest.classes)
            self._built = bundle.path, network.to(self.device).requires_grad_(requires_grad=False)
        return self._built[1]

    def _values(self, bundle: Bundle, fold: str) -> Values:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == bundle.weights_path(fold):
            return ahead[1].result()
        return self._read(bundle, fold)

    def _read(self, bundle: Bundle, fold: str) -> Values:
        values = self._load(bundle, fold)
        # From pinned memory the device copies in the background.
        return {name: value.pin_memory() for name, value in values.items()} if self.device == "cuda" else values

    def _load(self, bundle: Bundle, fold: str) -> Values:
        bundle.check_layout(fold)
        self._verified.check(bundle, fold)
        return load_file(bundle.weights_path(fold))


def as_network(module: nn.Module, device: str) -> Network:
    """Return a function that runs a module on a device in nnU-Net's precision, and returns logits where the tile is."""

    def run(tile: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cuda", enabled=device == "cuda"):
            logits: torch.Tensor = module(tile.to(device))
        return logits.to(tile.device)

    return run


def _first_sentence(error: object) -> str:
    """Return the first sentence of one of torch's messages; the rest is advice."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
