"""Will it fit: refusals with the numbers, and the arithmetic behind them."""

from __future__ import annotations

from typing import Any

import pytest

from briton.config.enums import Accelerator, TrussTRTLLMQuantizationType
from briton.errors import ConfigError
from briton.trtllm.gpus import GPUS
from briton.trtllm.memory import weights_bytes
from briton.trtllm.parallel import Parallelism
from briton.trtllm.quantization import check_gpu, quantization_plan
from tests.config.conftest import V2
from tests.trtllm.conftest import MakePlan, llama_8b, shapes

LLAMA_70B = "meta-llama/Llama-3.3-70B-Instruct"
QUANTIZATION = "trt_llm.build.quantization_type"
ACCELERATOR = "resources.accelerator"
TENSOR_PARALLEL = "trt_llm.build.tensor_parallel_count"


def refusal(make_plan: MakePlan, changes: dict[str, Any], **options: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        make_plan(changes, **options)
    assert caught.value.field is not None
    assert "\n" not in caught.value.message
    return caught.value


def test_70b_in_16_bits_on_one_h100(make_plan: MakePlan) -> None:
    error = refusal(make_plan, {ACCELERATOR: "H100"}, model=shapes(LLAMA_70B))
    assert error.field == "resources.accelerator"
    assert "does not fit on H100, which has 79.6 GiB" in error.message
    assert "weights take 131.4 GiB a rank" in error.message


def test_70b_in_16_bits_on_four(make_plan: MakePlan) -> None:
    plan = make_plan({ACCELERATOR: "H100:4", TENSOR_PARALLEL: 4}, model=shapes(LLAMA_70B))
    assert plan.memory.fits
    assert plan.memory.weights_bytes_per_rank == pytest.approx(70.55e9 * 2 / 4, rel=0.001)


def test_weights_that_fit_without_room_for_one_request(make_plan: MakePlan) -> None:
    changes = {ACCELERATOR: "L4", "trt_llm.build.max_seq_len": 131072, "trt_llm.build.max_num_tokens": 512}
    error = refusal(make_plan, changes)
    assert error.field == "trt_llm.build.max_seq_len"
    assert "it needs 16.0 GiB of KV cache a rank" in error.message
    assert "Lower max_seq_len" in error.message
    shorter = make_plan({**changes, "trt_llm.build.max_seq_len": 16384})
    assert shorter.memory.full_length_requests == 2


def test_v2_names_its_own_field(make_plan: MakePlan) -> None:
    changes = {ACCELERATOR: "L4", "trt_llm.runtime.max_seq_len": 131072, "trt_llm.runtime.max_num_tokens": 512}
    assert refusal(make_plan, changes, base=V2).field == "trt_llm.runtime.max_seq_len"


@pytest.mark.parametrize(
    ("quantization", "accelerator", "needs"),
    [("fp8", "A100", "L4, H100 or newer"), ("fp4", "H100", "B200 or newer"), ("fp4_kv", "L40S", "B200 or newer")],
)
def test_gpus_without_the_format(make_plan: MakePlan, quantization: str, accelerator: str, needs: str) -> None:
    error = refusal(make_plan, {QUANTIZATION: quantization, ACCELERATOR: accelerator})
    assert error.field == QUANTIZATION
    assert quantization in error.message
    assert needs in error.message


@pytest.mark.parametrize(
    ("quantization", "gpu", "part"),
    [
        ("fp8", "A100", "A100 has compute capability 8.0, and FP8 needs compute capability 8.9"),
        ("fp4", "H100", "H100 has compute capability 9.0, and NVFP4 needs compute capability 10.0"),
        ("weights_int8", "B200", "no integer kernels on Blackwell"),
        ("smooth_quant", "B300", "no integer kernels on Blackwell"),
    ],
)
def test_the_gpu_itself_is_asked(quantization: str, gpu: str, part: str) -> None:
    plan = quantization_plan(TrussTRTLLMQuantizationType(quantization), llama_8b())
    with pytest.raises(ConfigError, match=part):
        check_gpu(plan, GPUS[gpu])
    check_gpu(quantization_plan(TrussTRTLLMQuantizationType.NO_QUANT, llama_8b()), GPUS[gpu])


def test_a_checkpoint_in_fp4_on_a_gpu_without(make_plan: MakePlan) -> None:
    error = refusal(make_plan, {ACCELERATOR: "H100"}, model=shapes("nvidia/Llama-3.1-8B-Instruct-FP4"))
    assert "no_quant (the checkpoint's own NVFP4)" in error.message


@pytest.mark.parametrize(
    ("changes", "field", "part"),
    [
        ({TENSOR_PARALLEL: 3}, TENSOR_PARALLEL, "3, which does not divide the model's 32 attention heads"),
        ({"trt_llm.build.sequence_parallel_count": 2}, "trt_llm.build.sequence_parallel_count", "no sequence para"),
        ({"trt_llm.build.pipeline_parallel_count": 40}, "trt_llm.build.pipeline_parallel_count", "has 32 layers"),
    ],
)
def test_ranks_that_do_not_divide_the_model(
    make_plan: MakePlan, changes: dict[str, Any], field: str, part: str
) -> None:
    error = refusal(make_plan, changes)
    assert error.field == field
    assert part in error.message


def test_key_value_heads_that_cannot_be_shared(make_plan: MakePlan) -> None:
    model = shapes("meta-llama/Llama-3.2-3B-Instruct", num_attention_heads=24, intermediate_size=8184)
    assert (
        "neither divides the model's 8 key-value heads" in refusal(make_plan, {TENSOR_PARALLEL: 6}, model=model).message
    )


def test_v2_counts_its_gpus_too(make_plan: MakePlan) -> None:
    error = refusal(make_plan, {ACCELERATOR: "H100:2"}, base=V2)
    assert error.field == ACCELERATOR
    assert "asks for 2 GPUs (H100:2), and the config has 1 ranks" in error.message


def test_key_value_heads_are_repeated_on_more_ranks_than_heads(make_plan: MakePlan) -> None:
    model = shapes("Qwen/Qwen3-235B-A22B-Instruct-2507")
    memory = make_plan({TENSOR_PARALLEL: 8, QUANTIZATION: "fp8_kv"}, model=model).memory
    assert memory.kv_bytes_per_token == 2 * 94 * 4 * 128
    assert memory.kv_bytes_per_token_per_rank == 2 * 94 * 1 * 128


def test_sliding_windows_hold_no_more_than_they_see(make_plan: MakePlan) -> None:
    memory = make_plan({"trt_llm.build.max_seq_len": 32768}, model=shapes("unsloth/gemma-3-1b-it")).memory
    a_layer = 2 * 1 * 256 * 2
    assert memory.kv_bytes_per_token == 26 * a_layer
    assert memory.kv_bytes_per_full_length_request_per_rank == (4 * 32768 + 22 * 512) * a_layer


def test_a_pipeline_divides_layers_and_tables() -> None:
    quantization = quantization_plan(TrussTRTLLMQuantizationType.NO_QUANT, llama_8b())
    whole = weights_bytes(llama_8b(), quantization, Parallelism())
    half = weights_bytes(llama_8b(), quantization, Parallelism(pipeline=2))
    assert half == pytest.approx(whole / 2, rel=0.001)


def test_without_an_accelerator_nothing_is_said_about_fitting(make_plan: MakePlan) -> None:
    plan = make_plan(model=shapes("meta-llama/Llama-3.1-405B"))
    assert plan.memory.fits is None
    assert plan.memory.max_tokens_in_kv_cache is None
    assert plan.decode is None
    assert any("names no GPU" in note for note in plan.notes)


def test_every_accelerator_is_known() -> None:
    assert set(GPUS) == {accelerator.value for accelerator in Accelerator}
    for name, gpu in GPUS.items():
        assert gpu.name == name
        assert 14e9 < gpu.memory_bytes < 310e9
        assert 250e9 < gpu.bandwidth < 9e12
        assert not gpu.has_fp4 or gpu.has_fp8


def test_decoding_by_roofline(make_plan: MakePlan) -> None:
    """One request reads all weights but the embedding, and its own cache, at the bandwidth of the data sheet."""
    plan = make_plan({ACCELERATOR: "H100", "trt_llm.build.max_batch_size": 32})
    assert plan.decode is not None
    read = (8.030e9 - 128256 * 4096) * 2 + 2048 * 131072
    assert plan.decode.batch_1 == pytest.approx(3.35e12 / read, rel=0.01)
    assert plan.decode.batch_size == 32
    assert plan.decode.batch_1 < plan.decode.full_batch < 32 * plan.decode.batch_1
    assert plan.decode.basis.startswith("estimate")


def test_experts_that_nobody_chose_are_not_read(make_plan: MakePlan) -> None:
    sparse = make_plan({ACCELERATOR: "H100", QUANTIZATION: "fp8"}, model=shapes("Qwen/Qwen3-30B-A3B")).decode
    dense = make_plan({ACCELERATOR: "H100", QUANTIZATION: "fp8"}, model=shapes("Qwen/Qwen3-32B")).decode
    assert sparse is not None
    assert dense is not None
    assert sparse.batch_1 > 6 * dense.batch_1


def test_a_cache_that_patches_limit(make_plan: MakePlan) -> None:
    patches = {"kv_cache_config": {"max_tokens": 4096}}
    changes = {ACCELERATOR: "H100", "trt_llm.runtime.max_seq_len": 2048, "trt_llm.runtime.patch_kwargs": patches}
    memory = make_plan(changes, base=V2).memory
    assert (memory.max_tokens_in_kv_cache, memory.full_length_requests) == (4096, 2)


def test_an_int8_cache_on_blackwell(make_plan: MakePlan) -> None:
    patches = {"kv_cache_config": {"dtype": "int8"}}
    error = refusal(make_plan, {ACCELERATOR: "B200", "trt_llm.runtime.patch_kwargs": patches}, base=V2)
    assert "no integer kernels on Blackwell" in error.message
