"""A bundle's networks by torch: on CUDA devices, and on CPUs where there is no OpenVINO."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from pantherseg.errors import DeviceMemoryError, LostDeviceError
from pantherseg.events import Event
from pantherseg.inference.accumulate import Network
from pantherseg.inference.backends import Mode, Placement, sum_bytes
from pantherseg.machine.allocator import keep_freed_memory
from pantherseg.machine.cpus import usable_cpus
from pantherseg.machine.memory import MB
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
    """`exact` computes as nnU-Net does on that device: in float32 on a CPU, with float16 autocast on CUDA.

    `fast` is the same, and says so: nothing faster has been measured yet (`python -m bench.gpu` times what might be).
    device_memory_mb: how much of the device's memory may be used.
    """

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
            self.events += (Event("fast_is_exact", f"fast computed in {self.precision} with torch, as exact does"),)
        self._built: tuple[Path, nn.Module] | None = None
        self._reader = ThreadPoolExecutor(1)
        self._ahead: tuple[Path, Future[Values]] | None = None

    def network(self, bundle: Bundle, fold: str, upcoming: str | None = None) -> Network:
        """Return the network of one fold: the one of the fold before, with other weights. Raises ModelError.

        upcoming: a fold that is read and checked meanwhile.
        """
        values = self._values(bundle, fold)
        network = self._network_of(bundle)
        for name, tensor in distinct_tensors(network).items():
            tensor.copy_(values[name], non_blocking=True)
        if upcoming is not None:
            self._ahead = bundle.weights_path(upcoming), self._reader.submit(self._read, bundle, upcoming)
        return self._runner(network)

    def placements(self, data: NDArray[np.float32], bundle: Bundle) -> Iterator[Placement]:
        """Yield a prepared volume on the device, then on the host, where logits are summed beside it.

        Raises DeviceMemoryError where the network itself would not fit.
        """
        image = torch.from_numpy(data)
        if self._built is not None and self._built[0] != bundle.path:
            self._built = None  # its room is free for this one
        room, network, sums = self._room(), self._network_bytes(bundle), sum_bytes(data, bundle)
        if network > room:
            expected = f"{network // MB} MB for a patch of {bundle.display_path.name}"
            raise DeviceMemoryError(self.device, expected=expected, found=f"{max(0, room) // MB} MB free")
        if network + sums <= room and (placed := self._placed(image)) is not None:
            yield Placement(placed, self)
            del placed
        message = f"{(network + sums) // MB} MB of device memory are wanted; logits were summed in the host's"
        yield Placement(image, self, (Event("sums_on_host", message),))

    def _placed(self, image: torch.Tensor) -> torch.Tensor | None:
        """Return a tensor on the device, or None where another process was faster to take the room."""
        try:
            return image.to(self.device)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return None

    def explained(self, error: Exception) -> LostDeviceError | None:
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
        values = load_file(bundle.verify(fold))
        # From pinned memory the device copies by itself.
        return {name: value.pin_memory() for name, value in values.items()} if self.device == "cuda" else values

    def _runner(self, network: nn.Module) -> Network:
        cuda = self.device == "cuda"

        def run(tile: torch.Tensor) -> torch.Tensor:
            with torch.no_grad(), torch.autocast("cuda", enabled=cuda):
                logits: torch.Tensor = network(tile.to(self.device))
            return logits.to(tile.device)

        return run

    def _room(self) -> int:
        """Return the bytes that this process may still take on the device."""
        if self.device == "cuda":
            free, _ = torch.cuda.mem_get_info()
            free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
            return free if self._limit is None else min(free, self._limit - torch.cuda.memory_allocated())
        return 1 << 62 if self._limit is None else self._limit

    def _network_bytes(self, bundle: Bundle) -> int:
        """Return what a forward pass takes: weights, their copies in float16, features, and what cuDNN wants."""
        weights = bundle.manifest.weights
        there = self._built is not None and self._built[0] == bundle.path
        half = torch.float16.itemsize
        return (half if there else half + 4) * weights + half * bundle.manifest.peak_activations + CONVOLUTION_BYTES


def _line(error: object) -> str:
    """Return the first sentence of what torch says; advice follows it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
