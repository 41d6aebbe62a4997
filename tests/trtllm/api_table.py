"""The table of the executor's API, read off the library's own stub: names, kinds, defaults, enums."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from briton.trtllm.library_objects import EXECUTOR, Call, Member, parts
from tests.trtllm.stand_in.api import TABLE

# Classes outside the executor's module that engines are built with, read off the library's public code.
BUILDER: dict[str, Any] = json.loads(
    Path(__file__).with_name("tensorrt_llm_builder_api.json").read_text(encoding="utf-8")
)
STATIC = {f"{name}.{method}" for name, methods in TABLE["static_methods"].items() for method in methods}


def unknown_names(value: Any) -> Iterator[str]:
    """What of a call of the executor's module is not in the table, or lacks an argument that has no default."""
    for part in parts(value):
        if part.module != EXECUTOR:
            continue
        if isinstance(part, Member):
            if part.name not in TABLE["enums"].get(part.enum, {}):
                yield f"{part.enum}.{part.name}"
            continue
        yield from _unknown_in_call(part)


def _unknown_in_call(call: Call) -> Iterator[str]:
    if call.name in STATIC:
        return
    arguments = TABLE["classes"].get(call.name)
    if arguments is None:
        yield call.name
        return
    names = {argument["name"] for argument in arguments}
    yield from (f"{call.name}({name})" for name in call.arguments if name not in names)
    required = {argument["name"] for argument in arguments if argument["required"]}
    yield from (f"{call.name} without {name}" for name in required - call.arguments.keys())
