"""Every name that a plan uses of the library is one that the library has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from briton.trtllm.library_objects import EXECUTOR, LLM_API, Call, Given, Member, make, parts, plain
from tests.config.conftest import V2
from tests.trtllm.api_table import BUILDER, unknown_names
from tests.trtllm.conftest import MakePlan, shapes
from tests.trtllm.stand_in.api import TABLE

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
    calls += [call for call in (plan.build.speculative_config, plan.build.peft_cache_config) if call is not None]
    for call in calls:
        assert list(unknown_names(call)) == []
        for part in parts(call):
            if part.module == EXECUTOR:
                continue
            if isinstance(part, Member):
                assert part.module == BUILDER["enums"][part.enum]["module"]
                assert part.name in BUILDER["enums"][part.enum]["members"]
                continue
            known = BUILDER["classes"][part.name]
            assert part.module == known["module"]
            assert set(part.arguments) <= {parameter["name"] for parameter in known["parameters"]}
    assert set(plan.build.llm_arguments) <= {parameter["name"] for parameter in BUILDER["classes"]["LLM"]["parameters"]}
