"""Regex and choice: the automaton accepts exactly what the whole pattern matches."""

from __future__ import annotations

import itertools
import random
import re
from typing import Any

import pytest

from briton.guidance.automaton import AutomatonGuide
from briton.guidance.compiler import GuideCompiler
from briton.guidance.guide import GuideSpec
from tests.guidance.vocabularies import TestVocabulary
from tests.guidance.walks import random_walk

PATTERNS = [
    r"[0-9]+(\.[0-9]+)?",
    "(cat|category)",
    "cat|category|cats?",
    r"[a-zé_0-9]+@[A-Z]{2}\.(com|org)",
    "a*",
    "(ab|a)(c|bcd)(d*)",
    "a*?b",
    "(?i)straße",
    "[^a]{3}",
    ".{0,10}",
    r"(?s)x.{0,5}y",
    "é+猫?",
    r"\p{Lu}\p{Ll}{2,4}",
    "[A-Z][a-z]{2,10} [0-9]{4}-[0-9]{2}",
]


@pytest.mark.parametrize("pattern", PATTERNS)
async def test_every_walk_matches_the_whole_pattern(
    compiler: GuideCompiler, vocabulary: TestVocabulary, pattern: str
) -> None:
    template = await compiler.compile(GuideSpec("regex", pattern))
    rng = random.Random(pattern)
    texts = [random_walk(template.copy(), vocabulary, rng, max_tokens=60) for _ in range(20)]
    finished = [t for t in texts if t is not None]
    assert len(finished) >= 15
    known_to_python = pattern.replace(r"\p{Lu}", "[^\\W\\d_a-z]").replace(r"\p{Ll}", "[^\\W\\d_A-Z]")
    assert all(re.fullmatch(known_to_python, t) for t in finished), finished


@pytest.mark.parametrize(
    "pattern",
    [
        r"[0-9]+(\.[0-9]+)?",
        "(a|ab)(c|bcd)?",
        "a*?b",
        "(a|b)*a(a|b){2}",
        "(?:a|b|)+.",
        "[^a]b|a[^b]",
        "(a|ab|abc)+",
        "^a+$|^b$",
    ],
)
async def test_it_accepts_what_python_matches_and_nothing_else(
    compiler: GuideCompiler, vocabulary: TestVocabulary, pattern: str
) -> None:
    """Exhaustively, over short strings. Alone, outlines-core drops what follows a first match."""
    template = await compiler.compile(GuideSpec("regex", pattern))
    alphabet = "1.ab" if "0-9" in pattern else "abcd"
    end = [vocabulary.stop_token_ids[0]]
    for length in range(1, 6):
        for letters in itertools.product(alphabet, repeat=length):
            text = "".join(letters)
            guide = template.copy()
            accepted = guide.advance(vocabulary.tokens_of(text)) and guide.advance(end)
            assert accepted == bool(re.fullmatch(pattern, text)), text


@pytest.mark.parametrize("pattern", [r"[0-9]+(\.[0-9]+)?", "(cat|category)", "é+猫?", ".{0,3}", r"\w+@\w+\.com"])
async def test_the_mask_is_what_advance_takes(
    compiler: GuideCompiler, vocabulary: TestVocabulary, pattern: str
) -> None:
    guide = await compiler.compile(GuideSpec("regex", pattern))
    rng = random.Random(1)
    for _ in range(6):
        allowed = vocabulary.allowed(guide)
        taken = [t for t in range(vocabulary.vocab_size) if guide.copy().advance([t])]
        if forced := guide.forced_tokens():
            assert allowed == forced[:1]
            assert set(allowed) <= set(taken)
        else:
            assert allowed == taken
        guide.advance([rng.choice(allowed)])


async def test_no_token_spells_the_sentinel(compiler: GuideCompiler, vocabulary: TestVocabulary) -> None:
    """Single-byte tokens could write U+10FFFF, the mark behind every pattern."""
    guide = await compiler.compile(GuideSpec("regex", "ab"))
    assert guide.advance(vocabulary.tokens_of("ab"))
    assert vocabulary.allowed(guide) == sorted(vocabulary.stop_token_ids)
    assert guide.is_terminated()


async def test_characters_may_be_spelled_in_bytes(compiler: GuideCompiler, vocabulary: TestVocabulary) -> None:
    guide = await compiler.compile(GuideSpec("regex", "[é猫]{2}"))
    assert guide.advance(vocabulary.tokens_of("é猫"))
    assert guide.is_terminated()


@pytest.mark.parametrize(
    "choices",
    [
        ("yes", "no"),
        ("cat", "category"),
        ("a.b", "a|b", "$^", "(x)", "[y]", "\\d", "tab\t", "#"),
        ("naïve", "naïf", "猫"),
    ],
)
async def test_a_choice_is_one_of_its_strings(
    compiler: GuideCompiler, vocabulary: TestVocabulary, choices: Any
) -> None:
    template = await compiler.compile(GuideSpec("choice", choices=choices))
    assert isinstance(template, AutomatonGuide)
    rng = random.Random(2)
    seen = {random_walk(template.copy(), vocabulary, rng) for _ in range(60)}
    assert seen == set(choices)
    for choice in choices:
        guide = template.copy()
        assert guide.advance(vocabulary.encode(choice)) or vocabulary.name == "sentencepiece"
        guide = template.copy()
        assert guide.advance(vocabulary.tokens_of(choice))
        assert guide.advance([vocabulary.stop_token_ids[-1]])


async def test_forced_text_comes_in_canonical_tokens(compiler: GuideCompiler, vocabulary: TestVocabulary) -> None:
    guide = await compiler.compile(GuideSpec("regex", "The quick brown fox (jumps|sleeps)"))
    forced = guide.forced_tokens()
    text = vocabulary.spell(forced)
    assert len(text) >= len(b"The quick brown")
    assert b"The quick brown fox ".startswith(text)
    assert len(forced) < len(text) / 2  # words, not bytes
    canonical = vocabulary.encode("\x02The quick brown fox jumps")
    assert " ".join(map(str, forced)) in " ".join(map(str, canonical))
    assert guide.advance(forced)


async def test_forced_text_to_the_end_is_given_whole(compiler: GuideCompiler, vocabulary: TestVocabulary) -> None:
    guide = await compiler.compile(GuideSpec("choice", choices=("the lazy dog",)))
    forced = guide.forced_tokens()
    assert vocabulary.spell(forced) == b"the lazy dog"
    assert guide.advance(forced)
    assert guide.forced_tokens() == []


async def test_where_the_end_is_allowed_nothing_is_forced(compiler: GuideCompiler, vocabulary: TestVocabulary) -> None:
    guide = await compiler.compile(GuideSpec("regex", "a(aaa)?"))
    assert guide.advance(vocabulary.tokens_of("a"))
    assert guide.forced_tokens() == []


async def test_tokens_into_a_dead_end_are_not_allowed(byte_level: TestVocabulary) -> None:
    """A vocabulary without some bytes: what it cannot finish, it must not start."""
    from briton.errors import InvalidRequest
    from tests.guidance.conftest import new_compiler

    z = byte_level.token_bytes.index(b"z")
    texts = [None if data is not None and b"z" in data else data for data in byte_level.token_bytes]
    compiler = new_compiler(byte_level)
    without = type(compiler)(
        texts,
        vocab_size=byte_level.vocab_size,
        stop_token_ids=(0,),
        encode=byte_level.encode,
        tokenizer_hash="without z",
    )
    guide = await without.compile(GuideSpec("regex", "axz|by"))
    assert byte_level.allowed(guide) == [byte_level.token_bytes.index(b"b")]
    assert not guide.advance(byte_level.tokens_of("a"))
    with pytest.raises(InvalidRequest, match="guided_regex: the model's vocabulary cannot spell"):
        await without.compile(GuideSpec("regex", "az+"))
    assert z not in byte_level.allowed(guide)
    compiler.close()
    without.close()
