"""SequenceText: tokens in any steps, text out, stop strings and log probabilities in step with it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from briton.text.tokenizer import Tokenizer
from briton.v1 import engine_pb2 as pb
from briton_server.sequence_text import SequenceText
from tests.fake_executor import IM_END
from tests.text.small_tokenizers import sentencepiece

_CASES = settings(max_examples=200, deadline=None)
_TEXTS = st.text(alphabet="abé🌍 ", max_size=12)


def outputs(data: bytes, cuts: list[int], *, logprobs: bool, end: bool = True) -> list[pb.SequenceOutput]:
    """The bytes as tokens, cut into steps, with a stop token at the end."""
    ids = [*data, IM_END]
    steps, rest = [], ids
    for cut in cuts:
        steps.append(rest[:cut])
        rest = rest[cut:]
    steps = [step for step in (*steps, rest) if step]
    made = [
        pb.SequenceOutput(
            token_ids=step, logprobs=[pb.TokenLogprob(token_id=i, logprob=-1) for i in step] if logprobs else []
        )
        for step in steps
    ]
    made[-1].finish_reason = pb.FINISH_REASON_STOP
    made[-1].stop_token_id = IM_END
    return made


@given(text=_TEXTS, cuts=st.lists(st.integers(1, 4), max_size=20), stops=st.lists(_TEXTS.filter(bool), max_size=3))
@_CASES
def test_text_up_to_the_first_stop(tokenizer: Tokenizer, text: str, cuts: list[int], stops: list[str]) -> None:
    sequence = SequenceText(tokenizer, stop=stops, logprobs=True)
    told, finishes, used = "", [], []
    for output in outputs(text.encode(), cuts, logprobs=True):
        delta = sequence.push(output)
        told += delta.text
        used += [entry.logprob.token_id for entry in delta.logprobs]
        assert all(entry.start < len(told) for entry in delta.logprobs)
        finishes += [delta.finish_reason] if delta.finish_reason else []
    ends = sorted((text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in text)
    if ends:
        end, length = ends[0]
        assert told == text[: end + length]
        assert sequence.num_tokens == len(text[:end].encode())
    else:
        assert told == text
        assert sequence.num_tokens == len(text.encode()) + 1
    assert finishes == ["stop"]
    assert bytes(used) == told.encode(), "the entries are exactly the text's tokens"


@given(data=st.binary(max_size=16), cuts=st.lists(st.integers(1, 4), max_size=20))
@_CASES
def test_any_bytes_give_the_same_text_in_any_steps(tokenizer: Tokenizer, data: bytes, cuts: list[int]) -> None:
    fast, careful = SequenceText(tokenizer), SequenceText(tokenizer, stop=["never seen"], logprobs=True)
    for sequence, logprobs in ((fast, False), (careful, True)):
        told = "".join(sequence.push(output).text for output in outputs(data, cuts, logprobs=logprobs))
        assert told == data.decode("utf-8", "replace")


def test_nothing_comes_after_the_end(tokenizer: Tokenizer) -> None:
    sequence = SequenceText(tokenizer, stop=["b"])
    assert sequence.push(pb.SequenceOutput(token_ids=list(b"ab"))) == ("a", [], "stop")
    assert sequence.push(pb.SequenceOutput(token_ids=list(b"cd"))) == ("", (), None)
    assert sequence.num_tokens == 2


def test_a_continued_prompt_keeps_the_space_between() -> None:
    """Sentencepiece drops the space before the first word of a text; a continuation's first word is not that."""
    tokenizer = sentencepiece()
    ids = tokenizer.encode(" word")
    output = pb.SequenceOutput(token_ids=ids, finish_reason=pb.FINISH_REASON_LENGTH)
    alone = SequenceText(tokenizer).push(output).text
    continued = SequenceText(tokenizer, prompt_token_ids=tokenizer.encode("a")).push(output).text
    assert continued == " " + alone
