"""The `trt_llm` section: defaults, limits, refusals, derived values."""

from __future__ import annotations

from typing import Any

import pytest

from briton.config.build import TrussTRTLLMBuildConfiguration
from briton.config.trt_llm import TRTLLMConfigurationV1

from .conftest import V1, V2, LoadChanged, Refusal

BUILD = "trt_llm.build."
RUNTIME = "trt_llm.runtime."


def test_defaults_are_the_public_ones() -> None:
    build = TrussTRTLLMBuildConfiguration().model_dump(mode="json")
    assert build == {
        "base_model": "decoder",
        "max_seq_len": None,
        "max_batch_size": 256,
        "max_num_tokens": 8192,
        "max_beam_width": 1,
        "max_prompt_embedding_table_size": 0,
        "checkpoint_repository": None,
        "gather_all_token_logits": False,
        "strongly_typed": False,
        "quantization_type": "no_quant",
        "quantization_config": {
            "calib_size": 1024,
            "calib_dataset": "abisee/cnn_dailymail",
            "calib_max_seq_length": 1536,
        },
        "tensor_parallel_count": 1,
        "pipeline_parallel_count": 1,
        "moe_expert_parallel_option": -1,
        "sequence_parallel_count": 1,
        "plugin_configuration": {
            "paged_kv_cache": True,
            "use_paged_context_fmha": True,
            "use_fp8_context_fmha": False,
        },
        "num_builder_gpus": None,
        "speculator": None,
        "lora_adapters": None,
        "lora_configuration": None,
        "skip_build_result": False,
    }


def test_v1_runtime_defaults(load_changed: LoadChanged) -> None:
    config = load_changed()
    assert isinstance(config.trt_llm, TRTLLMConfigurationV1)
    assert config.trt_llm.inference_stack == "v1"
    assert config.trt_llm.runtime.model_dump(mode="json") == {
        "kv_cache_free_gpu_mem_fraction": 0.9,
        "kv_cache_host_memory_bytes": None,
        "enable_chunked_context": True,
        "batch_scheduler_policy": "guaranteed_no_evict",
        "request_default_max_tokens": None,
        "served_model_name": None,
        "total_token_limit": 500000,
        "webserver_default_route": None,
    }
    assert set(config.trt_llm.version_overrides.model_dump().values()) == {None}
    repository = config.trt_llm.build.checkpoint_repository
    assert repository is not None
    assert (repository.revision, repository.runtime_secret_name) == (None, "hf_access_token")
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("field", "low", "high"),
    [
        ("build.max_seq_len", 1, 1048576),
        ("build.max_batch_size", 1, 2048),
        ("build.max_num_tokens", 65, 1048576),
        ("build.max_beam_width", 1, 1),
        ("build.num_builder_gpus", 1, None),
        ("build.tensor_parallel_count", 1, None),
        ("build.pipeline_parallel_count", 1, None),
        ("build.sequence_parallel_count", 1, None),
        ("runtime.kv_cache_host_memory_bytes", 1, None),
        ("runtime.request_default_max_tokens", 1, None),
    ],
)
def test_v1_limits(load_changed: LoadChanged, refusal: Refusal, field: str, low: int, high: int | None) -> None:
    path = f"trt_llm.{field}"
    load_changed({path: low})
    assert refusal({path: low - 1}).field == path
    if high is not None:
        load_changed({path: high})
        assert refusal({path: high + 1}).field == path


@pytest.mark.parametrize("value", ["128", True, 128.0, [128]])
@pytest.mark.parametrize(
    "field",
    [
        "build.max_seq_len",
        "build.max_batch_size",
        "build.max_num_tokens",
        "build.tensor_parallel_count",
        "build.num_builder_gpus",
        "runtime.request_default_max_tokens",
        "runtime.kv_cache_host_memory_bytes",
    ],
)
def test_limits_are_strict_integers(refusal: Refusal, field: str, value: Any) -> None:
    assert refusal({f"trt_llm.{field}": value}).field == f"trt_llm.{field}"


def test_message_names_file_line_field_limit_and_value(refusal: Refusal) -> None:
    error = refusal({BUILD + "max_num_tokens": 64})
    assert error.message.endswith(
        "config.yaml:9: trt_llm.build.max_num_tokens: input should be greater than 64, not 64"
    )


def test_other_wrong_fields_are_listed(refusal: Refusal) -> None:
    error = refusal({BUILD + "max_seq_len": 0, BUILD + "max_batch_size": 0})
    assert error.field == BUILD + "max_seq_len"
    assert error.message.endswith(f"(also wrong: {BUILD}max_batch_size)")


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01, float("nan"), float("inf")])
def test_kv_cache_fraction(refusal: Refusal, fraction: float) -> None:
    path = RUNTIME + "kv_cache_free_gpu_mem_fraction"
    assert refusal({path: fraction}).field == path


@pytest.mark.parametrize("field", ["calib_size", "calib_max_seq_length"])
@pytest.mark.parametrize(("value", "valid"), [(64, True), (16384, True), (0, False), (65, False), (16448, False)])
def test_calibration_lengths(load_changed: LoadChanged, refusal: Refusal, field: str, value: int, valid: bool) -> None:
    path = f"{BUILD}quantization_config.{field}"
    if valid:
        load_changed({path: value})
    else:
        assert refusal({path: value}).field == path


@pytest.mark.parametrize("name", ["palmyra", "qwen", "llama", "mistral", "deepseek"])
def test_renamed_base_models(refusal: Refusal, name: str) -> None:
    error = refusal({BUILD + "base_model": name})
    assert error.field == BUILD + "base_model"
    assert f"`{name}` was renamed to `decoder`" in error.message


@pytest.mark.parametrize("name", ["whisper", "bert"])
def test_base_models_that_are_not_supported(refusal: Refusal, name: str) -> None:
    assert refusal({BUILD + "base_model": name}).field == BUILD + "base_model"


def test_paged_context_needs_paged_cache(refusal: Refusal) -> None:
    error = refusal({BUILD + "plugin_configuration.paged_kv_cache": False})
    assert error.field == BUILD + "plugin_configuration.use_paged_context_fmha"


def test_chunked_context_needs_paged_context(load_changed: LoadChanged, refusal: Refusal) -> None:
    unpaged = {BUILD + "plugin_configuration": {"paged_kv_cache": False, "use_paged_context_fmha": False}}
    assert refusal(unpaged).field == RUNTIME + "enable_chunked_context"
    assert not load_changed({**unpaged, RUNTIME + "enable_chunked_context": False}).enable_chunked_context
    assert load_changed({**unpaged, BUILD + "base_model": "encoder"}).is_encoder


@pytest.mark.parametrize(("ranks", "experts"), [(4, 0), (4, -2), (4, 5), (1, 2)])
def test_expert_parallelism_within_tensor_parallelism(refusal: Refusal, ranks: int, experts: int) -> None:
    error = refusal({BUILD + "tensor_parallel_count": ranks, BUILD + "moe_expert_parallel_option": experts})
    assert error.field == BUILD + "moe_expert_parallel_option"
    assert f"({ranks})" in error.message


def test_expert_parallelism_that_does_not_divide_is_a_warning(load_changed: LoadChanged) -> None:
    config = load_changed({BUILD + "tensor_parallel_count": 4, BUILD + "moe_expert_parallel_option": 3})
    assert any("moe_expert_parallel_option" in warning for warning in config.warnings)


def test_lora_adapters(load_changed: LoadChanged, refusal: Refusal) -> None:
    adapters = BUILD + "lora_adapters"
    config = load_changed({adapters: {"legal-v1.2": {"source": "HF", "repo": "acme/legal"}}})
    assert any(adapters in warning for warning in config.warnings)
    error = refusal({adapters: {"not a name": {"source": "HF", "repo": "acme/legal"}}})
    assert error.field == adapters + ".not a name"
    for name in ("a", "v1"):  # `v1` is also the tag of the stack
        assert refusal({adapters: {name: {"source": "HF", "repo": "a//b"}}}).field == f"{adapters}.{name}.repo"


@pytest.mark.parametrize("name", ["engine_builder_version", "briton_version", "bei_version", "bei_bert_version"])
def test_versions_start_with_a_digit(load_changed: LoadChanged, refusal: Refusal, name: str) -> None:
    path = f"trt_llm.version_overrides.{name}"
    load_changed({path: "0.20.0_v0.1.5"})
    assert refusal({path: "v0.20"}).field == path


def test_v2_version_is_free(load_changed: LoadChanged) -> None:
    load_changed({"trt_llm.version_overrides.v2_llm_version": "nightly"})


@pytest.mark.parametrize("stack", ["v3", None, 2])
def test_unknown_stack(refusal: Refusal, stack: object) -> None:
    assert refusal({"trt_llm.inference_stack": stack}).field == "trt_llm.inference_stack"


@pytest.mark.parametrize(
    ("base", "field"),
    [(V1, "build"), (V2, "build"), (V2, "runtime"), (V1, "build.checkpoint_repository.repo")],
)
def test_required_fields(refusal: Refusal, base: dict[str, Any], field: str) -> None:
    *parents, last = field.split(".")
    path = ".".join(["trt_llm", *parents])
    section = base["trt_llm"]
    for parent in parents:
        section = section[parent]
    error = refusal({path: {name: value for name, value in section.items() if name != last}}, base)
    assert error.field == f"trt_llm.{field}"
    assert "required, and missing" in error.message


def test_v1_needs_a_checkpoint(refusal: Refusal) -> None:
    assert refusal({"trt_llm.build": {}}).field == BUILD + "checkpoint_repository"


def test_unknown_keys_are_kept_with_one_warning(load_changed: LoadChanged) -> None:
    config = load_changed(
        {"trt_llm.later": 1, BUILD + "newer": [2], BUILD + "checkpoint_repository.newest": {"a": 3}, "brand_new": 4}
    )
    assert config.warnings == (
        "unknown keys, kept without effect: "
        "trt_llm.build.checkpoint_repository.newest, trt_llm.build.newer, trt_llm.later, brand_new",
    )
    assert (config.trt_llm.build.model_extra or {})["newer"] == [2]


def test_an_unknown_key_that_is_a_slip_says_of_what(load_changed: LoadChanged) -> None:
    config = load_changed({BUILD + "max_batchsize": 8, "britton": {"http_port": 1}})
    assert config.warnings == (
        "unknown keys, kept without effect: "
        "trt_llm.build.max_batchsize (did you mean max_batch_size?), britton (did you mean briton?)",
    )


def test_sections_are_frozen(load_changed: LoadChanged) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_changed().trt_llm.build.max_batch_size = 1
