"""What every part of the public schema shares: frozen, unknown keys kept, refusals that name a field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A part of a Truss config. Unknown keys are kept, so that an older Briton reads a newer config."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


def refuse(message: str, field: str = "") -> PydanticCustomError:
    """An error for a validator to raise. `field` is the offending field's path below the model being validated."""
    return PydanticCustomError("refused", "{message}", {"message": message, "field": field})


def unknown_keys(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all keys that no model below `value` knows, in the order of the models' fields."""
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from unknown_keys(getattr(value, name), (*path, name))
        for name in value.model_extra or {}:
            yield (*path, name)
    elif isinstance(value, dict):  # of sections; what free mappings hold is not ours to know
        for name, item in value.items():
            if isinstance(item, BaseModel):
                yield from unknown_keys(item, (*path, str(name)))
