"""Types of request fields, shared by all request models."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from briton.text.stop import MAX_STOP_LENGTH, MAX_STOPS

MAX_UINT32 = 2**32 - 1
MAX_BAD_WORDS = 128  # each may become two token sequences, and an engine takes 256


class RequestModel(BaseModel):
    """A part of a request: types are strict, NaN and infinities refused, unknown fields dropped, null is unset."""

    model_config = ConfigDict(
        strict=True, allow_inf_nan=False, extra="ignore", frozen=True, use_attribute_docstrings=True
    )


def without_nul(text: str) -> str:
    """The text itself; a validation error when it holds a NUL character, which no tokenizer was trained on."""
    if "\0" in text:
        raise PydanticCustomError("nul_byte", "must not contain NUL characters (U+0000)")
    return text


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Text = Annotated[str, AfterValidator(without_nul)]
UInt32 = Annotated[int, Field(ge=0, le=MAX_UINT32)]
Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
OneOrMoreStrings = BeforeValidator(_as_list, json_schema_input_type=str | list[str])
StopStrings = Annotated[
    list[Annotated[Text, Field(min_length=1, max_length=MAX_STOP_LENGTH)]],
    Field(fail_fast=True, max_length=MAX_STOPS),
    OneOrMoreStrings,
]
BadWords = Annotated[
    list[Annotated[Text, Field(min_length=1, max_length=MAX_STOP_LENGTH)]],
    Field(fail_fast=True, max_length=MAX_BAD_WORDS),
    OneOrMoreStrings,
]
