"""Schemas, regexes and choices through llguidance, which compiles them in milliseconds and within its own bounds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from briton.errors import InvalidRequest, Unsupported
from briton.guidance.diagnosis import culprit
from briton.guidance.grammar_guide import GrammarGuide, GrammarMemory, first_line
from briton.guidance.limits import GuideLimits
from briton.guidance.schema import SCHEMA_FIELD, CheckedSchema, read_schema, shown, unsupported_keyword
from briton.guidance.vocabulary import Vocabulary

# A matcher's memory is not told by the library: what the states of usual schemas, and the grammar, come to.
_MATCHER_BYTES = 1 << 20
_BYTES_PER_CHARACTER = 64
_SLASH = re.compile(r"\\.|/", re.DOTALL)  # or a character that is escaped already
_NUM_PROBED = 4  # tokens
_DEAD_END = "NoExtensionBias"  # the library's word for a state that no token leads on from
_NOT_RUSTS = "not a regular expression in Rust's syntax, which has no look-around and no back-references"
_NOTHING = "no string matches it"
_CANNOT_SPELL = "the model's vocabulary cannot spell any string that matches"
# TensorRT-LLM 1.2.1 pins llguidance 0.7.29, which repeats a whitespace pattern freely; models then loop on it.
WHITESPACE_IS_BOUNDED = tuple(int(part) for part in version("llguidance").split(".")[:2]) >= (1, 8)
_MAX_LEXER_STATES = 50_000  # 1-2 KB each, shared by all requests of one schema


class GrammarCompiler:
    """Compiles for one vocabulary. Blocking, for threads: llguidance releases the GIL while it builds.

    A schema or a large regex goes through its `check_` first, in a process that can be killed.
    """

    def __init__(self, vocabulary: Vocabulary, limits: GuideLimits) -> None:
        self._vocabulary = vocabulary
        self._limits = limits
        self._tokenizer = LLTokenizer(_TokenizerView(vocabulary))
        self._parser_limits = LLParserLimits(max_lexer_states=_MAX_LEXER_STATES)

    def check_schema(self, text: str) -> dict[str, Any]:
        """A caller's schema, reduced to what is enforced, after it has compiled once. In a process that can be killed.

        Raises InvalidRequest and Unsupported, naming keyword and JSON pointer.
        """
        checked = read_schema(text, self._limits)
        try:
            guide = self._compile(checked.root)
        except _Refused as refused:
            raise self._explain(checked, str(refused)) from None
        if failure := guide.probe(_NUM_PROBED):
            raise Unsupported(f"{SCHEMA_FIELD} is too wide or too complex for the parser: {failure}", SCHEMA_FIELD)
        return checked.root

    def compile(self, schema: dict[str, Any]) -> GrammarGuide:
        """A guide in its start state, for a schema that `check_schema` has let through. Raises Unsupported."""
        try:
            return self._compile(schema)
        except _Refused as refused:
            raise Unsupported(f"{SCHEMA_FIELD} is not supported: {refused}", SCHEMA_FIELD) from None

    def compile_regex(self, pattern: str, field: str, text: str | None = None) -> GrammarGuide:
        """A guide in its start state, for a regex that stands for the whole output. Raises InvalidRequest.

        Characters that the vocabulary cannot spell are kept out of the language, so that no mask leads to them; of a
        regex that matches nothing but what is in `text`, only if some are there.
        """
        grammar = _grammar_of(pattern)
        try:
            if self._vocabulary.unspellable and not (text is not None and self._vocabulary.can_spell(text)):
                if message := LLMatcher.validate_grammar(grammar, limits=self._parser_limits):
                    raise _Refused(_explain_regex(message))
                grammar = _grammar_of(pattern, f"[^{self._vocabulary.unspellable}]*")
            matcher = self._matcher(grammar)
            if matcher.is_error():
                raise _Refused(_explain_regex(matcher.get_error()))
            guide = self._guide(matcher, grammar)
            failure = guide.probe(_NUM_PROBED)
            if failure and _DEAD_END not in failure:
                raise _Refused(_explain_regex(failure))
            if not guide.is_healthy():
                raise _Refused(_NOTHING if self._matches_nothing(pattern) else _CANNOT_SPELL)
        except _Refused as refused:
            raise InvalidRequest(f"{field}: {refused}", field) from None
        return guide

    def _matches_nothing(self, pattern: str) -> bool:
        """Whether it would not match either if every byte were a token."""
        tokenizer = LLTokenizer(_TokenizerView(_all_bytes()))
        matcher = LLMatcher(tokenizer, _grammar_of(pattern), log_level=0, limits=self._parser_limits)
        matcher.compute_bitmask()
        return bool(matcher.is_error())

    def _compile(self, schema: dict[str, Any]) -> GrammarGuide:
        """The guide, its first mask computed. Raises _Refused."""
        grammar = self._grammar(schema)
        matcher = self._matcher(grammar)
        if matcher.is_error():
            raise _Refused(first_line(matcher.get_error()))
        guide = self._guide(matcher, grammar)
        if not guide.is_healthy():
            raise _Refused("nothing matches it")
        return guide

    def _matcher(self, grammar: str) -> LLMatcher:
        return LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._parser_limits)

    def _guide(self, matcher: LLMatcher, grammar: str) -> GrammarGuide:
        memory = GrammarMemory(_MATCHER_BYTES + _BYTES_PER_CHARACTER * len(grammar))
        return GrammarGuide(matcher, self._vocabulary, memory)

    def _grammar(self, schema: dict[str, Any]) -> str:
        options = {**_whitespace(self._limits.whitespace_pattern), "coerce_one_of": False, "lenient": False}
        try:
            grammar: str = LLMatcher.grammar_from_json_schema(json.dumps(schema, ensure_ascii=False), overrides=options)
        except ValueError as error:
            raise _Refused(first_line(str(error))) from None
        return grammar

    def _explain(self, checked: CheckedSchema, message: str) -> InvalidRequest | Unsupported:
        if "nsatisfiable" in message:
            return InvalidRequest(f"{SCHEMA_FIELD}: no JSON value can satisfy it: {message}", SCHEMA_FIELD)

        def compiles(schema: dict[str, Any]) -> bool:
            try:
                return not LLMatcher.validate_grammar(self._grammar(schema), limits=self._parser_limits)
            except _Refused:
                return False

        found = culprit(checked, compiles)
        if found.keyword is None:
            return Unsupported(
                f"{SCHEMA_FIELD}: the schema at {shown(found.pointer)} is not supported: {message}", SCHEMA_FIELD
            )
        return unsupported_keyword(found.keyword, found.pointer, message)


def _whitespace(pattern: str) -> dict[str, Any]:
    """Options that keep whitespace between tokens within bounds. A release that would repeat the pattern without end
    gets JSON without any."""
    if WHITESPACE_IS_BOUNDED:
        return {"whitespace_flexible": True, "whitespace_pattern": pattern}
    return {"whitespace_flexible": False}


def _grammar_of(pattern: str, *others: str) -> str:
    """A grammar of what matches all of some regexes, each of which is one by itself.

    `LLMatcher.grammar_from_regex` writes line ends as escapes, which end no comment of `(?x)`.
    """
    terminal = " & ".join(f"/{_SLASH.sub(_escape_slash, regex)}/" for regex in (pattern, *others))
    return json.dumps({"grammars": [{"lark_grammar": f"start: TEXT\nTEXT: {terminal}"}]})


def _escape_slash(found: re.Match[str]) -> str:
    return r"\/" if found[0] == "/" else found[0]


def _explain_regex(message: str) -> str:
    if "invalid regex" not in message:
        return f"too complex for the lexer: {first_line(message)}: simplify it"
    lines = message.splitlines()
    reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if not reasons:  # what the parser of regexes takes, and the lexer does not
        reasons = [first_line(message).rpartition(": ")[2]]
    return f"{_NOT_RUSTS}: {reasons[0][:200]}"


class _Refused(Exception):
    """What is wrong with a schema or a regex, in llguidance's words or ours."""


def _all_bytes() -> Vocabulary:
    tokens = [bytes([byte]) for byte in range(256)]
    return Vocabulary(tokens, vocab_size=257, stop_token_ids=[256], encode=lambda text: list(text.encode()))


class _TokenizerView:
    """The vocabulary as LLTokenizer wants to see it. Control tokens and holes have no bytes, so they match nothing."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = min(vocabulary.stop_token_ids, default=0)
        self.tokens = [data or b"" for data in vocabulary.token_bytes]
        self._tokenize: Callable[[str], list[int]] = vocabulary.tokenize

    def __call__(self, text: str) -> list[int]:
        return self._tokenize(text)
