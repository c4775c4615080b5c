"""Networks on CPUs by OpenVINO. torch is not imported."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pantherseg.arrays import zeros_in_file
from pantherseg.errors import DeviceMemoryError, LostDeviceError, ModelError, last_line
from pantherseg.events import Event, EventCode
from pantherseg.inference.accumulate import Network
from pantherseg.inference.backends.backend import FileVersion, Mode, VerifiedFolds
from pantherseg.machine.cpus import usable_cpus
from pantherseg.machine.memory import MB, room_bytes, shortage
from pantherseg.machine.openvino import ov
from pantherseg.models.bundle import Bundle

BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2}
# The code that OpenVINO generates for a network, and everything else that does not grow with the network.
CODE_BYTES = 160 * MB


class OpenVinoBackend:
    """Networks on the CPU: `exact` computes in float32, `fast` in bfloat16 if the CPU supports it.

    bfloat16: False for `fast` in float32, too.
    """

    device = "cpu"
    memory_name = "memory"
    roomier_event = EventCode.LOGITS_ON_DISK

    def __init__(self, mode: Mode = "exact", events: tuple[Event, ...] = (), *, bfloat16: bool = True) -> None:
        self._core = ov.Core()
        self._has_bfloat16 = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.mode = mode
        self.precision = "float32"
        self.events = events
        if mode == "fast" and bfloat16:
            if self._has_bfloat16:
                self.precision = "bfloat16"
            else:
                message = "this CPU does not support bfloat16; fast computed in float32"
                self.events += (Event(EventCode.NO_BFLOAT16, message),)
        self.settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bfloat16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": usable_cpus(),
        }
        self._verified = VerifiedFolds()
        self._kept: dict[FileVersion, ov.InferRequest] = {}

    def network(self, bundle: Bundle, fold: str, upcoming: str | None = None, *, keep: bool = False) -> Network:
        """Read, verify and compile the network of one fold. Raises ModelError, DeviceMemoryError.

        The upcoming fold is not compiled in the background: on two cores this was measured to save no time and to take
        a quarter more memory. OpenVINO's cache of compiled models is not used either: it saves less than half of the
        compilation and stores as many bytes as the weights.
        """
        bundle.check_layout(fold)  # first, because OpenVINO would read beyond the end of a truncated file
        version = FileVersion.of(bundle.weights_path(fold))
        request = self._kept.get(version)
        if request is None:
            request = self._verified_request(bundle, fold)
            if keep:
                self._kept[version] = request

        def run(tile: NDArray[np.float32]) -> NDArray[Any]:
            try:
                request.infer([np.ascontiguousarray(tile)], share_inputs=True)
            except RuntimeError as error:
                if (short := shortage(error, f"a tile of {tile.shape[2:]} voxels (z, y, x)")) is not None:
                    raise short from error
                raise
            logits: NDArray[Any] = request.get_output_tensor().data.copy()  # the next tile overwrites this tensor
            return logits

        return run

    def make_room(self, bundle: Bundle) -> None:
        """Free networks of files that have been replaced since."""
        self._kept = {version: request for version, request in self._kept.items() if version.is_current}

    def keeps(self, bundle: Bundle) -> bool:
        """Return whether the networks of all folds of this bundle are kept in memory."""
        paths = {version.path for version in self._kept}
        return all(bundle.weights_path(fold) in paths for fold in bundle.folds)

    def release_networks(self) -> None:
        """Free all kept networks."""
        self._kept.clear()

    def network_bytes(self, bundle: Bundle) -> int:
        """Return an estimate of the memory for one network.

        It counts features, weights (as read and as reordered by OpenVINO) and generated code. It is never below what
        was measured (`python -m bench --full memory`), and at most half above it.
        """
        manifest = bundle.manifest
        return BYTES_PER_VALUE[self.precision] * (manifest.peak_activations + 2 * manifest.weights) + CODE_BYTES

    def free_bytes(self) -> int:
        """Return how much memory this process may still allocate."""
        return room_bytes()

    def place(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a prepared volume unchanged, as it is in memory already."""
        return data

    def place_with_more_room(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a copy of a prepared volume in a temporary file. Raises DeviceMemoryError if the disk is full."""
        copy = zeros_in_file(data.shape, data.dtype)
        copy[:] = data
        return copy

    def in_bfloat16(self) -> OpenVinoBackend | None:
        """Return a backend in bfloat16, None if this one computes in it or the CPU does not support it."""
        return OpenVinoBackend("fast") if self.precision == "float32" and self._has_bfloat16 else None

    def explain(self, error: Exception) -> LostDeviceError | None:
        """Return the error for too little memory if that caused `error`; a CPU has no other failures."""
        return error if isinstance(error, DeviceMemoryError) else shortage(error, "summing logits")

    def _verified_request(self, bundle: Bundle, fold: str) -> ov.InferRequest:
        # Verifying takes as long as compiling, so they run side by side. No network runs before both have ended.
        with ThreadPoolExecutor(1) as executor:
            compiled = executor.submit(self._compiled, bundle, fold)
            self._verified.check(bundle, fold)
            return compiled.result()

    def _compiled(self, bundle: Bundle, fold: str) -> ov.InferRequest:
        try:
            model = self._core.read_model(bundle.graph_path, bundle.weights_path(fold))
            return self._core.compile_model(model, "CPU", self.settings).create_infer_request()
        except RuntimeError as error:
            # This is not the fault of the fold, which must not be left out because of it.
            if (short := shortage(error, f"the network of fold {fold}")) is not None:
                raise short from error
            reason = last_line(error)
            raise ModelError(bundle.graph_path, expected="a graph that OpenVINO can run", found=reason) from error
