"""A session: what one process needs for any number of cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pantherseg.events import Event
from pantherseg.machine.memory import reserve_memory
from pantherseg.recipe import Recipe

if TYPE_CHECKING:
    from pantherseg.ensemble import Ensemble
    from pantherseg.inference.backends import Mode


class Session:
    """A recipe, its models and a device, for any number of cases.

    Models are found, verified and loaded once, by the first case or by `load`. Where a GPU fails, the session goes over
    to the CPU for good.

    models: folder of models, with one for each that the recipe names; device: `auto`, `cpu` or `cuda`; mode: `exact` or
    `fast`; device_memory_mb: how much of a GPU's memory may be used; many_cases: keep compiled networks for the next
    case where memory allows, which a single case does not pay for; members: the names of those that take part, or with
    a minus in front of those that do not, None for all. `recipe` is then one of these members. Raises RecipeError for
    an unknown name, and DeviceMemoryError if the process's memory limit is too low.
    """

    def __init__(
        self,
        recipe: Recipe,
        models: Path,
        *,
        device: str = "auto",
        mode: Mode = "exact",
        device_memory_mb: int | None = None,
        many_cases: bool = False,
        members: Sequence[str] | None = None,
    ) -> None:
        reserve_memory()
        self.recipe = recipe if members is None else recipe.with_members(members)
        self._left_out = [name for name in recipe.member_names if name not in self.recipe.member_names]
        self.models = models
        self._device, self._mode, self._device_memory_mb = device, mode, device_memory_mb
        self._many_cases = many_cases
        self._ensemble: Ensemble | None = None

    def load(self) -> Ensemble:
        """Return the models on the device; the first call loads them. Raises ModelError, RecipeError, DeviceError."""
        if self._ensemble is None:
            from pantherseg.ensemble import load_ensemble, member_left_out  # imports what runs networks

            ensemble = load_ensemble(
                self.recipe,
                self.models,
                device=self._device,
                mode=self._mode,
                device_memory_mb=self._device_memory_mb,
                keep_networks=self._many_cases,
            )
            asked = [member_left_out(name, "the caller did not want it") for name in self._left_out]
            self._ensemble = replace(ensemble, events=(*asked, *ensemble.events)) if asked else ensemble
        return self._ensemble

    def use_cpu(self, reason: Event) -> None:
        """Go over to the CPU, for this case and all later ones, which report the reason."""
        ensemble = self.load().on_cpu()
        self._ensemble = replace(ensemble, events=(*ensemble.events, reason))
