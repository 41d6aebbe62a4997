"""SequenceText: tokens in any steps, text out, stop strings and log probabilities in step with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from briton.errors import InvalidRequest
from briton.text.sequence_text import PlacedLogprob, SequenceText, TextDelta
from briton.text.tokenizer import Tokenizer
from tests.text.small_tokenizers import (
    byte_level,
    byte_level_in_disguise,
    metaspace,
    sentencepiece,
    some_tokens,
    word_piece,
)

LETTERS = "abé🌍日 the"
_CASES = settings(max_examples=200, deadline=None)
_TEXTS = st.text(alphabet=LETTERS, max_size=12)
_STOPS = st.lists(st.text(alphabet=LETTERS, min_size=1, max_size=4), max_size=3)
_CUTS = st.lists(st.integers(1, 4), max_size=24)

BYTES = byte_level()  # every byte is a token, some words are
STOP_TOKEN = BYTES.encode("<|end|>")[0]
TOKENIZERS = [BYTES, sentencepiece(), metaspace(), word_piece(), byte_level_in_disguise()]
KINDS = ["byte_level", "sentencepiece", "metaspace", "word_piece", "window"]


class Whole(NamedTuple):
    """All deltas of one sequence, joined."""

    text: str
    logprobs: list[PlacedLogprob[int]]
    num_tokens: int
    stopped: bool


def run(sequence: SequenceText[int], ids: Sequence[int], cuts: Sequence[int], *, has_stop_token: bool = False) -> Whole:
    """The sequence's tokens in steps of these sizes, up to its end. A token's log probabilities are its id."""
    text, logprobs, num_tokens, rest = "", list[PlacedLogprob[int]](), 0, list(ids)
    stopped = False
    for size in [*cuts, len(ids) + 1]:
        step, rest = rest[:size], rest[size:]
        delta = sequence.push(step, step, ends=not rest, has_stop_token=has_stop_token and not rest)
        text += delta.text
        assert all(entry.start < len(text) for entry in delta.logprobs) or sequence.ended, "with its text, not before"
        logprobs += delta.logprobs
        num_tokens += delta.num_tokens
        stopped |= delta.stopped
        if sequence.ended:
            break
    assert sequence.num_tokens == num_tokens
    return Whole(text, logprobs, num_tokens, stopped)


def tokens_of(text: str) -> list[int]:
    """A byte a token."""
    return [i for byte in text.encode() for i in _byte(byte)]


def _byte(byte: int) -> list[int]:
    assert BYTES.table is not None
    return [BYTES.table.bytes_of.index(bytes([byte]))]


@given(text=_TEXTS, cuts=_CUTS, stops=_STOPS)
@_CASES
def test_text_up_to_the_first_stop(text: str, cuts: list[int], stops: list[str]) -> None:
    """Against a naive reading of the whole text: every stop spans tokens, as every character is one or several."""
    sequence: SequenceText[int] = SequenceText(BYTES, stop=stops, logprobs=True)
    whole = run(sequence, [*tokens_of(text), STOP_TOKEN], cuts, has_stop_token=True)
    ends = sorted((text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in text)
    if ends:
        end, length = ends[0]
        assert whole.text == text[: end + length]
        assert (whole.num_tokens, whole.stopped) == (len(text[:end].encode()), True)
    else:
        assert whole.text == text
        assert (whole.num_tokens, whole.stopped) == (len(text.encode()) + 1, False), "the stop token counts"
    assert [entry.logprob for entry in whole.logprobs] == tokens_of(whole.text), "exactly the text's tokens"
    assert [entry.start for entry in whole.logprobs] == [
        place for place, character in enumerate(whole.text) for _ in character.encode()
    ]


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=KINDS)
@given(data=st.data(), cuts=_CUTS, stops=_STOPS, has_stop_token=st.booleans(), with_prompt=st.booleans())
@_CASES
def test_any_steps_give_what_one_step_gives(
    tokenizer: Tokenizer,
    data: st.DataObject,
    cuts: list[int],
    stops: list[str],
    has_stop_token: bool,
    with_prompt: bool,
) -> None:
    """Any tokens, control tokens and broken characters among them: text, log probabilities, count and reason."""
    ids = data.draw(some_tokens(tokenizer, LETTERS))
    prompt = tokenizer.encode("the cat") if with_prompt else []

    def answer(steps: list[int]) -> Whole:
        sequence: SequenceText[int] = SequenceText(tokenizer, stop=stops, logprobs=True, prompt_token_ids=prompt)
        return run(sequence, ids, steps, has_stop_token=has_stop_token)

    assert answer(cuts) == answer([])
    assert not any(stop in answer([]).text for stop in stops)


@given(ids=st.lists(st.integers(0, BYTES.vocab_size - 1), min_size=1, max_size=16), cuts=_CUTS)
@_CASES
def test_without_stops_and_log_probabilities_the_text_is_the_same(ids: list[int], cuts: list[int]) -> None:
    """Steps are decoded whole then, not token by token."""
    fast, careful = SequenceText[int](BYTES), SequenceText[int](BYTES, stop=["never seen"], logprobs=True)
    assert run(fast, ids, cuts).text == run(careful, ids, cuts).text == BYTES.decode(ids)


def test_a_beginning_of_a_stop_is_held_back_until_it_is_none() -> None:
    sequence: SequenceText[int] = SequenceText(BYTES, stop=["the end"], logprobs=True)
    ids = tokens_of("then")
    assert sequence.push(ids[:3], ids[:3]) == TextDelta("", [], 3, False)
    told = sequence.push(ids[3:], ids[3:])
    assert (told.text, [entry.start for entry in told.logprobs]) == ("then", [0, 1, 2, 3])


def test_a_stop_in_the_replacement_of_half_a_character() -> None:
    """Only the end of the sequence shows that the character will not be whole; the stop token counts all the same."""
    sequence: SequenceText[int] = SequenceText(BYTES, stop=["\N{REPLACEMENT CHARACTER}"])
    ids = [*tokens_of("aé")[:2], STOP_TOKEN]
    assert sequence.push(ids, ends=True, has_stop_token=True) == TextDelta("a", [], 3, True)


def test_nothing_comes_after_the_end() -> None:
    sequence: SequenceText[int] = SequenceText(BYTES, stop=["b"])
    assert sequence.push(tokens_of("ab")) == TextDelta("a", [], 2, True)
    assert sequence.push(tokens_of("cd"), ends=True) == TextDelta("", (), 0, False)
    assert sequence.num_tokens == 2


def test_a_continued_prompt_keeps_the_space_between() -> None:
    """Sentencepiece drops the space before the first word of a text; a continuation's first word is not that."""
    tokenizer = sentencepiece()
    ids = tokenizer.encode(" the")
    alone = SequenceText[int](tokenizer).push(ids, ends=True).text
    continued = SequenceText[int](tokenizer, prompt_token_ids=tokenizer.encode("a")).push(ids, ends=True).text
    assert continued == " " + alone


def test_limits_name_the_field() -> None:
    with pytest.raises(InvalidRequest, match=r"stop\[0\] must be of 1 to 1000 characters") as caught:
        SequenceText[int](BYTES, stop=[""])
    assert caught.value.field == "stop[0]"
