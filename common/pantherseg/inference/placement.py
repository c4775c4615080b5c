"""Where the networks of a member run. Only this module decides what is given up when memory is short.

Before the networks run, their size (from the manifest of the bundle), the size of the logits and the free memory are
known. The best placement that seems to fit comes first; the next ones are for when memory was too small after all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pantherseg.arrays import Array
from pantherseg.errors import DeviceMemoryError
from pantherseg.events import Event, EventCode
from pantherseg.inference.accumulate import sweep_bytes
from pantherseg.inference.backends import Backend
from pantherseg.machine.memory import HINT, MB
from pantherseg.models.bundle import Bundle


@dataclass(frozen=True, eq=False)
class Placement:
    """Where a member's data and logits are, and the backend that runs its networks.

    data: the prepared volume (1, z, y, x) in that memory or file; keep_networks: whether the networks may stay in
    memory for the next case; events: what was given up because memory was short.
    """

    data: Array
    backend: Backend
    keep_networks: bool = False
    events: tuple[Event, ...] = ()


def placements(
    data: NDArray[np.float32],
    bundle: Bundle,
    backend: Backend,
    *,
    keep_networks: bool = False,
    allow_bfloat16: bool = False,
) -> Iterator[Placement]:
    """Yield the placements of a prepared volume (1, z, y, x) for which memory seems to suffice, the best one first.

    keep_networks: keep networks for the next case if memory allows it; allow_bfloat16: compute in bfloat16 if memory is
    too small for float32. Raises DeviceMemoryError, with the sizes, if not even one network fits.
    """
    manifest = bundle.manifest
    sums = sweep_bytes(data.shape[1:], manifest.patch, classes=manifest.classes, folds=len(bundle.folds))
    backend.make_room(bundle)
    if backend.keeps(bundle) and sums <= backend.free_bytes():
        yield Placement(data, backend, keep_networks=True)
        backend.release_networks()
    elif backend.network_bytes(bundle) + sums > backend.free_bytes():
        backend.release_networks()  # also those of other bundles
    free = backend.free_bytes()
    for candidate, events in _by_precision(backend, allow_bfloat16=allow_bfloat16):
        shortage: DeviceMemoryError | None = None
        network = candidate.network_bytes(bundle)
        if network > free:
            expected = f"{_mb(network)} for the network of {bundle.display_path.name} in {candidate.precision}"
            hint = HINT
            if not allow_bfloat16 and backend.in_bfloat16() is not None:
                hint = f"{HINT}, or allow_bfloat16 = true in the recipe"
            shortage = DeviceMemoryError(candidate.memory_name, expected=expected, found=f"{_mb(free)} free", hint=hint)
            continue
        # Kept networks leave half of the memory to other members and larger volumes.
        keep = keep_networks and len(bundle.folds) * network + sums <= free // 2
        if network + sums <= free and (placed := candidate.place(data)) is not None:
            yield Placement(placed, candidate, keep, events)
            del placed
            backend.release_networks()
        try:
            roomier = candidate.place_with_more_room(data)
        except DeviceMemoryError as error:
            shortage = error
            continue
        message = f"{_mb(network)} for a network and {_mb(sums)} for logits did not fit into {_mb(free)} of free memory"
        yield Placement(roomier, candidate, False, (*events, Event(candidate.roomier_event, message)))
        del roomier
    if shortage is not None:
        raise shortage


def _by_precision(backend: Backend, *, allow_bfloat16: bool) -> Iterator[tuple[Backend, tuple[Event, ...]]]:
    yield backend, ()
    if allow_bfloat16 and (half := backend.in_bfloat16()) is not None:
        message = f"memory was too small for {backend.precision}; the networks computed in {half.precision}"
        yield half, (Event(EventCode.LESS_PRECISE, message),)


def _mb(size: int) -> str:
    return f"{max(0, size) // MB} MB"
