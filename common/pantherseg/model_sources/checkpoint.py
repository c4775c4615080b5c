"""nnU-Net's checkpoints, read without running code that they contain."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pantherseg.errors import ModelError, first_few, os_reason
from pantherseg.model_sources.stand_ins import ALLOWED

if TYPE_CHECKING:
    import torch


REFUSED = re.compile(r"GLOBAL [\w.]+")
# In the names of the parts of a checkpoint that hold tensors.
TENSORS = "/data/"
NNUNETS = "an nnU-Net checkpoint"
COPY = "copy the file again"
# How many tensors of each kind an error names.
NAMED = 2
PREFIXES = re.compile(r"^(_orig_mod\.|module\.)+")


@dataclass(frozen=True)
class Checkpoint:
    """The parts of a checkpoint that packing needs.

    weights: state dict of the network; configuration: its name in the plans, such as 3d_fullres; trainer: name of the
    class that trained it, for the record; mirroring_axes: spatial axes that may be mirrored, 0 = z.
    """

    weights: dict[str, torch.Tensor]
    configuration: str
    trainer: str
    mirroring_axes: tuple[int, ...]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read an nnU-Net checkpoint. Raises ModelError if it is missing, damaged, or contains more than plain data."""
    return _checkpoint(path, read_plain(path, allowed=ALLOWED))


def read_origin(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the plans and the dataset.json of a checkpoint's training.

    Raises ModelError like `read_checkpoint`, but does not read the weights.
    """
    content = read_plain(path, allowed=ALLOWED, tensors=False)
    arguments = content.get("init_args") if isinstance(content, dict) else None
    found = [arguments.get(key) if isinstance(arguments, dict) else None for key in ("plans", "dataset_json")]
    plans, dataset = found
    if not isinstance(plans, dict) or not isinstance(dataset, dict):
        expected = "an nnU-Net checkpoint with plans and dataset_json in init_args"
        raise ModelError(path, expected=expected, found=" and ".join(type(value).__name__ for value in found))
    return plans, dataset


def read_seconds(path: Path) -> float:
    """Return how long all epochs of a checkpoint's training took together, 0 where it does not say so.

    Raises ModelError like `read_checkpoint`, but does not read the weights.
    """
    content = read_plain(path, allowed=ALLOWED, tensors=False)
    logged = content.get("logging") if isinstance(content, dict) else None
    if not isinstance(logged, dict):
        return 0.0
    begins, ends = logged.get("epoch_start_timestamps", ()), logged.get("epoch_end_timestamps", ())
    return float(sum(end - begin for begin, end in zip(begins, ends, strict=False)))


def read_plain(
    path: Path, *, what: str = NNUNETS, allowed: Sequence[Any] = (), tensors: bool = True, hint: str = COPY
) -> Any:
    """Return the content of a file of torch that holds tensors and plain values, without running code from it.

    what: the kind of file, for errors; allowed: as for torch's `safe_globals`; tensors: whether those in it are used,
    and so must be read and checked; hint: what to do about a damaged file. Raises ModelError if it is missing, damaged,
    or contains more.
    """
    import torch

    if not path.is_file():
        raise ModelError(path, expected="a checkpoint", found="no such file")
    check_archive(path, what=what, tensors=tensors, hint=hint)
    try:
        mapped = not tensors and zipfile.is_zipfile(path)  # torch's older form cannot be mapped
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except MemoryError:
        raise
    # The kind of error depends on which byte of the file is damaged.
    except Exception as error:
        refused = REFUSED.search(str(error))
        raise ModelError(
            path,
            expected=f"{what} of tensors and plain values",
            found=refused[0] if refused else _describe_file(path),
            hint="only tensors and plain values are read, so that no code runs" if refused else hint,
        ) from error


def check_archive(path: Path, *, what: str = NNUNETS, tensors: bool = True, hint: str = COPY) -> None:
    """Raise ModelError if a zip archive, the usual form, does not match its checksums, which torch does not compare.

    what: the kind of file, for errors; tensors: whether to check the parts that hold tensors too, which are nearly all
    of a checkpoint; hint: what to do about a damaged file.
    """
    try:
        if not zipfile.is_zipfile(path):
            return  # torch's older form, or no checkpoint at all: reading it will tell
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip() if tensors else None
            small = [] if tensors else [name for name in archive.namelist() if TENSORS not in name]
            for name in small:
                archive.read(name)  # raises an error for another checksum
    except MemoryError:
        raise
    # The kind of error depends on which byte of the file is damaged.
    except Exception as error:
        damaged = str(error)
    if damaged is not None:
        found = f"a damaged part ({damaged})"
        raise ModelError(path, expected=what, found=found, hint=hint)


def check_fit(where: Path, network: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
    """Raise ModelError naming `where` unless weights have exactly the keys and shapes of a network's state dict."""
    if problem := misfits(network, weights):
        raise ModelError(where, expected="the weights of the described network", found=problem)


def misfits(network: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> str:
    """Return which weights do not fit a network's state dict, a few by name, and an empty string where all fit."""
    missing = [name for name in network if name not in weights]
    unexpected = [name for name in weights if name not in network]
    shapes = [
        f"{name} {tuple(weights[name].shape)} in place of {tuple(value.shape)}"
        for name, value in network.items()
        if name in weights and weights[name].shape != value.shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    return "; ".join(f"{len(names)} {kind}: {first_few(names, NAMED)}" for kind, names in kinds if names)


def _checkpoint(path: Path, content: Any) -> Checkpoint:
    try:
        weights, configuration = content["network_weights"], content["init_args"]["configuration"]
        if not isinstance(weights, dict) or not weights or not all(map(_is_plain, weights.values())):
            raise TypeError("network_weights must contain only dense tensors of real numbers")
        # torch.compile and distributed training add a prefix to every key.
        weights = {PREFIXES.sub("", key): value for key, value in weights.items()}
        axes = tuple(int(axis) for axis in content.get("inference_allowed_mirroring_axes") or ())
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ModelError(
            path, expected="an nnU-Net checkpoint (network_weights, init_args.configuration)", found=repr(error)
        ) from error
    return Checkpoint(
        weights=weights,
        configuration=str(configuration),
        trainer=str(content.get("trainer_name", "unknown")),
        mirroring_axes=axes,
    )


def _is_plain(value: object) -> bool:
    """Return whether a value is a dense tensor of real numbers in memory."""
    import torch

    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_complex()
    )


def _describe_file(path: Path) -> str:
    """Describe an unreadable file by its size and first bytes; a Git LFS pointer begins with `version`."""
    try:
        with path.open("rb") as file:
            return f"{path.stat().st_size} bytes, unreadable, beginning with {file.read(24)!r}"
    except OSError as error:
        return os_reason(error)
