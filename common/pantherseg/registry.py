"""Named variants of one kind of thing, such as ways of fusing members, each described by a table that names it.

A base class owns its registry, and every variant is one registration:

    class Fusion:
        registry: ClassVar[Registry[Fusion]] = Registry("fusion")

    @Fusion.registry.register("mean_logits")
    class MeanLogits(Table, Fusion, frozen=True): ...

A field of the type `Fusion` is then decoded by `msgspec.convert(..., dec_hook=decode_registered)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

from pantherseg.tables import Table, decode_registered, did_you_mean, what_is_wrong

T = TypeVar("T")
S = TypeVar("S", bound=Table)


class Registry(Generic[T]):
    """The variants of one kind of thing by name. what: its name in errors; tag: the key that names a variant."""

    def __init__(self, what: str, tag: str = "kind") -> None:
        self.what, self.tag = what, tag
        self._variants: dict[str, type[Any]] = {}

    def register(self, name: str) -> Callable[[type[S]], type[S]]:
        """Return a class decorator that registers a Table under a name, which msgspec then writes as its tag.

        Raises ValueError where the name is taken.
        """

        def decorate(variant: type[S]) -> type[S]:
            if name in self._variants:
                raise ValueError(f"the {self.what} '{name}' is registered already")
            # msgspec fixes the tag when a class is made, so a subclass of the same name carries it.
            same = {key: getattr(variant, key) for key in ("__module__", "__qualname__", "__doc__")}
            tagged: type[S] = msgspec.defstruct(  # type: ignore[assignment]
                variant.__name__, [], bases=(variant,), namespace=same, frozen=True, tag_field=self.tag, tag=name
            )
            return self._variants.setdefault(name, tagged)

        return decorate

    @staticmethod
    def name_of(variant: object) -> str:
        """Return the name under which the type of a variant is registered."""
        return str(type(variant).__struct_config__.tag)  # type: ignore[attr-defined]

    def names(self) -> tuple[str, ...]:
        """Return the registered names in the order of their registration."""
        return tuple(self._variants)

    def decode(self, table: object) -> T:
        """Return the variant that a table describes.

        Raises ValueError for an unknown name, a missing or an unknown key, and an invalid value.
        """
        name = table.get(self.tag) if isinstance(table, dict) else None
        known = ", ".join(self.names())
        if not isinstance(name, str):
            article = "an" if self.what[0] in "aeiou" else "a"
            raise ValueError(f"Expected {article} {self.what}: a table whose key '{self.tag}' is one of {known}")
        if name not in self._variants:
            near = did_you_mean(name, self.names())
            raise ValueError(f"Unknown {self.what} '{name}', expected one of {known}{near}")
        try:
            result: T = msgspec.convert(table, self._variants[name], dec_hook=decode_registered)
        except msgspec.ValidationError as error:
            problem = what_is_wrong(table, self._variants[name], where="") or error
            raise ValueError(f"{self.what} '{name}': {problem}") from error
        return result
