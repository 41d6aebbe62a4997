"""The specification of an Executor, as tests. A subclass gives `make_executor`; no test minds which tokens come out."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from briton.config.lookahead import LookaheadConfig
from briton.engine.executor import Executor
from briton.engine.types import FinishReason, ModelInfo
from briton.errors import EngineDead, InvalidRequest, QueueFull
from tests.request_runner import RequestRunner, Result
from tests.scripted_guide import ScriptedGuide

SIZES = LookaheadConfig(4, 3, 2)
OFF = LookaheadConfig(1, 1, 0)


@dataclass(frozen=True)
class ExecutorLimits:
    """What an executor is made with."""

    max_batch_size: int = 8
    max_queue_size: int = 64
    max_seq_len: int = 256
    kv_cache_tokens: int = 2048
    lookahead: LookaheadConfig | None = None
    enable_b10_lookahead: bool = False

    @property
    def max_draft_tokens(self) -> int:
        """As many as the sizes allow."""
        return 0 if self.lookahead is None else self.lookahead.max_draft_tokens

    def of(self, info: ModelInfo) -> ModelInfo:
        """`info` with these limits."""
        return replace(
            info,
            max_batch_size=self.max_batch_size,
            max_queue_size=self.max_queue_size,
            max_seq_len=min(self.max_seq_len, self.kv_cache_tokens),
            kv_cache_tokens=self.kv_cache_tokens,
            lookahead=self.lookahead,
            enable_b10_lookahead=self.enable_b10_lookahead,
            max_draft_tokens=self.max_draft_tokens,
        )


class ExecutorConformance:
    """Every promise of the Executor protocol and of `briton.engine.types`. Run it in float32: it compares tokens.

    A subclass whose `limits` have lookahead runs all of it on an executor that speculates.
    """

    limits = ExecutorLimits()
    cancels_sequences = True  # False: one of several sequences goes on until its siblings have ended
    samples_with_lookahead = True  # False: where it speculates, it is greedy and gives no log probabilities

    def make_executor(self, limits: ExecutorLimits) -> Executor:
        """A started executor with these limits. It needs a vocabulary of at least 64 and a stop token of its own."""
        raise NotImplementedError

    @pytest.fixture
    def executor(self) -> Iterator[Executor]:
        """One with the default limits."""
        executor = self.make_executor(self.limits)
        yield executor
        executor.shutdown()

    @pytest.fixture
    def runner(self, executor: Executor) -> RequestRunner:
        """What runs requests on it."""
        return RequestRunner(executor)

    @pytest.fixture
    def speculating(self) -> Iterator[RequestRunner]:
        """The same, with lookahead if the default limits have none."""
        lookahead = self.limits.lookahead
        limits = self.limits if lookahead else replace(self.limits, lookahead=SIZES, enable_b10_lookahead=True)
        executor = self.make_executor(limits)
        yield RequestRunner(executor)
        executor.shutdown()

    # The ends of a request.

    def test_info_is_consistent(self, executor: Executor) -> None:
        info = executor.info
        assert 0 < info.max_seq_len <= info.kv_cache_tokens
        assert info.stop_token_ids
        assert all(0 <= token_id < info.vocab_size for token_id in info.stop_token_ids)
        assert min(info.max_batch_size, info.max_num_tokens, info.max_queue_size, info.kv_block_size) > 0

    def test_one_final_chunk_and_nothing_after_it(self, runner: RequestRunner) -> None:
        results = [runner.submit(_prompt(runner, 5 + i), max_tokens=1 + i) for i in range(6)]
        runner.finish()
        assert runner.collect(0.1) == 0
        for i, result in enumerate(results):
            assert sum(chunk.is_final for chunk in result.chunks) == 1
            assert result.reason() is FinishReason.LENGTH
            assert len(result.tokens()) == 1 + i

    def test_await_chunks_waits_and_returns_empty(self, runner: RequestRunner) -> None:
        started = time.monotonic()
        assert runner.executor.await_chunks(0.05) == []
        assert 0.04 < time.monotonic() - started < 20

    def test_greedy_repeats_itself(self, runner: RequestRunner) -> None:
        prompt = _prompt(runner, 10)
        assert runner.run(prompt, max_tokens=16).tokens() == runner.run(prompt, max_tokens=16).tokens()

    def test_final_chunk_has_timings(self, runner: RequestRunner) -> None:
        started = time.monotonic()
        timings = runner.run(_prompt(runner, 10)).final.timings
        assert timings is not None
        parts = (timings.queue_s, timings.prefill_s, timings.decode_s)
        assert min(parts) >= 0
        assert sum(parts) <= time.monotonic() - started + 0.01

    def test_held_back_chunks_are_the_same_tokens(self, runner: RequestRunner) -> None:
        prompt = _prompt(runner, 10)
        streamed = runner.run(prompt, n=2, logprobs=1, stream=True)
        held = runner.run(prompt, n=2, logprobs=1, stream=False)
        for index in range(2):
            assert held.tokens(index) == streamed.tokens(index)

    # Lengths and stops.

    def test_max_tokens_is_cut_at_the_context(self, runner: RequestRunner) -> None:
        limit = runner.executor.info.max_seq_len
        result = runner.run(_prompt(runner, limit - 5), max_tokens=10**9)
        assert len(result.tokens()) == 5
        assert result.reason() is FinishReason.LENGTH

    def test_longest_prompt_gives_one_token(self, runner: RequestRunner) -> None:
        result = runner.run(_prompt(runner, runner.executor.info.max_seq_len - 1), max_tokens=3)
        assert len(result.tokens()) == 1
        assert result.reason() is FinishReason.LENGTH

    def test_model_stop_id_ends(self, runner: RequestRunner) -> None:
        stop = runner.executor.info.stop_token_ids[0]
        result = runner.run(_prompt(runner, 5), logit_bias={stop: 100.0}, ignore_eos=False)
        assert result.tokens() == (stop,)
        assert result.reason() is FinishReason.STOP
        assert result.final.stop_token_id == stop

    def test_ignore_eos_goes_on(self, runner: RequestRunner) -> None:
        stop = runner.executor.info.stop_token_ids[0]
        result = runner.run(_prompt(runner, 5), logit_bias={stop: 100.0}, ignore_eos=True, max_tokens=4)
        assert result.tokens() == (stop,) * 4
        assert result.reason() is FinishReason.LENGTH

    def test_request_stop_id_ends(self, runner: RequestRunner) -> None:
        prompt = _prompt(runner, 7)
        tokens = runner.run(prompt, max_tokens=12).tokens()
        end = tokens.index(tokens[5])
        for ignore_eos in (True, False):
            result = runner.run(prompt, max_tokens=12, stop_token_ids=(tokens[5],), ignore_eos=ignore_eos)
            assert result.tokens() == tokens[: end + 1]
            assert result.final.stop_token_id == tokens[5]

    def test_min_tokens_holds_stop_ids_off(self, runner: RequestRunner) -> None:
        prompt = _prompt(runner, 7)
        first = runner.run(prompt, max_tokens=1).tokens()[0]
        own = runner.executor.info.stop_token_ids[0]
        options: dict[str, Any] = {"stop_token_ids": (first,), "min_tokens": 5, "max_tokens": 9}
        result = runner.run(prompt, ignore_eos=False, logit_bias={own: 50.0}, **options)
        assert len(result.tokens()) >= 5
        assert not {first, *runner.executor.info.stop_token_ids} & set(result.tokens()[:5])

    # Several sequences, seeds, biases.

    def test_n_sequences(self, runner: RequestRunner) -> None:
        prompt = _prompt(runner, 40)
        alone = runner.run(prompt)
        result = runner.run(prompt, n=4)
        assert {chunk.index for chunk in result.chunks} == {0, 1, 2, 3}
        assert all(result.tokens(index) == alone.tokens() for index in range(4))
        assert all(result.reason(index) is FinishReason.LENGTH for index in range(4))

    def test_n_sampled_sequences_differ(self, runner: RequestRunner) -> None:
        result = runner.run(_prompt(runner, 5), n=4, temperature=1.0, seed=1, max_tokens=16)
        assert len({result.tokens(index) for index in range(4)}) > 1

    def test_seed_repeats_whatever_else_is_in_the_batch(self, runner: RequestRunner) -> None:
        prompt = _prompt(runner, 9)
        options: dict[str, Any] = {"temperature": 1.0, "seed": 1234, "n": 2, "max_tokens": 24}
        alone = runner.run(prompt, **options)
        others = [runner.submit(_prompt(runner, 3 + i), temperature=1.0, max_tokens=40) for i in range(3)]
        beside = runner.submit(prompt, **options)
        others += [runner.submit(_prompt(runner, 30 + i), temperature=0.5, max_tokens=5) for i in range(3)]
        runner.finish(beside, *others)
        assert [beside.tokens(i) for i in range(2)] == [alone.tokens(i) for i in range(2)]

    def test_seeds_differ(self, runner: RequestRunner) -> None:
        prompt = _prompt(runner, 5)
        runs = {runner.run(prompt, temperature=1.0, seed=seed, max_tokens=16).tokens() for seed in range(4)}
        assert len(runs) > 1

    def test_no_seed_is_another_each_time(self, runner: RequestRunner) -> None:
        prompt = _prompt(runner, 5)
        assert len({runner.run(prompt, temperature=1.0, max_tokens=16).tokens() for _ in range(4)}) > 1

    def test_top_k_1_is_greedy(self, runner: RequestRunner) -> None:
        prompt = _prompt(runner, 6)
        assert runner.run(prompt, temperature=1.0, top_k=1).tokens() == runner.run(prompt).tokens()

    def test_logit_bias_forces_and_forbids(self, runner: RequestRunner) -> None:
        prompt = _prompt(runner, 6)
        first = runner.run(prompt, max_tokens=1).tokens()[0]
        forced = next(i for i in range(40, 64) if i != first and i not in runner.executor.info.stop_token_ids)
        assert runner.run(prompt, logit_bias={forced: 100.0}, max_tokens=3).tokens() == (forced,) * 3
        assert first not in runner.run(prompt, logit_bias={first: -100.0}, max_tokens=8).tokens()

    def test_bad_words_do_not_come(self, runner: RequestRunner) -> None:
        prompt = _prompt(runner, 6)
        tokens = runner.run(prompt, max_tokens=8).tokens()
        assert tokens[0] not in runner.run(prompt, bad_words=((tokens[0],),), max_tokens=8).tokens()
        pair = tokens[:2]
        without = runner.run(prompt, bad_words=(pair,), max_tokens=8).tokens()
        assert pair not in [without[i : i + 2] for i in range(len(without))]
        assert without[0] == tokens[0]

    # Log probabilities.

    def test_logprobs_are_aligned(self, runner: RequestRunner) -> None:
        result = runner.run(_prompt(runner, 6), n=2, logprobs=5, max_tokens=9)
        for index in range(2):
            entries = [entry for chunk in result.of(index) for entry in chunk.logprobs]
            assert [entry.token_id for entry in entries] == list(result.tokens(index))
            for entry in entries:
                values = [logprob for _, logprob in entry.top]
                assert len({token_id for token_id, _ in entry.top}) == 5
                assert values == sorted(values, reverse=True)
                assert entry.logprob <= 1e-6
                assert entry.top[0][0] == entry.token_id  # greedy takes the best
                assert entry.top[0][1] == pytest.approx(entry.logprob)

    def test_logprobs_0_has_the_sampled_token_alone(self, runner: RequestRunner) -> None:
        result = runner.run(_prompt(runner, 6), logprobs=0)
        assert all(entry.top == () for chunk in result.chunks for entry in chunk.logprobs)

    def test_logprobs_change_no_token(self, runner: RequestRunner) -> None:
        prompt = _prompt(runner, 6)
        options: dict[str, Any] = {"temperature": 1.0, "seed": 3, "max_tokens": 12}
        assert runner.run(prompt, logprobs=3, **options).tokens() == runner.run(prompt, **options).tokens()

    # Refusals.

    def test_queue_full(self) -> None:
        executor = self.make_executor(replace(self.limits, max_batch_size=1, max_queue_size=2))
        runner = RequestRunner(executor)
        accepted: list[Result] = []
        refusals: list[QueueFull] = []
        for _ in range(20):
            try:
                accepted.append(runner.submit(_prompt(runner, 5), max_tokens=200))
            except QueueFull as error:
                refusals.append(error)
        assert refusals
        assert all(error.retry_after_s > 0 for error in refusals)
        assert len(accepted) >= 2
        runner.finish()
        assert all(len(result.tokens()) == 200 for result in accepted)
        assert len(runner.run(_prompt(runner, 5)).tokens()) == 8
        executor.shutdown()

    def test_invalid_requests_leave_others_unharmed(self, runner: RequestRunner) -> None:
        info = runner.executor.info
        prompt = _prompt(runner, 9)
        alone = runner.run(prompt, max_tokens=60)
        beside = runner.submit(prompt, max_tokens=60)
        runner.collect(1)
        for field, options in _invalid(info):
            request = runner.request(options.pop("prompt", prompt), **options)
            with pytest.raises(InvalidRequest) as refused:
                runner.submit_request(request)
            assert str(refused.value.field).startswith(field)
            assert field.split("[")[0] in refused.value.message
            runner.executor.cancel(request.request_id)  # harmless
        runner.finish(beside)
        assert beside.tokens() == alone.tokens()
        assert runner.collect(0.05) == 0

    def test_sequences_that_never_fit_together_end_or_are_refused(self) -> None:
        executor = self.make_executor(replace(self.limits, max_seq_len=128, kv_cache_tokens=256, max_batch_size=8))
        runner = RequestRunner(executor)
        try:
            result = runner.submit(_prompt(runner, 64), n=8, max_tokens=64)
        except InvalidRequest as error:
            assert error.field is not None  # noqa: PT017
        else:
            runner.finish(result)
        assert len(runner.run(_prompt(runner, 5)).tokens()) == 8
        executor.shutdown()

    def test_more_requests_than_the_pool_fits(self) -> None:
        executor = self.make_executor(replace(self.limits, max_seq_len=64, kv_cache_tokens=256, max_batch_size=8))
        runner = RequestRunner(executor)
        prompts = [_prompt(runner, 20 + i % 8) for i in range(64)]
        alone = [runner.run(prompt, max_tokens=30).tokens() for prompt in prompts[:8]]
        results = [runner.submit(prompt, max_tokens=30) for prompt in prompts]
        runner.finish(*results)
        assert [result.tokens() for result in results] == alone * 8
        executor.shutdown()

    # Guides.

    def test_guide_is_honoured(self, runner: RequestRunner) -> None:
        guide = _guide(runner.executor.info, {10, 11}, {20, 21, 22}, {33})
        for _ in range(2):  # the template stays in its start state
            result = runner.run(_prompt(runner, 5), guide=guide, n=2, temperature=1.0)
            for index in range(2):
                assert _guided_tokens(result, index)[2:] == (33,)
                assert _guided_tokens(result, index)[0] in {10, 11}
                assert _guided_tokens(result, index)[1] in {20, 21, 22}
                assert result.reason(index) is FinishReason.STOP
        assert not guide.is_terminated()

    def test_guides_and_free_requests_share_a_batch(self, runner: RequestRunner) -> None:
        prompt = _prompt(runner, 5)
        alone = runner.run(prompt, max_tokens=20)
        free = runner.submit(prompt, max_tokens=20)
        info = runner.executor.info
        guided = [runner.submit(prompt, guide=_guide(info, *[{10 + i}] * 6)) for i in range(4)]
        runner.finish()
        assert free.tokens() == alone.tokens()
        assert [_guided_tokens(result) for result in guided] == [(10 + i,) * 6 for i in range(4)]

    def test_guide_without_a_way_on_ends_with_an_error(self, runner: RequestRunner) -> None:
        prompt = _prompt(runner, 5)
        alone = runner.run(prompt, max_tokens=20)
        beside = runner.submit(prompt, max_tokens=20)
        stuck = runner.submit(prompt, guide=_guide(runner.executor.info, {10}, set()))
        runner.finish()
        assert stuck.final.finish_reason is FinishReason.ERROR
        assert stuck.tokens() == (10,)
        assert beside.tokens() == alone.tokens()

    def test_guide_is_cut_by_max_tokens(self, runner: RequestRunner) -> None:
        result = runner.run(_prompt(runner, 5), guide=_guide(runner.executor.info, *[{10}] * 6), max_tokens=3)
        assert result.tokens() == (10, 10, 10)
        assert result.reason() is FinishReason.LENGTH

    # Lookahead. A draft changes how soon a token comes, never which one.

    def test_lookahead_changes_no_token(self, speculating: RequestRunner) -> None:
        engine = speculating.executor.info.lookahead
        assert engine is not None
        smaller = LookaheadConfig(1, engine.ngram_size, engine.verification_set_size)
        sampled: dict[str, Any] = {"temperature": 1.0, "seed": 5, "n": 2, "logprobs": 2}
        if not self.samples_with_lookahead:
            sampled = {"n": 2}
        for prompt in (_prompt(speculating, 9), _prompt(speculating, 4) * 8):
            for options in ({}, sampled, {"stream": False}):
                runs = [
                    speculating.run(prompt, max_tokens=40, lookahead=lookahead, **options)
                    for lookahead in (OFF, None, smaller, engine)
                ]
                for index in range(options.get("n", 1)):
                    assert len({run.tokens(index) for run in runs}) == 1
                drafted = runs[0].final.speculation
                assert drafted is not None
                assert (drafted.num_draft_tokens, drafted.num_accepted_tokens) == (0, 0)

    def test_a_prediction_changes_no_token(self, speculating: RequestRunner) -> None:
        prompt = _prompt(speculating, 12)
        alone = speculating.run(prompt, max_tokens=50, lookahead=OFF).tokens()
        longest = speculating.executor.info.max_seq_len
        predictions = [alone, alone[10:30], alone[:20] + prompt + alone[25:], alone[::-1], (7,) * longest]
        beside = [speculating.submit(prompt, max_tokens=50, prediction=prediction) for prediction in predictions]
        beside.append(speculating.submit(prompt, max_tokens=50, prediction=alone, lookahead=OFF))
        speculating.finish()
        assert [result.tokens() for result in beside] == [alone] * len(beside)

    def test_a_right_prediction_stops_where_it_should(self, speculating: RequestRunner) -> None:
        """Tokens that were accepted beyond the end are neither given nor counted."""
        prompt = _prompt(speculating, 7)
        tokens = speculating.run(prompt, max_tokens=30).tokens()
        for count in (1, 2, 7, 29):
            assert speculating.run(prompt, max_tokens=count, prediction=tokens).tokens() == tokens[:count]
        end = tokens.index(tokens[11])
        result = speculating.run(prompt, max_tokens=30, prediction=tokens, stop_token_ids=(tokens[11],))
        assert result.tokens() == tokens[: end + 1]
        assert result.final.stop_token_id == tokens[11]
        _assert_idle(speculating)

    def test_speculation_adds_up(self, speculating: RequestRunner) -> None:
        """A step gives a sequence one token more than it accepts."""
        before = speculating.executor.stats()
        prompt = _prompt(speculating, 5) * 4
        tokens = speculating.run(prompt, max_tokens=30).tokens()
        speculating.run(prompt, max_tokens=30, prediction=tokens, n=3)
        temperature = 1.0 if self.samples_with_lookahead else 0.0
        speculating.run(prompt, max_tokens=20, temperature=temperature, stream=False)
        after = speculating.executor.stats()
        told = [result.final.speculation for result in speculating.results.values()]
        for result, speculation in zip(speculating.results.values(), told, strict=True):
            assert speculation is not None
            num_tokens = sum(len(result.tokens(index)) for index in range(result.request.sampling.n))
            assert num_tokens == speculation.num_steps + speculation.num_accepted_tokens
            assert 0 <= speculation.num_accepted_tokens <= speculation.num_draft_tokens
        for name, counter in (
            ("num_steps", "num_sequence_steps"),
            ("num_draft_tokens", "num_draft_tokens"),
            ("num_accepted_tokens", "num_accepted_tokens"),
        ):
            assert sum(getattr(speculation, name) for speculation in told) == getattr(after, counter) - getattr(
                before, counter
            )
        assert after.num_output_tokens - before.num_output_tokens == 30 + 3 * 30 + 20

    def test_lookahead_larger_than_the_engines_is_refused(self, speculating: RequestRunner) -> None:
        engine = speculating.executor.info.lookahead
        assert engine is not None
        for name, low in (("window_size", 1), ("ngram_size", 1), ("verification_set_size", 0)):
            for size in (low - 1, getattr(engine, name) + 1, 10**400):
                with pytest.raises(InvalidRequest, match=f"{name} must be between {low} and") as refused:
                    speculating.submit(_prompt(speculating, 5), lookahead=replace(engine, **{name: size}))
                assert refused.value.field == f"lookahead.{name}"
        assert len(speculating.run(_prompt(speculating, 5), lookahead=engine).tokens()) == 8

    def test_an_engine_without_lookahead_takes_only_off(self) -> None:
        executor = self.make_executor(replace(self.limits, lookahead=None, enable_b10_lookahead=False))
        runner = RequestRunner(executor)
        prompt = _prompt(runner, 5)
        tokens = runner.run(prompt).tokens()
        assert runner.run(prompt, lookahead=OFF, prediction=tokens).tokens() == tokens
        for result in runner.results.values():
            assert result.final.speculation is None or result.final.speculation.num_draft_tokens == 0
        for sizes in (SIZES, LookaheadConfig(1, 1, 1)):
            with pytest.raises(InvalidRequest, match="does not speculate") as refused:
                runner.submit(prompt, lookahead=sizes)
            assert refused.value.field == "lookahead"
        executor.shutdown()

    # The prefix cache.

    def test_second_run_of_a_prompt_is_cached(self, runner: RequestRunner) -> None:
        block = runner.executor.info.kv_block_size
        prompt = _prompt(runner, 3 * block + 1)
        first, second = runner.run(prompt), runner.run(prompt)
        assert first.final.cached_tokens == 0
        assert second.final.cached_tokens == 3 * block
        assert second.tokens() == first.tokens()

    def test_a_prompt_is_never_cached_whole(self, runner: RequestRunner) -> None:
        block = runner.executor.info.kv_block_size
        prompt = _prompt(runner, 2 * block)
        first, second = runner.run(prompt), runner.run(prompt)
        assert 0 < second.final.cached_tokens < len(prompt)
        assert second.tokens() == first.tokens()

    def test_cache_salt_separates(self, runner: RequestRunner) -> None:
        prompt = _prompt(runner, 3 * runner.executor.info.kv_block_size)
        runs = [runner.run(prompt, cache_salt=salt).final.cached_tokens for salt in ("", "a", "b", "a")]
        assert runs[:3] == [0, 0, 0]
        assert runs[3] > 0

    # Cancelling and ending.

    def test_cancel_a_running_request(self, runner: RequestRunner) -> None:
        prompt = _prompt(runner, 9)
        alone = runner.run(prompt, max_tokens=60)
        beside = runner.submit(prompt, max_tokens=60)
        result = runner.submit(_prompt(runner, 5), max_tokens=240, n=2)
        while not result.chunks:
            runner.collect(0.2)
        for _ in range(3):
            runner.executor.cancel(result.request.request_id)
        runner.finish()
        assert result.final.finish_reason is FinishReason.CANCELLED
        assert beside.tokens() == alone.tokens()
        assert runner.collect(0.05) == 0

    def test_cancel_a_waiting_request(self) -> None:
        executor = self.make_executor(replace(self.limits, max_batch_size=1))
        runner = RequestRunner(executor)
        running = runner.submit(_prompt(runner, 5), max_tokens=100)
        waiting = runner.submit(_prompt(runner, 5), max_tokens=100)
        executor.cancel(waiting.request.request_id)
        runner.finish()
        assert waiting.final.finish_reason is FinishReason.CANCELLED
        assert waiting.tokens() == ()
        assert len(running.tokens()) == 100
        executor.shutdown()

    def test_cancel_one_sequence(self, runner: RequestRunner) -> None:
        """The others give what they give with it, and its end is told."""
        prompt = _prompt(runner, 9)
        alone = runner.run(prompt, max_tokens=40, n=3, temperature=1.0, seed=5)
        result = runner.submit(prompt, max_tokens=40, n=3, temperature=1.0, seed=5)
        while not result.tokens(1):
            runner.collect(0.2)
        for _ in range(2):
            runner.executor.cancel(result.request.request_id, 1)
        runner.finish()
        assert [result.tokens(i) for i in (0, 2)] == [alone.tokens(i) for i in (0, 2)]
        ended = result.tokens(1)
        assert ended == alone.tokens(1)[: len(ended)]
        if self.cancels_sequences:
            assert result.reason(1) is FinishReason.CANCELLED
            assert len(ended) < 40
        _assert_idle(runner)

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)], ids=str)
    def test_cancel_every_sequence_at_once(self, runner: RequestRunner, order: tuple[int, ...]) -> None:
        """Before any of them has a token, too: the request ends, once."""
        result = runner.submit(_prompt(runner, 70), max_tokens=100, n=3)
        for index in order:
            runner.executor.cancel(result.request.request_id, index)
        runner.finish()
        if self.cancels_sequences:
            assert {result.reason(index) for index in order} == {FinishReason.CANCELLED}
            assert sum(len(result.tokens(index)) for index in order) < 30
        _assert_idle(runner)

    def test_cancel_unknown_and_finished(self, runner: RequestRunner) -> None:
        runner.executor.cancel(424242)
        runner.executor.cancel(424242, 1)
        result = runner.run(_prompt(runner, 5))
        runner.executor.cancel(result.request.request_id)
        assert runner.collect(0.05) == 0
        assert len(runner.run(_prompt(runner, 5)).tokens()) == 8

    def test_cancelled_requests_hold_nothing(self, runner: RequestRunner) -> None:
        for i in range(40):
            runner.executor.cancel(runner.submit(_prompt(runner, 30 + i), max_tokens=100).request.request_id)
        runner.finish()
        _assert_idle(runner)

    def test_shutdown_ends_every_request(self) -> None:
        executor = self.make_executor(replace(self.limits, max_batch_size=2))
        runner = RequestRunner(executor)
        for i in range(6):
            runner.submit(_prompt(runner, 5 + i), max_tokens=240, n=1 + i % 2)
        runner.collect(1)
        executor.shutdown()
        executor.shutdown()
        runner.finish()
        assert any(result.final.finish_reason is FinishReason.CANCELLED for result in runner.results.values())
        with pytest.raises(EngineDead):
            executor.await_chunks(0.1)
        with pytest.raises(EngineDead):
            runner.submit(_prompt(runner, 5))

    # Order, counters, threads.

    def test_higher_priority_is_admitted_first(self) -> None:
        executor = self.make_executor(replace(self.limits, max_batch_size=1))
        runner = RequestRunner(executor)
        runner.submit(_prompt(runner, 5), max_tokens=100)
        waiting = [runner.submit(_prompt(runner, 5 + i), priority=p) for i, p in enumerate((0, 0, 5, -1, 5))]
        order: list[int] = []
        while len(order) < len(waiting):
            runner.collect(0.2)
            done = [i for i, result in enumerate(waiting) if result.chunks and result.chunks[-1].is_final]
            order += [
                i for i in sorted(done, key=lambda i: waiting[i].request.priority, reverse=True) if i not in order
            ]
        assert order == [2, 4, 0, 1, 3]
        executor.shutdown()

    def test_stats_count(self, runner: RequestRunner) -> None:
        before = runner.executor.stats()
        block = runner.executor.info.kv_block_size
        prompt = _prompt(runner, 2 * block + 1)
        runner.run(prompt, max_tokens=5)
        runner.run(prompt, max_tokens=6)
        after = runner.executor.stats()
        assert after.num_requests - before.num_requests == 2
        assert after.num_output_tokens - before.num_output_tokens == 5 + 6
        assert after.num_cached_tokens - before.num_cached_tokens == 2 * block
        # the second sequence of the second request may share the first's last token, or compute it itself
        assert after.num_prompt_tokens - before.num_prompt_tokens in (2 * block + 2, 2 * block + 3)
        assert after.num_steps > before.num_steps
        assert after.step_s >= after.host_s >= 0
        assert after.kv_blocks_total * block <= runner.executor.info.kv_cache_tokens + block
        _assert_idle(runner)

    def test_submit_from_many_threads(self, runner: RequestRunner) -> None:
        prompts = [_prompt(runner, 5 + i) for i in range(8)]
        alone = [runner.run(prompt).tokens() for prompt in prompts]
        results: dict[tuple[int, int], Result] = {}

        def submit(thread: int) -> None:
            for i, prompt in enumerate(prompts):
                results[thread, i] = runner.submit(prompt)

        threads = [threading.Thread(target=submit, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            runner.collect(0.01)
        runner.finish()
        assert len(results) == 32
        assert all(result.tokens() == alone[i] for (_, i), result in results.items())


def _prompt(runner: RequestRunner, length: int) -> tuple[int, ...]:
    """Token ids that no other length shares a block with, without stop ids."""
    ids = [i for i in range(64) if i not in runner.executor.info.stop_token_ids]
    return tuple(ids[(length * 7 + i * i + i * length) % len(ids)] for i in range(length))


def _guide(info: ModelInfo, *steps: set[int]) -> ScriptedGuide:
    return ScriptedGuide(steps, info.stop_token_ids)


def _guided_tokens(result: Result, index: int = 0) -> tuple[int, ...]:
    """The tokens without the stop token that may follow them."""
    stop = result.of(index)[-1].stop_token_id
    return result.tokens(index) if stop is None else result.tokens(index)[:-1]


def _invalid(info: ModelInfo) -> list[tuple[str, dict[str, Any]]]:
    """(the field to be named, the options of a request that can never run)."""
    nan = float("nan")
    return [
        ("prompt", {"prompt": ()}),
        ("prompt", {"prompt": (1,) * info.max_seq_len}),
        ("prompt", {"prompt": (1,) * (info.kv_cache_tokens + 1)}),
        ("prompt", {"prompt": (1,) * 10**6}),
        ("prompt", {"prompt": (1, info.vocab_size)}),
        ("prompt", {"prompt": (1, -1)}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": -1}),
        ("min_tokens", {"min_tokens": 9, "max_tokens": 8}),
        ("n", {"n": 0}),
        ("n", {"n": info.max_batch_size + 1}),
        ("temperature", {"temperature": -1.0}),
        ("temperature", {"temperature": nan}),
        ("top_k", {"top_k": -1}),
        ("top_p", {"top_p": 2.0}),
        ("top_p", {"top_p": nan}),
        ("min_p", {"min_p": -0.1}),
        ("repetition_penalty", {"repetition_penalty": 0.0}),
        ("presence_penalty", {"presence_penalty": 3.0}),
        ("frequency_penalty", {"frequency_penalty": -3.0}),
        ("seed", {"seed": 2**64}),
        ("logprobs", {"logprobs": 21}),
        ("stop_token_ids", {"stop_token_ids": (info.vocab_size,)}),
        ("stop_token_ids", {"stop_token_ids": tuple(range(1)) * 257}),
        ("logit_bias", {"logit_bias": {info.vocab_size: 1.0}}),
        ("logit_bias[3]", {"logit_bias": {3: 101.0}}),
        ("bad_words", {"bad_words": ((),)}),
        ("bad_words", {"bad_words": ((info.vocab_size,),)}),
        ("bad_words", {"bad_words": ((1,) * 4097,)}),
        ("prediction", {"prediction": (1, info.vocab_size)}),
        ("prediction", {"prediction": (-1,)}),
        ("prediction", {"prediction": (1,) * (info.max_seq_len + 1)}),
    ]


def _assert_idle(runner: RequestRunner) -> None:
    """Nothing runs, waits or holds a block; a real executor may need a moment after the last chunk."""
    deadline = time.monotonic() + 2
    while True:
        stats = runner.executor.stats()
        if (stats.num_running, stats.num_waiting, stats.kv_blocks_used) == (0, 0, 0):
            return
        assert time.monotonic() < deadline, stats
        time.sleep(0.01)
