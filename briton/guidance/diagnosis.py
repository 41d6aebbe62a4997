"""Which keyword of a schema is to blame, when the grammar compiler refuses it without saying where."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from briton.guidance.schema import CheckedSchema, Subschema

_MAX_TRIES = 200
_DEFINITIONS = ("$defs", "definitions")
# Blamed last: without them most else has no effect either.
_STRUCTURE = ("type", "properties", "items", "required")


class Culprit(NamedTuple):
    """A place in a schema; `keyword` is None when no single one explains the failure."""

    pointer: str
    keyword: str | None


def culprit(checked: CheckedSchema, compiles: Callable[[dict[str, Any]], bool]) -> Culprit:
    """The innermost schema that fails by itself, and the keyword without which it would not."""
    definitions = {k: checked.root[k] for k in _DEFINITIONS if k in checked.root}
    alone, referring = [], []
    for subschema in reversed(checked.subschemas):  # innermost first
        if subschema.pointer and "$ref" not in json.dumps(subschema.schema):
            alone.append(subschema)
        elif _refers_to_definitions(subschema):
            referring.append(subschema)
    # A schema that refers to a faulty definition fails, too: those that refer to nothing come first.
    failing = checked.subschemas[0]
    for subschema in (alone + referring)[:_MAX_TRIES]:
        if not compiles({**subschema.schema, **definitions}):
            failing = subschema
            break
    for keyword in sorted(failing.schema, key=_STRUCTURE.__contains__):
        without = {k: v for k, v in failing.schema.items() if k != keyword}
        if keyword not in _DEFINITIONS and compiles({**without, **definitions}):
            return Culprit(failing.pointer, keyword)
    return Culprit(failing.pointer, None)


def _refers_to_definitions(subschema: Subschema) -> bool:
    """True when all its references are to definitions, which a copy of it can carry along."""
    text = json.dumps(subschema.schema)
    return text.count('"$ref": "#') == sum(text.count(f'"$ref": "#/{name}/') for name in _DEFINITIONS)
