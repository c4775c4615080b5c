"""A bundle's networks on CPUs by OpenVINO. torch is not imported."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pantherseg.arrays import zeros_in_file
from pantherseg.errors import DeviceMemoryError, LostDeviceError, ModelError, last_line
from pantherseg.events import Event
from pantherseg.inference.accumulate import Network
from pantherseg.inference.backends import Mode, Placement, sum_bytes
from pantherseg.machine.cpus import usable_cpus
from pantherseg.machine.memory import HINT, MB, room_bytes, shortage
from pantherseg.machine.openvino import ov
from pantherseg.models.bundle import Bundle

BYTES = {"float32": 4, "bfloat16": 2}
# OpenVINO's code for a network, and what else does not grow with it.
CODE_BYTES = 160 * MB


class OpenVinoBackend:
    """`exact` computes in float32, `fast` in bfloat16 where the CPU has it."""

    device = "cpu"

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
                    Event("no_bfloat16", "this CPU has no bfloat16; fast computed in float32, as exact does"),
                )
        self.settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bfloat16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": usable_cpus(),
        }

    def network(self, bundle: Bundle, fold: str, upcoming: str | None = None) -> Network:
        """Read and compile the network of one fold. Raises ModelError, and DeviceMemoryError as its tiles do.

        Compiling the upcoming one meanwhile was measured: on two cores it saves nothing and costs a quarter more
        memory. OpenVINO's cache of compiled models saves less than half of compiling, for as many bytes as the weights.
        """
        bundle.check_layout(fold)  # beforehand: what a short file lacks would be looked for all the same
        # Checking takes as long as compiling; nothing is computed with weights before both have ended.
        with ThreadPoolExecutor(1) as beside:
            compiled = beside.submit(self._compiled, bundle, fold)
            bundle.check_content(fold)
            request = compiled.result()

        def run(tile: NDArray[np.float32]) -> NDArray[Any]:
            try:
                request.infer([np.ascontiguousarray(tile)], share_inputs=True)
            except RuntimeError as error:
                if (short := shortage(error, f"a tile of {tile.shape[2:]} voxels (z, y, x)")) is not None:
                    raise short from error
                raise
            logits: NDArray[Any] = request.get_output_tensor().data.copy()  # the request's own is written to again
            return logits

        return run

    def placements(self, data: NDArray[np.float32], bundle: Bundle) -> Iterator[Placement]:
        """Yield the volume in memory, then in a file, for this precision and then for half of it, where they fit.

        Tiles go one at a time: several would take more memory and no less time. Raises DeviceMemoryError where no
        network fits.
        """
        free, sums = room_bytes(), sum_bytes(data, bundle)
        for backend, coarser in self._coarser():
            short: DeviceMemoryError | None = None
            network = backend._network_bytes(bundle)
            if network + sums <= free:
                yield Placement(data, backend, coarser)
            if network > free:
                expected = f"{_mb(network)} for a patch of {bundle.display_path.name} in {backend.precision}"
                short = DeviceMemoryError("memory", expected=expected, found=f"{_mb(free)} free", hint=HINT)
                continue
            try:
                filed = zeros_in_file(data.shape, data.dtype)
            except DeviceMemoryError as error:
                short = error
                continue
            filed[:] = data
            message = f"too little memory for {_mb(sums)} beside {_mb(network)} of a network; sums went to a file"
            yield Placement(filed, backend, (*coarser, Event("sums_in_file", message)))
            del filed
        if short is not None:
            raise short

    def explained(self, error: Exception) -> LostDeviceError | None:
        """Return what an error says of too little memory; a CPU does not go away."""
        return error if isinstance(error, DeviceMemoryError) else shortage(error, "summing logits")

    def _coarser(self) -> Iterator[tuple[OpenVinoBackend, tuple[Event, ...]]]:
        """Yield this backend and, where there is one, that of half its precision, with an event that says so."""
        yield self, ()
        if self.precision == "float32" and self._has_bfloat16:
            half = OpenVinoBackend("fast")
            yield half, (Event("less_precise", f"too little memory for {self.precision}; {half.precision} was used"),)

    def _network_bytes(self, bundle: Bundle) -> int:
        """Return about what a network takes: features, weights in OpenVINO's order and as they are read, and its code.

        Never below what was measured (`python -m bench --full memory`), and at most half above.
        """
        manifest = bundle.manifest
        return BYTES[self.precision] * (manifest.peak_activations + 2 * manifest.weights) + CODE_BYTES

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


def _mb(size: int) -> str:
    return f"{size // MB} MB"
