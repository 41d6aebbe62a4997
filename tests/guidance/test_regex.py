"""Regex and choice: a guide accepts exactly what the whole pattern matches, as a grammar and as tables."""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import replace
from typing import Any

import pytest

from briton.errors import InvalidRequest
from briton.guidance.guide import GuideSpec
from tests.guidance.conftest import Compile, new_compiler, table_compiler
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
    compile_guide: Compile, vocabulary: TestVocabulary, pattern: str
) -> None:
    template = await compile_guide(GuideSpec("regex", pattern))
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
    compile_guide: Compile, vocabulary: TestVocabulary, pattern: str
) -> None:
    """Exhaustively, over short strings. Alone, outlines-core drops what follows a first match."""
    template = await compile_guide(GuideSpec("regex", pattern))
    alphabet = "1.ab" if "0-9" in pattern else "abcd"
    end = [vocabulary.stop_token_ids[0]]
    for length in range(1, 6):
        for letters in itertools.product(alphabet, repeat=length):
            text = "".join(letters)
            guide = template.copy()
            accepted = guide.advance(vocabulary.tokens_of(text)) and guide.advance(end)
            assert accepted == bool(re.fullmatch(pattern, text)), text


@pytest.mark.parametrize("pattern", [r"[0-9]+(\.[0-9]+)?", "(cat|category)", "é+猫?", ".{0,3}", r"\w+@\w+\.com"])
async def test_the_mask_is_what_advance_takes(compile_guide: Compile, vocabulary: TestVocabulary, pattern: str) -> None:
    guide = await compile_guide(GuideSpec("regex", pattern))
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


async def test_no_token_spells_the_sentinel(compile_guide: Compile, vocabulary: TestVocabulary) -> None:
    """Single-byte tokens could write U+10FFFF, the mark behind every pattern."""
    guide = await compile_guide(GuideSpec("regex", "ab"))
    assert guide.advance(vocabulary.tokens_of("ab"))
    assert vocabulary.allowed(guide) == sorted(vocabulary.stop_token_ids)
    assert guide.is_terminated()


async def test_characters_may_be_spelled_in_bytes(compile_guide: Compile, vocabulary: TestVocabulary) -> None:
    guide = await compile_guide(GuideSpec("regex", "[é猫]{2}"))
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
async def test_a_choice_is_one_of_its_strings(compile_guide: Compile, vocabulary: TestVocabulary, choices: Any) -> None:
    template = await compile_guide(GuideSpec("choice", choices=choices))
    rng = random.Random(2)
    seen = {random_walk(template.copy(), vocabulary, rng) for _ in range(60)}
    assert seen == set(choices)
    for choice in choices:
        guide = template.copy()
        assert guide.advance(vocabulary.encode(choice)) or vocabulary.name == "sentencepiece"
        guide = template.copy()
        assert guide.advance(vocabulary.tokens_of(choice))
        assert guide.advance([vocabulary.stop_token_ids[-1]])


async def test_forced_text_comes_in_canonical_tokens(compile_guide: Compile, vocabulary: TestVocabulary) -> None:
    guide = await compile_guide(GuideSpec("regex", "The quick brown fox (jumps|sleeps)"))
    forced = guide.forced_tokens()
    text = vocabulary.spell(forced)
    assert len(text) >= len(b"The quick brown")
    assert b"The quick brown fox ".startswith(text)
    assert len(forced) < len(text) / 2  # words, not bytes
    canonical = vocabulary.encode("\x02The quick brown fox jumps")
    assert " ".join(map(str, forced)) in " ".join(map(str, canonical))
    assert guide.advance(forced)


async def test_forced_text_to_the_end_is_given_whole(compile_guide: Compile, vocabulary: TestVocabulary) -> None:
    guide = await compile_guide(GuideSpec("choice", choices=("the lazy dog",)))
    forced = guide.forced_tokens()
    assert vocabulary.spell(forced) == b"the lazy dog"
    assert guide.advance(forced)
    assert guide.forced_tokens() == []


async def test_where_the_end_is_allowed_nothing_is_forced(compile_guide: Compile, vocabulary: TestVocabulary) -> None:
    guide = await compile_guide(GuideSpec("regex", "a(aaa)?"))
    assert guide.advance(vocabulary.tokens_of("a"))
    assert guide.forced_tokens() == []


@pytest.mark.parametrize("way", ["grammar", "tables"])
async def test_tokens_into_a_dead_end_are_not_allowed(byte_level: TestVocabulary, way: str) -> None:
    """A vocabulary without some bytes: what it cannot finish, it must not start."""
    texts = tuple(None if data is not None and b"z" in data else data for data in byte_level.token_bytes)
    without = replace(byte_level, token_bytes=texts, name="without z", stop_token_ids=(0,))
    compiler = new_compiler(without)
    compile_guide = compiler.compile if way == "grammar" else table_compiler(without)
    guide = await compile_guide(GuideSpec("regex", "axz|by"))
    assert byte_level.allowed(guide) == [byte_level.token_bytes.index(b"b")]
    assert not guide.advance(byte_level.tokens_of("a"))
    guide = await compile_guide(GuideSpec("choice", choices=("axz", "by", "b/")))
    assert byte_level.allowed(guide) == [byte_level.token_bytes.index(b"b")]
    assert guide.advance(byte_level.tokens_of("b/"))
    assert guide.is_terminated()
    for spec in (GuideSpec("regex", "az+"), GuideSpec("choice", choices=("z", "az"))):
        with pytest.raises(InvalidRequest, match=r"guided_\w+: the model's vocabulary cannot spell any string"):
            await compile_guide(spec)
    compiler.close()
