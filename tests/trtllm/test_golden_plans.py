"""The plans of all decoder configs of the public examples, reviewed by hand.

What was compared, config by config, when they were written:

- with the public documentation of the schema (Baseten's Engine-Builder-LLM and BIS-LLM references, its quantization
  guide): limits and their v2 names, FP8 KV cache for fp8_kv and fp4_kv and none for fp8, fp4 and fp4_mlp_only, chunked
  context and scheduler policy, calibration data, lookahead sizes, use_fp8_context_fmha without effect;
- with TensorRT-LLM's public code and documentation of the 1.1 and 1.2 series (BuildConfig and PluginConfig with the
  rules of `build()`, QuantConfig, CalibConfig, the LLM class for engines): the names, `gemm_plugin`, FP8 context
  attention only with an FP8 KV cache, lookahead's max_draft_len, the NCCL plugin with several ranks alone;
- with the table of the executor's API in this directory: every name of `executor_config`;
- with a calculator: weights, and KV bytes per token as 2 x layers x key-value heads x head size x bytes.

Nothing of them has run on a GPU. After a change: `python -m tests.trtllm.golden_plans`, and review the diff so again.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tests.trtllm.golden_plans import GOLDENS, NAMES, golden, plan


class ByHand(NamedTuple):
    """A model's size from its card, in billions of weights, and what the config makes of it."""

    weights: float
    sixteen_bit: float  # of them: embedding and lm_head, a tied one once; with fp4_mlp_only attention too
    bytes: float  # of each other weight
    ranks: int
    kv_bytes: int  # of one token: 2 x layers x key-value heads x head size x bytes


NVFP4 = 0.5 + 1 / 16  # a scale of 8 bits for 16 weights
BY_HAND = {
    "BISV2-deepseek-ai-deepseek-r1-distill-llama-70b-fp4": ByHand(70.55, 2.101, NVFP4, 1, 2 * 80 * 8 * 128),
    "BISV2-meta-llama-llama-3.2-3b-instruct-fp8": ByHand(3.213, 0.394, 1, 1, 2 * 28 * 8 * 128),
    "BISV2-nvidia-llama-3.1-8b-instruct-fp4": ByHand(8.030, 1.051, NVFP4, 1, 2 * 32 * 8 * 128),
    "BISV2-nvidia-qwen3-8b-fp4": ByHand(8.191, 1.245, NVFP4, 1, 2 * 36 * 8 * 128),
    "BISV2-qwen-qwen2.5-coder-7b-instruct-fp4": ByHand(7.616, 1.090, NVFP4, 1, 2 * 28 * 4 * 128 * 2),
    "BISV2-qwen-qwen3-4b-fp8": ByHand(4.022, 0.389, 1, 1, 2 * 36 * 8 * 128),
    "Briton-deepseek-ai-deepseek-r1-distill-llama-70b-fp8": ByHand(70.55, 2.101, 1, 2, 2 * 80 * 8 * 128),
    "Briton-google-gemma-3-1b-it": ByHand(0.9999, 0.302, 2, 1, 2 * 26 * 1 * 256 * 2),
    "Briton-google-gemma-3-27b-it": ByHand(27.01, 1.410, 2, 1, 2 * 62 * 16 * 128 * 2),
    "Briton-meta-llama-llama-3.1-405b-fp8": ByHand(405.9, 4.203, 1, 8, 2 * 126 * 8 * 128),
    "Briton-meta-llama-llama-3.2-1b-instruct-fp8": ByHand(1.236, 0.263, 1, 1, 2 * 16 * 8 * 64),
    "Briton-meta-llama-llama-3.2-3b-instruct-calib-dataset-fp8": ByHand(3.213, 0.394, 1, 1, 2 * 28 * 8 * 128),
    "Briton-meta-llama-llama-3.3-70b-instruct-fp4": ByHand(70.55, 2.101, NVFP4, 1, 2 * 80 * 8 * 128 * 2),
    "Briton-meta-llama-llama-3.3-70b-instruct-tp4-fp8": ByHand(70.55, 2.101, 1, 4, 2 * 80 * 8 * 128),
    "Briton-mistralai-mistral-7b-instruct-v0.3": ByHand(7.248, 0.268, 2, 2, 2 * 32 * 8 * 128 * 2),
    "Briton-qwen-qwen2.5-72b-instruct-tp2-fp8": ByHand(72.71, 2.491, 1, 2, 2 * 80 * 8 * 128 * 2),
    "Briton-qwen-qwen2.5-7b-instruct-with-speculative-lookahead-decoding-fp8": ByHand(
        7.616, 1.090, 1, 1, 2 * 28 * 4 * 128 * 2
    ),
    "Briton-qwen-qwen2.5-coder-7b-instruct-calib-dataset-fp4-mlp-only": ByHand(
        7.616, 1.090 + 0.822, NVFP4, 1, 2 * 28 * 4 * 128 * 2
    ),
    "Briton-qwen-qwen3-235b-a22b-instruct-2507-fp8": ByHand(235.1, 1.245, 1, 8, 2 * 94 * 4 * 128),
    "Briton-qwen-qwen3-30b-a3b-fp8": ByHand(30.53, 0.622, 1, 1, 2 * 48 * 4 * 128),
    "Briton-qwen-qwen3-32b-fp4": ByHand(32.76, 1.556, NVFP4, 1, 2 * 64 * 8 * 128),
    "Briton-qwen-qwen3-32b-fp8": ByHand(32.76, 1.556, 1, 1, 2 * 64 * 8 * 128),
    "Briton-qwen-qwq-32b-reasoning-fp8": ByHand(32.76, 1.557, 1, 1, 2 * 64 * 8 * 128 * 2),
    "Briton-tiiuae-falcon3-10b-instruct-fp8": ByHand(10.31, 0.805, 1, 2, 2 * 40 * 4 * 256),
}


def test_all_public_decoder_configs_have_a_plan() -> None:
    assert len(NAMES) == 24
    assert sorted(file.stem for file in GOLDENS.glob("*.json")) == NAMES == sorted(BY_HAND)


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_is_the_reviewed_one(name: str) -> None:
    assert plan(name) == golden(name)


@pytest.mark.parametrize("name", NAMES)
def test_memory_by_hand(name: str) -> None:
    """Within a half per cent, for norms, biases, routers, and key-value heads that several ranks hold."""
    memory, known = golden(name)["memory"], BY_HAND[name]
    size = (known.sixteen_bit * 2 + (known.weights - known.sixteen_bit) * known.bytes) / known.ranks * 1e9
    assert memory["weights_bytes_per_rank"] == pytest.approx(size, rel=0.005)
    assert memory["kv_bytes_per_token"] == known.kv_bytes
    assert memory["fits"] is True
    assert memory["full_length_requests"] >= 1


def test_the_keys_that_others_rely_on() -> None:
    keys = {"executor", "build", "quantization", "calibration", "executor_config", "launch", "memory", "notes"}
    for name in NAMES:
        assert keys <= golden(name).keys()
        assert {"command", "env"} == golden(name)["launch"].keys()
        memory = {"weights_bytes_per_rank", "kv_bytes_per_token", "max_tokens_in_kv_cache", "fits"}
        assert memory <= golden(name)["memory"].keys()


def test_lookahead_is_the_same_in_build_and_executor() -> None:
    document = golden("Briton-qwen-qwen2.5-7b-instruct-with-speculative-lookahead-decoding-fp8")
    sizes = {"max_window_size": 3, "max_ngram_size": 8, "max_verification_set_size": 3}
    assert document["build"]["speculative_config"] == sizes
    assert document["build"]["max_draft_len"] == 41
    decoding = document["executor_config"]["decoding_config"]
    assert decoding == {"decoding_mode": "Lookahead", "lookahead_decoding_config": sizes}


def test_ranks_are_started_by_mpirun() -> None:
    command = golden("Briton-meta-llama-llama-3.3-70b-instruct-tp4-fp8")["launch"]["command"]
    assert command[0] == "mpirun"
    assert "--allow-run-as-root" in command
    assert command[command.index("-n") + 1] == "4"
    assert command[command.index("python") :][:4] == ["python", "-m", "briton", "engine"]
    assert golden("Briton-qwen-qwen3-32b-fp8")["launch"]["command"][0] == "python"
