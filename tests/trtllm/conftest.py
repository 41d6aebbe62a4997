"""Plans of a config that is valid but for some changes, for a model of the built-in table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from briton.config.loader import load_config
from briton.model.shapes import ModelShapes, known_shapes
from briton.trtllm.plan import TrtllmPlan, gpu_of, plan_of
from tests.config.conftest import V1, changed

MakePlan = Callable[..., TrtllmPlan]


def shapes(repo: str, **changes: Any) -> ModelShapes:
    """The shapes of a known model, some of them changed."""
    known = known_shapes(repo)
    assert known is not None
    return replace(known, **changes)


@pytest.fixture
def make_plan(tmp_path: Path) -> MakePlan:
    """Plan a config with changes at dotted paths; the model is Llama 3.1 8B unless given."""

    def make(
        changes: Mapping[str, Any] | None = None,
        model: ModelShapes | None = None,
        base: Mapping[str, Any] = V1,
    ) -> TrtllmPlan:
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(changed(base, changes or {}), sort_keys=False), encoding="utf-8")
        config = load_config(file)
        return plan_of(config, model or llama_8b(), gpu_of(config))

    return make


def llama_8b() -> ModelShapes:
    """Llama 3.1 8B as Meta published it: 16 bits."""
    return shapes("nvidia/Llama-3.1-8B-Instruct-FP4", quant_algo=None, kv_cache_quant_algo=None)
