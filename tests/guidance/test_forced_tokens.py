"""Forced tokens are what comes: masked argmax of random logits gives them, whatever the schema or the pattern."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from briton.guidance.automaton import Automaton, AutomatonGuide
from briton.guidance.grammar import GrammarCompiler
from briton.guidance.guide import Guide
from briton.guidance.limits import GuideLimits
from briton.guidance.pattern import choice_pattern
from briton.guidance.regex_index import RegexIndexer
from briton.guidance.vocabulary import Vocabulary
from tests.guidance.vocabularies import TestVocabulary

NAMES = st.sampled_from(
    ["name", "age", "category", "city", "items", "the lazy dog", "naïve", "id", "is_free", "a", "猫"]
)
SCALARS = st.one_of(
    st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 6)),
    st.sampled_from([{"type": "integer"}, {"type": "boolean"}, {"type": "null"}, {"type": "number"}]),
    st.builds(lambda values: {"enum": values}, st.lists(NAMES, min_size=1, max_size=4, unique=True)),
    st.builds(lambda value: {"const": value}, st.one_of(NAMES, st.integers(-50, 50), st.booleans())),
    st.just({"type": "string", "pattern": "[A-Z]{2}-category-[0-9]{3}"}),
)


def _objects(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(
        lambda properties, required: {
            "type": "object",
            "properties": properties,
            "required": list(properties)[:required],
            "additionalProperties": False,
        },
        st.dictionaries(NAMES, values, min_size=1, max_size=4),
        st.integers(0, 4),
    )


SCHEMAS = st.recursive(
    SCALARS,
    lambda values: st.one_of(
        _objects(values),
        st.builds(lambda items, n: {"type": "array", "items": items, "maxItems": n}, values, st.integers(1, 3)),
    ),
    max_leaves=6,
)
LITERALS = st.sampled_from(
    ["The quick brown fox", "category", "cat", "é猫", " ", "over the lazy dog", "2024-01-31", "a"]
)
PATTERNS = st.recursive(
    st.one_of(LITERALS, st.sampled_from(["[0-9]", "[a-z]{1,3}", "[^\n]"])),
    lambda parts: st.one_of(
        st.builds("".join, st.lists(parts, min_size=2, max_size=3)),
        st.builds(lambda a, b: f"({a}|{b})", parts, parts),
        st.builds(lambda a: f"({a})?", parts),
    ),
    max_leaves=5,
)


@pytest.fixture(scope="session")
def words(vocabulary: TestVocabulary) -> Vocabulary:
    return Vocabulary(
        vocabulary.token_bytes,
        vocab_size=vocabulary.vocab_size,
        stop_token_ids=vocabulary.stop_token_ids,
        encode=vocabulary.encode,
    )


@pytest.fixture(scope="session")
def grammars(words: Vocabulary) -> GrammarCompiler:
    return GrammarCompiler(words, GuideLimits())


@pytest.fixture(scope="session")
def regexes(words: Vocabulary) -> RegexIndexer:
    return RegexIndexer(words.token_bytes, words.stop_token_ids, GuideLimits().max_guide_bytes)


@given(schema=SCHEMAS, seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_of_a_schema(grammars: GrammarCompiler, vocabulary: TestVocabulary, schema: Any, seed: int) -> None:
    check_walk(grammars.compile(schema), vocabulary, seed)


@given(pattern=PATTERNS, seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_of_a_pattern(
    regexes: RegexIndexer, words: Vocabulary, vocabulary: TestVocabulary, pattern: str, seed: int
) -> None:
    check_walk(AutomatonGuide(Automaton(regexes.compile(pattern), words)), vocabulary, seed)


@given(pattern=PATTERNS, seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_of_a_pattern_as_a_grammar(
    grammars: GrammarCompiler, vocabulary: TestVocabulary, pattern: str, seed: int
) -> None:
    check_walk(grammars.compile_regex(pattern, "guided_regex"), vocabulary, seed)


@pytest.mark.parametrize("period", ["the lazy dog ", "x", "é猫"])
def test_a_long_text_is_forced_piece_by_piece(
    grammars: GrammarCompiler, vocabulary: TestVocabulary, period: str
) -> None:
    """All that is forced was tokenized again for every token of it: 230 ms each in a choice of 64 KiB."""
    text = (period * 4000)[:4000]
    guide = grammars.compile_regex(choice_pattern((text,), GuideLimits()), "guided_choice")
    written: list[int] = []
    while forced := guide.forced_tokens():
        assert vocabulary.allowed(guide) == forced[:1]
        assert guide.advance(forced)
        written += forced
    assert vocabulary.spell(written).decode() == text
    assert guide.is_terminated()


@given(choices=st.lists(st.builds("".join, st.lists(LITERALS, min_size=1, max_size=4)), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_of_a_choice(regexes: RegexIndexer, words: Vocabulary, vocabulary: TestVocabulary, choices: Any) -> None:
    pattern = choice_pattern(choices, GuideLimits())
    num_forced = check_walk(AutomatonGuide(Automaton(regexes.compile(pattern), words)), vocabulary, 1)
    assert num_forced or len(set(choices)) > 1


def check_walk(guide: Guide, vocabulary: TestVocabulary, seed: int, max_tokens: int = 80) -> int:
    """Follow the masks by random logits; the number of forced tokens that came."""
    rng = random.Random(seed)
    expected: list[int] = []
    num_forced = 0
    for _ in range(max_tokens):
        forced = guide.forced_tokens()
        assert forced[: len(expected)] == expected, "what was forced is no longer"
        allowed = vocabulary.allowed(guide)
        logits = np.random.default_rng(rng.getrandbits(32)).normal(0, 1, vocabulary.vocab_size)
        token_id = max(allowed, key=logits.__getitem__)
        if forced:
            assert allowed == forced[:1]
            num_forced += 1
        expected = forced[1:]
        assert guide.advance([token_id])
        if guide.is_terminated():
            assert not expected
            assert guide.forced_tokens() == []
            break
    return num_forced


def test_copies_in_several_threads_force_the_same(
    regexes: RegexIndexer, words: Vocabulary, vocabulary: TestVocabulary
) -> None:
    """What is forced is found once for all copies, whoever asks first."""
    template = AutomatonGuide(
        Automaton(regexes.compile("(the lazy dog and ){1,9}(cat|category) 2024-01-31 naïve"), words)
    )

    def walk(seed: int) -> list[list[int]]:
        guide, rng, seen = template.copy(), random.Random(seed), []
        while not guide.is_terminated():
            seen.append(guide.forced_tokens())
            assert guide.advance([rng.choice(vocabulary.allowed(guide))])
        return seen

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(walk, [seed // 2 for seed in range(32)]))
    assert together == [walk(seed // 2) for seed in range(32)]
