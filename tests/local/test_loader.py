"""What a checkpoint recommends, and what is refused before anything is served."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from briton.config.environment import load_environment
from briton.config.lookahead import LookaheadConfig
from briton.engine.types import SamplingParams
from briton.errors import BuildError, ConfigError
from briton.local.loader import follow_local_executor, load_local_executor
from briton.local.lookahead.costs import CostCurve
from briton.local.model_runner import ModelRunner
from briton.local.settings import KVCacheDtype, LocalSettings
from briton.model.generation_config import GENERATION_CONFIG, default_sampling
from briton.ranks.communicator import Communicator
from briton_engine_builder import build_engine
from tests.conftest import TinyLlama
from tests.engine_builder.engines import config_for
from tests.request_runner import RequestRunner


@pytest.fixture(scope="module")
def engine_dir(tiny_llama: TinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loader")
    config = config_for(tiny_llama(folder), folder, precision="f32")
    return build_engine(config, load_environment({"BRITON_CACHE_DIR": str(folder / "cache")}), progress=False)


@pytest.mark.parametrize("kv_cache_dtype", ["f32", "u8"])
def test_an_engine_that_speculates(
    engine_dir: Path, kv_cache_dtype: KVCacheDtype, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so, with its sizes; and that a u8 cache makes a difference. Drafts are free here: measured on a busy
    machine, those of so small a model may not pay."""
    monkeypatch.setattr(ModelRunner, "measure_costs", lambda runner, forward: CostCurve.flat())
    settings = LocalSettings(
        max_batch_size=2,
        max_num_tokens=32,
        max_queue_size=1,
        max_seq_len=64,
        kv_cache_tokens=128,
        precision="f32",
        kv_cache_dtype=kv_cache_dtype,
        lookahead=LookaheadConfig(8, 1, 1),
        enable_b10_lookahead=True,
        max_draft_tokens=7,
    )
    executor = load_local_executor(engine_dir, settings, "tiny")
    info = executor.info
    assert (info.lookahead, info.enable_b10_lookahead, info.max_draft_tokens) == (LookaheadConfig(8, 1, 1), True, 7)
    runner = RequestRunner(executor)
    prompt = (5, 6, 7, 8) * 6
    result = runner.run(prompt, max_tokens=24, logit_bias={9: 100.0}, ignore_eos=True)
    assert result.tokens() == (9,) * 24
    assert result.final.speculation is not None
    assert result.final.speculation.num_accepted_tokens > 0, "nothing is easier to guess"
    executor.shutdown()
    assert ("u8 KV cache" in caplog.text) is (kv_cache_dtype == "u8")


def test_another_number_of_ranks_than_it_was_built_for(engine_dir: Path, tiny_llama: TinyLlama, tmp_path: Path) -> None:
    """Both numbers are named, on every rank."""
    config = config_for(tiny_llama(tmp_path), tmp_path, tensor_parallel_count=2)
    two = build_engine(config, load_environment({"BRITON_CACHE_DIR": str(tmp_path / "cache")}), progress=False)
    settings = LocalSettings(max_batch_size=1, max_num_tokens=32, max_queue_size=1, max_seq_len=64)

    def load(directory: Path, rank: int, ranks: Communicator | None) -> None:
        if ranks is None or rank == 0:
            load_local_executor(directory, settings, "tiny", ranks)
        else:
            follow_local_executor(directory, settings, ranks, lambda: None)

    def refusal(directory: Path, rank: int, size: int) -> str:
        ranks = cast("Communicator", SimpleNamespace(rank=rank, size=size))
        with pytest.raises(ConfigError) as caught:
            load(directory, rank, None if size == 1 else ranks)
        assert caught.value.field == "trt_llm.build.tensor_parallel_count"
        return str(caught.value).removeprefix(f"{directory} ")

    assert refusal(two, 0, 1) == "was built for 2 ranks; it is started with 1"
    assert refusal(two, 0, 3) == "was built for 2 ranks; it is started with 3"
    assert refusal(two, 2, 3) == "was built for 2 ranks; it is started with 3"
    assert refusal(engine_dir, 1, 2) == "was built for 1 ranks; it is started with 2"


def test_what_the_checkpoint_recommends(tmp_path: Path) -> None:
    assert default_sampling(tmp_path) == SamplingParams()
    (tmp_path / GENERATION_CONFIG).write_text('{"temperature": 0.6, "top_k": null, "eos_token_id": 2}')
    assert default_sampling(tmp_path) == SamplingParams(temperature=0.6)
    (tmp_path / GENERATION_CONFIG).write_text('{"temperature": 0.6, "do_sample": false}')
    assert default_sampling(tmp_path) == SamplingParams(temperature=0)
    (tmp_path / GENERATION_CONFIG).write_text('{"top_k": -1}')
    assert default_sampling(tmp_path) == SamplingParams()


@pytest.mark.parametrize(("text", "words"), [("{", "is not JSON"), ("[1]", "is not a JSON object")])
def test_a_broken_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / GENERATION_CONFIG).write_text(text)
    with pytest.raises(BuildError, match=rf"{GENERATION_CONFIG} {words}"):
        default_sampling(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"), [('{"top_k": -2}', "top_k must be at least 0, not -2"), ('{"top_p": "0.9"}', "'str'")]
)
def test_a_recommendation_out_of_range_stops_the_start(
    tiny_llama: TinyLlama, tmp_path: Path, text: str, words: str
) -> None:
    """It was served, and every request that left the field open was refused for a value that it never gave."""
    checkpoint = tiny_llama(tmp_path)
    (checkpoint / GENERATION_CONFIG).write_text(text)
    config = config_for(checkpoint, tmp_path, precision="f32")
    engine = build_engine(config, load_environment({"BRITON_CACHE_DIR": str(tmp_path / "cache")}), progress=False)
    settings = LocalSettings(max_batch_size=1, max_num_tokens=32, max_queue_size=1, max_seq_len=64)
    with pytest.raises(BuildError, match=f"{GENERATION_CONFIG}: .*{words}"):
        load_local_executor(engine, settings, "tiny")
