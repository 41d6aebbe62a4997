"""With drafts and without: the same tokens, log probabilities and ends, for whatever a request may ask.

The model is one of 64 tokens whose logits depend on every token before, so that one wrong slot of the cache, one
random number too many or one penalty too late changes the output. Most of its weight is on the last two tokens: it
falls into loops, as models do, and drafts of every sort come true now and then.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from briton.config.lookahead import LookaheadConfig
from briton.guidance.grammar import GrammarCompiler
from briton.guidance.guide import Guide
from briton.guidance.limits import GuideLimits
from briton.guidance.pattern import choice_pattern
from briton.guidance.vocabulary import Vocabulary
from briton.local.executor import LocalExecutor
from briton.local.lookahead.costs import CostCurve
from briton.local.settings import SchedulerPolicy
from tests.local.paged_model import EOS, VOCAB_SIZE, PagedModel, logits_after, model_info
from tests.request_runner import RequestRunner, Result

WINDOW, DYNAMIC, OFF = LookaheadConfig(5, 4, 3), LookaheadConfig(8, 1, 1), LookaheadConfig(1, 1, 0)
MODES = {"window": (WINDOW, False), "ngram": (DYNAMIC, True), "both": (WINDOW, True)}
PROMPTS = [tuple(np.random.default_rng(seed).integers(1, VOCAB_SIZE, 3 + 5 * seed).tolist()) for seed in range(4)]


class LoopingModel(PagedModel):
    """Mostly its last two tokens decide; all of them have a say."""

    def logits(self, token_ids: list[int]) -> NDArray[np.float32]:
        return 2 * logits_after(token_ids[-2:]) + 0.5 * logits_after(token_ids)


def start(
    model: type[PagedModel],
    lookahead: LookaheadConfig,
    dynamic: bool,
    policy: SchedulerPolicy = "guaranteed_no_evict",
    num_blocks: int = 512,
) -> RequestRunner:
    info = replace(
        model_info(num_blocks=num_blocks, max_num_tokens=512, max_seq_len=128, max_queue_size=10_000),
        lookahead=lookahead,
        enable_b10_lookahead=dynamic,
        max_draft_tokens=lookahead.max_draft_tokens,
    )
    forward = model(info.kv_cache_tokens // info.kv_block_size, info.kv_block_size).forward
    return RequestRunner(LocalExecutor(info, forward, policy=policy, costs=CostCurve.flat()))


@pytest.fixture(scope="module", params=MODES)
def runner(request: pytest.FixtureRequest) -> Iterator[RequestRunner]:
    """A request of its executor may turn drafts off: what it gives then is what is expected."""
    runner = start(LoopingModel, *MODES[request.param])
    yield runner
    runner.executor.shutdown()


def outcome(result: Result) -> list[tuple[Any, ...]]:
    """All that a caller sees of each sequence."""
    return [
        (
            result.tokens(i),
            result.reason(i),
            tuple(entry for chunk in result.of(i) for entry in chunk.logprobs),
            result.of(i)[-1].stop_token_id,
            str(result.of(i)[-1].error),
        )
        for i in range(result.request.sampling.n)
        if result.of(i)
    ]


def check_same(runner: RequestRunner, requests: Sequence[Mapping[str, Any]]) -> int:
    """Run all at once without drafts, then all with, predicting every other output; the number of accepted tokens."""
    plain = [runner.submit(**request, lookahead=OFF) for request in requests]
    runner.finish(*plain)
    drafted = []
    for i, (request, result) in enumerate(zip(requests, plain, strict=True)):
        # Right for some tokens, then wrong for one, and so on: drafts end at every place.
        said = [token if (j + i) % 6 else (token + 1) % VOCAB_SIZE for j, token in enumerate(result.tokens())]
        prediction = (*request["prompt"], *said, *result.tokens())[: runner.executor.info.max_seq_len]
        drafted.append(runner.submit(**request, prediction=prediction if i % 2 else ()))
    runner.finish(*drafted)
    for request, without, with_drafts in zip(requests, plain, drafted, strict=True):
        assert outcome(with_drafts) == outcome(without), request
        assert without.final.speculation is not None
        assert without.final.speculation.num_draft_tokens == 0
    return sum(result.final.speculation.num_accepted_tokens for result in drafted if result.final.speculation)


ENDS = tuple(range(2, 64, 20))
SAMPLING: dict[str, list[dict[str, Any]]] = {
    "greedy": [{}],
    "temperature": [{"temperature": t, "seed": seed} for t in (0.3, 0.8, 1.5) for seed in (1, -2)],
    "nucleus": [
        {"temperature": 0.7, "seed": 5, "top_k": 9},
        {"temperature": 0.9, "seed": 6, "top_p": 0.8, "min_p": 0.01},
    ],
    "logprobs": [
        {"logprobs": 0},
        {"logprobs": 5, "temperature": 0.6, "seed": 3},
        {"logprobs": 2, "repetition_penalty": 1.2},
    ],
    "end": [{"ignore_eos": False, "max_tokens": 60, "logit_bias": {EOS: bias}} for bias in (2.0, 4.0)],
    "stop ids": [{"stop_token_ids": ENDS}, {"stop_token_ids": ENDS[::2], "logprobs": 1}],
    "min tokens": [{"min_tokens": n, "stop_token_ids": ENDS, "ignore_eos": False} for n in (3, 7, 12)],
    "penalties": [
        {"repetition_penalty": 1.3},
        {"presence_penalty": 1.5},
        {"frequency_penalty": 0.7, "temperature": 0.5, "seed": 9},
        {"repetition_penalty": 0.8, "presence_penalty": -1.0, "frequency_penalty": 0.3},
    ],
    "bias": [{"logit_bias": {7: 4.0, 9: -100.0, 30: 3.0}}, {"logit_bias": {11: 5.0}, "temperature": 1.0, "seed": 2}],
    "bad words": [
        {"bad_words": ((7,), (12, 13))},
        {"bad_words": tuple((a, b) for a in range(0, 64, 4) for b in range(1, 64, 5))},
    ],
    "n": [
        {"n": 3, "temperature": 0.7, "seed": 4},
        {"n": 2, "logprobs": 1},
        {"n": 4, "temperature": 1.0, "seed": 8, "stream": False},
    ],
    "max tokens": [{"max_tokens": n} for n in range(1, 14)],
    "whole": [{"stream": False, "logprobs": 1}, {"stream": False, "stop_token_ids": ENDS}],
}


@pytest.mark.parametrize("name", SAMPLING)
def test_sampling(runner: RequestRunner, name: str) -> None:
    requests = [{"prompt": p, "max_tokens": 30} | options for p in PROMPTS for options in SAMPLING[name]]
    least = len(requests) if runner.executor.info.enable_b10_lookahead else 0  # a window needs longer to warm up
    assert check_same(runner, requests) > least, "hardly a draft came true: little was tested"


@pytest.mark.parametrize("mode", MODES)
def test_preemption(mode: str) -> None:
    """A sequence that is stopped for want of room, with or without a draft, comes back as if nothing had been."""
    runner = start(LoopingModel, *MODES[mode], policy="max_utilization", num_blocks=36)
    options: list[dict[str, Any]] = [{}, {"temperature": 0.8, "seed": 3, "n": 2}, {"presence_penalty": 1.0}]
    options += [{"stream": False, "logprobs": 1}, {"guide": GUIDES["forced regex"]}]
    requests = [{"prompt": p, "max_tokens": 40} | o for p in PROMPTS for o in options]
    accepted = check_same(runner, requests)
    stats = runner.executor.stats()
    runner.executor.shutdown()
    assert stats.num_preemptions > len(requests)
    assert accepted > len(requests)
    assert stats.kv_blocks_used == 0


def test_every_length_of_a_right_draft_is_cut_by_max_tokens() -> None:
    runner = start(LoopingModel, *MODES["ngram"])
    right = runner.run(PROMPTS[2], max_tokens=20, lookahead=OFF).tokens()
    for max_tokens in range(1, 20):
        result = runner.run(PROMPTS[2], max_tokens=max_tokens, prediction=(*PROMPTS[2], *right))
        assert result.tokens() == right[:max_tokens]
        assert result.final.speculation is not None
        assert result.final.speculation.num_steps == math.ceil(max_tokens / 9), "8 drafted tokens and one more a step"
    runner.executor.shutdown()


# A vocabulary of 64 that can spell JSON, with tokens that straddle form and text.
_TEXTS = ["", *"abcdefghijklmno", *"0123456789", *'{}[]",: -.\n', ",\n", '":', ' "', '",', '"}', '{"', "},", ", "]
_TEXTS += ["name", "age", "red", "gre", "en", "true", "fal", "se", "null", "ab", "cd", "  ", "\n "]
_BYTES = [text.encode() or None for text in _TEXTS] + [None] * (VOCAB_SIZE - len(_TEXTS))
_LIMITS = GuideLimits()


def _encode(text: str) -> list[int]:
    """Longest matches from the left, up to what it cannot spell."""
    token_ids: list[int] = []
    while matches := [t for t, s in enumerate(_TEXTS) if s and text.startswith(s)]:
        token_ids.append(max(matches, key=lambda t: len(_TEXTS[t])))
        text = text[len(_TEXTS[token_ids[-1]]) :]
    return token_ids


VOCABULARY = Vocabulary(_BYTES, vocab_size=VOCAB_SIZE, stop_token_ids=[EOS], encode=_encode)
GRAMMARS = GrammarCompiler(VOCABULARY, _LIMITS)


def _pattern(text: str) -> Guide:
    return GRAMMARS.compile_regex(text, "guided_regex")


_ITEM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "[a-o]{1,6}"},
        "age": {"type": "integer", "minimum": 0, "maximum": 999},
        "kind": {"enum": ["good", "bad", "abcd"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
GUIDES = {
    "schema": GRAMMARS.compile({"type": "array", "items": _ITEM, "minItems": 2, "maxItems": 3}),
    "free strings": GRAMMARS.compile({**_ITEM, "properties": {**_ITEM["properties"], "name": {"type": "string"}}}),
    "regex": _pattern(r'\{"name": ?"[a-o ]{2,9}", "age": [0-9]+(\.[0-9]{1,3})?\}'),
    "forced regex": _pattern("name: (red|end), age: [0-9]{2}, abcdabcd: (true|false|name)"),
    "choice": _pattern(choice_pattern(["red", "name name name", "abcd abcd name", "abcd abcd age"], _LIMITS)),
}


@pytest.mark.parametrize("name", GUIDES)
def test_guides(runner: RequestRunner, name: str) -> None:
    options: list[dict[str, Any]] = [{}, {"temperature": 0.9, "seed": 3}, {"temperature": 1.2, "seed": 4, "n": 3}]
    options += [{"logprobs": 2}, {"max_tokens": 9}, {"repetition_penalty": 1.2}, {"stop_token_ids": (3, 20)}]
    options += [{"min_tokens": 5, "stream": False}, {"bad_words": ((4,), (30, 31)), "logit_bias": {40: 2.0}}]
    requests = [{"prompt": p, "guide": GUIDES[name], "max_tokens": 60} | o for p in PROMPTS[:2] for o in options]
    assert check_same(runner, requests) > len(requests)


def test_forced_text_costs_few_steps(runner: RequestRunner) -> None:
    """Without a prediction, and without any earlier text: the grammar alone knows."""
    result = runner.run(PROMPTS[0], guide=GUIDES["forced regex"], max_tokens=70)
    assert result.final.speculation is not None
    assert len(result.tokens()) > 2.5 * result.final.speculation.num_steps


# Temperature: the distribution itself


def test_the_distribution_is_the_models() -> None:
    """Of the first two tokens, over 3,000 seeds, where the likeliest are drafted: chi-square against softmax."""
    num_samples, prompt = 3000, PROMPTS[1]
    runner = start(PagedModel, *MODES["ngram"])
    first = _softmax(logits_after([*prompt]))
    drafted = [int(first.argmax())]
    drafted.append(int(logits_after([*prompt, *drafted]).argmax()))
    results = [
        runner.submit(prompt, max_tokens=3, temperature=1.0, seed=seed, prediction=(*prompt, *drafted))
        for seed in range(num_samples)
    ]
    runner.finish(*results)
    num_accepted = runner.executor.stats().num_accepted_tokens
    runner.executor.shutdown()
    assert num_accepted > 0.9 * num_samples * first.max()
    counts = Counter(result.tokens()[:2] for result in results)
    assert _excess(counts, _pairs(prompt, 1.0), num_samples) < 1
    assert _excess(counts, _pairs(prompt, 1.2), num_samples) > 2, "a difference would not be seen"


def _softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float64]:
    mass = np.exp(logits.astype(np.float64) / temperature)
    result: NDArray[np.float64] = mass / mass.sum()
    return result


def _pairs(prompt: tuple[int, ...], temperature: float) -> dict[tuple[int, ...], float]:
    """Probability of each first two tokens."""
    first = _softmax(logits_after([*prompt]), temperature)
    return {
        (a, b): float(first[a] * p)
        for a in range(VOCAB_SIZE)
        for b, p in enumerate(_softmax(logits_after([*prompt, a]), temperature))
    }


def _excess(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float], num_samples: int) -> float:
    """Pearson's chi-square over the value that chance exceeds once in 10,000 times (Wilson and Hilferty 1931). Cells
    of fewer than 5 expected samples are one."""
    cells = {cell: p * num_samples for cell, p in expected.items() if p * num_samples >= 5}
    rest = num_samples - sum(cells.values())
    others = num_samples - sum(counts[cell] for cell in cells)
    statistic = (
        sum((counts[cell] - wanted) ** 2 / wanted for cell, wanted in cells.items()) + (others - rest) ** 2 / rest
    )
    df = len(cells)
    return statistic / (df * (1 - 2 / (9 * df) + 3.719 * math.sqrt(2 / (9 * df))) ** 3)
