"""How a model is divided among ranks: everything is somewhere, once, and heads stay with the ones they share."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from briton.errors import ConfigError
from briton.model.engine_dir import ModelConfig
from briton.model.sharding import Shard, Span, divide, shard_model

MODEL = ModelConfig(
    architecture="llama",
    vocab_size=512,
    hidden_size=128,
    intermediate_size=192,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=16,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
)


def model_of(heads: int, key_value_heads: int, intermediate: int = 192, vocab: int = 512) -> ModelConfig:
    return replace(
        MODEL,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        intermediate_size=intermediate,
        vocab_size=vocab,
    )


def spans_of(shards: tuple[Shard, ...], name: str) -> list[tuple[int, int]]:
    return [tuple(getattr(shard, name)) for shard in shards]


def assert_once(spans: list[Span], total: int) -> None:
    """The spans are 0..total-1 in order, none empty."""
    assert [number for span in spans for number in range(span.begin, span.end)] == list(range(total))
    assert min(span.size for span in spans) >= 1


def test_numbers_that_divide() -> None:
    shards = shard_model(model_of(8, 4), 2)
    assert spans_of(shards, "heads") == [(0, 4), (4, 8)]
    assert spans_of(shards, "key_value_heads") == [(0, 2), (2, 4)]
    assert spans_of(shards, "intermediate") == [(0, 96), (96, 192)]
    assert spans_of(shards, "vocab") == [(0, 256), (256, 512)]


def test_uneven_groups() -> None:
    """SmolLM2-135M's three groups of three on two ranks."""
    shards = shard_model(model_of(9, 3, intermediate=1536, vocab=49152), 2)
    assert spans_of(shards, "heads") == [(0, 6), (6, 9)]
    assert spans_of(shards, "key_value_heads") == [(0, 2), (2, 3)]
    assert spans_of(shards, "intermediate") == [(0, 768), (768, 1536)]


def test_replicated_key_value_heads() -> None:
    """More ranks than key/value heads: each rank has one, and a part of the query heads that share it."""
    shards = shard_model(model_of(8, 2), 4)
    assert spans_of(shards, "heads") == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert spans_of(shards, "key_value_heads") == [(0, 1), (0, 1), (1, 2), (1, 2)]
    uneven = shard_model(model_of(8, 2), 3)
    assert spans_of(uneven, "heads") == [(0, 2), (2, 4), (4, 8)]
    assert spans_of(uneven, "key_value_heads") == [(0, 1), (0, 1), (1, 2)]


def test_as_many_ranks_as_heads() -> None:
    shards = shard_model(model_of(8, 2), 8)
    assert spans_of(shards, "heads") == [(i, i + 1) for i in range(8)]


def test_one_rank_has_everything() -> None:
    assert shard_model(model_of(9, 3), 1) == (Shard(Span(0, 9), Span(0, 3), Span(0, 192), Span(0, 512)),)


def test_widths_are_whole_groups_of_32_where_there_are_enough() -> None:
    shards = shard_model(model_of(8, 4, intermediate=208, vocab=100), 3)
    assert spans_of(shards, "intermediate") == [(0, 96), (96, 160), (160, 208)]
    assert spans_of(shards, "vocab") == [(0, 64), (64, 96), (96, 100)]
    assert spans_of(shard_model(model_of(8, 4, vocab=40), 3), "vocab") == [(0, 14), (14, 27), (27, 40)]


@pytest.mark.parametrize(("heads", "num_ranks"), [(4, 5), (1, 2)])
def test_more_ranks_than_heads_are_refused(heads: int, num_ranks: int) -> None:
    with pytest.raises(ConfigError, match=f"over {num_ranks} ranks .* with {heads} attention heads") as caught:
        shard_model(model_of(heads, 1), num_ranks)
    assert caught.value.field == "trt_llm.build.tensor_parallel_count"


@given(st.integers(1, 2000), st.integers(1, 16), st.sampled_from((1, 8, 32)))
def test_divide(total: int, parts: int, unit: int) -> None:
    if total < parts:
        with pytest.raises(ValueError, match=f"{total} .* {parts}"):
            divide(total, parts, unit)
        return
    spans = divide(total, parts, unit)
    assert len(spans) == parts
    assert_once(spans, total)
    unit = unit if -(-total // unit) >= parts else 1
    assert all(span.begin % unit == 0 for span in spans)
    num_units = [-(-span.size // unit) for span in spans]
    assert max(num_units) - min(num_units) <= 1
    assert num_units == sorted(num_units, reverse=True)


@given(st.data())
def test_any_shape(data: st.DataObject) -> None:
    key_value_heads = data.draw(st.integers(1, 8))
    group = data.draw(st.integers(1, 8))
    heads = key_value_heads * group
    num_ranks = data.draw(st.integers(1, min(heads, 12)))
    model = model_of(heads, key_value_heads, data.draw(st.integers(16, 600)), data.draw(st.integers(16, 600)))
    shards = shard_model(model, num_ranks)
    assert len(shards) == num_ranks
    for name, total in (("heads", heads), ("intermediate", model.intermediate_size), ("vocab", model.vocab_size)):
        assert_once([getattr(shard, name) for shard in shards], total)
    for shard in shards:
        used = Counter(head // group for head in range(*shard.heads))
        assert sorted(used) == list(range(*shard.key_value_heads))  # the heads that its query heads share, no other
        assert len(set(used.values())) == 1  # in groups of one size, as grouped-query attention counts them
        assert used[shard.key_value_heads.begin] == shard.heads.size // shard.key_value_heads.size
    if num_ranks <= key_value_heads:
        assert_once([shard.key_value_heads for shard in shards], key_value_heads)
