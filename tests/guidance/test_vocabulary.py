"""Canonical tokens of a text, whatever the tokenizer puts around it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from briton.guidance.vocabulary import Vocabulary
from tests.guidance.vocabularies import TestVocabulary


def new_vocabulary(source: TestVocabulary, **overrides: Any) -> Vocabulary:
    arguments = {"vocab_size": source.vocab_size, "stop_token_ids": source.stop_token_ids, "encode": source.encode}
    return Vocabulary(source.token_bytes, **{**arguments, **overrides})


@pytest.mark.parametrize(
    "text", ["category", " category", '"name": "Ada"', "  two", "\n", "naïve 猫", "<|im_end|>", "<0x41>", ""]
)
def test_the_tokens_of_a_text_spell_it(vocabulary: TestVocabulary, text: str) -> None:
    known = new_vocabulary(vocabulary)
    assert known.spell(known.tokenize(text)) == text.encode()


def test_a_dummy_prefix_is_no_part_of_the_tokens(sentencepiece: TestVocabulary) -> None:
    known = new_vocabulary(sentencepiece)
    assert sentencepiece.encode("category") == known.tokenize(" category")
    assert known.spell(known.tokenize("category")) == b"category"
    assert len(known.tokenize("category")) < len("category")


def test_a_tokenizer_that_fails_gives_longest_matches(
    byte_level: TestVocabulary, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(text: str) -> list[int]:
        raise RuntimeError("no")

    known = new_vocabulary(byte_level, encode=fail)
    assert known.spell(known.tokenize("category")) == b"category"
    assert len(known.tokenize("category")) < 8
    assert "the tokenizer failed on 'category'" in caplog.text


def test_what_cannot_be_spelled_has_no_tokens() -> None:
    known = Vocabulary([b"a", b"b", None], vocab_size=3, stop_token_ids=(2,), encode=lambda text: [7])
    assert known.tokenize("ab") == [0, 1]
    assert known.tokenize("abc") == []


def test_stop_ids_empty_tokens_and_ids_past_the_tokenizer_are_no_text() -> None:
    known = Vocabulary([b"a", b"\n", b"", None], vocab_size=6, stop_token_ids=(1, 1), encode=lambda text: [])
    assert known.token_bytes == (b"a", None, None, None, None, None)
    assert known.stop_token_ids == (1,)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"stop_token_ids": (0, 4)}, r"stop_token_ids \(0, 4\) are outside the vocabulary of 3"),
        ({"vocab_size": 1}, "has 2 entries"),
    ],
)
def test_ids_outside_the_vocabulary_are_a_mistake(overrides: Any, message: str) -> None:
    arguments = {"vocab_size": 3, "stop_token_ids": (0,), "encode": lambda text: []}
    with pytest.raises(ValueError, match=message):
        Vocabulary([b"a", b"b"], **{**arguments, **overrides})


@pytest.mark.parametrize(
    ("tokens", "spelled", "unspelled"),
    [
        ([bytes([b]) for b in range(256)], "a\x00é猫😀\U0010ffff", ""),
        ([bytes([b]) for b in range(256) if b not in (0x04, 0xF1)], "aé猫😀", "\x04\U00040000\U0007ffff"),
        ([bytes([b]) for b in range(256) if b != 0xA9] + [b"caf\xc3\xa9"], "aéè", "ũ"),
        ([b"a", b"red"], "ared", "bB\n猫"),
    ],
)
def test_characters_that_no_token_spells(tokens: list[bytes], spelled: str, unspelled: str) -> None:
    vocabulary = Vocabulary(tokens, vocab_size=300, stop_token_ids=[299], encode=lambda text: [])
    ranges = re.sub(r"\\x\{(\w+)\}", lambda found: f"\\U{found[1]:0>8}", vocabulary.unspellable)
    for character in spelled:
        assert vocabulary.can_spell(character)
        assert not ranges or not re.match(f"[{ranges}]", character)
    for character in unspelled:
        assert not vocabulary.can_spell("a" + character)
        assert re.match(f"[{ranges}]", character)


def test_of_a_long_text_the_beginning_is_tokenized() -> None:
    asked: list[int] = []

    def encode(text: str) -> list[int]:
        asked.append(len(text))
        return list(text.encode())

    vocabulary = Vocabulary([bytes([b]) for b in range(256)], vocab_size=257, stop_token_ids=[256], encode=encode)
    text = "é" * 100_000
    token_ids = vocabulary.tokenize(text)
    assert 512 <= len(token_ids) < 1024
    assert text.encode().startswith(vocabulary.spell(token_ids) or b"!")
    assert max(asked) == 512
