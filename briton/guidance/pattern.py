"""Regexes and choices as one pattern that stands for the whole output."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from briton.errors import InvalidRequest, Unsupported
from briton.guidance.limits import GuideLimits

REGEX_FIELD = "guided_regex"
CHOICE_FIELD = "guided_choice"

_LEADING_FLAGS = re.compile(r"\(\?[a-zA-Z-]+\)")
_ESCAPED_ANCHORS = "AzZbBGK"
_COUNTED = re.compile(r"\{(\d*),?(\d*)\}")
_SMALL_BYTES = 256
_SMALL_REPEATS = 1_000


def regex_pattern(text: str, limits: GuideLimits) -> str:
    """Check a caller's regex and drop the anchors that say what is so anyhow: the pattern matches the whole output.

    `^` and `$` are dropped at the ends of a pattern or of its outermost alternatives; anywhere else an assertion would
    be judged against text that is not the output's own, so it is refused. Raises InvalidRequest, Unsupported.
    """
    _check_text(text, REGEX_FIELD)
    size = len(text.encode())
    if size == 0:
        raise InvalidRequest(f"{REGEX_FIELD} must not be empty", REGEX_FIELD)
    if size > limits.max_regex_bytes:
        raise InvalidRequest(f"{REGEX_FIELD} has {size} bytes; the limit is {limits.max_regex_bytes}", REGEX_FIELD)
    return _without_anchors(text)


def choice_pattern(choices: Sequence[str], limits: GuideLimits) -> str:
    """A pattern that matches each of the choices and nothing else. Raises InvalidRequest."""
    if not choices:
        raise InvalidRequest(f"{CHOICE_FIELD} must have at least 1 entry", CHOICE_FIELD)
    if len(choices) > limits.max_choices:
        raise InvalidRequest(
            f"{CHOICE_FIELD} has {len(choices)} entries; the limit is {limits.max_choices}", CHOICE_FIELD
        )
    for i, choice in enumerate(choices):
        _check_text(choice, f"{CHOICE_FIELD}[{i}]")
        if not choice:
            raise InvalidRequest(f"{CHOICE_FIELD}[{i}] must not be empty", f"{CHOICE_FIELD}[{i}]")
    size = sum(len(c.encode()) for c in choices)
    if size > limits.max_choices_bytes:
        raise InvalidRequest(
            f"{CHOICE_FIELD} has {size} bytes in all; the limit is {limits.max_choices_bytes}", CHOICE_FIELD
        )
    return "|".join(map(_literal, dict.fromkeys(choices)))


def is_small(pattern: str) -> bool:
    """True for a regex that is compiled in milliseconds, whatever it says: it is short, also with its counted
    repetitions written out."""
    repeats = math.prod(max([1, *(int(n) for n in counts if n)]) for counts in _COUNTED.findall(pattern))
    return len(pattern.encode(errors="surrogatepass")) <= _SMALL_BYTES and repeats <= _SMALL_REPEATS


def _check_text(text: str, field: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{field} holds half a surrogate pair at offset {error.start}", field) from None


def _literal(text: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):X}}}" for c in text)


def _without_anchors(text: str) -> str:
    kept: list[str] = []
    flags = _LEADING_FLAGS.match(text)
    at = flags.end() if flags else 0
    kept.append(text[:at])
    group_depth = 0
    starts_alternative = True
    while at < len(text):
        c = text[at]
        starts, starts_alternative = starts_alternative, False
        if c == "\\":
            if text[at + 1 : at + 2] in tuple(_ESCAPED_ANCHORS):
                raise _refused_anchor(text[at : at + 2], at)
            kept.append(text[at : at + 2])
            at += 2
            continue
        if c == "[":
            end = _end_of_class(text, at)
            kept.append(text[at:end])
            at = end
            continue
        if c == "^":
            if not starts:
                raise _refused_anchor(c, at)
        elif c == "$":
            if group_depth or text[at + 1 : at + 2] not in ("", "|"):
                raise _refused_anchor(c, at)
        else:
            group_depth += (c == "(") - (c == ")")
            starts_alternative = c == "|" and group_depth == 0
            kept.append(c)
        at += 1
    return "".join(kept)


def _end_of_class(text: str, at: int) -> int:
    """The index after the bracketed class that opens at `at`; classes nest, and a first `]` is a literal one."""
    depth = 0
    while at < len(text):
        c = text[at]
        at += 1
        if c == "\\":
            at += 1
        elif c == "[":
            depth += 1
            at += text.startswith("^", at)
            at += text.startswith("]", at)
        elif c == "]":
            depth -= 1
            if depth == 0:
                return at
    return len(text)


def _refused_anchor(anchor: str, offset: int) -> Unsupported:
    return Unsupported(
        f"{REGEX_FIELD}: '{anchor}' at offset {offset} is not supported: the pattern matches the whole output, "
        "leave its anchors out",
        REGEX_FIELD,
    )
