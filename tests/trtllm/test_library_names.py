"""Every name that a plan uses of the library is one that the library has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from briton.trtllm.library_objects import EXECUTOR, LLM_API, Call, Given, Member, make, parts, plain
from tests.config.conftest import V2
from tests.trtllm.api_table import TABLE, unknown_names
from tests.trtllm.conftest import MakePlan, shapes

# Fields of release 1.2's classes outside the executor's module, read off its public code.
BUILD_CONFIG = {
    *("max_input_len", "max_seq_len", "opt_batch_size", "max_batch_size", "max_beam_width", "max_num_tokens"),
    *("opt_num_tokens", "max_prompt_embedding_table_size", "kv_cache_type", "gather_context_logits"),
    *("gather_generation_logits", "strongly_typed", "force_num_profiles", "profiling_verbosity"),
    *("enable_debug_output", "max_draft_len", "speculative_decoding_mode", "use_refit", "input_timing_cache"),
    *("output_timing_cache", "lora_config", "weight_sparsity", "weight_streaming", "plugin_config", "use_strip_plan"),
    *("max_encoder_input_len", "dry_run", "visualize_network", "monitor_memory", "use_mrope"),
}
PLUGIN_CONFIG = {
    *("dtype", "bert_attention_plugin", "gpt_attention_plugin", "gemm_plugin", "gemm_swiglu_plugin", "nccl_plugin"),
    *("fp8_rowwise_gemm_plugin", "qserve_gemm_plugin", "identity_plugin", "lora_plugin", "dora_plugin", "moe_plugin"),
    *("weight_only_groupwise_quant_matmul_plugin", "weight_only_quant_matmul_plugin", "smooth_quant_plugins"),
    *("context_fmha", "paged_kv_cache", "remove_input_padding", "norm_quant_fusion", "reduce_fusion", "user_buffer"),
    *("tokens_per_block", "use_paged_context_fmha", "use_fp8_context_fmha", "fuse_fp4_quant", "multiple_profiles"),
    *("paged_state", "streamingllm", "manage_weights", "use_fused_mlp", "pp_reduce_scatter"),
}
FIELDS = {
    "BuildConfig": BUILD_CONFIG,
    "PluginConfig": PLUGIN_CONFIG,
    "QuantConfig": {
        *("quant_algo", "kv_cache_quant_algo", "group_size", "smoothquant_val", "clamp_val", "use_meta_recipe"),
        *("has_zero_point", "pre_quant_scale", "exclude_modules"),
    },
    "CalibConfig": {
        *("device", "calib_dataset", "calib_batches", "calib_batch_size", "calib_max_seq_length", "random_seed"),
        "tokenizer_max_seq_length",
    },
    "LookaheadDecodingConfig": {"max_window_size", "max_ngram_size", "max_verification_set_size"},
    "LoraConfig": {"lora_dir", "lora_ckpt_source", "max_lora_rank", "lora_target_modules"},
}
MEMBERS = {
    "QuantAlgo": {"W8A16", "W4A16", "W8A8_SQ_PER_CHANNEL", "FP8", "INT8", "NVFP4"},
    "SpeculativeDecodingMode": {"NONE", "LOOKAHEAD_DECODING"},
    "KVCacheType": {"PAGED"},
}
TYPES = (
    *("no_quant", "weights_int8", "weights_kv_int8", "weights_int4", "weights_int4_kv_int8", "smooth_quant"),
    *("fp8", "fp8_kv", "fp4", "fp4_kv", "fp4_mlp_only"),
)
EVERYTHING = {
    "trt_llm.build.speculator": {
        "speculative_decoding_mode": "LOOKAHEAD_DECODING",
        "lookahead_windows_size": 7,
        "lookahead_ngram_size": 7,
        "lookahead_verification_set_size": 7,
    },
    "trt_llm.build.lora_adapters": {"legal": {"source": "HF", "repo": "acme/legal-lora"}},
    "trt_llm.build.gather_all_token_logits": True,
    "trt_llm.build.max_batch_size": 16,
    "trt_llm.runtime.kv_cache_host_memory_bytes": 1_000_000,
    "trt_llm.runtime.batch_scheduler_policy": "max_utilization",
}


@pytest.mark.parametrize("quantization", TYPES)
def test_names_of_every_quantization_type(make_plan: MakePlan, quantization: str) -> None:
    _check(make_plan({"trt_llm.build.quantization_type": quantization}))


def test_names_of_everything_at_once(make_plan: MakePlan) -> None:
    plan = make_plan(EVERYTHING)
    _check(plan)
    used = {part.name for part in parts(plan.executor_config) if isinstance(part, Call)}
    assert used == {
        *("ExecutorConfig", "SchedulerConfig", "KvCacheConfig", "ParallelConfig", "LogitsPostProcessorConfig"),
        *("DecodingConfig", "DecodingMode.Lookahead", "LookaheadDecodingConfig", "PeftCacheConfig"),
    }


def test_names_of_windows_and_patches(make_plan: MakePlan) -> None:
    _check(make_plan(model=shapes("unsloth/gemma-3-1b-it")))
    patches = {
        "kv_cache_config": {"host_cache_size": 1, "max_tokens": 64, "enable_partial_reuse": False},
        "scheduler_config": {"capacity_scheduler_policy": "MAX_UTILIZATION"},
    }
    _check(make_plan({"trt_llm.runtime.patch_kwargs": patches}, base=V2))


def test_the_check_finds_what_is_wrong() -> None:
    wrong = Call("KvCacheConfig", {"free_gpu_memory_fractions": 0.9})
    assert list(unknown_names(wrong)) == ["KvCacheConfig(free_gpu_memory_fractions)"]
    assert list(unknown_names(Member("CapacitySchedulerPolicy", "NEVER"))) == ["CapacitySchedulerPolicy.NEVER"]
    assert list(unknown_names(Call("KVCacheConfig"))) == ["KVCacheConfig"]
    assert "LookaheadDecodingConfig without max_ngram_size" in list(unknown_names(Call("LookaheadDecodingConfig")))


def test_the_library_s_objects_are_made(make_plan: MakePlan) -> None:
    """`make` calls what the plan names, with the arguments of the plan: here of a module that only records."""
    plan, made = make_plan(EVERYTHING), list[str]()

    def recorder(name: str) -> Any:
        def call(**arguments: Any) -> SimpleNamespace:
            made.append(name)
            return SimpleNamespace(**arguments)

        return call

    classes = {name: recorder(name) for name in TABLE["classes"]}
    enums = {name: SimpleNamespace(**{m: f"{name}.{m}" for m in members}) for name, members in TABLE["enums"].items()}
    module = SimpleNamespace(**classes, **enums, DecodingMode=SimpleNamespace(Lookahead=lambda: "lookahead"))
    callback = object()
    config = make(plan.executor_config, {"batched_post_processor": callback}, {EXECUTOR: module})
    assert config.logits_post_processor_config.processor_batched is callback
    assert config.scheduler_config.capacity_scheduler_policy == "CapacitySchedulerPolicy.MAX_UTILIZATION"
    assert config.decoding_config.decoding_mode == "lookahead"
    assert config.decoding_config.lookahead_decoding_config.max_window_size == 7
    assert made[-1] == "ExecutorConfig"
    assert make([1, Given("x")], {"x": 2}) == [1, 2]


def test_plain_values() -> None:
    value = Call("A", {"mode": Call("M.Fast"), "of": [Member("E", "B")], "to": Given("c"), "map": {"k": 1}}, LLM_API)
    assert plain(value) == {"mode": "Fast", "of": ["B"], "to": "<c>", "map": {"k": 1}}


def _check(plan: Any) -> None:
    calls = [plan.executor_config, plan.build.build_config, plan.quantization.quant_config]
    calls += [plan.calibration.calib_config] if plan.calibration else []
    calls += [plan.build.speculative_config] if plan.build.speculative_config else []
    for call in calls:
        assert list(unknown_names(call)) == []
        for part in parts(call):
            if part.module == EXECUTOR:
                continue
            if isinstance(part, Member):
                assert part.name in MEMBERS[part.enum]
            else:
                assert set(part.arguments) <= FIELDS[part.name]
