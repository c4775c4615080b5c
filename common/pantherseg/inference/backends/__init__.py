"""Backends run the networks of a bundle: OpenVINO on CPUs, torch on GPUs and where OpenVINO is not installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from pantherseg.errors import DeviceError
from pantherseg.events import Event, EventCode
from pantherseg.inference.backends.backend import Backend, FileVersion, Mode, VerifiedFolds

__all__ = ["Backend", "FileVersion", "Mode", "VerifiedFolds", "choose_backend"]

# NVIDIA's driver creates one of these, natively or under WSL. Without them torch is not imported to look for a GPU.
GPU_FILES = ("/dev/nvidiactl", "/dev/dxg")
CUDA_PACKAGES = ("torch", "dynamic_network_architectures", "array_api_compat")


def choose_backend(
    device: str = "auto", mode: Mode = "exact", *, bfloat16: bool = True, device_memory_mb: int | None = None
) -> Backend:
    """Return the backend for a device (`auto`, `cpu` or `cuda`).

    mode: `exact` gives nnU-Net's own masks on that kind of device, `fast` the highest speed with nearly equal masks;
    bfloat16: whether `fast` may compute in it on a CPU; device_memory_mb: limit on the GPU memory that may be used, by
    default all that is free. Raises DeviceError if CUDA is asked for and cannot be used, ValueError for another device
    or mode.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"expected the device auto, cpu or cuda, got {device!r}")
    if mode not in ("exact", "fast"):
        raise ValueError(f"expected the mode exact or fast, got {mode!r}")
    events: tuple[Event, ...] = ()
    if device == "cuda" or (device == "auto" and any(Path(file).exists() for file in GPU_FILES)):
        missing = [name for name in CUDA_PACKAGES if find_spec(name) is None]
        problem = f"these packages are not installed: {', '.join(missing)}" if missing else ""
        if not missing:
            from pantherseg.inference.backends.torch_backend import TorchBackend, cuda_problem

            problem = cuda_problem()
            if not problem:
                return TorchBackend("cuda", mode, device_memory_mb=device_memory_mb)
        if device == "cuda":
            raise DeviceError("device", f"CUDA cannot be used: {problem}", hint="use --device cpu")
        message = f"a GPU seems to be present, but CUDA cannot be used: {problem}; the CPU was used"
        events = (Event(EventCode.NO_CUDA, message),)
    if find_spec("openvino") is not None:
        from pantherseg.inference.backends.openvino_backend import OpenVinoBackend

        return OpenVinoBackend(mode, events, bfloat16=bfloat16)
    from pantherseg.inference.backends.torch_backend import TorchBackend

    return TorchBackend("cpu", mode, events)
