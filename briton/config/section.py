"""What every part of the public schema shares: frozen, unknown keys kept, refusals that name a field."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

_LIKELY_SLIP = 0.85  # of difflib's ratio: `britton` is one of `briton`; newer keys of the schema seldom come so near


class Section(BaseModel):
    """A part of a Truss config. Unknown keys are kept, so that an older Briton reads a newer config."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)


def refuse(message: str, field: str = "") -> PydanticCustomError:
    """An error for a validator to raise. `field` is the offending field's path below the model being validated."""
    return PydanticCustomError("refused", "{message}", {"message": message, "field": field})


def unknown_keys(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str | None]]:
    """The paths of all keys that no model below `value` knows, in the order of the models' fields.

    With each, the known key that it may be a slip of.
    """
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from unknown_keys(getattr(value, name), (*path, name))
        for name in value.model_extra or {}:
            close = difflib.get_close_matches(name, list(type(value).model_fields), n=1, cutoff=_LIKELY_SLIP)
            yield (*path, name), close[0] if close else None
    elif isinstance(value, dict):  # of sections; what free mappings hold is not ours to know
        for name, item in value.items():
            if isinstance(item, BaseModel):
                yield from unknown_keys(item, (*path, str(name)))
