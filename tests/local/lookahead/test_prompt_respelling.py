"""Words of a text, found by how they begin, and spelled as they are where no space comes before."""

from __future__ import annotations

import pytest

from briton.guidance.vocabulary import Vocabulary
from briton.local.lookahead import prompt_respelling as module
from briton.local.lookahead.prompt_respelling import PromptRespelling
from tests.guidance import vocabularies

NAMES = {"byte_level": vocabularies.byte_level(), "sentencepiece": vocabularies.sentencepiece()}


@pytest.fixture(params=NAMES)
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    words = NAMES[request.param]
    return Vocabulary(
        words.token_bytes, vocab_size=words.vocab_size, stop_token_ids=words.stop_token_ids, encode=words.encode
    )


def following(vocabulary: Vocabulary, text: str, beginning: str, limit: int = 8) -> str:
    """The text that follows a beginning, which is spelled as it would be in full."""
    said = vocabulary.tokenize(beginning)
    found = PromptRespelling(vocabulary, vocabulary.tokenize(text)).continuation(said, limit)
    return (vocabulary.spell(found) or b"").decode()


def test_a_word_goes_on_as_it_would_be_spelled_alone(vocabulary: Vocabulary) -> None:
    text = "The train from Lovelace to Zürich leaves at ten."
    whole = vocabulary.tokenize("Lovelace to Zürich")
    respelling = PromptRespelling(vocabulary, vocabulary.tokenize(text))
    for cut in range(1, len(whole)):
        found = respelling.continuation(whole[:cut], 3)
        assert found
        assert found[: len(whole) - cut] == whole[cut : cut + len(found)]


def test_the_last_place_counts(vocabulary: Vocabulary) -> None:
    text = "a green cat, then a green dog. the end"
    assert following(vocabulary, text, "green").startswith(" dog.")


def test_only_what_stands_behind_a_space_is_found(vocabulary: Vocabulary) -> None:
    assert following(vocabulary, "(green fox) (green dog)\n", "green") == ""
    assert following(vocabulary, "evergreen fox\n", "green") == ""


def test_a_line_ends_it_and_no_word_is_cut() -> None:
    words = NAMES["byte_level"]
    vocabulary = Vocabulary(words.token_bytes, vocab_size=words.vocab_size, stop_token_ids=(0,), encode=words.encode)
    assert following(vocabulary, "the quick brown\nfox jumps over", "quick") == " brown"
    for limit in range(1, 6):
        found = following(vocabulary, "the quick brown fox jumps over the lazy dog and is gone", "quick", limit)
        assert " brown fox jumps over the lazy dog and is gone ".startswith(found + " ")


def test_what_is_not_there_is_not_continued(vocabulary: Vocabulary) -> None:
    respelling = PromptRespelling(vocabulary, vocabulary.tokenize("the quick brown fox"))
    assert respelling.continuation([], 8) == []
    assert respelling.continuation(vocabulary.tokenize("slow"), 8) == []
    assert respelling.continuation([vocabulary.vocab_size - 1], 8) == [], "a token that is no text"
    assert respelling.continuation([10**9, -1], 8) == []
    assert PromptRespelling(vocabulary, []).continuation(vocabulary.tokenize("the"), 8) == []


def test_control_tokens_end_a_line() -> None:
    words = NAMES["byte_level"]
    vocabulary = Vocabulary(words.token_bytes, vocab_size=words.vocab_size, stop_token_ids=(0,), encode=words.encode)
    prompt = [*words.encode("say green"), 2, *words.encode(" dog")]
    assert PromptRespelling(vocabulary, prompt).continuation(words.encode("green"), 8) == []


def test_of_a_long_text_the_end_is_searched(monkeypatch: pytest.MonkeyPatch, vocabulary: Vocabulary) -> None:
    monkeypatch.setattr(module, "_MAX_TOKENS", 12)
    text = "a green fox " + "and then " * 20
    assert following(vocabulary, text, "green") == ""
    assert following(vocabulary, text, "and").startswith(" then")


def test_a_beginning_that_would_be_another_token_is_left_alone() -> None:
    """Half a character, where the whole is one token."""
    words = NAMES["byte_level"]
    vocabulary = Vocabulary(words.token_bytes, vocab_size=words.vocab_size, stop_token_ids=(0,), encode=words.encode)
    assert len(words.encode("é")) == 1
    half = words.token_bytes.index("é".encode()[:1])
    assert PromptRespelling(vocabulary, words.encode("au é ou")).continuation([half], 8) == []
