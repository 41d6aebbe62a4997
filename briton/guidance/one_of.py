"""`oneOf` as `anyOf`, where no value can match two branches: discriminated unions.

llguidance proves this for branches written in place, but does not look behind a `$ref`, which is how pydantic writes
them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Mapping
from itertools import combinations
from typing import Any

Schema = Mapping[str, Any]

_MAX_BRANCHES = 64
_MAX_LEVELS = 8  # of references, and of properties within properties


def is_exclusive(branches: list[Any], resolve: Callable[[str], Any]) -> bool:
    """True when it is proven that no two branches have a value in common. `resolve` gives what a `$ref` points to."""
    if len(branches) > _MAX_BRANCHES or not all(isinstance(b, dict) for b in branches):
        return False
    return all(_disjoint(a, b, resolve, _MAX_LEVELS) for a, b in combinations(branches, 2))


def _disjoint(a: Any, b: Any, resolve: Callable[[str], Any], levels: int) -> bool:
    """What a schema says beside its `$ref` and what it refers to both hold: one of them that excludes `b` is enough."""
    if levels == 0:
        return False
    return any(_exclude(x, y, resolve, levels) for x in _views(a, resolve) for y in _views(b, resolve))


def _views(schema: Any, resolve: Callable[[str], Any]) -> Iterator[Schema]:
    for _ in range(_MAX_LEVELS):
        if not isinstance(schema, dict):
            return
        yield schema
        schema = resolve(schema["$ref"]) if "$ref" in schema else None


def _exclude(a: Schema, b: Schema, resolve: Callable[[str], Any], levels: int) -> bool:
    types_a, types_b = _types(a), _types(b)
    if types_a and types_b and not types_a & types_b:
        return True
    values_a, values_b = _values(a), _values(b)
    if values_a is not None and values_b is not None and not values_a & values_b:
        return True
    if types_a != {"object"} or types_b != {"object"}:
        return False
    properties_a, properties_b = a.get("properties", {}), b.get("properties", {})
    both = {*a.get("required", ())} & {*b.get("required", ())} & properties_a.keys() & properties_b.keys()
    return any(_disjoint(properties_a[name], properties_b[name], resolve, levels - 1) for name in both)


def _types(schema: Schema) -> set[str]:
    """The names in `type`; empty when it allows any. Every integer is a number, too."""
    names = schema.get("type", [])
    return {"number" if n == "integer" else n for n in ([names] if isinstance(names, str) else names)}


def _values(schema: Schema) -> set[Hashable] | None:
    """The values of `const` or `enum`; None when neither is there."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return None if values is None else {_identity(v) for v in values}


def _identity(value: Any) -> Hashable:
    """Equal for values that are equal as JSON: 1 is 1.0, and not true."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, dict | list):
        return "container"  # never told apart
    return json.dumps(value)
