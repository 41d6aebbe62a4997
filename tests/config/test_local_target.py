"""What the local executor makes of a quantization type."""

from __future__ import annotations

import pytest

from briton.config.enums import TrussTRTLLMQuantizationType
from briton.config.local_target import STEP_TOKENS, step_tokens
from briton.errors import Unsupported
from briton.process.executor_choice import local_target

from .conftest import V2, LoadChanged

QUANTIZATION = "trt_llm.build.quantization_type"
# quantization_type -> attention, MLP, KV cache
TARGETS = {
    "no_quant": ("bf16", "bf16", "bf16"),
    "weights_int8": ("int8", "int8", "bf16"),
    "weights_kv_int8": ("int8", "int8", "u8"),
    "weights_int4": ("int4", "int4", "bf16"),
    "weights_int4_kv_int8": ("int4", "int4", "u8"),
    "smooth_quant": ("int8", "int8", "bf16"),
    "fp8": ("int8", "int8", "bf16"),
    "fp8_kv": ("int8", "int8", "u8"),
    "fp4": ("int4", "int4", "bf16"),
    "fp4_kv": ("int4", "int4", "u8"),
    "fp4_mlp_only": ("int8", "int4", "bf16"),
}


def test_all_types_are_mapped() -> None:
    assert set(TARGETS) == {quantization.value for quantization in TrussTRTLLMQuantizationType}


@pytest.mark.parametrize("quantization", TARGETS)
def test_mapping(load_changed: LoadChanged, quantization: str) -> None:
    target = local_target(load_changed({QUANTIZATION: quantization}))
    assert (target.attention, target.mlp, target.kv_cache) == TARGETS[quantization]
    assert target == local_target(load_changed({QUANTIZATION: quantization}, V2))
    assert target.carry_over == (quantization == "no_quant")
    if quantization == "no_quant" or quantization.startswith("weights_"):
        assert target.substitution is None
    else:
        assert target.substitution is not None
        assert target.substitution.startswith(f"{quantization} is not available on the local executor")
        assert target.mlp in target.substitution
        assert target.attention in target.substitution
        assert target.kv_cache in target.substitution


def test_exact_mode_is_float32_everywhere(load_changed: LoadChanged) -> None:
    target = local_target(load_changed({"briton.local.precision": "f32"}))
    assert (target.attention, target.mlp, target.kv_cache) == ("f32", "f32", "f32")
    assert not target.carry_over
    quantized = local_target(load_changed({"briton.local.precision": "f32", QUANTIZATION: "fp8_kv"}))
    assert (quantized.attention, quantized.mlp, quantized.kv_cache) == ("int8", "int8", "f32")


@pytest.mark.parametrize("dtype", ["bf16", "u8", "f32"])
@pytest.mark.parametrize("quantization", ["no_quant", "fp8_kv"])
def test_kv_cache_dtype_of_the_config_wins(load_changed: LoadChanged, dtype: str, quantization: str) -> None:
    config = load_changed({"briton.local": {"kv_cache_dtype": dtype, "precision": "f32"}, QUANTIZATION: quantization})
    assert local_target(config).kv_cache == dtype


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"trt_llm.build.base_model": "encoder"}, "trt_llm.build.base_model"),
        ({"trt_llm.build.pipeline_parallel_count": 2}, "trt_llm.build.pipeline_parallel_count"),
        ({"briton.executor": "trtllm"}, "briton.executor"),
    ],
)
def test_what_cannot_be_served_has_no_target(load_changed: LoadChanged, changes: dict[str, object], field: str) -> None:
    with pytest.raises(Unsupported) as caught:
        local_target(load_changed(changes))
    assert caught.value.field == field


def test_v2_ranks_and_missing_checkpoint(load_changed: LoadChanged) -> None:
    assert local_target(load_changed({"trt_llm.runtime.tensor_parallel_size": 4}, V2)).attention == "bf16"
    skipped = {"trt_llm.build": {"skip_build_result": True}}
    with pytest.raises(Unsupported) as checkpoint:
        local_target(load_changed(skipped, V2))
    assert checkpoint.value.field == "trt_llm.build.checkpoint_repository"


@pytest.mark.parametrize(
    ("limit", "batch", "chunked", "expected"),
    [(8192, 16, True, STEP_TOKENS), (256, 16, True, 256), (8192, 2048, True, 2048), (8192, 16, False, 8192)],
)
def test_a_step_is_no_longer_than_pays(
    load_changed: LoadChanged, limit: int, batch: int, chunked: bool, expected: int
) -> None:
    changes = {
        "trt_llm.build.max_num_tokens": limit,
        "trt_llm.build.max_batch_size": batch,
        "trt_llm.runtime.enable_chunked_context": chunked,
    }
    assert step_tokens(load_changed(changes)) == expected
