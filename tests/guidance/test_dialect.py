"""One dialect of regexes, Rust's: what a request's grammar accepts is what Python's `re` and outlines-core accept."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from briton.guidance.compiler import GuideCompiler
from briton.guidance.grammar import GrammarCompiler
from briton.guidance.guide import Guide, GuideSpec
from briton.guidance.limits import GuideLimits
from briton.guidance.pattern import choice_pattern
from tests.guidance.conftest import table_compiler, words_of
from tests.guidance.vocabularies import TestVocabulary
from tests.guidance.walks import random_walk

# Rust's own: classes, set operations, flags, escapes, laziness, repetition of what may be empty.
RUST = [
    *(
        r"\d{1,3}",
        r"\w+",
        r"\s\S",
        r"\D\W",
        r"[\d\-x]+",
        r"\pL+",
        r"\p{Lu}\p{Ll}*",
        r"\P{L}+",
        r"\p{Greek}+",
        r"[^\p{L}]",
    ),
    *(
        "[[:alpha:]]+",
        "[[:^digit:]]{2}",
        "[a-z&&[^aeiou]]+",
        "[a-z--[aeiou]]+",
        "[a-c~~b-d]+",
        "[]a]+",
        "[^]a]",
        r"[\]\[]",
    ),
    *("(?i)straße", "(?i)k+", "(?i:ab)c", "(?s).", ".", "(?s).{2}", "(?x)a b # c\n c", "(?U)a+b", "(?-i)a", "(?i)ΣΑΣ"),
    *(
        r"\x41\x{e9}",
        r"\u00e9|\U0001F600",
        r"\t\n\r\f\v\a",
        r"\.\*\+\?\(\)\[\]\{\}\|\^\$\\",
        r"a\/b",
        "a/b",
        "//",
        r"\-\_\#",
    ),
    *(
        "a*?b",
        "a+?",
        "a??b",
        "(a*)*b",
        "(a|b|)+c",
        "(?:|a)b",
        "a{2}",
        "a{2,}",
        "a{2,3}?",
        "a{0}b",
        "(a{2}){2}",
        "a{0,2}b{0,2}",
    ),
    *(
        "(?P<name>a)b",
        "(?<name>a)b",
        "()",
        "a||b",
        "^abc$",
        "^a$|^b$",
        "x|y|^z",
        "(?i)^é$",
        "猫+|犬",
        "😀{1,2}",
        "a\nb",
        "\x07",
    ),
]
LETTERS = "aAbBcdxyzkKſsSéÉßσΣς猫犬😀 019_-\n\t\r/#.*+?()[]{}|^$\\\x07\x0b\x0c"


def accepts(guide: Guide, vocabulary: TestVocabulary, text: str) -> bool:
    guide = guide.copy()
    return guide.advance(vocabulary.tokens_of(text)) and guide.advance([vocabulary.stop_token_ids[0]])


def _texts(seeds: list[str], rng: random.Random, count: int) -> list[str]:
    """What was written under a guide, the same with a letter dropped, changed or added, and others at random."""
    texts = {"", *seeds}
    for _ in range(count):
        letters = list(rng.choice(seeds)) if seeds and rng.random() < 0.7 else rng.choices(LETTERS, k=rng.randrange(5))
        at = rng.randrange(len(letters) + 1)
        letters[at : at + rng.randrange(2)] = rng.choices(LETTERS, k=rng.randrange(2))
        texts.add("".join(letters))
    return sorted(texts)


@pytest.mark.parametrize("pattern", RUST)
async def test_it_accepts_what_the_tables_accept(
    compiler: GuideCompiler, vocabulary: TestVocabulary, pattern: str
) -> None:
    """Tables are outlines-core's, made by Rust's own regex crate."""
    spec, rng = GuideSpec("regex", pattern), random.Random(pattern)
    grammar, tables = await compiler.compile(spec), await table_compiler(vocabulary)(spec)
    walks = [random_walk(guide.copy(), vocabulary, rng, max_tokens=30) for guide in (grammar, tables) for _ in range(8)]
    written = [walk for walk in walks if walk is not None]
    assert written
    for text in _texts(written, rng, 150):
        assert accepts(grammar, vocabulary, text) == accepts(tables, vocabulary, text), text
    assert all(accepts(grammar, vocabulary, text) for text in written)


ATOMS = st.sampled_from(["a", "b", "c", "ab", ".", "[ab]", "[^a]", "(?:b|ca)", "é", r"\.", r"\d", "(?:)"])
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "+?", "{2}", "{1,2}", "{0,3}?"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def grammars(vocabulary: TestVocabulary) -> GrammarCompiler:
    return GrammarCompiler(words_of(vocabulary), GuideLimits())


@given(pattern=PATTERNS, texts=st.lists(st.text("abcé.1\n", max_size=6), min_size=20, max_size=20))
@settings(max_examples=150, deadline=None)
def test_it_accepts_what_python_matches(
    grammars: GrammarCompiler, vocabulary: TestVocabulary, pattern: str, texts: list[str]
) -> None:
    guide = grammars.compile_regex(pattern, "guided_regex")
    for text in ["", *texts]:
        assert accepts(guide, vocabulary, text) == bool(re.fullmatch(pattern, text)), text


@given(choices=st.lists(st.text(LETTERS, min_size=1, max_size=5), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_a_choice_is_literal(grammars: GrammarCompiler, vocabulary: TestVocabulary, choices: list[str]) -> None:
    guide = grammars.compile_regex(choice_pattern(choices, GuideLimits()), "guided_choice")
    for choice in choices:
        for text in (choice, choice + "a", choice[:-1], choice.swapcase()):
            assert accepts(guide, vocabulary, text) == (text in choices), text
