"""Speculation through the executor's whole loop: right guesses save steps, wrong ones cost no token."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NoReturn

import pytest

from briton.config.lookahead import LookaheadConfig
from briton.engine.types import FinishReason, GenerationRequest, ModelInfo, SamplingParams, Speculation, TokenChunk
from briton.local.draft import Draft
from briton.local.executor import LocalExecutor
from briton.local.lookahead import speculator
from briton.local.lookahead.costs import CostCurve, CostPoint
from briton.local.lookahead.ngram import NgramIndex
from briton.local.lookahead.speculator import Speculator
from briton.local.plan import ScheduledSequence, StepPlan
from briton.local.scheduler import Scheduler
from briton.local.sequence import RequestState
from tests.local.paged_model import EOS, PagedModel, greedy, model_info
from tests.scripted_guide import ScriptedGuide

DYNAMIC, WINDOW, OFF = LookaheadConfig(8, 1, 1), LookaheadConfig(5, 4, 3), LookaheadConfig(1, 1, 0)
PROMPT = (1, 2, 3, 4, 5)
GREEDY = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
RIGHT = tuple(greedy(PROMPT, 20, stop=None))
STEEP = CostCurve((CostPoint(1, 1.0, 0.0), CostPoint(8, 8.0, 0.0), CostPoint(16, 16.0, 0.0)))


def speculating(lookahead: LookaheadConfig, dynamic: bool, max_draft_tokens: int, **limits: int) -> ModelInfo:
    return replace(
        model_info(**{"max_num_tokens": 64} | limits),
        lookahead=lookahead,
        enable_b10_lookahead=dynamic,
        max_draft_tokens=max_draft_tokens,
    )


def prefilled(prompt: tuple[int, ...], prediction: tuple[int, ...] = ()) -> ScheduledSequence:
    """A sequence whose whole prompt is in the step."""
    request = GenerationRequest(0, prompt, GREEDY, prediction_token_ids=prediction)
    return ScheduledSequence(RequestState.create(request).sequences[0], len(prompt))


def start(
    lookahead: LookaheadConfig = DYNAMIC,
    dynamic: bool = True,
    max_draft_tokens: int = 8,
    costs: CostCurve | None = None,
    **limits: int,
) -> LocalExecutor:
    info = speculating(lookahead, dynamic, max_draft_tokens, **limits)
    model = PagedModel(info.kv_cache_tokens // info.kv_block_size, info.kv_block_size)
    return LocalExecutor(info, model.forward, policy="guaranteed_no_evict", costs=costs or CostCurve.flat())


def run(executor: LocalExecutor, *requests: GenerationRequest) -> list[TokenChunk]:
    for request in requests:
        executor.submit(request)
    chunks: list[TokenChunk] = []
    deadline = time.monotonic() + 20
    while sum(chunk.is_final for chunk in chunks) < len(requests):
        assert time.monotonic() < deadline, chunks
        chunks += executor.await_chunks(0.1)
    return chunks


def tokens(chunks: list[TokenChunk], request_id: int = 0) -> tuple[int, ...]:
    return tuple(token for chunk in chunks if chunk.request_id == request_id for token in chunk.token_ids)


def speculation(chunks: list[TokenChunk]) -> Speculation:
    found = chunks[-1].speculation
    assert found is not None
    return found


def test_a_right_prediction_is_accepted_in_few_steps() -> None:
    executor = start()
    chunks = run(executor, GenerationRequest(0, PROMPT, GREEDY, prediction_token_ids=(*PROMPT, *RIGHT)))
    done, stats = speculation(chunks), executor.stats()
    executor.shutdown()
    assert tokens(chunks) == RIGHT
    assert done.num_steps == 3, "8 drafted, and one more token, a step"
    assert done.num_accepted_tokens == 17
    assert (stats.num_sequence_steps, stats.num_accepted_tokens) == (done.num_steps, done.num_accepted_tokens)
    assert stats.num_draft_tokens == done.num_draft_tokens
    assert stats.num_output_tokens == 20
    assert stats.kv_blocks_used == 0


def test_a_prediction_that_goes_wrong_half_way() -> None:
    executor = start()
    wrong = (*RIGHT[:10], (RIGHT[10] + 1) % 64, *RIGHT[11:])
    chunks = run(executor, GenerationRequest(0, PROMPT, GREEDY, prediction_token_ids=(*PROMPT, *wrong)))
    executor.shutdown()
    assert tokens(chunks) == RIGHT
    assert speculation(chunks).num_accepted_tokens < speculation(chunks).num_draft_tokens


def test_the_request_turns_it_off() -> None:
    executor = start()
    chunks = run(executor, GenerationRequest(0, PROMPT, GREEDY, lookahead=OFF, prediction_token_ids=(*PROMPT, *RIGHT)))
    executor.shutdown()
    assert tokens(chunks) == RIGHT
    assert speculation(chunks) == Speculation(20, 0, 0)


def test_a_smaller_request_drafts_less() -> None:
    executor = start()
    request = GenerationRequest(0, PROMPT, GREEDY, lookahead=LookaheadConfig(2, 1, 1))
    chunks = run(executor, replace(request, prediction_token_ids=(*PROMPT, *RIGHT)))
    executor.shutdown()
    assert max(len(chunk.token_ids) for chunk in chunks) == 3


def test_where_tokens_cost_their_share_nothing_is_tried() -> None:
    executor = start(costs=STEEP)
    chunks = run(executor, GenerationRequest(0, PROMPT, GREEDY))
    executor.shutdown()
    assert tokens(chunks) == RIGHT
    assert speculation(chunks).num_draft_tokens == 0


@pytest.mark.parametrize(("lookahead", "dynamic"), [(WINDOW, False), (WINDOW, True), (LookaheadConfig(3, 2, 2), False)])
def test_the_window_runs_and_changes_nothing(lookahead: LookaheadConfig, dynamic: bool) -> None:
    executor = start(lookahead, dynamic, lookahead.draft_tokens, max_seq_len=64)
    prompts = [PROMPT, (9, 8, 7), tuple(range(30, 45))]
    chunks = run(executor, *(GenerationRequest(i, prompt, GREEDY) for i, prompt in enumerate(prompts)))
    executor.shutdown()
    for i, prompt in enumerate(prompts):
        assert tokens(chunks, i) == tuple(greedy(prompt, 20, stop=None))


def test_tokens_before_an_error_in_the_same_step_are_sent() -> None:
    """The guide allows the right tokens and then nothing at all: what was accepted before is the caller's."""
    steps: list[list[int]] = [[token] for token in RIGHT[:3]]
    guide = ScriptedGuide([*steps, []], [EOS])
    executor = start()
    chunks = run(executor, GenerationRequest(0, PROMPT, GREEDY, guide))
    executor.shutdown()
    assert tokens(chunks) == RIGHT[:3]
    assert chunks[-1].finish_reason is FinishReason.ERROR
    assert "allows no token" in str(chunks[-1].error)
    assert speculation(chunks).num_steps < 4, "forced tokens were not drafted"


def test_a_drafter_that_breaks_breaks_no_request(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(ScriptedGuide):
        def forced_tokens(self) -> list[int]:
            raise OSError("the grammar is gone")

    executor = start()
    guide = Broken([[token] for token in RIGHT], [EOS])
    sampling = replace(GREEDY, max_tokens=8)
    chunks = run(executor, GenerationRequest(0, PROMPT, sampling, guide), GenerationRequest(1, PROMPT, sampling))
    executor.shutdown()
    assert tokens(chunks, 0) == tokens(chunks, 1) == RIGHT[:8]
    assert caplog.text.count("request 0 goes on without drafts") == 1
    assert "the grammar is gone" in caplog.text


@pytest.mark.parametrize("stream", [True, False])
def test_a_stop_token_inside_an_accepted_draft_ends_there(stream: bool) -> None:
    stop = RIGHT[6]
    sampling = replace(GREEDY, stop_token_ids=(stop,), logprobs=2)
    executor = start()
    request = GenerationRequest(0, PROMPT, sampling, stream=stream, prediction_token_ids=(*PROMPT, *RIGHT))
    chunks = run(executor, request)
    executor.shutdown()
    end = RIGHT.index(stop) + 1
    assert tokens(chunks) == RIGHT[:end]
    assert sum(len(chunk.logprobs) for chunk in chunks) == end
    assert (chunks[-1].finish_reason, chunks[-1].stop_token_id) == (FinishReason.STOP, stop)


def test_a_long_prompt_is_learned_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculator, "_LEARNED_AT_ONCE", 3)
    executor = start()
    prompt = (*PROMPT, *RIGHT, 60, 61, *PROMPT)
    chunks = run(executor, GenerationRequest(0, prompt, GREEDY))
    executor.shutdown()
    assert tokens(chunks) == tuple(greedy(prompt, 20, stop=None))


def test_one_step_learns_no_more_for_many_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sequence learned its part in one step, and the whole of a prediction: n = 128 of a long cached prompt, or
    one prediction of 128k tokens, kept every stream waiting for half a second and more."""
    learned = []

    class Counting(NgramIndex):
        def extend(self, token_ids: Iterable[int]) -> None:
            told = list(token_ids)
            learned.append(len(told))
            super().extend(told)

    monkeypatch.setattr("briton.local.lookahead.drafter.NgramIndex", Counting)
    monkeypatch.setattr(speculator, "_LEARNED_AT_ONCE", 7)
    spec = Speculator(speculating(DYNAMIC, True, 8), CostCurve.flat())
    plan = [prefilled(PROMPT, (*PROMPT, *RIGHT)) for _ in range(3)]
    drafted = []
    for _ in range(20):
        learned.clear()
        drafts = spec.drafts(plan) or [None] * 3
        assert sum(learned) <= 7 + 3, "beside the borders of three predictions"
        drafted.append([draft is not None for draft in drafts])
    assert drafted[0] == [False] * 3
    assert drafted[-1] == [True] * 3


def test_window_and_index_together_draft_no_more_than_max_draft_tokens() -> None:
    """The index drafted as much as if it were alone, the pool and the window theirs beside: 37 tokens where 23 were
    the limit."""
    sizes = LookaheadConfig(4, 4, 4)
    info = speculating(sizes, True, sizes.draft_tokens, max_num_tokens=512, max_seq_len=512)
    spec = Speculator(info, CostCurve.flat())
    often = tuple(range(1, 16)) * 6
    drafts = spec.drafts([prefilled((*often, 1, 2, 3, 16, 1, 2, 3, 17, 1, 2, 3, 18, 1, 2, 3))])
    assert drafts is not None
    assert drafts[0] is not None
    assert drafts[0].window_rows
    assert len(drafts[0]) <= sizes.draft_tokens


@pytest.mark.parametrize("breaks", ["choose", "attach"])
def test_a_choice_that_breaks_breaks_no_request(
    breaks: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What chose among the proposals, and what found blocks for them, stood outside the guard: an error there ended
    the engine, with all its requests."""
    attach = Scheduler.attach_drafts

    def attach_half(scheduler: Scheduler, plan: StepPlan, drafts: Sequence[Draft | None]) -> StepPlan:
        attach(scheduler, plan[:1], drafts[:1])  # which has its blocks now
        raise OSError("the dice are gone")

    def choose_nothing(*arguments: object) -> NoReturn:
        raise OSError("the dice are gone")

    if breaks == "choose":
        monkeypatch.setattr(speculator, "choose", choose_nothing)
    else:
        monkeypatch.setattr(Scheduler, "attach_drafts", attach_half)
    executor = start()
    prediction = (*PROMPT, *RIGHT)
    chunks = run(executor, *(GenerationRequest(i, PROMPT, GREEDY, prediction_token_ids=prediction) for i in range(3)))
    assert all(tokens(chunks, i) == RIGHT for i in range(3))
    assert executor.stats().num_draft_tokens == 0
    assert "the dice are gone" in caplog.text
    assert 1 <= caplog.text.count("of a step go on without drafts") <= 3, "once for each sequence at most"
    monkeypatch.undo()
    later = run(executor, GenerationRequest(9, PROMPT, GREEDY, prediction_token_ids=prediction))
    assert speculation(later).num_accepted_tokens > 0, "who comes later has drafts again"
    assert executor.stats().kv_blocks_used == 0
    executor.shutdown()


def test_no_position_beyond_the_longest_sequence() -> None:
    """A window at the end of the context would ask for positions that the model has not."""
    info = replace(
        model_info(max_num_tokens=64, max_seq_len=24), lookahead=WINDOW, max_draft_tokens=WINDOW.draft_tokens
    )
    model = PagedModel(info.kv_cache_tokens // info.kv_block_size, info.kv_block_size)
    executor = LocalExecutor(info, model.forward, policy="guaranteed_no_evict", costs=CostCurve.flat())
    prompt = tuple(range(1, 15))
    chunks = run(executor, GenerationRequest(0, prompt, replace(GREEDY, max_tokens=10)))
    executor.shutdown()
    assert tokens(chunks) == tuple(greedy(prompt, 10, stop=None))
    assert model.largest_position < 24
