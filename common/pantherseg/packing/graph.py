"""A torch network as an OpenVINO graph that reads its weights from a safetensors file."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
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
from pantherseg.networks.running_norm import RunningNorm

# The constants of a graph other than weights are shapes, axes and strides. More would be weights in another form.
MAX_CONSTANT_BYTES = 1 << 20
# The mean of the means of blocks is more accurate in float32 than one long sum.
BLOCK = 8
DEEP_BLOCK = 4
SEED = 0
PROBE_BYTES = 1 << 16
CONSTANT = "./layers/layer[@type='Const']/data"


class AccurateInstanceNorm(nn.Module):
    """InstanceNorm in two passes, as accurate as torch's own even in a backend with a naive mean."""

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


class ScaleAndShift(nn.Module):
    """A RunningNorm as one multiplication and one addition, so that the graph contains scale and shift unchanged."""

    def __init__(self, norm: RunningNorm) -> None:
        super().__init__()
        self.scale, self.shift = norm.scale, norm.shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale and shift (1, channel, *patch)."""
        view = (1, -1, *(1 for _ in x.shape[2:]))
        return x * self.scale.view(view) + self.shift.view(view)


def _mean(x: torch.Tensor) -> torch.Tensor:
    """Return the mean over all spatial axes, kept as axes of length 1."""
    *deep, height, width = (int(size) for size in x.shape[2:])
    if height % BLOCK == 0 and width % BLOCK == 0:
        block = [DEEP_BLOCK if size % DEEP_BLOCK == 0 else 1 for size in deep] + [BLOCK, BLOCK]
        x = (functional.avg_pool3d if deep else functional.avg_pool2d)(x, block)
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@dataclass(frozen=True)
class Graph:
    """The graph of a network without the positions of its weights. constants: its other constants, as bytes."""

    tree: ElementTree.ElementTree[ElementTree.Element]
    constants: NDArray[np.uint8]

    def as_text(self, offsets: Mapping[str, int], constants: int) -> str:
        """Return the XML for a weights file with each tensor at its offset in bytes, and the constants at theirs."""
        root = copy.deepcopy(self.tree.getroot())
        for data in root.iterfind(CONSTANT):
            name = data.attrib.pop("tensor", None)
            data.set("offset", str(offsets[name] if name is not None else constants + int(data.attrib["offset"])))
        return ElementTree.tostring(root, encoding="unicode") + "\n"


def make_graph(network: nn.Module, shape: tuple[int, ...]) -> Graph:
    """Return the graph of a network for an input of `shape`. Replaces the weights of the network.

    Raises ValueError if the graph would contain weights in another form: they would be the same for all folds.
    """
    names = _fill_with_distinct_values(network)
    norms = [norm for norm in network.modules() if isinstance(norm, RunningNorm)]
    _replace_norms(network)
    missing = _used_tensors(network, shape)
    kept = {_bytes(value) for norm in norms for value in norm.parameters()}
    tree, values = _convert(network, shape, kept)
    constants = bytearray()
    for data in tree.iterfind(CONSTANT):
        start, size = int(data.attrib.pop("offset")), int(data.attrib["size"])
        content = values[start : start + size]
        if (name := names.get(content)) is not None:
            data.set("tensor", name)
            missing.discard(name)
        else:
            data.set("offset", str(len(constants)))
            constants += content + bytes(-len(content) % 8)
    if missing:
        raise ValueError(f"the graph does not contain {min(missing)} unchanged")
    if len(constants) > MAX_CONSTANT_BYTES:
        raise ValueError(f"the graph contains {len(constants)} bytes of constants, which must be transformed weights")
    return Graph(tree, np.frombuffer(bytes(constants), np.uint8))


def _convert(
    network: nn.Module, shape: tuple[int, ...], kept: Set[bytes]
) -> tuple[ElementTree.ElementTree[ElementTree.Element], bytes]:
    """Return the graph of a network as OpenVINO writes it, and the bytes of all its constants.

    kept: bytes of the constants that must not be folded into others.
    """
    from openvino._offline_transformations import apply_moc_transformations
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the tracer, about values that depend on the shape: the shape is fixed
        traced = torch.jit.trace(network, torch.zeros(shape), check_trace=False)  # type: ignore[no-untyped-call]
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced)  # must outlive the conversion
        model = frontend.convert(frontend.load(decoder))
    model.reshape(list(shape))
    with _as_inputs(model, kept):
        apply_moc_transformations(model, cf=True)  # folds constants
    folder = temporary_folder()
    try:
        file = folder / "graph.xml"
        try:
            ov.save_model(model, file, compress_to_fp16=False)
        except RuntimeError as error:
            _raise_write_error(folder)
            raise OSError(f"{file}: {error}") from error
        tree = ElementTree.parse(file)
        _name_by_number(tree.getroot())
        return tree, file.with_suffix(".bin").read_bytes()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _as_inputs(model: ov.Model, constants: Set[bytes]) -> Iterator[None]:
    """Replace constants, given by their bytes, by inputs of a model until the block ends.

    So constant folding leaves them alone.
    """
    from openvino import opset13

    found = [
        node for node in model.get_ops() if node.get_type_name() == "Constant" and node.data.tobytes() in constants
    ]
    inputs = [opset13.parameter(list(node.shape), node.get_element_type()) for node in found]
    for node, parameter in zip(found, inputs, strict=True):
        node.output(0).replace(parameter.output(0))
    model.add_parameters(inputs)
    yield
    for node, parameter in zip(found, inputs, strict=True):
        parameter.output(0).replace(node.output(0))
        model.remove_parameter(parameter)


def _raise_write_error(folder: Path) -> None:
    """Raise OSError with the reason why a folder cannot be written to, which OpenVINO does not report."""
    (folder / "probe").write_bytes(bytes(PROBE_BYTES))


def _name_by_number(root: ElementTree.Element) -> None:
    """Rename a graph and its layers reproducibly: OpenVINO numbers them through the whole process."""
    root.set("name", "network")
    for layer in root.iterfind("./layers/layer"):
        layer.set("name", f"{layer.attrib['type']}_{layer.attrib['id']}")


def _fill_with_distinct_values(network: nn.Module) -> dict[bytes, str]:
    """Fill every tensor with values of its own, and return the names of the tensors by their bytes."""
    generator = torch.Generator().manual_seed(SEED)
    names = {}
    for name, value in distinct_tensors(network).items():
        with torch.no_grad():
            value.copy_(torch.rand(value.shape, generator=generator))
        names[_bytes(value)] = name
    return names


def _bytes(value: torch.Tensor) -> bytes:
    return value.detach().numpy().tobytes()


def _used_tensors(network: nn.Module, shape: tuple[int, ...]) -> set[str]:
    """Return the names of the floating-point tensors on which the output of a network depends."""
    on_meta = copy.deepcopy(network).to("meta")
    known = distinct_tensors(network)
    tensors = {name: value for name, value in (*on_meta.named_parameters(), *on_meta.named_buffers()) if name in known}
    tensors = {name: value.requires_grad_() for name, value in tensors.items() if value.is_floating_point()}
    output = on_meta(torch.empty(shape, device="meta")).sum()
    gradients = torch.autograd.grad(output, list(tensors.values()), allow_unused=True)
    return {name for name, gradient in zip(tensors, gradients, strict=True) if gradient is not None}


def _replace_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.modules.instancenorm._InstanceNorm):
            setattr(module, name, AccurateInstanceNorm(child))
        elif isinstance(child, RunningNorm):
            setattr(module, name, ScaleAndShift(child))
        else:
            _replace_norms(child)
