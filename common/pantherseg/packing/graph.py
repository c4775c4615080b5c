"""A torch network into an OpenVINO graph whose weights lie in a safetensors file."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from pantherseg.files import temporary_folder
from pantherseg.machine.openvino import ov
from pantherseg.networks import distinct_tensors

# What a graph holds beside the network's weights: shapes, axes, strides. More would be weights under another form.
MAX_CONSTANT_BYTES = 1 << 20
# The mean of blocks, then of their means, keeps float32's digits where one long sum loses them.
BLOCK = 8
DEEP_BLOCK = 4
SEED = 0
PROBE_BYTES = 1 << 16
CONSTANT = "./layers/layer[@type='Const']/data"


class AccurateInstanceNorm(nn.Module):
    """InstanceNorm in two passes, as accurate as torch's own in any backend that averages naively."""

    def __init__(self, norm: nn.modules.instancenorm._InstanceNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (1, channel, *patch) over the patch."""
        centred = x - _mean(x)
        scale = torch.rsqrt(_mean(centred * centred) + self.eps)
        if self.weight is None:
            return centred * scale
        view = (1, -1, *(1 for _ in x.shape[2:]))
        return centred * (scale * self.weight.view(view)) + self.bias.view(view)


def _mean(x: torch.Tensor) -> torch.Tensor:
    """Return the mean over all spatial axes, kept as axes of length 1."""
    *deep, height, width = (int(size) for size in x.shape[2:])
    if height % BLOCK == 0 and width % BLOCK == 0:
        block = [DEEP_BLOCK if size % DEEP_BLOCK == 0 else 1 for size in deep] + [BLOCK, BLOCK]
        x = (functional.avg_pool3d if deep else functional.avg_pool2d)(x, block)
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@dataclass(frozen=True)
class Graph:
    """A network's graph whose weights are not placed yet. constants: what it holds beside the weights, as bytes."""

    tree: ElementTree.ElementTree[ElementTree.Element]
    constants: NDArray[np.uint8]

    def placed(self, offsets: Mapping[str, int], constants: int) -> str:
        """Return the graph as text, for a file that holds every tensor at its offset, and the constants at theirs."""
        root = copy.deepcopy(self.tree.getroot())
        for data in root.iterfind(CONSTANT):
            name = data.attrib.pop("tensor", None)
            data.set("offset", str(offsets[name] if name is not None else constants + int(data.attrib["offset"])))
        return ElementTree.tostring(root, encoding="unicode") + "\n"


def make_graph(network: nn.Module, shape: tuple[int, ...]) -> Graph:
    """Return a network's graph for an input of `shape`; the network is used up, its weights are replaced.

    Raises ValueError for norms with running statistics, and where the graph holds weights in another form than the
    network's.
    """
    names = _fill_with_distinct_values(network)
    _use_accurate_norms(network)
    tree, values = _convert(network, shape)
    constants = bytearray()
    for data in tree.iterfind(CONSTANT):
        start, size = int(data.attrib.pop("offset")), int(data.attrib["size"])
        content = values[start : start + size]
        if (name := names.get(content)) is not None:
            data.set("tensor", name)
        else:
            data.set("offset", str(len(constants)))
            constants += content + bytes(-len(content) % 8)
    if len(constants) > MAX_CONSTANT_BYTES:
        raise ValueError(f"the graph holds {len(constants)} bytes that are not the network's weights as they are")
    return Graph(tree, np.frombuffer(bytes(constants), np.uint8))


def _convert(network: nn.Module, shape: tuple[int, ...]) -> tuple[ElementTree.ElementTree[ElementTree.Element], bytes]:
    """Return a network as OpenVINO writes it: the graph, and the bytes of every constant in it."""
    from openvino._offline_transformations import apply_moc_transformations
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the tracer: shapes are fixed, and so may be what follows from them
        traced = torch.jit.trace(network, torch.zeros(shape), check_trace=False)  # type: ignore[no-untyped-call]
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced)  # must outlive the conversion
        model = frontend.convert(frontend.load(decoder))
    model.reshape(list(shape))
    apply_moc_transformations(model, cf=True)  # folds what is constant
    folder = temporary_folder()
    try:
        file = folder / "graph.xml"
        try:
            ov.save_model(model, file, compress_to_fp16=False)
        except RuntimeError as error:
            _write_something(folder)
            raise OSError(f"{file}: {error}") from error
        tree = ElementTree.parse(file)
        _name_by_number(tree.getroot())
        return tree, file.with_suffix(".bin").read_bytes()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_something(folder: Path) -> None:
    """Raise OSError with the reason why nothing can be written, which OpenVINO does not say."""
    (folder / "something").write_bytes(bytes(PROBE_BYTES))


def _name_by_number(root: ElementTree.Element) -> None:
    """Give a graph and its layers names that depend on nothing but the graph: OpenVINO counts through a process."""
    root.set("name", "network")
    for layer in root.iterfind("./layers/layer"):
        layer.set("name", f"{layer.attrib['type']}_{layer.attrib['id']}")


def _fill_with_distinct_values(network: nn.Module) -> dict[bytes, str]:
    """Give every tensor values that no other has, and return each one's name by its bytes."""
    generator = torch.Generator().manual_seed(SEED)
    names = {}
    for name, value in distinct_tensors(network).items():
        with torch.no_grad():
            value.copy_(torch.rand(value.shape, generator=generator))
        names[value.numpy().tobytes()] = name
    return names


def _use_accurate_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if getattr(child, "track_running_stats", False):
            kind = type(child).__name__
            raise ValueError(f"{kind} {name} keeps running statistics, which no network run here may")
        if isinstance(child, nn.modules.instancenorm._InstanceNorm):
            setattr(module, name, AccurateInstanceNorm(child))
        else:
            _use_accurate_norms(child)
