"""Compilers for both kinds of vocabulary; what they compile is shared by all tests, as it is by requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from briton.guidance.compiler import GuideCompiler
from briton.guidance.limits import GuideLimits
from tests.guidance import vocabularies
from tests.guidance.vocabularies import TestVocabulary

MakeCompiler = Callable[..., GuideCompiler]


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
