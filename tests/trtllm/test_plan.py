"""What each field of a config becomes in TensorRT-LLM's own terms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from briton.config.loader import load_config
from briton.config.lookahead import LookaheadConfig
from briton.errors import ConfigError
from briton.trtllm.features import features_of
from briton.trtllm.gpus import GPUS
from briton.trtllm.library_objects import plain
from briton.trtllm.patches import Patches
from tests.config.conftest import V1, V2
from tests.trtllm.conftest import MakePlan, shapes

BUILD, RUNTIME = "trt_llm.build", "trt_llm.runtime"
QUANTIZATION = f"{BUILD}.quantization_type"


def speculator(w: int, n: int, g: int, **more: Any) -> dict[str, Any]:
    return {
        f"{BUILD}.max_batch_size": 32,
        f"{BUILD}.speculator": {
            "speculative_decoding_mode": "LOOKAHEAD_DECODING",
            "lookahead_windows_size": w,
            "lookahead_ngram_size": n,
            "lookahead_verification_set_size": g,
            **more,
        },
    }


@pytest.mark.parametrize(
    ("quantization", "weights", "kv_cache", "calibrated"),
    [
        ("no_quant", None, None, False),
        ("weights_int8", "W8A16", None, False),
        ("weights_kv_int8", "W8A16", "INT8", True),
        ("weights_int4", "W4A16", None, False),
        ("weights_int4_kv_int8", "W4A16", "INT8", True),
        ("smooth_quant", "W8A8_SQ_PER_CHANNEL", None, True),
        ("fp8", "FP8", None, True),
        ("fp8_kv", "FP8", "FP8", True),
        ("fp4", "NVFP4", None, True),
        ("fp4_kv", "NVFP4", "FP8", True),
        ("fp4_mlp_only", "NVFP4", None, True),
    ],
)
def test_quantization_types(
    make_plan: MakePlan, quantization: str, weights: str | None, kv_cache: str | None, calibrated: bool
) -> None:
    plan = make_plan({QUANTIZATION: quantization})
    assert plan.quantization.quant_algo == weights
    assert plan.quantization.kv_cache_quant_algo == kv_cache
    assert (plan.calibration is not None) is calibrated
    expected = {"quant_algo": weights, "kv_cache_quant_algo": kv_cache}
    config = plain(plan.quantization.quant_config)
    assert {name: config.get(name) for name in expected} == expected


def test_fp4_in_the_mlp_alone(make_plan: MakePlan) -> None:
    plan = make_plan({QUANTIZATION: "fp4_mlp_only"})
    assert plan.quantization.model_optimizer_recipe == "NVFP4_MLP_ONLY_CFG"
    assert plain(plan.quantization.quant_config)["exclude_modules"] == ["*attention*", "lm_head"]
    full = make_plan({QUANTIZATION: "fp4"}).memory.weights_bytes_per_rank
    assert plan.memory.weights_bytes_per_rank == pytest.approx(full + 32 * 4096 * 128 * 80 * (2 - 0.5625), rel=1e-6)


@pytest.mark.parametrize(
    ("quantization", "gemm", "fp8_context"),
    [
        ("no_quant", "auto", False),
        ("fp8", None, False),
        ("fp8_kv", None, True),
        ("fp4", "nvfp4", False),
        ("fp4_kv", "nvfp4", True),
        ("weights_int8", "auto", False),
    ],
)
def test_plugins(make_plan: MakePlan, quantization: str, gemm: str | None, fp8_context: bool) -> None:
    plugins = make_plan({QUANTIZATION: quantization}).build.build_config["plugin_config"]
    assert plugins["gemm_plugin"] == gemm
    assert plugins["use_fp8_context_fmha"] is fp8_context
    assert plugins["use_paged_context_fmha"] is True
    assert plugins["nccl_plugin"] is None
    assert plugins["weight_only_quant_matmul_plugin"] == ("auto" if quantization == "weights_int8" else None)


@pytest.mark.parametrize("quantization", ["weights_kv_int8", "weights_int4_kv_int8"])
def test_an_int8_cache_goes_without_paged_context(make_plan: MakePlan, quantization: str) -> None:
    plan = make_plan({QUANTIZATION: quantization})
    assert plan.build.build_config["plugin_config"]["use_paged_context_fmha"] is False
    assert plan.executor_config["enable_chunked_context"] is False
    assert plan.executor_config["kv_cache_config"]["enable_block_reuse"] is False
    assert any("no chunked context" in note for note in plan.notes)
    with pytest.raises(ConfigError, match="needs paged context attention"):
        make_plan({QUANTIZATION: quantization, **speculator(3, 3, 3)})


def test_v1_limits_and_runtime(make_plan: MakePlan) -> None:
    plan = make_plan(
        {
            f"{BUILD}.max_seq_len": 8192,
            f"{BUILD}.max_batch_size": 64,
            f"{BUILD}.max_num_tokens": 2048,
            f"{RUNTIME}.kv_cache_free_gpu_mem_fraction": 0.5,
            f"{RUNTIME}.kv_cache_host_memory_bytes": 4096,
            f"{RUNTIME}.batch_scheduler_policy": "max_utilization",
            f"{RUNTIME}.request_default_max_tokens": 77,
            f"{RUNTIME}.served_model_name": "mine",
            f"{RUNTIME}.total_token_limit": 1000,
            "briton.max_queue_size": 9,
        }
    )
    build, run = plan.build.build_config, plan.executor_config
    assert (build["max_seq_len"], build["max_batch_size"], build["max_num_tokens"]) == (8192, 64, 2048)
    assert (run["max_batch_size"], run["max_num_tokens"], run["max_queue_size"]) == (64, 2048, 9)
    assert plain(run["kv_cache_config"]) == {
        "enable_block_reuse": True,
        "free_gpu_memory_fraction": 0.5,
        "host_cache_size": 4096,
    }
    assert plain(run["scheduler_config"])["capacity_scheduler_policy"] == "MAX_UTILIZATION"
    serving = plan.serving
    assert (serving.served_model_name, serving.request_default_max_tokens, serving.total_token_limit) == (
        "mine",
        77,
        1000,
    )
    assert any("total_token_limit has no effect" in note for note in plan.notes)


def test_v2_maps_to_the_same_executor(make_plan: MakePlan) -> None:
    """The same limits in either spelling are the same executor, and the same engine."""
    limits = {"max_seq_len": 8192, "max_batch_size": 64, "max_num_tokens": 2048}
    v1 = make_plan(
        {f"{BUILD}.{name}": value for name, value in limits.items()}
        | {f"{RUNTIME}.enable_chunked_context": False, f"{BUILD}.tensor_parallel_count": 2}
    )
    v2 = make_plan(
        {f"{RUNTIME}.{name}": value for name, value in limits.items()}
        | {f"{RUNTIME}.enable_chunked_prefill": False, f"{RUNTIME}.tensor_parallel_size": 2},
        base=V2,
    )
    assert plain(v1.executor_config) == plain(v2.executor_config)
    assert plain(v1.build.build_config) == plain(v2.build.build_config)
    assert v1.executor_config["enable_chunked_context"] is False
    assert any("a prompt has at most max_num_tokens (2048) tokens" in note for note in v1.notes)


def test_patch_kwargs(make_plan: MakePlan) -> None:
    patches = {
        "kv_cache_config": {"free_gpu_memory_fraction": 0.7, "host_cache_size": 10, "dtype": "fp8", "tokens": 1},
        "scheduler_config": {"capacity_scheduler_policy": "MAX_UTILIZATION", "waiting": True},
        "speculative_config": {
            "decoding_type": "Lookahead",
            "max_window_size": 3,
            "max_ngram_size": 3,
            "max_verification_set_size": 3,
        },
        "cuda_graph_config": {"enable_padding": True},
    }
    plan = make_plan({f"{RUNTIME}.patch_kwargs": patches, QUANTIZATION: "fp8"}, base=V2)
    kv_cache = plain(plan.executor_config["kv_cache_config"])
    assert kv_cache == {"enable_block_reuse": True, "free_gpu_memory_fraction": 0.7, "host_cache_size": 10}
    assert plain(plan.executor_config["scheduler_config"])["capacity_scheduler_policy"] == "MAX_UTILIZATION"
    assert plan.quantization.kv_cache_quant_algo == "FP8"
    assert plan.features.lookahead == LookaheadConfig(3, 3, 3)
    note = next(note for note in plan.notes if "patch_kwargs" in note)
    assert note.endswith("cuda_graph_config, kv_cache_config.tokens, scheduler_config.waiting")


@pytest.mark.parametrize(
    ("patches", "key"),
    [
        ({"kv_cache_config": {"free_gpu_memory_fraction": 1.5}}, "kv_cache_config.free_gpu_memory_fraction"),
        ({"kv_cache_config": {"host_cache_size": "much"}}, "kv_cache_config.host_cache_size"),
        ({"kv_cache_config": {"host_cache_size": True}}, "kv_cache_config.host_cache_size"),
        ({"kv_cache_config": {"dtype": "nvfp4"}}, "kv_cache_config.dtype"),
        ({"kv_cache_config": {"dtype": ["fp8"]}}, "kv_cache_config.dtype"),
        ({"kv_cache_config": {"max_tokens": -1}}, "kv_cache_config.max_tokens"),
        ({"kv_cache_config": {"host_cache_size": -1}}, "kv_cache_config.host_cache_size"),
        ({"kv_cache_config": {"max_attention_window": [0]}}, "kv_cache_config.max_attention_window"),
        ({"kv_cache_config": {"max_attention_window": []}}, "kv_cache_config.max_attention_window"),
        ({"scheduler_config": {"capacity_scheduler_policy": "STATIC"}}, "scheduler_config.capacity_scheduler_policy"),
        ({"speculative_config": {"decoding_type": "Lookahead"}}, "speculative_config.max_window_size"),
        (
            {
                "speculative_config": {
                    "decoding_type": "Lookahead",
                    "max_window_size": 4,
                    "max_ngram_size": 3,
                    "max_verification_set_size": 0,  # which the library's own LookaheadDecodingConfig refuses
                }
            },
            "speculative_config.max_verification_set_size",
        ),
    ],
)
def test_patches_that_cannot_be(make_plan: MakePlan, patches: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan({f"{RUNTIME}.patch_kwargs": patches}, base=V2)
    assert caught.value.field == f"trt_llm.runtime.patch_kwargs.{key}"


@pytest.mark.parametrize(("sizes", "drafts"), [((3, 8, 3), 41), ((1, 32, 1), 61), ((7, 7, 7), 83)])
def test_lookahead(make_plan: MakePlan, sizes: tuple[int, int, int], drafts: int) -> None:
    plan = make_plan(speculator(*sizes))
    build = plain(plan.build.build_config)
    assert (build["max_draft_len"], build["speculative_decoding_mode"]) == (drafts, "LOOKAHEAD_DECODING")
    assert plan.features.sequence_tokens == plan.features.max_seq_len + drafts


def test_sizes_that_draft_nothing_there(make_plan: MakePlan) -> None:
    plan = make_plan(speculator(8, 1, 1, num_draft_tokens=8, enable_b10_lookahead=True))
    assert plan.features.lookahead is None
    assert "decoding_config" not in plan.executor_config.arguments
    assert any("drafts nothing with sizes (8, 1, 1)" in note for note in plan.notes)
    assert any("dynamic n-grams are not in the public" in note for note in plan.notes)


def test_build_and_executor_agree_on_the_drafts(make_plan: MakePlan) -> None:
    plan = make_plan(speculator(3, 3, 3, num_draft_tokens=100))
    assert plan.features.max_draft_len == LookaheadConfig(3, 3, 3).draft_tokens == 11
    assert any("num_draft_tokens 100 is more than" in note for note in plan.notes)


def test_a_step_holds_the_drafts_of_a_full_batch(make_plan: MakePlan) -> None:
    plan = make_plan({**speculator(7, 7, 7), f"{BUILD}.max_num_tokens": 512})
    assert plan.features.max_num_tokens == 32 * 84
    assert any("max_num_tokens is 2688, not 512" in note for note in plan.notes)


def test_lora_adapters(make_plan: MakePlan) -> None:
    plan = make_plan(
        {
            f"{BUILD}.lora_adapters": {
                "legal": {"source": "HF", "repo": "acme/legal"},
                "poems": {"source": "HF", "repo": "acme/poems", "revision": "v2"},
            },
            f"{BUILD}.lora_configuration": {"max_lora_rank": 16, "lora_target_modules": ["q_proj", "v_proj"]},
        }
    )
    assert [(a.name, a.task_id, a.revision) for a in plan.build.lora_adapters] == [
        ("legal", 1, None),
        ("poems", 2, "v2"),
    ]
    assert plan.build.llm_arguments["enable_lora"] is True
    build = plain(plan.build.build_config)
    assert build["plugin_config"]["lora_plugin"] == "auto"
    # the library has all of query, key and value, or none
    assert build["lora_config"] == {"lora_target_modules": ["attn_q", "attn_v", "attn_k"], "max_lora_rank": 16}
    reserved = plan.memory.reserved_bytes_per_rank - make_plan().memory.reserved_bytes_per_rank
    assert reserved >= 2 * 2 * 16 * 32 * (8192 + 5120 + 5120)


@pytest.mark.parametrize("rank", [8, 64])
@pytest.mark.parametrize("adapters", [1, 3])
@pytest.mark.parametrize("modules", [["q_proj"], ["down_proj"], ["q_proj", "o_proj", "up_proj"], []])
@pytest.mark.parametrize("ranks", [1, 4])
def test_the_librarys_caches_hold_every_adapter(
    make_plan: MakePlan, rank: int, adapters: int, modules: list[str], ranks: int
) -> None:
    """Regression: the cache on the device was counted at full rank, and the library at rank 1: it had room for a
    fraction of one adapter, and the library does not start then. The arithmetic is peftCacheManager.cpp's."""
    plan = make_plan(
        {
            f"{BUILD}.lora_adapters": {f"a{i}": {"source": "HF", "repo": "acme/a"} for i in range(adapters)},
            f"{BUILD}.lora_configuration": {"max_lora_rank": rank, "lora_target_modules": modules},
            f"{BUILD}.tensor_parallel_count": ranks,
        }
    )
    hidden, keys, mlp, layers = 4096, 1024, 14336, 32
    widths = {
        "attn_q": hidden + hidden // ranks,
        "attn_k": hidden + keys // ranks,
        "attn_v": hidden + keys // ranks,
        "attn_dense": hidden // ranks + hidden,
        "mlp_h_to_4h": hidden + mlp // ranks,
        "mlp_gate": hidden + mlp // ranks,
        "mlp_4h_to_h": mlp // ranks + hidden,
    }
    build = plain(plan.build.build_config)
    used = [widths[module] for module in build["lora_config"]["lora_target_modules"]]
    cache = plain(plan.executor_config["peft_cache_config"])
    page_width = min(used)
    for name in ("num_host_module_layer", "num_device_module_layer"):
        slots = cache[name] * math.ceil(max(used) / page_width)
        assert slots >= math.ceil(cache["max_adapter_size"] * sum(used) * layers / page_width)
        needed = [math.ceil(rank * width / page_width) for width in used for _ in range(layers)]
        per_page = cache["optimal_adapter_size"] * sum(math.ceil(width / page_width) for width in used) * layers
        pages, in_page = 1, 0  # a row of an adapter is never divided over pages
        for row in needed:
            pages, in_page = (pages, in_page + row) if in_page + row <= per_page else (pages + 1, row)
        assert math.ceil(slots / per_page) >= adapters * pages


def test_modules_that_the_library_has_no_adapters_for(make_plan: MakePlan) -> None:
    """Its output projection's adapter is as wide as the model, whatever the heads are."""
    adapters = {f"{BUILD}.lora_adapters": {"legal": {"source": "HF", "repo": "acme/legal"}}}
    attention, mlp = ["attn_q", "attn_k", "attn_v"], ["mlp_h_to_4h", "mlp_gate", "mlp_4h_to_h"]
    for model, modules in (
        ("Qwen/Qwen2.5-7B-Instruct", [*attention, "attn_dense", *mlp]),
        ("Qwen/Qwen3-4B", [*attention, *mlp]),  # 32 heads of 128, and a width of 2560
        ("Qwen/Qwen3-30B-A3B", attention),  # and experts
    ):
        build = plain(make_plan(adapters, model=shapes(model)).build.build_config)
        assert build["lora_config"]["lora_target_modules"] == modules
    for named, modules in (
        (["v_proj"], ["attn_v", "attn_q", "attn_k"]),
        (["up_proj", "o_proj"], ["mlp_gate", "attn_dense", "mlp_h_to_4h"]),
        (["down_proj"], ["mlp_4h_to_h"]),
    ):
        given = {f"{BUILD}.lora_configuration": {"lora_target_modules": named}}
        build = plain(make_plan({**adapters, **given}).build.build_config)
        assert build["lora_config"]["lora_target_modules"] == modules
    o_proj = {f"{BUILD}.lora_configuration": {"lora_target_modules": ["o_proj"]}}
    with pytest.raises(ConfigError, match=r"names attn_dense: .*may change q_proj, k_proj, v_proj, gate_proj"):
        make_plan({**adapters, **o_proj}, model=shapes("Qwen/Qwen3-4B"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_adapters": {"..": {"source": "HF", "repo": "a/b"}}}, "is no file name"),
        ({"lora_adapters": {"tiny": {"source": "HF", "repo": "a/b"}}}, "is the name of the served model itself"),
        ({"lora_configuration": {"lora_target_modules": ["embed_tokens"]}}, "names embed_tokens: of LlamaFor"),
        ({"lora_configuration": {"max_lora_rank": 0}}, "max_lora_rank must be at least 1, not 0"),
        ({"tensor_parallel_count": 16}, "over 16 tensor-parallel ranks: the model has 8 key-value heads"),
    ],
)
def test_adapters_that_cannot_be(make_plan: MakePlan, changes: dict[str, Any], message: str) -> None:
    adapters = {"lora_adapters": {"legal": {"source": "HF", "repo": "a/b"}}, **changes}
    named = {"trt_llm.runtime.served_model_name": "tiny"}
    with pytest.raises(ConfigError, match=message):
        make_plan({**named, **{f"{BUILD}.{name}": value for name, value in adapters.items()}})


def test_experts_on_ranks_of_their_own(make_plan: MakePlan) -> None:
    changes = {f"{BUILD}.tensor_parallel_count": 4, f"{BUILD}.moe_expert_parallel_option": 2}
    plan = make_plan(changes, model=shapes("Qwen/Qwen3-30B-A3B"))
    assert plan.build.llm_arguments["moe_expert_parallel_size"] == 2
    assert plan.build.llm_arguments["moe_tensor_parallel_size"] == 2


def test_calibration_data(make_plan: MakePlan) -> None:
    config = {"calib_size": 2048, "calib_max_seq_length": 4096, "calib_dataset": "acme/chats"}
    calibration = make_plan({QUANTIZATION: "fp8", f"{BUILD}.quantization_config": config}).calibration
    assert calibration is not None
    assert plain(calibration.calib_config) == {
        "device": "cuda",
        "calib_dataset": "acme/chats",
        "calib_batches": 2048,
        "calib_batch_size": 1,
        "calib_max_seq_length": 4096,
        "tokenizer_max_seq_length": 4096,
    }
    assert calibration.fetch_dataset
    default = make_plan({QUANTIZATION: "fp8"}).calibration
    assert default is not None
    assert not default.fetch_dataset


def test_checkpoints_that_are_quantized_already(make_plan: MakePlan) -> None:
    model = shapes("nvidia/Qwen3-8B-FP4")
    plan = make_plan(model=model)
    assert (plan.quantization.quant_algo, plan.quantization.kv_cache_quant_algo) == ("NVFP4", "FP8")
    assert plan.quantization.is_prequantized
    assert plan.calibration is None
    with pytest.raises(ConfigError, match="is fp8, and the checkpoint is already NVFP4"):
        make_plan({QUANTIZATION: "fp8"}, model=model)
    with pytest.raises(ConfigError, match="quantized with AWQ, which is not known here"):
        make_plan(model=shapes("Qwen/Qwen3-4B", quant_algo="AWQ"))


def test_the_model_s_own_length_is_the_default(make_plan: MakePlan) -> None:
    assert make_plan().features.max_seq_len == 131072
    longer = make_plan({f"{BUILD}.max_seq_len": 200_000})
    assert any("more than the model's 131072 positions" in note for note in longer.notes)


def test_what_in_flight_batching_cannot_do_without(make_plan: MakePlan) -> None:
    plugins = {"paged_kv_cache": False, "use_paged_context_fmha": False}
    changes = {f"{BUILD}.plugin_configuration": plugins, f"{RUNTIME}.enable_chunked_context": False}
    with pytest.raises(ConfigError, match="needs a paged KV cache"):
        make_plan(changes)


def test_encoders(make_plan: MakePlan) -> None:
    with pytest.raises(ConfigError, match="only decoder models are served") as caught:
        make_plan({f"{BUILD}.base_model": "encoder"}, base=V1)
    assert caught.value.field == "trt_llm.build.base_model"


def test_logs_of_the_library_are_as_loud_as_ours(make_plan: MakePlan) -> None:
    assert make_plan({"briton.logging.level": "warning"}).launch.env == {"TLLM_LOG_LEVEL": "WARNING"}


def test_a_step_is_no_larger_than_a_full_batch(make_plan: MakePlan) -> None:
    plan = make_plan({f"{BUILD}.max_batch_size": 2, f"{BUILD}.max_seq_len": 1024})
    assert plan.executor_config["max_num_tokens"] == 2048
    assert any("max_num_tokens is 2048, not 8192: a step of 2 sequences takes at most 2048" in n for n in plan.notes)


def test_lookahead_on_an_old_gpu(make_plan: MakePlan) -> None:
    """The schema refuses such GPUs by name before; a GPU that is found is asked here."""
    config = make_plan(speculator(3, 3, 3))
    quantization, patches = config.quantization, Patches()
    loaded = load_config(Path(config.launch.command[-1]))
    with pytest.raises(ConfigError, match=r"needs compute capability 8\.0; T4 has 7\.5"):
        features_of(loaded, config.shapes, quantization, patches, GPUS["T4"])
