"""A machine, an environment, and configs of a tiny checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from briton.config.config import Config
from briton.config.environment import Environment
from briton.config.loader import load_config
from tests.config.conftest import changed
from tests.conftest import TinyLlama
from tests.engine_builder.trtllm.stand_in import StandIn

MakeConfig = Callable[..., Config]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A machine with the library and one H100."""
    return StandIn(tmp_path / "machine", monkeypatch)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """An empty cache."""
    return Environment(cache_dir=tmp_path / "cache")


@pytest.fixture
def make_config(tiny_llama: TinyLlama, tmp_path: Path) -> MakeConfig:
    """A config that builds from a tiny Llama, with changes at dotted paths."""
    checkpoint = tiny_llama(tmp_path)
    build = {"checkpoint_repository": {"source": "LOCAL", "repo": str(checkpoint)}, "max_seq_len": 512}
    base = {"trt_llm": {"build": build}}

    def make(changes: dict[str, Any] | None = None) -> Config:
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(changed(base, changes or {}), sort_keys=False), encoding="utf-8")
        return load_config(file)

    return make
