"""A bundle's networks on CPUs by OpenVINO. torch is not imported."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pantherseg.arrays import zeros_in_file
from pantherseg.errors import DeviceMemoryError, LostDeviceError, ModelError, last_line
from pantherseg.events import Event, EventCode
from pantherseg.inference.accumulate import Network
from pantherseg.inference.backends import Mode, VerifiedFolds
from pantherseg.machine.cpus import usable_cpus
from pantherseg.machine.memory import MB, room_bytes, shortage
from pantherseg.machine.openvino import ov
from pantherseg.models.bundle import Bundle

BYTES = {"float32": 4, "bfloat16": 2}
# OpenVINO's code for a network, and what else does not grow with it.
CODE_BYTES = 160 * MB


class OpenVinoBackend:
    """`exact` computes in float32, `fast` in bfloat16 where the CPU has it."""

    device = "cpu"
    memory_name = "memory"
    roomier_event = EventCode.LOGITS_ON_DISK

    def __init__(self, mode: Mode = "exact", events: tuple[Event, ...] = ()) -> None:
        self._core = ov.Core()
        self._has_bfloat16 = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.mode = mode
        self.precision = "float32"
        self.events = events
        if mode == "fast":
            if self._has_bfloat16:
                self.precision = "bfloat16"
            else:
                self.events += (
                    Event(EventCode.NO_BFLOAT16, "this CPU has no bfloat16; fast computed in float32, as exact does"),
                )
        self.settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bfloat16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": usable_cpus(),
        }
        self._verified = VerifiedFolds()
        self._kept: dict[tuple[Path, str], ov.InferRequest] = {}

    def network(self, bundle: Bundle, fold: str, upcoming: str | None = None, *, keep: bool = False) -> Network:
        """Read and compile the network of one fold. Raises ModelError, and DeviceMemoryError as its tiles do.

        Compiling the upcoming one meanwhile was measured: on two cores it saves nothing and costs a quarter more
        memory. OpenVINO's cache of compiled models saves less than half of compiling, for as many bytes as the weights.
        """
        key = bundle.path, fold
        request = self._kept.get(key)
        if request is None:
            request = self._verified_request(bundle, fold)
            if keep:
                self._kept[key] = request

        def run(tile: NDArray[np.float32]) -> NDArray[Any]:
            try:
                request.infer([np.ascontiguousarray(tile)], share_inputs=True)
            except RuntimeError as error:
                if (short := shortage(error, f"a tile of {tile.shape[2:]} voxels (z, y, x)")) is not None:
                    raise short from error
                raise
            logits: NDArray[Any] = request.get_output_tensor().data.copy()  # the next tile overwrites the request's own
            return logits

        return run

    def make_room(self, bundle: Bundle) -> None:
        """Do nothing: networks that are kept are of use for the next case."""

    def keeps(self, bundle: Bundle) -> bool:
        """Return whether networks of this bundle are kept in memory."""
        return any(path == bundle.path for path, _ in self._kept)

    def release_networks(self) -> None:
        """Free all networks that are kept."""
        self._kept.clear()

    def network_bytes(self, bundle: Bundle) -> int:
        """Return about what a network takes: features, weights in OpenVINO's order and as they are read, and its code.

        Never below what was measured (`python -m bench --full memory`), and at most half above.
        """
        manifest = bundle.manifest
        return BYTES[self.precision] * (manifest.peak_activations + 2 * manifest.weights) + CODE_BYTES

    def free_bytes(self) -> int:
        """Return what this process may still take of the memory."""
        return room_bytes()

    def place(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a prepared volume as it is: it lies in memory."""
        return data

    def place_with_more_room(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a copy of a prepared volume in a temporary file. Raises DeviceMemoryError where no disk has room."""
        filed = zeros_in_file(data.shape, data.dtype)
        filed[:] = data
        return filed

    def in_bfloat16(self) -> OpenVinoBackend | None:
        """Return the backend in bfloat16, None where this one is it or the CPU has none."""
        return OpenVinoBackend("fast") if self.precision == "float32" and self._has_bfloat16 else None

    def explain(self, error: Exception) -> LostDeviceError | None:
        """Return what an error says of too little memory; a CPU does not go away."""
        return error if isinstance(error, DeviceMemoryError) else shortage(error, "summing logits")

    def _verified_request(self, bundle: Bundle, fold: str) -> ov.InferRequest:
        bundle.check_layout(fold)  # first: OpenVINO would read beyond the end of a file that is too short
        # Checking takes as long as compiling; nothing is computed with the weights before both have ended.
        with ThreadPoolExecutor(1) as beside:
            compiled = beside.submit(self._compiled, bundle, fold)
            self._verified.check(bundle, fold)
            return compiled.result()

    def _compiled(self, bundle: Bundle, fold: str) -> ov.InferRequest:
        try:
            model = self._core.read_model(bundle.graph_path, bundle.weights_path(fold))
            return self._core.compile_model(model, "CPU", self.settings).create_infer_request()
        except RuntimeError as error:
            # No fault of the fold, which must not be left out for it.
            if (short := shortage(error, f"the network of fold {fold}")) is not None:
                raise short from error
            reason = last_line(error)
            raise ModelError(bundle.graph_path, expected="a graph that OpenVINO can run", found=reason) from error
