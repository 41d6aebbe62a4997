"""Engines built by the library's stand-in: what it is asked, what is kept of it, and when it is asked at all."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from briton.config.config import Config
from briton.config.environment import Environment
from briton.config.lookahead import LookaheadConfig
from briton.model.engine_dir import load_manifest
from briton.trtllm.engine_check import check_engine, open_engine
from briton_engine_builder import build_engine, find_cached_engine
from tests.engine_builder.trtllm.conftest import MakeConfig
from tests.engine_builder.trtllm.stand_in import StandIn
from tests.trtllm.stand_in.executor import World
from tests.trtllm.stand_in.library import stand_in_library

QUANTIZATION = "trt_llm.build.quantization_type"
LOOKAHEAD = {
    "speculative_decoding_mode": "LOOKAHEAD_DECODING",
    "lookahead_windows_size": 3,
    "lookahead_ngram_size": 8,
    "lookahead_verification_set_size": 3,
}
CALIBRATED_ON = {"calib_dataset": "acme/notes", "calib_size": 64, "calib_max_seq_length": 256}


def llm_call(stand_in: StandIn) -> dict[str, Any]:
    """The one call of LLM."""
    (call,) = [call for call in stand_in.calls if call["call"] == "LLM"]
    return call


def engines(environment: Environment) -> list[str]:
    """Everything in the cache of engines but locks."""
    return [path.name for path in (environment.cache_dir / "engines").iterdir() if path.suffix != ".lock"]


def test_an_engine_is_built_and_found_again(
    stand_in: StandIn, make_config: MakeConfig, environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = make_config()
    assert find_cached_engine(config, environment) is None
    directory = build_engine(config, environment)
    files = {path.name for path in directory.iterdir()}
    assert {"engine.json", "config.json", "rank0.engine", "tokenizer.json", "tokenizer_config.json"} <= files
    assert not [name for name in files if name.startswith(".")]
    checkpoint = Path(config.checkpoint.repo)
    assert (directory / "tokenizer.json").read_bytes() == (checkpoint / "tokenizer.json").read_bytes()
    manifest = load_manifest(directory)
    assert (manifest.target, manifest.model_name, manifest.stop_token_ids) == ("trtllm", "tiny-llama", (0, 2))
    assert (manifest.model.architecture, manifest.model.vocab_size) == ("LlamaForCausalLM", 512)
    assert set(manifest.files) == files - {"engine.json"}
    told = [record.message for record in caplog.records]
    assert "building the engine: 2/3: loading the checkpoint, building for sm_90 x 1" in told
    assert any(line.startswith("tensorrt_llm | Loading Model: [2/2]") for line in told)
    assert build_engine(config, environment) == directory
    assert find_cached_engine(config, environment) == directory
    assert len(stand_in.calls) == 1


def test_a_hit_needs_neither_the_library_nor_the_checkpoint(
    stand_in: StandIn, make_config: MakeConfig, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = build_engine(make_config(), environment)

    def no_child(*_: Any, **__: Any) -> None:
        raise AssertionError("the library is not touched")

    monkeypatch.setattr("briton_engine_builder.trtllm.builder.run_child", no_child)
    assert build_engine(make_config(), environment) == directory
    # what only the server minds is no other engine
    assert build_engine(make_config({"briton.http_port": 9000}), environment) == directory


def test_the_manifest_records_what_was_asked(
    stand_in: StandIn, make_config: MakeConfig, environment: Environment
) -> None:
    stand_in.set(gpus=2)
    changes = {
        QUANTIZATION: "fp8_kv",
        "trt_llm.build.speculator": LOOKAHEAD,
        "trt_llm.build.max_batch_size": 16,
        "trt_llm.build.tensor_parallel_count": 2,
    }
    config = make_config(changes)
    directory = build_engine(config, environment, progress=False)
    call, manifest = llm_call(stand_in), load_manifest(directory)
    assert call["tensor_parallel_size"] == 2
    assert call["quant_config"]["quant_algo"] == call["quant_config"]["kv_cache_quant_algo"] == "FP8"
    assert call["build_config"]["plugin_config"]["use_paged_context_fmha"] is True
    assert call["build_config"]["max_draft_len"] == 41
    assert call["calib_config"]["calib_batches"] == 1024
    assert (manifest.weights_dtype, manifest.kv_cache_dtype, manifest.quantization_type) == ("fp8", "fp8", "fp8_kv")
    assert manifest.tensor_parallel_size == 2
    built = manifest.trtllm
    assert built is not None
    assert (built.library_version, built.gpu_architecture) == ("1.2.1", "sm_90")
    assert (built.max_seq_len, built.max_batch_size, built.max_draft_len) == (512, 16, 41)
    assert (built.lookahead, built.paged_context_fmha) == (LookaheadConfig(3, 8, 3), True)
    assert built.job["world_size"] == 2
    assert built.job["build_config"]["max_batch_size"] == 16
    assert built.job["speculative_config"] == {
        "max_window_size": 3,
        "max_ngram_size": 8,
        "max_verification_set_size": 3,
    }
    assert built.job["checkpoint_identity"]
    # and it is what the executor of the same config asks for
    check_engine(open_engine(config, directory, 0), stand_in_library(world=World(2)))


def test_several_ranks_are_built_under_mpirun(
    stand_in: StandIn, make_config: MakeConfig, environment: Environment
) -> None:
    stand_in.set(gpus=2)
    directory = build_engine(make_config({"trt_llm.build.tensor_parallel_count": 2}), environment, progress=False)
    assert (directory / "rank1.engine").is_file()
    mpirun, _ = stand_in.calls
    assert mpirun["options"] == ["-n", "1", "--allow-run-as-root", "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]


def test_a_vocabulary_that_ranks_do_not_divide_is_padded(
    stand_in: StandIn, make_config: MakeConfig, environment: Environment
) -> None:
    stand_in.set(gpus=2)
    config = make_config({"trt_llm.build.tensor_parallel_count": 2})
    file = Path(config.checkpoint.repo) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "vocab_size": 511}))
    built = load_manifest(build_engine(config, environment, progress=False)).trtllm
    assert built is not None
    assert built.vocab_size_padded == 512


def test_calibration_text_is_fetched(
    stand_in: StandIn,
    make_config: MakeConfig,
    environment: Environment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, Any]] = []
    data = tmp_path / "notes"
    data.mkdir()

    def download(name: str, **options: Any) -> str:
        asked.append((name, options["repo_type"]))
        return str(data)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    changes = {QUANTIZATION: "fp8", "trt_llm.build.quantization_config": CALIBRATED_ON}
    directory = build_engine(make_config(changes), environment, progress=False)
    assert asked == [("acme/notes", "dataset")]
    calibration = llm_call(stand_in)["calib_config"]
    assert (calibration["calib_dataset"], calibration["calib_batches"]) == (str(data), 64)
    built = load_manifest(directory).trtllm
    assert built is not None
    assert built.job["calib_config"]["calib_dataset"] == "acme/notes"  # not where it was put


def test_mlp_only_is_quantized_by_its_recipe(
    stand_in: StandIn, make_config: MakeConfig, environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stand_in.set(capability=(10, 0))
    config = make_config({QUANTIZATION: "fp4_mlp_only"})
    build_engine(config, environment)
    quantized, built = stand_in.calls
    assert (quantized["call"], quantized["recipe"]) == ("quantize_and_export", "NVFP4_MLP_ONLY_CFG")
    assert (quantized["calib_size"], quantized["calib_dataset"]) == (1024, "abisee/cnn_dailymail")
    assert quantized["model_dir"] == config.checkpoint.repo == built["tokenizer"]
    assert quantized["output_dir"] == built["model"]
    assert "quant_config" not in built
    assert "2/4: quantizing with NVFP4_MLP_ONLY_CFG on 1024 samples of abisee/cnn_dailymail" in caplog.text


@pytest.mark.parametrize(
    ("machine", "changes"),
    [
        ({"capability": (8, 9)}, {}),
        ({"version": "1.2.1+cu130"}, {}),
        ({"gpus": 2}, {"trt_llm.build.tensor_parallel_count": 2}),
        ({}, {QUANTIZATION: "fp8"}),
        ({}, {"trt_llm.build.max_batch_size": 8}),
        ({}, {"trt_llm.build.speculator": LOOKAHEAD}),
    ],
    ids=("architecture", "version", "ranks", "quantization", "limits", "lookahead"),
)
def test_what_gives_another_engine(
    stand_in: StandIn,
    make_config: MakeConfig,
    environment: Environment,
    machine: dict[str, Any],
    changes: dict[str, Any],
) -> None:
    first = build_engine(make_config(), environment, progress=False)
    stand_in.set(**machine)
    config = make_config(changes)
    assert find_cached_engine(config, environment) is None
    other = build_engine(config, environment, progress=False)
    assert other != first
    assert len(engines(environment)) == 2


def test_a_changed_checkpoint_gives_another_engine(
    stand_in: StandIn, make_config: MakeConfig, environment: Environment
) -> None:
    config = make_config()
    first = build_engine(config, environment, progress=False)
    (Path(config.checkpoint.repo) / "config.json").touch()
    assert build_engine(config, environment, progress=False) != first


def test_a_checkpoint_that_was_deleted_is_not_fetched_for_an_engine_that_is_there(
    stand_in: StandIn, make_config: MakeConfig, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Path(make_config().checkpoint.repo)
    fetched = environment.cache_dir / "hub" / "snapshot"
    shutil.copytree(checkpoint, fetched)
    _fetch_from(monkeypatch, fetched)
    config = make_config({"trt_llm.build.checkpoint_repository": {"source": "HF", "repo": "acme/tiny"}})
    directory = build_engine(config, environment, progress=False)
    shutil.rmtree(fetched)
    assert build_engine(config, environment, progress=False) == directory
    assert load_manifest(directory).source["revision"] == "abc"


def _fetch_from(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """The hub has one model."""
    from briton.model.shapes import read_shapes
    from briton_engine_builder.sources.fetched import FetchedCheckpoint

    source = {"source": "HF", "repo": "acme/tiny", "revision": "abc"}
    shapes = read_shapes(directory / "config.json")
    monkeypatch.setattr("briton_engine_builder.trtllm.builder.fetch_shapes", lambda *_, **__: shapes)
    monkeypatch.setattr(
        "briton_engine_builder.sources.fetch.fetch_from_hub",
        lambda *_, **__: FetchedCheckpoint(directory, "HF acme/tiny abc", source),
    )


def test_models_that_the_local_executor_does_not_run(
    stand_in: StandIn, make_config: MakeConfig, environment: Environment
) -> None:
    config: Config = make_config()
    file = Path(config.checkpoint.repo) / "config.json"
    raw = {**json.loads(file.read_text()), "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    file.write_text(json.dumps(raw))
    manifest = load_manifest(build_engine(config, environment, progress=False))
    assert manifest.model.architecture == "Qwen2ForCausalLM"
