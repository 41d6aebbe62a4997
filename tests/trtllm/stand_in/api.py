"""The table of the API as Python classes that refuse whatever is not in it."""

from __future__ import annotations

import ast
import enum
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.trtllm.stand_in.checks import CHECKS, TOGETHER

TABLE_FILE = Path(__file__).parent.parent / "tensorrt_llm_executor_api.json"
TABLE: dict[str, Any] = json.loads(TABLE_FILE.read_text(encoding="utf-8"))
MODULE = TABLE["module"]


class Module:
    """Stands for the module: what is not in the table is not in it."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"module {MODULE!r} has no attribute {name!r}")


class _Strict:
    """Attributes are those of `_names`."""

    _names: frozenset[str] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._names:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        object.__setattr__(self, name, value)


def generated() -> dict[str, Any]:
    """Every class and enum of the table, by name; Executor is left out."""
    names: dict[str, Any] = {name: enum.Enum(name, members) for name, members in TABLE["enums"].items()}
    for name, methods in TABLE["static_methods"].items():
        names[name] = _with_static_methods(name, methods)
    for name in TABLE["classes"]:
        names[name] = _configuration(name, names)
    for name, attributes in TABLE["attributes"].items():
        names[name] = _record(name, attributes)
    for path, value in TABLE["constants"].items():
        owner, _, constant = path.partition(".")
        setattr(names[owner], constant, value)
    return names


def _configuration(name: str, names: dict[str, Any]) -> type:
    """A class with the table's constructor; its parameters are its attributes."""
    parameters = [
        inspect.Parameter(
            p["name"],
            inspect.Parameter.KEYWORD_ONLY if p["keyword_only"] else inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=inspect.Parameter.empty if p["required"] else p["default"],
        )
        for p in TABLE["classes"][name]
    ]
    signature = inspect.Signature(parameters)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}.__init__(): incompatible function arguments: {error}") from None
        for p in parameters:
            given = p.name in bound.arguments
            value = bound.arguments[p.name] if given else _default(p.default, names)
            if given and (name, p.name) in CHECKS:
                CHECKS[name, p.name](value)
            object.__setattr__(self, p.name, value)
        if name in TOGETHER:
            TOGETHER[name](self)

    body = {"__init__": __init__, "__signature__": signature, "_names": frozenset(p.name for p in parameters)}
    return type(name, (_Strict,), body)


def _default(text: str, names: dict[str, Any]) -> Any:
    """The value of a default as the table spells it: a literal, `Class()`, `Enum.MEMBER` or `MEMBER`."""
    if text.endswith("()"):
        return names[text[:-2]]()
    owner, _, member = text.rpartition(".")
    if owner in names:
        return names[owner][member]
    members: list[Any] = [e[text] for e in names.values() if isinstance(e, enum.EnumMeta) and text in e.__members__]
    if members:
        return members[0]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # a member of an enum that the table does not have


def _record(name: str, attributes: list[str]) -> type:
    """Something that the library gives; attributes that are not named are None."""
    fields = frozenset(a for a in attributes if not a.endswith("()"))

    def __init__(self: Any, **values: Any) -> None:
        for attribute in fields:
            object.__setattr__(self, attribute, None)
        for attribute, value in values.items():
            setattr(self, attribute, value)

    return type(name, (_Strict,), {"__init__": __init__, "_names": fields})


def _with_static_methods(name: str, methods: list[str]) -> type:
    """A class whose static methods make instances that know their name."""

    def make(method: str) -> Callable[[], Any]:
        def static() -> Any:
            instance = made()
            object.__setattr__(instance, "name", method)
            return instance

        return static

    made = type(name, (_Strict,), {method: staticmethod(make(method)) for method in methods})
    return made
