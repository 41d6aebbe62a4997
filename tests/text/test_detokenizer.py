"""The incremental detokenizer against `decode`, on every kind of tokenizer and every way of cutting."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from briton.text.detokenizer import IncrementalDetokenizer
from briton.text.tokenizer import Tokenizer
from tests.text import small_tokenizers as small

TOKENIZERS = {
    "byte_level": small.byte_level(),
    "sentencepiece": small.sentencepiece(),
    "sentencepiece without prefix": small.sentencepiece(space_prefix=False),
    "metaspace": small.metaspace(),
    "word_piece": small.word_piece(),
    "byte-level by the window": small.byte_level_in_disguise(),
}
every_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS.keys())


def cut(ids: list[int], cuts: list[int]) -> list[list[int]]:
    """`ids` in pieces of these sizes, the rest one by one."""
    pieces, start = [], 0
    for size in cuts:
        pieces.append(ids[start : start + size])
        start += size
    return [*pieces, *([i] for i in ids[start:])]


def run(detokenizer: IncrementalDetokenizer, pieces: list[list[int]]) -> str:
    text = "".join(detokenizer.push(piece) for piece in pieces) + detokenizer.flush()
    assert detokenizer.flush() == ""
    return text


@every_tokenizer
@given(data=st.data())
def test_pushes_and_flush_are_decode(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """On any ids: control tokens, bytes that are no UTF-8, ids that no token has."""
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=60))
    pieces = cut(ids, data.draw(st.lists(st.integers(0, 5))))
    assert run(IncrementalDetokenizer(tokenizer), pieces) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece", "sentencepiece without prefix"])
@given(text=st.text(), cuts=st.lists(st.integers(0, 5)))
def test_text_comes_back_in_whole_characters(name: str, text: str, cuts: list[int]) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text)
    detokenizer = IncrementalDetokenizer(tokenizer)
    seen = ""
    for piece in cut(ids, cuts):
        seen += detokenizer.push(piece)
        assert text.startswith(seen)  # never half a character, never a stand-in for one
    assert seen == text  # valid UTF-8 leaves nothing to the flush
    assert detokenizer.flush() == ""


@every_tokenizer
@given(data=st.data())
def test_continuing_a_prompt(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Prompt and output together are what decode makes of both: the space before the first output token stays."""
    token = st.sampled_from([i for i in range(tokenizer.vocab_size) if is_text(tokenizer, i)])
    prompt = data.draw(st.lists(token, min_size=1, max_size=20))
    output = data.draw(st.lists(token, max_size=20))
    text = run(IncrementalDetokenizer(tokenizer, prompt_token_ids=prompt), [[i] for i in output])
    whole = tokenizer.decode(prompt + output)
    if not tokenizer.decode(prompt):  # the prompt was nothing but the space that is dropped
        whole = whole.rjust(len(text))
    assert tokenizer.decode(prompt) + text == whole


def is_text(tokenizer: Tokenizer, token_id: int) -> bool:
    content = tokenizer.token_bytes(token_id)
    return "\ufffd" not in content.decode("utf-8", "replace") and token_id not in tokenizer.special_token_ids


def test_a_character_over_several_tokens() -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    detokenizer = IncrementalDetokenizer(tokenizer)
    ids = tokenizer.encode("a🎉")
    assert len(ids) == 6
    assert [detokenizer.push([i]) for i in ids] == ["", "a", "", "", "", "🎉"]


def test_an_unfinished_character_ends_as_one_replacement() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert detokenizer.push(tokenizer.encode("🎊")[:1]) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.push(tokenizer.encode("the")) == "the"


def test_a_broken_character_does_not_hold_back_what_follows() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert detokenizer.push(tokenizer.encode("🎊")[:1]) == ""
    assert detokenizer.push(tokenizer.encode("the")) == "\ufffdthe"


@pytest.mark.timing
def test_without_bytes_replacement_characters_are_held_back_only_while_they_may_change() -> None:
    """A model that goes on and on with bytes that are no text: nothing grows, and the end is complete."""
    tokenizer = small.byte_level_in_disguise()
    assert tokenizer.table is None
    (stray,) = (i for i in range(256) if tokenizer.backend.decode([i]) == "\ufffd" and small_byte(tokenizer, i) == 0xFF)
    detokenizer = IncrementalDetokenizer(tokenizer)
    started = time.perf_counter()
    seen = "".join(detokenizer.push([stray]) for _ in range(5_000))
    assert (time.perf_counter() - started) / 5_000 < 500e-6  # seconds
    assert len(seen) == 5_000 - 4
    assert seen + detokenizer.flush() == "\ufffd" * 5_000


def small_byte(tokenizer: Tokenizer, token_id: int) -> int:
    table = TOKENIZERS["byte_level"].table
    assert table is not None
    return table.bytes_of[token_id][0]


@pytest.mark.timing
@pytest.mark.parametrize("name", ["byte_level", "sentencepiece", "word_piece"])
def test_the_cost_of_a_token_does_not_grow(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode("the cat ") * 5_000
    detokenizer = IncrementalDetokenizer(tokenizer)
    started = time.perf_counter()
    for token_id in ids:
        detokenizer.push([token_id])
    assert (time.perf_counter() - started) / len(ids) < 100e-6  # seconds; seen: 1 us by bytes, 15 us by the window
