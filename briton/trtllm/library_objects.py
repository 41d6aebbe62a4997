"""Objects of the library as data: which class or function, with which arguments. The library makes them real.

    Call("KvCacheConfig", {"free_gpu_memory_fraction": 0.9})    tensorrt_llm.bindings.executor.KvCacheConfig(...)
    Member("CapacitySchedulerPolicy", "MAX_UTILIZATION")        ....CapacitySchedulerPolicy.MAX_UTILIZATION
    Given("batched_post_processor")                             what only the running process has

Only what differs from the library's default, or is worth saying, is an argument.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from briton.trtllm.machine import LIBRARY

EXECUTOR = f"{LIBRARY}.bindings.executor"
LLM_API = f"{LIBRARY}.llmapi"


@dataclass(frozen=True)
class Member:
    """A member of one of the library's enums."""

    enum: str
    name: str
    module: str = EXECUTOR


@dataclass(frozen=True)
class Given:
    """A value that is there only in the running process, such as a callback, by its name."""

    name: str


@dataclass(frozen=True)
class Call:
    """A call of one of the library's classes, or of a static function ("DecodingMode.Lookahead"), by keyword."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    module: str = EXECUTOR

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]


def plain(value: Any) -> Any:
    """As JSON would have it: a call is an object of its arguments, a member its name."""
    match value:
        case Call(name, arguments) if "." in name and not arguments:
            return name.rpartition(".")[2]
        case Call():
            return {name: plain(argument) for name, argument in value.arguments.items()}
        case Member():
            return value.name
        case Given():
            return f"<{value.name}>"
        case list() | tuple():
            return [plain(item) for item in value]
        case Mapping():
            return {str(name): plain(item) for name, item in value.items()}
    return value


def make(value: Any, given: Mapping[str, Any] | None = None, modules: Mapping[str, Any] | None = None) -> Any:
    """The library's own objects. `given` holds what `Given` names; `modules` what is imported already, by its name.

    Any other module of the library is imported. Not run on the real library yet.
    """
    match value:
        case Call():
            made: Any = _module(value.module, modules)
            for part in value.name.split("."):
                made = getattr(made, part)
            return made(**{name: make(argument, given, modules) for name, argument in value.arguments.items()})
        case Member():
            return getattr(getattr(_module(value.module, modules), value.enum), value.name)
        case Given():
            return (given or {})[value.name]
        case list() | tuple():
            return [make(item, given, modules) for item in value]
    return value


def _module(name: str, modules: Mapping[str, Any] | None) -> Any:
    return modules[name] if modules and name in modules else importlib.import_module(name)


def parts(value: Any) -> Iterator[Call | Member]:
    """Every call and member in a value, itself included: what a test compares with the library's real API."""
    if isinstance(value, (Call, Member)):
        yield value
    children = (
        value.arguments.values() if isinstance(value, Call) else value if isinstance(value, (list, tuple)) else ()
    )
    for child in children:
        yield from parts(child)
