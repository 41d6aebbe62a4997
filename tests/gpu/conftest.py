"""Engines of one small model, built by the real library into the cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from briton.config.config import Config
from briton.config.environment import Environment, load_environment
from briton.config.loader import load_config
from briton.trtllm.machine import this_machine
from briton_engine_builder import build_engine
from tests.config.conftest import changed
from tests.gpu.run import MODEL

MakeConfig = Callable[..., Config]
MakeEngine = Callable[..., tuple[Config, Path]]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which model."""
    parser.addoption("--gpu-model", default=MODEL, help="a repository of the Hugging Face hub, or a directory")


def pytest_sessionstart() -> None:
    """Fail where there is nothing to run on, rather than skip."""
    if missing := this_machine().missing:
        pytest.exit(f"tests/gpu: {', and '.join(missing)}", returncode=1)


@pytest.fixture(scope="session")
def environment() -> Environment:
    """The user's: engines take minutes, and are kept."""
    return load_environment()


@pytest.fixture(scope="session")
def make_config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MakeConfig:
    """A config of the model, with changes at dotted paths."""
    model = request.config.getoption("--gpu-model")
    source = "LOCAL" if Path(model).is_dir() else "HF"
    base = {
        "trt_llm": {
            "build": {
                "checkpoint_repository": {"source": source, "repo": model},
                "max_seq_len": 1024,
                "max_batch_size": 64,
                "max_num_tokens": 2048,
                "gather_all_token_logits": True,  # log probabilities
            },
            "runtime": {"kv_cache_free_gpu_mem_fraction": 0.3},
        },
        "briton": {"executor": "trtllm"},
    }

    def make(changes: dict[str, Any] | None = None) -> Config:
        file = tmp_path_factory.mktemp("gpu") / "config.yaml"
        file.write_text(yaml.safe_dump(changed(base, changes or {}), sort_keys=False), encoding="utf-8")
        return load_config(file)

    return make


@pytest.fixture(scope="session")
def make_engine(make_config: MakeConfig, environment: Environment) -> MakeEngine:
    """(config, engine directory) of the model, with changes at dotted paths."""

    def make(changes: dict[str, Any] | None = None) -> tuple[Config, Path]:
        config = make_config(changes)
        return config, build_engine(config, environment)

    return make
