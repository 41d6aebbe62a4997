"""The v2 stack of the `trt_llm` section."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from briton.config.trt_llm import TRTLLMConfigurationV2

from .conftest import V2, LoadChanged, Refusal

BUILD = "trt_llm.build."
RUNTIME = "trt_llm.runtime."


def test_v2_runtime_defaults(load_changed: LoadChanged) -> None:
    config = load_changed(base=V2)
    assert isinstance(config.trt_llm, TRTLLMConfigurationV2)
    assert config.trt_llm.runtime.model_dump(mode="json") == {
        "max_seq_len": None,
        "max_batch_size": 256,
        "max_num_tokens": 8192,
        "tensor_parallel_size": 1,
        "enable_chunked_prefill": True,
        "served_model_name": None,
        "patch_kwargs": {},
    }
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("field", "low", "high"),
    [("max_seq_len", 1, 1048576), ("max_batch_size", 1, 2048), ("max_num_tokens", 65, 131072)],
)
def test_v2_limits(load_changed: LoadChanged, refusal: Refusal, field: str, low: int, high: int) -> None:
    path = RUNTIME + field
    load_changed({path: low}, V2)
    load_changed({path: high}, V2)
    assert refusal({path: low - 1}, V2).field == path
    assert refusal({path: high + 1}, V2).field == path


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_seq_len", 4096),
        ("max_batch_size", 8),
        ("max_num_tokens", 1024),
        ("tensor_parallel_count", 2),
        ("base_model", "encoder"),
        ("lora_adapters", {"a": {"source": "HF", "repo": "acme/legal"}}),
        ("plugin_configuration", {"use_fp8_context_fmha": True}),
    ],
)
def test_v2_refuses_build_fields_of_v1(refusal: Refusal, field: str, value: Any) -> None:
    error = refusal({BUILD + field: value}, V2)
    assert error.field == BUILD + field
    assert f"Field {BUILD}{field} is not allowed to be set when using v2 inference stack" in error.message


def test_v2_takes_the_build_fields_of_v2(load_changed: LoadChanged) -> None:
    changes = {
        BUILD + "quantization_type": "fp8",
        BUILD + "quantization_config.calib_size": 2048,
        BUILD + "num_builder_gpus": 2,
        BUILD + "max_batch_size": 256,  # its default
    }
    assert load_changed(changes, V2).quantization_type == "fp8"


def test_v2_needs_a_checkpoint_or_skips_the_build(load_changed: LoadChanged, refusal: Refusal) -> None:
    assert refusal({BUILD + "checkpoint_repository": None}, V2).field == BUILD + "checkpoint_repository"
    config = load_changed({BUILD + "checkpoint_repository": None, BUILD + "skip_build_result": True}, V2)
    assert not config.has_checkpoint
    assert config.served_model_name == "config"


def test_v2_patches_are_kept(load_changed: LoadChanged) -> None:
    config = load_changed({RUNTIME + "gated_features": {"disable_overlap_scheduler": True, "max_seq_len": 5}}, V2)
    assert isinstance(config.trt_llm, TRTLLMConfigurationV2)
    assert config.trt_llm.runtime.patch_kwargs == {"disable_overlap_scheduler": True, "max_seq_len": 5}
    assert any("max_seq_len must be set in trt_llm.runtime itself" in warning for warning in config.warnings)


def test_v2_tensor_parallelism(load_changed: LoadChanged, refusal: Refusal) -> None:
    assert load_changed({RUNTIME + "tensor_parallel_size": 2}, V2).world_size == 2
    assert refusal({RUNTIME + "tensor_parallel_size": 0}, V2).field == RUNTIME + "tensor_parallel_size"


def test_a_patch_that_is_no_json_value_is_named_once(refusal: Refusal) -> None:
    error = refusal({RUNTIME + "patch_kwargs.since": datetime.date(2026, 1, 1)}, V2)
    assert error.field == RUNTIME + "patch_kwargs.since"
    assert error.message.count(error.field) == 1
