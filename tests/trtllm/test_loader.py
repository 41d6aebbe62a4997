"""Engines that do not fit, machines that lack something, and what a running executor says of itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from briton.config.lookahead import LookaheadConfig
from briton.engine.types import RankStats, SamplingParams
from briton.errors import BritonError, BuildError, ConfigError
from briton.model.engine_dir import ModelConfig, load_manifest
from briton.trtllm import library as library_module
from briton.trtllm.engine_check import open_engine
from briton.trtllm.library import Library, load_library
from briton.trtllm.loader import create_trtllm_executor, start_executor
from briton.trtllm.machine import LIBRARY_VERSION, Machine
from tests.trtllm.engines import MANIFEST, SHAPES, config_of, speculator, start, write_engine
from tests.trtllm.stand_in.executor import Faults, World
from tests.trtllm.stand_in.library import stand_in_library

SIZES = LookaheadConfig(4, 3, 2)


# What a running executor says of itself.


def test_info(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 20}')
    executor = start(tmp_path, request_default_max_tokens=50)
    info = executor.info
    assert (info.executor, info.model_name, info.architecture) == ("trtllm", "tiny", "LlamaForCausalLM")
    assert (info.vocab_size, info.max_seq_len, info.max_batch_size) == (90, 256, 8)
    assert (info.kv_cache_tokens, info.kv_block_size) == (2048, 16)  # as the library told after one token
    assert info.default_sampling == SamplingParams(temperature=0.6, top_k=20)
    assert (info.default_max_tokens, info.lookahead, info.lookahead_with_guides) == (50, None, True)
    executor.shutdown()


def test_info_with_lookahead(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6, "repetition_penalty": 1.1}')
    executor = start(tmp_path, lookahead=SIZES)
    info = executor.info
    assert (info.lookahead, info.max_draft_tokens, info.lookahead_with_guides) == (SIZES, 11, False)
    assert info.max_seq_len == 256  # drafts have room beyond it
    assert info.default_sampling == SamplingParams(temperature=0.0)  # nothing else would be honoured
    executor.shutdown()


def test_a_sequence_is_no_longer_than_the_kv_cache(tmp_path: Path) -> None:
    executor = start(tmp_path, kv_cache_tokens=128)
    assert executor.info.max_seq_len == executor.info.kv_cache_tokens == 128
    executor.shutdown()


def test_a_generation_config_out_of_range_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"top_p": 7}')
    with pytest.raises(BuildError, match=r"generation_config.json: top_p must be between 0 and 1, not 7"):
        start(tmp_path)


# From a config.


def test_create_from_a_config(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = config_of(tmp_path, max_batch_size=4, max_seq_len=128)
    executor = create_trtllm_executor(config, write_engine(tmp_path), library=stand_in_library())
    assert (executor.info.max_batch_size, executor.info.max_seq_len, executor.info.max_num_tokens) == (4, 128, 512)
    assert "max_num_tokens is 512, not 4096" in caplog.text  # what became of the config otherwise than it says
    executor.shutdown()


def test_a_speculator_that_the_library_cannot_run_is_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sizes = speculator(LookaheadConfig(8, 1, 1), num_draft_tokens=8, enable_b10_lookahead=True)
    config = config_of(tmp_path, speculator=sizes)
    executor = create_trtllm_executor(config, write_engine(tmp_path), library=stand_in_library())
    assert (executor.info.lookahead, executor.info.max_draft_tokens) == (None, 0)
    assert "no lookahead: TensorRT-LLM drafts nothing with sizes (8, 1, 1)" in caplog.text
    executor.shutdown()


def test_stats_of_all_ranks(tmp_path: Path) -> None:
    ranks = (RankStats(0), RankStats(1))
    config = config_of(tmp_path)
    executor = create_trtllm_executor(config, write_engine(tmp_path), lambda: ranks, stand_in_library())
    assert executor.stats().ranks == ranks
    executor.shutdown()


def test_the_log_level_is_the_library_s(tmp_path: Path, machine: MakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library reads it when it is imported; what the environment says goes before."""
    monkeypatch.delenv("TLLM_LOG_LEVEL", raising=False)
    machine(None)
    for set_before, level in ((None, "INFO"), ("ERROR", "ERROR")):
        if set_before is not None:
            monkeypatch.setenv("TLLM_LOG_LEVEL", set_before)
        with pytest.raises(ConfigError, match="is not installed"):
            create_trtllm_executor(config_of(tmp_path), tmp_path)
        assert os.environ["TLLM_LOG_LEVEL"] == level


def test_what_the_library_is_told(tmp_path: Path) -> None:
    library = stand_in_library()
    executor = start(
        tmp_path,
        library,
        kv_cache_tokens=1024,
        lookahead=SIZES,
        batch_scheduler_policy="max_utilization",
        kv_cache_host_memory_bytes=1 << 20,
    )
    told, trtllm = executor._engine._config, library.trtllm
    assert told.scheduler_config.capacity_scheduler_policy is trtllm.CapacitySchedulerPolicy.MAX_UTILIZATION
    cache = told.kv_cache_config
    assert (cache.enable_block_reuse, cache.max_tokens, cache.host_cache_size) == (True, 1024, 1 << 20)
    assert cache.free_gpu_memory_fraction == 0.9
    assert (told.max_batch_size, told.max_num_tokens, told.max_queue_size, told.max_beam_width) == (8, 2048, 64, 1)
    assert told.enable_chunked_context
    assert told.gather_generation_logits
    assert told.fail_fast_on_attention_window_too_large
    assert told.parallel_config.communication_mode is trtllm.CommunicationMode.LEADER
    assert told.decoding_config.decoding_mode.name == "Lookahead"
    sizes = told.decoding_config.lookahead_decoding_config
    assert (sizes.max_window_size, sizes.max_ngram_size, sizes.max_verification_set_size) == (4, 3, 2)
    executor.shutdown()


# Engines that do not fit. Every refusal names both values.


@pytest.mark.parametrize(
    ("build", "kind", "words"),
    [
        ({"library_version": "1.1.0"}, BuildError, ("tensorrt-llm 1.1.0", LIBRARY_VERSION, "again")),
        ({"gpu_architecture": "sm_80"}, BuildError, ("sm_80", "sm_90", "again")),
        ({"pipeline_parallel_size": 2}, ConfigError, ("1 x 2", "1 x 1")),
        ({"lookahead": SIZES, "max_draft_len": 11}, ConfigError, ("(4, 3, 2)", "off")),
        ({"max_draft_len": 5}, BuildError, ("5 draft tokens", "off needs 0", "again")),
        ({"max_batch_size": 4}, ConfigError, ("max_batch_size 4", "has 8")),
        ({"max_num_tokens": 1024}, ConfigError, ("max_num_tokens 1024", "has 2048")),
        ({"max_seq_len": 128}, ConfigError, ("max_seq_len 128", "has 256")),
        ({"paged_context_fmha": False}, ConfigError, ("use_paged_context_fmha false", "enable_chunked_context true")),
    ],
)
def test_an_engine_built_for_something_else(
    tmp_path: Path, build: dict[str, Any], kind: type[BritonError], words: tuple[str, ...]
) -> None:
    with pytest.raises(kind) as refused:
        start(tmp_path, build=build)
    assert all(word in refused.value.message for word in (str(tmp_path), *words)), refused.value.message


def test_an_engine_built_for_other_ranks(tmp_path: Path) -> None:
    directory = write_engine(tmp_path, replace(MANIFEST, tensor_parallel_size=2))
    with pytest.raises(ConfigError, match="parallelism 2 x 1; the config has 1 x 1") as refused:
        start_executor(open_engine(config_of(tmp_path), directory, 0), stand_in_library())
    assert refused.value.field == "trt_llm.build.tensor_parallel_count"


def test_a_launch_of_other_ranks(tmp_path: Path) -> None:
    directory = write_engine(tmp_path, replace(MANIFEST, tensor_parallel_size=2))
    with pytest.raises(ConfigError, match="was built for 2 ranks; MPI has started 1"):
        start_executor(open_engine(config_of(tmp_path, tensor_parallel_count=2), directory, 0), stand_in_library())
    with pytest.raises(ConfigError, match="was built for 1 ranks; MPI has started 4"):
        start(tmp_path, library=stand_in_library(world=World(4)))


def test_other_lookahead_than_the_builds(tmp_path: Path) -> None:
    larger = LookaheadConfig(7, 5, 5)
    with pytest.raises(ConfigError, match=r"for lookahead \(4, 3, 2\); the config has \(7, 5, 5\)") as refused:
        start(tmp_path, lookahead=larger, build={"lookahead": SIZES, "max_draft_len": 11})
    assert refused.value.field == "trt_llm.build.speculator"
    with pytest.raises(ConfigError, match=r"for lookahead off; the config has \(4, 3, 2\)"):
        start(tmp_path, lookahead=SIZES, build={"lookahead": None, "max_draft_len": 0})


def test_an_engine_of_the_local_executor(tmp_path: Path) -> None:
    model = ModelConfig("llama", 90, 8, 16, 1, 2, 2, 4, 256, 1e-5, 10_000.0)
    replace(MANIFEST, target="local", model=model, trtllm=None).save(tmp_path)
    with pytest.raises(BuildError, match="built for target local; TensorRT-LLM needs target trtllm"):
        open_engine(config_of(tmp_path), tmp_path, 0)


def test_an_engine_of_tensorrt_llm_on_the_local_executor(tmp_path: Path) -> None:
    manifest = load_manifest(write_engine(tmp_path))
    assert manifest.model == SHAPES
    with pytest.raises(BuildError, match="built for target trtllm; the local executor needs target local"):
        _ = manifest.local_model


def test_other_ranks_engines_may_be_on_other_hosts(tmp_path: Path) -> None:
    files = {f"rank{rank}.engine": {"size": 1, "sha256": ""} for rank in range(4)}
    manifest = replace(MANIFEST, tensor_parallel_size=2, files=files)
    write_engine(tmp_path, manifest, pipeline_parallel_size=2)
    (tmp_path / "rank3.engine").write_bytes(b"x")
    assert load_manifest(tmp_path, 3).world_size == 4
    with pytest.raises(BuildError, match=r"rank2\.engine is missing"):
        load_manifest(tmp_path, 2)


# A library that refuses.


def test_the_library_cannot_load_the_engine(tmp_path: Path) -> None:
    faults = Faults(raises={"__init__": RuntimeError("Failed to deserialize cuda engine\n1 0x7f stack")})
    with pytest.raises(BuildError, match=r"TensorRT-LLM cannot load .*: Failed to deserialize cuda engine$"):
        start(tmp_path, library=stand_in_library(faults=faults))


@pytest.mark.parametrize("method", ["enqueue_request", "await_responses"])
def test_the_library_cannot_generate(tmp_path: Path, method: str) -> None:
    faults = Faults(raises={method: RuntimeError("CUDA out of memory")})
    with pytest.raises(BuildError, match="TensorRT-LLM cannot generate: CUDA out of memory"):
        start(tmp_path, library=stand_in_library(faults=faults))


def test_the_first_token_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"TensorRT-LLM cannot generate: .*illegal memory access"):
        start(tmp_path, library=stand_in_library(faults=Faults(error_after=0)))


# Machines that lack something.

MakeMachine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> MakeMachine:
    """Pretends to be a machine with these things installed; what is None is not there."""

    def pretend(version: str | None, torch: Any = None, **modules: Any) -> None:
        found = Machine(version, ("NVIDIA B200",))
        monkeypatch.setattr(library_module, "this_machine", lambda: found)
        for name, module in {"torch": torch, **modules}.items():
            monkeypatch.setitem(sys.modules, name.replace("__", "."), module)

    return pretend


class _Torch(SimpleNamespace):
    """As much of torch as is asked before it is used."""

    def __init__(self, available: bool) -> None:
        cuda = SimpleNamespace(is_available=lambda: available, get_device_capability=lambda: (10, 0))
        super().__init__(cuda=cuda, from_numpy=lambda array: array)


def test_the_library_is_missing(machine: MakeMachine) -> None:
    machine(None)
    with pytest.raises(ConfigError, match="cannot run here: the tensorrt_llm library is not installed") as refused:
        load_library()
    assert refused.value.field == "briton.executor"


@pytest.mark.parametrize("version", ["1.3.0", "1.2.0", "1.2.1rc1", "0.20.0"])
def test_another_version(machine: MakeMachine, version: str) -> None:
    machine(version)
    with pytest.raises(ConfigError, match=f"tensorrt_llm is {version}, and 1.2.1 is needed"):
        load_library()


def test_no_driver(machine: MakeMachine) -> None:
    machine("1.2.1", _Torch(available=False))
    with pytest.raises(ConfigError, match="found no GPU: torch sees none, or no NVIDIA driver"):
        load_library()


def test_no_torch(machine: MakeMachine) -> None:
    machine("1.2.1", None)
    with pytest.raises(ConfigError, match=r"tensorrt_llm 1.2.1 cannot be loaded: .*torch"):
        load_library()


def test_a_library_that_does_not_load(machine: MakeMachine) -> None:
    machine("1.2.1", _Torch(available=True), tensorrt_llm=None)
    with pytest.raises(ConfigError, match=r"tensorrt_llm 1.2.1 cannot be loaded: .*tensorrt_llm"):
        load_library()


def test_all_is_there(machine: MakeMachine) -> None:
    api = object()
    world = SimpleNamespace(Get_rank=lambda: 1, Get_size=lambda: 2)
    machine(
        "1.2.1+cu130",
        _Torch(available=True),
        tensorrt_llm=SimpleNamespace(),
        tensorrt_llm__bindings=SimpleNamespace(),
        tensorrt_llm__bindings__executor=api,
        mpi4py=SimpleNamespace(),
        mpi4py__MPI=SimpleNamespace(COMM_WORLD=world),
    )
    library: Library = load_library()
    assert library.trtllm is api
    assert (library.rank, library.world_size, library.gpu_architecture) == (1, 2, "sm_100")
    assert library.tensor(np.zeros(2, np.float32)).shape == (2,)
