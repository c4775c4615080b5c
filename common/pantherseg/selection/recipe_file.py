"""The recipe of what was chosen, and recipes as TOML."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from pantherseg.errors import RecipeError, printable
from pantherseg.files import write_text
from pantherseg.fusion import MeanProbability, Vote
from pantherseg.postprocess import Components, Step, Threshold
from pantherseg.recipe import Member, Recipe
from pantherseg.selection.candidates import Candidate

# A remark is one line of the file, however many members it names.
MAX_REMARK = 2000


def kept_steps(base: Recipe) -> tuple[Step, ...]:
    """Return the steps of a recipe that stay, behind what a selection chooses: all but threshold and components.

    Raises RecipeError for a step that looks at the pancreas.
    """
    kept = tuple(step for step in base.postprocess if not isinstance(step, (Threshold, Components)))
    if other := next((step for step in kept if step.needs is not None), None):
        problem = f"the step '{other.registry.name_of(other)}' needs the pancreas, of which probabilities say nothing"
        raise RecipeError(f"recipe {base.name}", problem, hint="choose without this step, and add it to the result")
    return kept


def recipe_of(candidate: Candidate, members: Sequence[Member], base: Recipe, *, name: str) -> Recipe:
    """Return the base recipe with the members, weights, fusion and post-processing of a candidate."""
    rule = candidate.rule
    own: list[Step] = [] if rule.fusion == "vote" else [Threshold(probability=rule.probability)]
    own += [] if rule.components is None else [rule.components]
    return msgspec.structs.replace(
        base,
        name=name,
        min_members=None,
        members=[
            msgspec.structs.replace(members[number], weight=float(candidate.counts[number]))
            for number in candidate.members
        ],
        fusion=Vote(probability=rule.probability) if rule.fusion == "vote" else MeanProbability(),
        postprocess=(*own, *kept_steps(base)),
    )


def write_recipe(recipe: Recipe, path: Path, remarks: Sequence[str]) -> None:
    """Write a recipe, with remarks above it. Raises OutputError."""
    head = "".join(f"# {printable(remark, limit=MAX_REMARK)}\n" for remark in remarks)
    write_text(path, f"{head}\n{recipe_text(recipe)}")


def recipe_text(recipe: Recipe) -> str:
    """Return a recipe as TOML. `load_recipe` reads the same recipe from it."""
    tables = _without_defaults(recipe)
    simple, rest = _divided(tables)
    lines = [f"{key} = {_value(value)}" for key, value in simple.items()]
    for key, value in rest.items():
        for table in value if isinstance(value, list) else [value]:
            lines += ["", f"[[{key}]]" if isinstance(value, list) else f"[{key}]"]
            lines += [f"{name} = {_value(inner)}" for name, inner in table.items()]
    return "\n".join(lines) + "\n"


def _divided(tables: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return keys with plain values, which TOML wants first, and those with tables of more than one key or lists."""
    rest = {
        key: value
        for key, value in tables.items()
        if (isinstance(value, list) and value and isinstance(value[0], dict))
        or (isinstance(value, dict) and key != "fusion")
    }
    return {key: value for key, value in tables.items() if key not in rest}, rest


def _without_defaults(value: Any) -> Any:
    """Return a struct as plain data without the keys that have their default."""
    if isinstance(value, msgspec.Struct):
        config = value.__struct_config__
        tag = {config.tag_field: config.tag} if config.tag_field is not None else {}
        kept = {
            field.encode_name: _without_defaults(inner)
            for field in msgspec.structs.fields(value)
            if (inner := getattr(value, field.name)) != _default(field)
        }
        return tag | kept
    return [_without_defaults(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default


def _value(value: Any) -> str:
    """Return a value in TOML, whose strings, numbers and lists are written as in JSON where they are printable."""
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_value(inner)}' for key, inner in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False)
