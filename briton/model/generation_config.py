"""A checkpoint's generation_config.json: the sampling that its makers recommend."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from briton.engine.types import SamplingParams
from briton.errors import BuildError

GENERATION_CONFIG = "generation_config.json"


def default_sampling(directory: Path) -> SamplingParams:
    """What the file in an engine directory says; absent fields and files mean plain sampling. Raises BuildError."""
    path = directory / GENERATION_CONFIG
    if not path.is_file():
        return SamplingParams()
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BuildError(f"{path} is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise BuildError(f"{path} is not a JSON object")
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    given = {name: raw[name] for name in names if raw.get(name) is not None}
    if given.get("top_k") == -1:  # some checkpoints say "off" so
        given["top_k"] = 0
    if raw.get("do_sample") is False:
        given["temperature"] = 0.0
    return replace(SamplingParams(), **given)
