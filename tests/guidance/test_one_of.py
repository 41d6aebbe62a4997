"""When no value matches two branches."""

from __future__ import annotations

from typing import Any

import pytest

from briton.guidance.one_of import is_exclusive

CAT = {"type": "object", "properties": {"kind": {"const": "cat"}}, "required": ["kind"]}
DOG = {"type": "object", "properties": {"kind": {"enum": ["dog", "wolf"]}}, "required": ["kind"]}
DEFINITIONS = {"#/$defs/cat": CAT, "#/$defs/dog": DOG, "#/$defs/loop": {"$ref": "#/$defs/loop"}}


@pytest.mark.parametrize(
    ("branches", "exclusive"),
    [
        ([CAT, DOG], True),
        ([{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}, {"type": "null"}], True),
        ([{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/cat"}], False),
        ([CAT, {**DOG, "required": []}], False),
        ([CAT, {**DOG, "type": ["object", "null"]}], False),
        ([CAT, {"properties": DOG["properties"], "required": ["kind"]}], False),  # any string is valid there
        ([{"type": "integer"}, {"type": "number"}], False),
        ([{"type": ["integer", "null"]}, {"type": "string"}], True),
        ([{"const": 1}, {"const": 1.0}], False),
        ([{"const": 1}, {"const": True}, {"const": "1"}, {"const": None}], True),
        ([{"const": [1]}, {"const": [2]}], False),
        ([{"enum": ["a", "b"]}, {"enum": ["b", "c"]}], False),
        ([{"$ref": "#/$defs/loop"}, {"type": "null"}], False),
        ([{}, {"type": "null"}], False),
        ([True, False], False),
        ([{"const": i} for i in range(65)], False),
    ],
)
def test_exclusive(branches: list[Any], exclusive: bool) -> None:
    assert is_exclusive(branches, DEFINITIONS.__getitem__) is exclusive
