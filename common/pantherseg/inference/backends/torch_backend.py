"""A bundle's networks by torch: on CUDA devices, and on CPUs where there is no OpenVINO."""

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
from pantherseg.inference.backends import Mode, VerifiedFolds
from pantherseg.machine.allocator import keep_freed_memory
from pantherseg.machine.cpus import usable_cpus
from pantherseg.machine.memory import MB, NO_LIMIT
from pantherseg.models.bundle import Bundle
from pantherseg.models.manifest import MANIFEST
from pantherseg.networks import build_network, distinct_tensors

# What cuDNN may want for its convolutions beside their input and output: an allowance, as it depends on the device.
CONVOLUTION_BYTES = 1024 * MB
# What torch says when a device is at fault and not the code.
DEVICE_WORDS = ("CUDA", "cuDNN", "CUBLAS", "NVIDIA")
# The last two are what is left of it when none of cuDNN's ways to compute a convolution found the memory that it wants.
MEMORY_WORDS = ("out of memory", "ALLOC_FAILED", "unable to find an engine", "Unable to find a valid cuDNN algorithm")

Values = dict[str, torch.Tensor]


def cuda_problem() -> str:
    """Return why torch cannot compute on a CUDA device, in one line; nothing where it can."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if not torch.cuda.is_available():
                return _line(caught[-1].message) if caught else "none that answers"
            # The driver's age, the device's generation and its free memory all show in one small convolution.
            ones = torch.ones(1, 1, 4, 4, 4, dtype=torch.float16, device="cuda")
            functional.conv3d(ones, ones).item()
        except RuntimeError as error:
            return f"one that fails ({_line(error)})"
    return ""


class TorchBackend:
    """Networks by torch on a CPU or a CUDA device.

    `exact` computes as nnU-Net does on that device: in float32 on a CPU, with float16 autocast on CUDA. `fast` is the
    same, and says so: nothing faster has been measured yet (`python -m bench.gpu` times what might be).
    device_memory_mb: how much of the device's memory may be used.
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
        if mode == "fast":
            self.events += (Event(EventCode.FAST_IS_EXACT, f"fast computed in {self.precision}, as exact does"),)
        self.memory_name = device
        self._verified = VerifiedFolds()
        self._built: tuple[Path, nn.Module] | None = None
        self._reader = ThreadPoolExecutor(1)
        self._ahead: tuple[Path, Future[Values]] | None = None

    def network(self, bundle: Bundle, fold: str, upcoming: str | None = None, *, keep: bool = False) -> Network:
        """Return the network of one fold: the one of the fold before, with other weights. Raises ModelError.

        upcoming: a fold that is read and checked meanwhile; keep: of no effect, as one network serves every fold.
        """
        values = self._values(bundle, fold)
        network = self._network_of(bundle)
        for name, tensor in distinct_tensors(network).items():
            tensor.copy_(values[name], non_blocking=True)
        if upcoming is not None:
            self._ahead = bundle.weights_path(upcoming), self._reader.submit(self._read, bundle, upcoming)
        return self._runner(network)

    def make_room(self, bundle: Bundle) -> None:
        """Free the network of another bundle."""
        if self._built is not None and self._built[0] != bundle.path:
            self._built = None

    def keeps(self, bundle: Bundle) -> bool:
        """Return False: there is one network, which gets each fold's weights in turn."""
        return False

    def release_networks(self) -> None:
        """Do nothing, as no network is kept."""

    def network_bytes(self, bundle: Bundle) -> int:
        """Return what a forward pass takes: weights, their copies in float16, features, and what cuDNN wants."""
        weights = bundle.manifest.weights
        half = torch.float16.itemsize
        is_built = self._built is not None and self._built[0] == bundle.path
        per_weight = half if is_built else half + torch.float32.itemsize
        return per_weight * weights + half * bundle.manifest.peak_activations + CONVOLUTION_BYTES

    def free_bytes(self) -> int:
        """Return what this process may still take of the device's memory."""
        if self.device == "cuda":
            free, _ = torch.cuda.mem_get_info()
            free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
            return free if self._limit is None else min(free, self._limit - torch.cuda.memory_allocated())
        return NO_LIMIT if self._limit is None else self._limit

    def place(self, data: NDArray[np.float32]) -> torch.Tensor | None:
        """Return a prepared volume on the device, None where another process was faster to take the memory."""
        try:
            return torch.from_numpy(data).to(self.device)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return None

    def place_with_more_room(self, data: NDArray[np.float32]) -> torch.Tensor:
        """Return a prepared volume in the host's memory."""
        return torch.from_numpy(data)

    def in_bfloat16(self) -> None:
        """Return None: there is no float32 to reduce on CUDA, and a CPU with torch only has no budget."""

    def explain(self, error: Exception) -> LostDeviceError | None:
        """Return what an error says of the device, None where it says nothing of it."""
        if isinstance(error, LostDeviceError):
            return error
        text = _line(error)
        memory = any(word in text for word in MEMORY_WORDS)
        if not isinstance(error, RuntimeError) or not (memory or any(word in text for word in DEVICE_WORDS)):
            return None
        if memory and self.device == "cuda":
            torch.cuda.empty_cache()
        kind = DeviceMemoryError if memory else LostDeviceError
        return kind(self.device, expected="a device that computes to the end", found=text)

    def _prepare_cuda(self) -> None:
        self.precision = "float16 autocast"
        torch.backends.cudnn.benchmark = True  # as nnU-Net's predictor has it
        if self._limit is not None:
            _, total = torch.cuda.mem_get_info()
            torch.cuda.set_per_process_memory_fraction(min(1.0, self._limit / total))

    def _network_of(self, bundle: Bundle) -> nn.Module:
        """Return the network of a bundle on the device, its weights those of any fold or none."""
        if self._built is None or self._built[0] != bundle.path:
            manifest = bundle.manifest
            with torch.device("meta"):  # weights are not invented only to be replaced
                network = build_network(bundle.path / MANIFEST, manifest.architecture, classes=manifest.classes)
            network.to_empty(device=self.device).requires_grad_(requires_grad=False)
            self._built = bundle.path, network
        return self._built[1]

    def _values(self, bundle: Bundle, fold: str) -> Values:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == bundle.weights_path(fold):
            return ahead[1].result()
        return self._read(bundle, fold)

    def _read(self, bundle: Bundle, fold: str) -> Values:
        values = self._load(bundle, fold)
        # From pinned memory the device copies by itself.
        return {name: value.pin_memory() for name, value in values.items()} if self.device == "cuda" else values

    def _load(self, bundle: Bundle, fold: str) -> Values:
        bundle.check_layout(fold)
        self._verified.check(bundle, fold)
        return load_file(bundle.weights_path(fold))

    def _runner(self, network: nn.Module) -> Network:
        cuda = self.device == "cuda"

        def run(tile: torch.Tensor) -> torch.Tensor:
            with torch.no_grad(), torch.autocast("cuda", enabled=cuda):
                logits: torch.Tensor = network(tile.to(self.device))
            return logits.to(tile.device)

        return run


def _line(error: object) -> str:
    """Return the first sentence of what torch says; advice follows it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
