"""Lookahead decoding as a gRPC client sees it: sizes and a prediction for each request, and what came of the drafts."""

from __future__ import annotations

from dataclasses import replace

import grpc
import pytest

from briton.config.lookahead import LookaheadConfig
from briton.text.tokenizer import Tokenizer
from briton.v1 import engine_pb2 as pb
from tests.fake_engine import run_fake_engine, write_tokenizer
from tests.fake_executor import FAKE_INFO, SPECULATING_INFO, FakeExecutor
from tests.rpc.test_service import ask, field_of, refusal, responses, token_ids

OFF = pb.LookaheadConfig(window_size=1, ngram_size=1, verification_set_size=0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


async def test_usage_says_what_came_of_the_drafts() -> None:
    """Three steps of 3, 3 and 2 tokens."""
    async with run_fake_engine(FakeExecutor(SPECULATING_INFO, tokens_per_step=3)) as running:
        answers = await responses(running.stub, ask([1]))
        assert answers[-1].usage.completion_tokens == 8
        assert answers[-1].usage.speculation == pb.Speculation(
            num_steps=3, num_draft_tokens=7 + 4 + 1, num_accepted_tokens=5
        )
        stats = await running.stub.GetStats(pb.GetStatsRequest())
        assert (stats.num_sequence_steps, stats.num_draft_tokens, stats.num_accepted_tokens) == (3, 12, 5)


async def test_usage_of_several_sequences_is_their_sum() -> None:
    async with run_fake_engine(FakeExecutor(SPECULATING_INFO, tokens_per_step=4)) as running:
        usage = (await responses(running.stub, ask([1], sampling={"n": 3})))[-1].usage
        assert (usage.completion_tokens, usage.speculation.num_steps) == (3 * 8, 3 * 2)
        assert usage.speculation.num_accepted_tokens == 3 * 6


async def test_usage_after_a_stop_string(tokenizer: Tokenizer) -> None:
    """The request is cancelled then, and tells what it did all the same."""
    script = list(b"abcdefgh" * 200)
    executor = FakeExecutor(SPECULATING_INFO, script=lambda _, __: script, tokens_per_step=4, step_s=0.01)
    async with run_fake_engine(executor, tokenizer=tokenizer) as running:
        usage = (await responses(running.stub, ask([1], stop=["ef"], sampling={"max_tokens": 1600})))[-1].usage
    assert usage.completion_tokens == 6, "not the tokens accepted beyond it"
    assert 2 <= usage.speculation.num_steps < 100
    assert usage.speculation.num_accepted_tokens == 3 * usage.speculation.num_steps


async def test_a_request_may_turn_it_off_or_down() -> None:
    executor = FakeExecutor(SPECULATING_INFO, tokens_per_step=2)
    async with run_fake_engine(executor) as running:
        usual = await responses(running.stub, ask([1]))
        off = await responses(running.stub, ask([1], lookahead=OFF))
        down = pb.LookaheadConfig(window_size=2, ngram_size=3, verification_set_size=1)
        await responses(running.stub, ask([1], lookahead=down))
    assert token_ids(off) == token_ids(usual)
    assert off[-1].usage.HasField("speculation"), "the engine speculates, and here it drafted nothing"
    assert off[-1].usage.speculation == pb.Speculation(num_steps=8)
    sizes = [request.lookahead for request in executor.submitted]
    assert sizes == [None, LookaheadConfig(1, 1, 0), LookaheadConfig(2, 3, 1)]


async def test_an_engine_that_does_not_speculate() -> None:
    executor = FakeExecutor(tokens_per_step=3)
    async with run_fake_engine(executor) as running:
        answers = await responses(running.stub, ask([1], lookahead=OFF, prediction_token_ids=pb.TokenIds(ids=[7])))
        assert not answers[-1].usage.HasField("speculation")
        smallest = pb.LookaheadConfig(window_size=1, ngram_size=1, verification_set_size=1)
        error = await refusal(running.stub, ask([1], lookahead=smallest))
        assert (error.code(), field_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "lookahead")
        assert "does not speculate" in (error.details() or "")
        info = await running.stub.GetModelInfo(pb.GetModelInfoRequest())
        assert (info.HasField("lookahead"), info.enable_b10_lookahead, info.max_draft_tokens) == (False, False, 0)


async def test_model_info_has_the_engines_sizes() -> None:
    async with run_fake_engine(FakeExecutor(SPECULATING_INFO)) as running:
        info = await running.stub.GetModelInfo(pb.GetModelInfoRequest())
    assert info.lookahead == pb.LookaheadConfig(window_size=4, ngram_size=3, verification_set_size=2)
    assert (info.enable_b10_lookahead, info.max_draft_tokens, info.lookahead_with_guides) == (True, 11, True)


async def test_model_info_says_whether_guides_go_with_lookahead() -> None:
    async with run_fake_engine(FakeExecutor(replace(SPECULATING_INFO, lookahead_with_guides=False))) as running:
        info = await running.stub.GetModelInfo(pb.GetModelInfoRequest())
    assert not info.lookahead_with_guides


async def test_a_prediction_as_token_ids_or_text(tokenizer: Tokenizer) -> None:
    executor = FakeExecutor(SPECULATING_INFO)
    long = "predicted " * 200  # tokenized in a thread
    async with run_fake_engine(executor, tokenizer=tokenizer) as running:
        await responses(running.stub, ask([1], prediction_token_ids=pb.TokenIds(ids=[7, 8])))
        await responses(running.stub, ask([1], prediction_text="né<|im_end|>"))
        await responses(running.stub, ask([1], prediction_text=long))
        await responses(running.stub, ask([1]))
    predictions = [request.prediction_token_ids for request in executor.submitted]
    assert predictions == [(7, 8), (*"né".encode(), 258), tuple(long.encode()), ()]


async def test_refusals(tokenizer: Tokenizer) -> None:
    def sizes(w: int, n: int, g: int) -> pb.GenerateRequest:
        return ask([1], lookahead=pb.LookaheadConfig(window_size=w, ngram_size=n, verification_set_size=g))

    longest = FAKE_INFO.max_seq_len
    bad = [
        ("lookahead.window_size", "between 1 and 4, not 5", sizes(5, 3, 2)),
        ("lookahead.ngram_size", "between 1 and 3, not 4", sizes(4, 4, 2)),
        ("lookahead.verification_set_size", "between 0 and 2, not 3", sizes(4, 3, 3)),
        ("lookahead.window_size", "not 0", sizes(0, 1, 0)),
        ("lookahead.ngram_size", "not 0", sizes(1, 0, 0)),
        ("lookahead.window_size", "not 0", ask([1], lookahead=pb.LookaheadConfig())),
        ("prediction", "264", ask([1], prediction_token_ids=pb.TokenIds(ids=[264]))),
        ("prediction", f"length is {longest}", ask([1], prediction_token_ids=pb.TokenIds(ids=[5] * (longest + 1)))),
        ("prediction", "2000000 tokens", ask([1], prediction_token_ids=pb.TokenIds(ids=[5] * 2_000_000))),
        ("prediction", "2049 characters", ask([1], prediction_text="x" * 2049)),
        ("prediction", "10000000 characters", ask([1], prediction_text="x" * 10**7)),
    ]
    executor = FakeExecutor(SPECULATING_INFO)
    async with run_fake_engine(executor, tokenizer=tokenizer) as running:
        for field, told, request in bad:
            error = await refusal(running.stub, request)
            assert (error.code(), field_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, field)
            assert told in (error.details() or "")
        await responses(running.stub, ask([1], prediction_token_ids=pb.TokenIds(ids=[5] * longest)))
    assert len(executor.submitted) == 1


async def test_a_prediction_in_text_needs_a_tokenizer() -> None:
    async with run_fake_engine(FakeExecutor(SPECULATING_INFO)) as running:
        error = await refusal(running.stub, ask([1], prediction_text="x"))
        assert (error.code(), field_of(error)) == (grpc.StatusCode.UNIMPLEMENTED, "prediction_text")
