"""Compares the FLOP/s of a network's forward pass with those of the fastest single convolutions on this machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from pantherseg.inference.backends.openvino_backend import OpenVinoBackend
from pantherseg.machine.openvino import ov
from pantherseg.models.bundle import open_bundle

REPEATS = 5
# Sizes for which 3x3x3 convolutions are fastest on CPUs: number of input and output channels, and (z, y, x).
BEST_SHAPES = ((128, (32, 56, 80)), (256, (16, 28, 40)))


def measure(bundle_path: Path) -> dict[str, Any]:
    """Return GFLOP per tile, and for each mode seconds per tile and GFLOP/s relative to the fastest convolution."""
    bundle = open_bundle(bundle_path)
    core = ov.Core()
    gflop = operations(core.read_model(bundle.graph_path, bundle.weights_path(bundle.folds[0]))) / 1e9
    tile = np.random.default_rng(0).normal(size=(1, 1, *bundle.manifest.patch)).astype(np.float32)
    results: dict[str, Any] = {"gflop_a_tile": round(gflop)}
    for mode in ("exact", "fast"):
        backend = OpenVinoBackend(mode)
        network = backend.network(bundle, bundle.folds[0])
        seconds = _fastest(lambda: network(tile))  # noqa: B023  (called immediately)
        best = max(_single_convolution(core, backend, channels, shape) for channels, shape in BEST_SHAPES)
        results[mode] = {
            "precision": backend.precision,
            "seconds_a_tile": round(seconds, 3),
            "gflop_s": round(gflop / seconds),
            "best_gflop_s": round(best),
            "share": round(gflop / seconds / best, 3),
        }
    return results


def operations(model: ov.Model) -> int:
    """Return the floating-point operations of a graph's convolutions, two per multiplication and addition."""
    total = 0
    for node in model.get_ops():
        if node.get_type_name() == "Convolution":  # each output voxel: kernel times input channels
            voxels = node.output(0).get_shape()
        elif node.get_type_name() == "ConvolutionBackpropData":  # each input voxel: kernel times output channels
            voxels = node.input_value(0).get_shape()
        else:
            continue
        total += 2 * int(np.prod(voxels)) * int(np.prod(list(node.input_value(1).get_shape())[1:]))
    return total


def table(results: dict[str, Any]) -> str:
    """Return a Markdown table with one row per mode."""
    lines = [
        "| mode | precision | seconds per tile | GFLOP/s | fastest single convolution | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for mode in ("exact", "fast"):
        result = results[mode]
        lines.append(
            f"| `{mode}` | {result['precision']} | {result['seconds_a_tile']:.2f} | {result['gflop_s']} "
            f"| {result['best_gflop_s']} | {result['share']:.0%} |"
        )
    return "\n".join(lines)


def _single_convolution(core: ov.Core, backend: OpenVinoBackend, channels: int, shape: tuple[int, ...]) -> float:
    """Return the GFLOP/s of one convolution."""
    from openvino import opset13 as op

    data = op.parameter([1, channels, *shape], np.float32)
    weights = np.random.default_rng(0).normal(size=(channels, channels, 3, 3, 3)).astype(np.float32)
    result = op.convolution(data, op.constant(weights), [1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1])
    model = ov.Model([result], [data])
    request = core.compile_model(model, "CPU", backend.settings).create_infer_request()
    values = np.zeros((1, channels, *shape), np.float32)
    return operations(model) / _fastest(lambda: request.infer([values], share_inputs=True)) / 1e9


def _fastest(call: Any) -> float:
    seconds = []
    call()  # the first call is slower
    for _ in range(REPEATS):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
