"""What runs a bundle's networks: OpenVINO on CPUs, torch on GPUs and where there is no OpenVINO."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

from pantherseg.bundle import Bundle
from pantherseg.errors import DeviceError, Event
from pantherseg.inference.accumulate import Network

Mode = Literal["exact", "fast"]

# Made by NVIDIA's driver, natively and under WSL: without one, torch need not be imported to look for a GPU.
GPU_FILES = ("/dev/nvidiactl", "/dev/dxg")


class Backend(Protocol):
    """A device and a precision. events: what a user should know about them."""

    device: str
    precision: str
    events: tuple[Event, ...]

    def network(self, bundle: Bundle, fold: str) -> Network:
        """Return the network of one fold, which may end the one before. Raises ModelError."""
        ...


def choose_backend(device: str = "auto", mode: Mode = "exact") -> Backend:
    """Return the backend for a device (`auto`, `cpu` or `cuda`). Raises DeviceError where it does not answer.

    `exact` gives nnU-Net's own masks on that kind of device, `fast` the best speed with masks that hardly differ.
    """
    if device == "cuda" or (device == "auto" and any(Path(file).exists() for file in GPU_FILES)):
        if find_spec("torch") is not None:
            from pantherseg.inference.backends.on_torch import TorchBackend, cuda_answers

            if cuda_answers():
                return TorchBackend("cuda", mode)
        if device == "cuda":
            found = "none that answers" if find_spec("torch") else "no torch, which is what would use it"
            raise DeviceError("device", expected="a CUDA device", found=found, hint="use --device cpu")
    if find_spec("openvino") is not None:
        from pantherseg.inference.backends.on_openvino import OpenVinoBackend

        return OpenVinoBackend(mode)
    from pantherseg.inference.backends.on_torch import TorchBackend

    return TorchBackend("cpu", mode)
