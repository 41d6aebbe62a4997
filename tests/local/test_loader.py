"""What a checkpoint recommends, and what is refused before anything is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from briton.config import load_environment
from briton.errors import BuildError
from briton.local.loader import GENERATION_CONFIG, default_sampling, load_local_executor
from briton.local.settings import LocalSettings
from briton.types import SamplingParams
from briton_engine_builder import build_engine
from tests.conftest import TinyLlama
from tests.engine_builder.engines import config_for


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
