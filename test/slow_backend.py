"""A backend without a network that takes a set time, by a clock of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pantherseg.events import Event
from pantherseg.inference.accumulate import Network
from pantherseg.inference.backends import Mode
from pantherseg.machine.memory import NO_LIMIT
from pantherseg.models.bundle import Bundle


@dataclass
class Clock:
    """A clock that only moves while a network is loaded or runs."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class SlowBackend:
    """A backend that takes a set time. Fold k's logits are k for class 0 and the tile for class 1."""

    clock: Clock
    forward_s: float = 1.0
    load_s: float = 0.0
    forwards: list[str] = field(default_factory=list)
    mode: Mode = "exact"
    device = "cpu"
    precision = "float32"
    events: tuple[Event, ...] = ()

    def network(self, bundle: Bundle, fold: str, upcoming: str | None = None, *, keep: bool = False) -> Network:
        self.clock.now += self.load_s

        def run(tile: NDArray[np.float32]) -> NDArray[np.float32]:
            self.clock.now += self.forward_s
            self.forwards.append(fold)
            return np.concatenate([np.full_like(tile, float(fold)), tile], axis=1)

        return run

    def make_room(self, bundle: Bundle) -> None: ...

    def keeps(self, bundle: Bundle) -> bool:
        return False

    def network_bytes(self, bundle: Bundle) -> int:
        return 0

    def free_bytes(self) -> int:
        return NO_LIMIT

    def place(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        return data

    def explain(self, error: Exception) -> None: ...
