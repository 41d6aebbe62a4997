"""A config file written from a valid one with some dotted paths changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from briton.config.config import Config
from briton.config.loader import load_config
from briton.errors import ConfigError

LoadChanged = Callable[..., Config]
Refusal = Callable[..., ConfigError]

V1: dict[str, Any] = {
    "model_metadata": {"tags": ["openai-compatible"]},
    "trt_llm": {"build": {"checkpoint_repository": {"source": "HF", "repo": "acme/model-7b"}}},
}
V2: dict[str, Any] = {
    "trt_llm": {
        "inference_stack": "v2",
        "build": {"checkpoint_repository": {"source": "HF", "repo": "acme/model-7b"}},
        "runtime": {},
    }
}


def changed(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values at some dotted paths replaced."""
    result = copy.deepcopy(dict(base))
    for path, value in changes.items():
        *parents, last = path.split(".")
        section = result
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return result


@pytest.fixture
def load_changed(tmp_path: Path) -> LoadChanged:
    """Load a valid config with changes at dotted paths; `base` is v1 unless given."""

    def load(changes: Mapping[str, Any] | None = None, base: Mapping[str, Any] = V1) -> Config:
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(changed(base, changes or {}), sort_keys=False), encoding="utf-8")
        return load_config(file)

    return load


@pytest.fixture
def refusal(load_changed: LoadChanged) -> Refusal:
    """The ConfigError of a valid config with changes at dotted paths."""

    def refuse(changes: Mapping[str, Any], base: Mapping[str, Any] = V1) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            load_changed(changes, base)
        assert caught.value.field is not None
        assert caught.value.field in caught.value.message
        return caught.value

    return refuse
