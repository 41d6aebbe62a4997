"""Real configs, as published: every one loads, without warnings, and is reported on."""

from __future__ import annotations

from pathlib import Path

import pytest

from briton.config.config import Config
from briton.config.loader import load_config
from briton.config.lookahead import LookaheadConfig
from briton.config.runtime import TrussTRTLLMRuntimeConfiguration
from briton.errors import Unsupported
from briton.process.config_report import report
from briton.process.executor_choice import check_servable

EXAMPLES = sorted((Path(__file__).parent / "data").glob("*.yaml"))
LOOKAHEAD = "Briton-qwen-qwen2.5-7b-instruct-with-speculative-lookahead-decoding-fp8"


def example(name: str) -> Config:
    return load_config(Path(__file__).parent / "data" / f"{name}.yaml")


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_loads_and_reports(file: Path) -> None:
    config = load_config(file)
    assert config.family == ("BEI-Bert" if file.stem.startswith("BEI-Bert-") else file.stem.partition("-")[0])
    assert config.served_model_name == f"{file.stem}-truss-example"
    assert config.checkpoint.source == "HF"
    assert config.checkpoint.revision == "main"
    assert config.warnings == ()
    text = report(config)
    assert config.served_model_name in text
    assert config.checkpoint.repo in text
    assert len(text.splitlines()) <= 14


def test_all_families_are_there() -> None:
    assert {load_config(file).family for file in EXAMPLES} == {"Briton", "BISV2", "BEI", "BEI-Bert"}


@pytest.mark.parametrize("file", [file for file in EXAMPLES if file.stem.startswith("BEI")], ids=lambda file: file.stem)
def test_encoders_cannot_be_served_here(file: Path) -> None:
    config = load_config(file)
    assert config.is_encoder
    with pytest.raises(Unsupported, match="decoder models only") as caught:
        check_servable(config)
    assert caught.value.field == "trt_llm.build.base_model"


def test_encoder_has_no_kv_cache() -> None:
    config = example("BEI-baai-bge-reranker-v2-m3-multilingual")
    assert not config.trt_llm.build.plugin_configuration.paged_kv_cache
    assert not config.trt_llm.build.plugin_configuration.use_paged_context_fmha
    assert isinstance(config.trt_llm.runtime, TrussTRTLLMRuntimeConfiguration)
    assert config.trt_llm.runtime.webserver_default_route == "/rerank"


def test_v1_decoder() -> None:
    config = example("Briton-google-gemma-3-1b-it")
    assert config.max_seq_len == 32768
    assert (config.max_batch_size, config.max_num_tokens) == (256, 8192)
    assert config.scheduler_policy == "max_utilization"
    assert config.enable_chunked_context
    assert config.tensor_parallel_size == config.world_size == 1
    assert config.kv_cache_memory_fraction == 0.9
    assert config.default_max_tokens is None
    assert config.accelerator == "H100_40GB"


def test_v2_maps_to_the_same_names() -> None:
    config = example("BISV2-qwen-qwen2.5-coder-7b-instruct-fp4")
    assert (config.max_seq_len, config.max_batch_size, config.max_num_tokens) == (32768, 32, 32768)
    assert config.quantization_type == "fp4"
    assert config.scheduler_policy == "guaranteed_no_evict"
    assert config.enable_chunked_context
    assert config.tensor_parallel_size == config.world_size == 1
    assert config.kv_cache_memory_fraction == 0.9
    assert config.default_max_tokens is None
    assert config.trt_llm.build.quantization_config.calib_size == 2048


def test_lookahead() -> None:
    config = example(LOOKAHEAD)
    assert config.speculator is not None
    assert config.speculator.num_draft_tokens == 41
    assert config.speculator.lookahead == LookaheadConfig(3, 8, 3)
    assert config.speculator.enable_b10_lookahead
    assert "dynamic n-grams and a window of 3" in report(config)


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("Briton-mistralai-mistral-7b-instruct-v0.3", 2),
        ("Briton-qwen-qwen2.5-72b-instruct-tp2-fp8", 2),
        ("Briton-qwen-qwen3-235b-a22b-instruct-2507-fp8", 8),
    ],
)
def test_tensor_parallelism(name: str, ranks: int) -> None:
    config = example(name)
    check_servable(config)
    assert config.tensor_parallel_size == config.world_size == ranks
    assert f"{ranks} tensor-parallel ranks" in report(config)
