"""Compilers for both kinds of vocabulary; what they compile is shared by all tests, as it is by requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from briton.errors import InvalidRequest
from briton.guidance.automaton import Automaton, AutomatonGuide
from briton.guidance.compiler import GuideCompiler
from briton.guidance.guide import Guide, GuideSpec
from briton.guidance.limits import GuideLimits
from briton.guidance.pattern import CHOICE_FIELD, REGEX_FIELD, choice_pattern, regex_pattern
from briton.guidance.regex_index import RegexError, RegexIndexer
from briton.guidance.vocabulary import Vocabulary
from tests.guidance import vocabularies
from tests.guidance.vocabularies import TestVocabulary

MakeCompiler = Callable[..., GuideCompiler]
Compile = Callable[[GuideSpec], Awaitable[Guide]]


@pytest.fixture(scope="session")
def byte_level() -> TestVocabulary:
    return vocabularies.byte_level()


@pytest.fixture(scope="session")
def sentencepiece() -> TestVocabulary:
    return vocabularies.sentencepiece()


@pytest.fixture(scope="session", params=["byte_level", "sentencepiece"])
def vocabulary(request: pytest.FixtureRequest) -> TestVocabulary:
    found: TestVocabulary = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def compiler(vocabulary: TestVocabulary) -> Iterator[GuideCompiler]:
    compiler = new_compiler(vocabulary)
    yield compiler
    compiler.close()


@pytest.fixture(scope="session")
def byte_level_compiler(byte_level: TestVocabulary) -> Iterator[GuideCompiler]:
    """For tests of what is refused: its children are started once."""
    compiler = new_compiler(byte_level)
    yield compiler
    compiler.close()


@pytest.fixture(scope="session", params=["grammar", "tables"])
def compile_guide(request: pytest.FixtureRequest, compiler: GuideCompiler, vocabulary: TestVocabulary) -> Compile:
    """Regexes and choices, as requests get them and as mask tables do them: both accept the same."""
    return compiler.compile if request.param == "grammar" else table_compiler(vocabulary)


def table_compiler(vocabulary: TestVocabulary) -> Compile:
    """Regexes and choices as tables, in this process."""
    words = words_of(vocabulary)
    indexer = RegexIndexer(words.token_bytes, words.stop_token_ids, GuideLimits().max_guide_bytes)

    async def compile_guide(spec: GuideSpec) -> Guide:
        limits = GuideLimits()
        is_regex = spec.kind == "regex"
        pattern = regex_pattern(spec.text, limits) if is_regex else choice_pattern(spec.choices, limits)
        try:
            return AutomatonGuide(Automaton(indexer.compile(pattern), words))
        except RegexError as error:
            field = REGEX_FIELD if is_regex else CHOICE_FIELD
            raise InvalidRequest(f"{field}: {error}", field) from None

    return compile_guide


def words_of(vocabulary: TestVocabulary) -> Vocabulary:
    """What guides know of it."""
    return Vocabulary(
        vocabulary.token_bytes,
        vocab_size=vocabulary.vocab_size,
        stop_token_ids=vocabulary.stop_token_ids,
        encode=vocabulary.encode,
    )


def new_compiler(vocabulary: TestVocabulary, limits: GuideLimits | None = None, **overrides: Any) -> GuideCompiler:
    """A compiler as the engine makes it."""
    arguments = {
        "vocab_size": vocabulary.vocab_size,
        "stop_token_ids": vocabulary.stop_token_ids,
        "encode": vocabulary.encode,
        "tokenizer_hash": vocabulary.name,
        "limits": limits,
    }
    return GuideCompiler(vocabulary.token_bytes, **{**arguments, **overrides})
