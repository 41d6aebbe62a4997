"""The list of models: https://platform.openai.com/docs/api-reference/models."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class Model(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "briton"
    max_model_len: int | None = None  # tokens, prompt and output; null while the engine is not ready


class ModelList(BaseModel):
    """All served models."""

    object: Literal["list"] = "list"
    data: list[Model]
