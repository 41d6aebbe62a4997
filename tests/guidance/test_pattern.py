"""Regexes and choices before they are compiled."""

from __future__ import annotations

from typing import Any

import pytest

from briton.errors import InvalidRequest, Unsupported
from briton.guidance.limits import GuideLimits
from briton.guidance.pattern import choice_pattern, regex_pattern

LIMITS = GuideLimits(max_regex_bytes=50, max_choices=3, max_choices_bytes=20)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("a+", "a+"),
        ("^a+$", "a+"),
        ("^a$|^b$", "a|b"),
        ("(?i)^a$", "(?i)a"),
        (r"a\$", r"a\$"),
        (r"\^a", r"\^a"),
        ("[^a$]", "[^a$]"),
        ("[]^$]$", "[]^$]"),
        ("[^]$]+", "[^]$]+"),
        ("[a[^b]$]x", "[a[^b]$]x"),
        (r"[\]$]", r"[\]$]"),
        (r"^(a|b)$", "(a|b)"),
        (r"\(^", None),
        ("(^a|b)", None),
        ("(a$|b)", None),
        ("a^b", None),
        ("a$b", None),
        ("a$*", None),
        (r"\bword", None),
        (r"a\z", None),
    ],
)
def test_anchors_are_dropped_at_the_ends_and_refused_elsewhere(text: str, pattern: str) -> None:
    if pattern is None:
        with pytest.raises(Unsupported, match=r"guided_regex: '.{1,2}' at offset \d+ is not supported") as caught:
            regex_pattern(text, LIMITS)
        assert caught.value.field == "guided_regex"
    else:
        assert regex_pattern(text, LIMITS) == pattern


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "guided_regex must not be empty"),
        ("é" * 26, "guided_regex has 52 bytes; the limit is 50"),
        ("a\ud800", "guided_regex holds half a surrogate pair at offset 1"),
    ],
)
def test_a_regex_is_bounded(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        regex_pattern(text, LIMITS)
    assert caught.value.message == message
    assert caught.value.field == "guided_regex"


@pytest.mark.parametrize(
    ("choices", "field", "message"),
    [
        ((), "guided_choice", "guided_choice must have at least 1 entry"),
        (("a", ""), "guided_choice[1]", "guided_choice[1] must not be empty"),
        (("a",) * 4, "guided_choice", "guided_choice has 4 entries; the limit is 3"),
        (("é" * 6, "b" * 9), "guided_choice", "guided_choice has 21 bytes in all; the limit is 20"),
        (("a", "\udfff"), "guided_choice[1]", "guided_choice[1] holds half a surrogate pair at offset 0"),
    ],
)
def test_choices_are_bounded(choices: Any, field: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        choice_pattern(choices, LIMITS)
    assert (caught.value.field, caught.value.message) == (field, message)


def test_choices_are_literal_and_distinct() -> None:
    assert choice_pattern(("a.b", "é", "a.b"), LIMITS) == r"a\x{2E}b|\x{E9}"
