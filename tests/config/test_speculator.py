"""Speculative decoding in `trt_llm.build.speculator`."""

from __future__ import annotations

from typing import Any

import pytest

from briton.config.lookahead import LookaheadConfig

from .conftest import LoadChanged, Refusal

BUILD = "trt_llm.build."
LOOKAHEAD = {
    f"{BUILD}speculator.speculative_decoding_mode": "LOOKAHEAD_DECODING",
    f"{BUILD}speculator.lookahead_windows_size": 3,
    f"{BUILD}speculator.lookahead_ngram_size": 8,
    f"{BUILD}speculator.lookahead_verification_set_size": 3,
}


@pytest.mark.parametrize(
    ("sizes", "tokens"),
    [
        ((3, 8, 3), 41),
        ((1, 32, 1), 61),
        ((7, 5, 5), 47),
        ((7, 5, 3), 39),
        ((8, 3, 3), 21),
        ((5, 5, 5), 39),
        ((1, 16, 1), 29),
        ((1, 8, 1), 13),
        ((8, 1, 1), 0),
    ],
)
def test_draft_tokens_of_lookahead(sizes: tuple[int, int, int], tokens: int) -> None:
    assert LookaheadConfig(*sizes).draft_tokens == tokens


def test_draft_tokens_default_to_what_lookahead_needs(load_changed: LoadChanged) -> None:
    config = load_changed(LOOKAHEAD)
    assert config.speculator is not None
    assert config.speculator.num_draft_tokens == 41


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"lookahead_windows_size": None}, "lookahead_windows_size"),
        ({"lookahead_ngram_size": None}, "lookahead_ngram_size"),
        ({"lookahead_verification_set_size": None}, "lookahead_verification_set_size"),
        ({"lookahead_ngram_size": "8"}, "lookahead_ngram_size"),
        ({"num_draft_tokens": 40}, "num_draft_tokens"),
        ({"num_draft_tokens": 2049}, "num_draft_tokens"),
        ({"num_draft_tokens": 0}, "num_draft_tokens"),
        ({"lookahead_windows_size": 400}, "num_draft_tokens"),
        ({"lookahead_ngram_size": 1}, "num_draft_tokens"),
        ({"speculative_decoding_mode": "DRAFT_TOKENS_EXTERNAL"}, "speculative_decoding_mode"),
        ({"speculative_decoding_mode": "MEDUSA"}, "speculative_decoding_mode"),
    ],
)
def test_speculator_refusals(refusal: Refusal, changes: dict[str, Any], field: str) -> None:
    prefix = BUILD + "speculator."
    error = refusal({**LOOKAHEAD, **{prefix + name: value for name, value in changes.items()}})
    assert error.field == prefix + field


def test_a_speculator_without_a_mode_is_the_discontinued_one(refusal: Refusal) -> None:
    error = refusal({BUILD + "speculator.num_draft_tokens": 4})
    assert error.field == BUILD + "speculator.speculative_decoding_mode"
    assert "discontinued" in error.message


def test_dynamic_lookahead_needs_its_draft_tokens_given(load_changed: LoadChanged, refusal: Refusal) -> None:
    sizes = {**LOOKAHEAD, BUILD + "speculator.lookahead_ngram_size": 1}
    assert "give num_draft_tokens" in refusal(sizes).message
    config = load_changed({**sizes, BUILD + "speculator.num_draft_tokens": 8})
    assert config.speculator is not None
    assert config.speculator.num_draft_tokens == 8


def test_speculation_needs_block_reuse(refusal: Refusal) -> None:
    unpaged = {BUILD + "plugin_configuration": {"paged_kv_cache": False, "use_paged_context_fmha": False}}
    assert refusal({**LOOKAHEAD, **unpaged}).field == BUILD + "speculator"


def test_speculation_warnings(load_changed: LoadChanged) -> None:
    warnings = load_changed({**LOOKAHEAD, BUILD + "speculator.num_draft_tokens": 513}).warnings
    assert any(BUILD + "max_batch_size: 256" in warning for warning in warnings)
    assert any("num_draft_tokens: 513" in warning for warning in warnings)
    assert load_changed({**LOOKAHEAD, BUILD + "max_batch_size": 64}).warnings == ()
