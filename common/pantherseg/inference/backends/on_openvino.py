"""A bundle's networks on CPUs by OpenVINO. torch is not imported."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pantherseg.bundle import Bundle
from pantherseg.cpus import usable_cpus
from pantherseg.errors import Event, ModelError
from pantherseg.inference.accumulate import Network
from pantherseg.inference.backends import Mode
from pantherseg.memory import shortage
from pantherseg.untracked import ov


class OpenVinoBackend:
    """`exact` computes in float32, `fast` in bfloat16 where the CPU has it."""

    device = "cpu"

    def __init__(self, mode: Mode = "exact", events: tuple[Event, ...] = ()) -> None:
        self._core = ov.Core()
        self.mode = mode
        self.precision = "float32"
        self.events = events
        if mode == "fast":
            if "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
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

    def placements(
        self, data: NDArray[np.float32], bundle: Bundle
    ) -> Iterator[tuple[NDArray[np.float32], tuple[Event, ...]]]:
        """Yield the volume where it lies: there is one memory."""
        yield data, ()

    def explained(self, error: Exception) -> None:
        """Return None: a CPU does not go away."""

    def _compiled(self, bundle: Bundle, fold: str) -> ov.InferRequest:
        try:
            model = self._core.read_model(bundle.graph_path, bundle.weights_path(fold))
            return self._core.compile_model(model, "CPU", self.settings).create_infer_request()
        except RuntimeError as error:
            # No fault of the fold, which must not be left out for it.
            if (short := shortage(error, f"the network of fold {fold}")) is not None:
                raise short from error
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise ModelError(bundle.graph_path, expected="a graph that OpenVINO can run", found=reason) from error
