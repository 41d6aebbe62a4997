"""Engine and gateway read the same text: what the engine cuts at a stop string, the gateway cuts at the same place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from briton.engine.types import FinishReason, RequestTimings, TokenChunk, TokenLogprob
from briton.rpc.responses import ResponseBuilder
from briton.text.sequence_text import SequenceText
from briton.text.tokenizer import Tokenizer
from briton.v1 import engine_pb2 as pb
from tests.text.small_tokenizers import byte_level, sentencepiece, some_tokens

LETTERS = "abé日 the"
TOKENIZERS = {"byte_level": byte_level(), "sentencepiece": sentencepiece()}


class Read(NamedTuple):
    """What somebody got of one sequence."""

    text: str
    token_ids: list[int]
    logprobs: list[tuple[int, int]]  # (where its text begins, token id)
    finish_reason: int


def chunks(ids: Sequence[int], cuts: Sequence[int], *, has_stop_token: bool) -> Iterator[TokenChunk]:
    """The tokens in steps of these sizes."""
    rest = tuple(ids)
    for size in [*cuts, len(ids)]:
        step, rest = rest[:size], rest[size:]
        last = {} if rest else {"finish_reason": FinishReason.STOP if has_stop_token else FinishReason.LENGTH}
        yield TokenChunk(
            1,
            token_ids=step,
            logprobs=tuple(TokenLogprob(i, -1.0) for i in step),
            stop_token_id=step[-1] if last and has_stop_token else None,
            is_final=not rest,
            timings=None if rest else RequestTimings(),
            **last,  # type: ignore[arg-type]
        )
        if not rest:
            return


def through_the_engine(builder: ResponseBuilder, given: Iterator[TokenChunk]) -> Iterator[pb.GenerateResponse]:
    """The responses to these chunks; the executor is told to stop when the builder has enough."""
    for chunk in given:
        response = builder.add([chunk])
        if response is not None:
            yield response
        if builder.all_ended and not chunk.is_final:
            cancelled = TokenChunk(1, finish_reason=FinishReason.CANCELLED, is_final=True, timings=RequestTimings())
            response = builder.add([cancelled])
            assert response is not None, "usage is always told"
            yield response
            return


def read_by_the_gateway(responses: Iterator[pb.GenerateResponse], text: SequenceText[pb.TokenLogprob]) -> Read:
    told, ids, logprobs, reason = "", list[int](), list[tuple[int, int]](), 0
    for response in responses:
        for output in response.outputs:
            assert not reason, "nothing comes after the end"
            assert output.text == ""
            assert len(output.logprobs) == len(output.token_ids)
            delta = text.push(
                output.token_ids,
                output.logprobs,
                ends=bool(output.finish_reason),
                has_stop_token=output.HasField("stop_token_id"),
            )
            assert delta.num_tokens == len(output.token_ids), "the engine sends no token beyond the end"
            assert not delta.stopped or output.finish_reason == pb.FINISH_REASON_STOP, "both end at once"
            told += delta.text
            ids += output.token_ids
            logprobs += [(entry.start, entry.logprob.token_id) for entry in delta.logprobs]
            reason = output.finish_reason
        if response.HasField("usage"):
            assert response.usage.completion_tokens == len(ids)
            return Read(told, ids, logprobs, reason)
    raise AssertionError("no usage")


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS.keys())
@given(
    data=st.data(),
    cuts=st.lists(st.integers(1, 4), max_size=16),
    stops=st.lists(st.text(alphabet=LETTERS, min_size=1, max_size=3), max_size=3),
    stream=st.booleans(),
    standalone=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_streamed_or_whole_the_gateway_reads_what_the_engine_read(
    tokenizer: Tokenizer, data: st.DataObject, cuts: list[int], stops: list[str], stream: bool, standalone: bool
) -> None:
    """In any steps, for characters and stop strings that span tokens, with a stop token or without."""
    ids = data.draw(some_tokens(tokenizer, LETTERS))
    has_stop_token = data.draw(st.booleans())
    of_text: dict[str, Any] = {"stop": stops, "prompt_token_ids": [] if standalone else tokenizer.encode("the")}

    def read(steps: list[int], stream: bool) -> tuple[Read, str]:
        looking: SequenceText[TokenLogprob] = SequenceText(tokenizer, **of_text)
        making: SequenceText[pb.TokenLogprob] = SequenceText(tokenizer, logprobs=True, **of_text)
        builder = ResponseBuilder(1, 1, texts=[looking], stream=stream)
        by_gateway = read_by_the_gateway(
            through_the_engine(builder, chunks(ids, steps, has_stop_token=has_stop_token)), making
        )
        telling: SequenceText[TokenLogprob] = SequenceText(tokenizer, **of_text)
        builder = ResponseBuilder(1, 1, texts=[telling], return_text=True, stream=stream)
        told = through_the_engine(builder, chunks(ids, steps, has_stop_token=has_stop_token))
        return by_gateway, "".join(output.text for response in told for output in response.outputs)

    whole, text = read([], stream=False)
    assert text == whole.text
    assert read(cuts, stream) == (whole, text)
    assert not any(stop in text for stop in stops)
