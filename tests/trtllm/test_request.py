"""What of a request reaches the library, and what is refused because it would not."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from briton.config.lookahead import LookaheadConfig
from briton.engine.types import GenerationRequest, ModelInfo, SamplingParams
from briton.errors import InvalidRequest, Unsupported
from briton.trtllm.constraint import Constraint
from briton.trtllm.request import RequestLimits, check_supported, stop_ids, translate
from tests.scripted_guide import ScriptedGuide
from tests.trtllm.stand_in.library import stand_in_library

LIBRARY = stand_in_library()
LIMITS = RequestLimits(vocab_size_padded=2048, enable_chunked_context=True, gather_generation_logits=True)
INFO = ModelInfo("m", "trtllm", "llama", 2000, 256, 8, 4096, 64, 2048, 16, stop_token_ids=(80, 81))
SPECULATING = replace(INFO, lookahead=LookaheadConfig(4, 3, 2), max_draft_tokens=11)


def _request(**sampling: Any) -> GenerationRequest:
    """Greedy, unless told otherwise; options of the request begin with an underscore."""
    options = {name[1:]: sampling.pop(name) for name in list(sampling) if name[0] == "_"}
    return GenerationRequest(7, (1, 2, 3), SamplingParams(**{"temperature": 0.0, **sampling}), **options)


def _sent(request: GenerationRequest, info: ModelInfo = INFO, limits: RequestLimits = LIMITS) -> Any:
    check_supported(request, info, limits)
    stops = stop_ids(request, info)
    return translate(LIBRARY, request, info, limits, stops, Constraint.is_needed(request, stops))


def test_a_plain_request() -> None:
    sent = _sent(_request(max_tokens=9))
    assert (sent.input_token_ids, sent.max_tokens, sent.client_id, sent.streaming) == ([1, 2, 3], 9, 7, True)
    assert (sent.priority, sent.cache_salt_id, sent.allotted_time_ms) == (0.5, None, None)
    assert sent.output_config.exclude_input_from_output
    assert sent.output_config.return_perf_metrics
    assert not sent.output_config.return_generation_logits
    assert (sent.bad_words, sent.embedding_bias, sent.lookahead_config, sent.logits_post_processor_name) == (None,) * 4
    sampling = sent.sampling_config
    assert (sampling.top_k, sampling.top_p, sampling.temperature) == (1, None, None)
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (None,) * 3
    assert sampling.num_return_sequences == 1


def test_sampling() -> None:
    sampling = _sent(
        _request(
            n=3,
            temperature=0.7,
            top_k=40,
            top_p=0.9,
            min_p=0.05,
            repetition_penalty=1.1,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            seed=5,
        )
    ).sampling_config
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.7, 40, 0.9, 0.05)
    assert sampling.repetition_penalty == 1.1
    assert sampling.presence_penalty == pytest.approx(0.5 / 0.7)  # of logits that are divided by the temperature
    assert sampling.frequency_penalty == pytest.approx(-0.5 / 0.7)
    assert (sampling.seed, sampling.num_return_sequences) == (5, 3)


def test_plain_sampling_is_not_left_to_the_librarys_defaults() -> None:
    """Without top_k and top_p the library is greedy, and without a seed it takes 0."""
    sampling = _sent(_request(temperature=1.0)).sampling_config
    assert (sampling.top_k, sampling.top_p, sampling.temperature) == (0, 1.0, 1.0)
    seeds = {_sent(_request(temperature=1.0)).sampling_config.seed for _ in range(8)}
    assert len(seeds) == 8


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.0}])
def test_greedy(options: dict[str, Any]) -> None:
    sampling = _sent(_request(**{"temperature": 1.0, "top_p": 0.5, **options})).sampling_config
    assert (sampling.top_k, sampling.top_p, sampling.temperature) == (1, None, None)


@pytest.mark.parametrize(("seed", "sent"), [(-1, 2**64 - 1), (2**64 - 1, 2**64 - 1), (-(2**63), 2**63), (0, 0)])
def test_seeds_fit(seed: int, sent: int) -> None:
    assert _sent(_request(seed=seed)).sampling_config.seed == sent


def test_penalties_of_greedy_requests_are_as_they_are() -> None:
    sampling = _sent(_request(presence_penalty=0.5, frequency_penalty=-0.5)).sampling_config
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -0.5)


def test_a_temperature_of_almost_nothing_overflows_nothing() -> None:
    assert _sent(_request(temperature=1e-30)).sampling_config.temperature == 1e-5


def test_top_k() -> None:
    assert _sent(_request(temperature=1.0, top_k=1024)).sampling_config.top_k == 1024
    assert _sent(_request(temperature=1.0, top_k=2000)).sampling_config.top_k == 0  # the whole vocabulary
    with pytest.raises(Unsupported, match="top_k must be at most 1024, or 0 for off, not 1025") as refused:
        _sent(_request(temperature=1.0, top_k=1025))
    assert refused.value.field == "top_k"


def test_stop_ids() -> None:
    assert _sent(_request(stop_token_ids=(5, 80))).stop_words == [[5], [80], [81]]
    assert _sent(_request(stop_token_ids=(5,), ignore_eos=True)).stop_words == [[5]]
    assert _sent(_request(ignore_eos=True)).stop_words is None
    guide = ScriptedGuide([{5}], (80,))
    assert _sent(_request(ignore_eos=True, _guide=guide)).stop_words == [[80], [81]]
    assert _sent(_request()).end_id is None


def test_words_biases_and_what_surrounds_them() -> None:
    sent = _sent(
        _request(
            bad_words=((4, 5), (6,)),
            logit_bias={3: -100.0, 9: 2.5},
            _cache_salt="tenant",
            _stream=False,
            _timeout_s=1.5,
        )
    )
    assert sent.bad_words == [[4, 5], [6]]
    assert (sent.embedding_bias.shape, sent.embedding_bias.dtype) == ((2048,), np.float32)
    assert {int(i): float(sent.embedding_bias[i]) for i in np.flatnonzero(sent.embedding_bias)} == {3: -100.0, 9: 2.5}
    assert sent.cache_salt_id == _sent(_request(_cache_salt="tenant")).cache_salt_id
    assert sent.cache_salt_id != _sent(_request(_cache_salt="another")).cache_salt_id
    assert not sent.streaming
    assert sent.allotted_time_ms == timedelta(seconds=1.5)


def test_priorities_keep_their_order() -> None:
    asked = [-(2**31), -1000, -1, 0, 1, 2, 1000, 2**31 - 1]
    sent = [_sent(_request(_priority=priority)).priority for priority in asked]
    assert sent == sorted(sent)
    assert 0 <= sent[0] < sent[1] < sent[2] < sent[3] == 0.5 < sent[4] < sent[5] < sent[6] <= sent[7] <= 1


def test_what_needs_the_logits_processor() -> None:
    for options in ({"min_tokens": 3}, {"_guide": ScriptedGuide([{5}], (80,))}):
        assert _sent(_request(**options)).logits_post_processor_name == "batched"
    assert _sent(_request(min_tokens=3, ignore_eos=True)).logits_post_processor_name is None
    assert _sent(_request(min_tokens=3)).sampling_config.min_tokens is None  # it would hold off an end_id


def test_logprobs_come_from_generation_logits() -> None:
    for logprobs in (0, 5):
        assert _sent(_request(logprobs=logprobs)).output_config.return_generation_logits
    with pytest.raises(Unsupported, match="gather_all_token_logits") as refused:
        _sent(_request(logprobs=0), limits=replace(LIMITS, gather_generation_logits=False))
    assert refused.value.field == "logprobs"


def test_a_long_prompt_needs_chunked_context() -> None:
    limits, info = replace(LIMITS, enable_chunked_context=False), replace(INFO, max_num_tokens=2)
    with pytest.raises(InvalidRequest, match=r"prompt has 3 tokens; without chunked context .* max_num_tokens = 2"):
        _sent(_request(), info, limits)
    assert _sent(_request(), info).input_token_ids == [1, 2, 3]


# Lookahead.


def _sizes(sent: Any) -> tuple[int, int, int]:
    config = sent.lookahead_config
    return config.max_window_size, config.max_ngram_size, config.max_verification_set_size


def test_lookahead_sizes() -> None:
    assert _sizes(_sent(_request(), SPECULATING)) == (4, 3, 2)
    assert _sizes(_sent(_request(_lookahead=LookaheadConfig(2, 2, 1)), SPECULATING)) == (2, 2, 1)
    assert _sizes(_sent(_request(_lookahead=LookaheadConfig(1, 1, 0)), SPECULATING)) == (1, 1, 0)
    with pytest.raises(InvalidRequest, match=r"ngram_size must be at least 2, or sizes \(1, 1, 0\)") as refused:
        _sent(_request(_lookahead=LookaheadConfig(4, 1, 2)), SPECULATING)
    assert refused.value.field == "lookahead.ngram_size"


def test_masks_turn_lookahead_off() -> None:
    for options in ({"min_tokens": 3}, {"_guide": ScriptedGuide([{5}], (80,))}):
        sent = _sent(_request(_lookahead=LookaheadConfig(2, 2, 1), **options), SPECULATING)
        assert _sizes(sent) == (1, 1, 0)


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("temperature", {"temperature": 0.5}),
        ("repetition_penalty", {"repetition_penalty": 1.1}),
        ("presence_penalty", {"presence_penalty": 0.1}),
        ("frequency_penalty", {"frequency_penalty": 0.1}),
        ("bad_words", {"bad_words": ((4,),)}),
        ("logprobs", {"logprobs": 0}),
    ],
)
def test_what_an_engine_with_lookahead_ignores_is_refused(field: str, options: dict[str, Any]) -> None:
    with pytest.raises(Unsupported, match=field) as refused:
        _sent(_request(**options), SPECULATING)
    assert refused.value.field == field
    _sent(_request(**options))


def test_greedy_in_any_spelling_is_fine_with_lookahead() -> None:
    for options in ({"temperature": 0.0}, {"temperature": 1.0, "top_k": 1}, {"temperature": 1.0, "top_p": 0.0}):
        assert _sent(_request(**options), SPECULATING).sampling_config.top_k == 1
