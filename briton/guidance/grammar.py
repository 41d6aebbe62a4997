"""JSON schemas through llguidance: the matcher behind the Guide protocol, and the compile."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray
from typing_extensions import Self

from briton.errors import InvalidRequest, Unsupported
from briton.guidance.diagnosis import culprit
from briton.guidance.limits import GuideLimits
from briton.guidance.schema import SCHEMA_FIELD, CheckedSchema, read_schema, shown, unsupported_keyword
from briton.guidance.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

# A matcher's memory is not told by the library: what the states of usual schemas, and the grammar, come to.
_MATCHER_BYTES = 1 << 20
_BYTES_PER_CHARACTER = 64
_NUM_PROBED = 4  # tokens
# TensorRT-LLM 1.2.1 pins llguidance 0.7.29, which repeats a whitespace pattern freely; models then loop on it.
WHITESPACE_IS_BOUNDED = tuple(int(part) for part in version("llguidance").split(".")[:2]) >= (1, 8)
_MAX_LEXER_STATES = 50_000  # 1-2 KB each, shared by all requests of one schema


class GrammarCompiler:
    """Compiles schemas for one vocabulary. Blocking, for threads: llguidance releases the GIL while it builds."""

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

    def _compile(self, schema: dict[str, Any]) -> GrammarGuide:
        """The guide, its first mask computed. Raises _Refused."""
        grammar = self._grammar(schema)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._parser_limits)
        if matcher.is_error():
            raise _Refused(_first_line(matcher.get_error()))
        guide = GrammarGuide(matcher, self._vocabulary, nbytes=_MATCHER_BYTES + _BYTES_PER_CHARACTER * len(grammar))
        if not guide.is_healthy():
            raise _Refused("nothing matches it")
        return guide

    def _grammar(self, schema: dict[str, Any]) -> str:
        options = {**_whitespace(self._limits.whitespace_pattern), "coerce_one_of": False, "lenient": False}
        try:
            grammar: str = LLMatcher.grammar_from_json_schema(json.dumps(schema, ensure_ascii=False), overrides=options)
        except ValueError as error:
            raise _Refused(_first_line(str(error))) from None
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


class _Refused(Exception):
    """llguidance's message on a schema."""


class GrammarGuide:
    """A Guide over an LLMatcher.

    Where bytes are forced, the mask holds their canonical token alone, while `advance` takes whatever the grammar
    allows. LLMatcher never raises and, once in error, offers the end: so it is asked after every mask, and a failed one
    gives an all-zero row. Stop ids are kept out of it: older releases know but one.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary, *, nbytes: int = 0) -> None:
        self._matcher = matcher
        self.vocabulary = vocabulary
        self._num_consumed = 0  # tokens, without stop ids
        self._num_stops = 0  # stop ids consumed, all of them after the rest
        self.nbytes = nbytes  # of what all copies share: an estimate

    def fill_bitmask(self, row: NDArray[np.int32]) -> None:
        """Write the mask of the next token into `row`; all zeros when the parser has failed."""
        if self._num_stops:
            row[:] = 0
            self._allow_stops(row)
            return
        self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        if self._matcher.is_error():
            logger.error("a guide failed: %s", _first_line(self._matcher.get_error()))
            row[:] = 0
            return
        end = self.vocabulary.stop_token_ids[0]
        if len(self.vocabulary.stop_token_ids) > 1 and int(row[end >> 5]) >> (end & 31) & 1:
            self._allow_stops(row)

    def advance(self, token_ids: Sequence[int]) -> bool:
        """Consume tokens, or none of them when one is not allowed.

        A parser that reaches a limit of its own has taken them: the next mask is empty, which ends the request.
        """
        num_consumed = num_stops = 0
        was_sound = not self._matcher.is_error()
        for token_id in token_ids:
            if token_id in self.vocabulary.stops:
                if not (self._num_stops or num_stops or self._may_end()):
                    break
                num_stops += 1
            elif self._num_stops or num_stops or not self._consume(token_id):
                break
            else:
                num_consumed += 1
        if was_sound and self._matcher.is_error():
            return True
        if num_consumed + num_stops < len(token_ids):
            if num_consumed:
                self._matcher.rollback(num_consumed)
            return False
        self._num_consumed += num_consumed
        self._num_stops += num_stops
        return True

    def rollback(self, n: int) -> None:
        """Undo the last n consumed tokens. Raises ValueError when there were fewer."""
        if not 0 <= n <= self._num_consumed + self._num_stops:
            raise ValueError(f"cannot roll back {n} of {self._num_consumed + self._num_stops} tokens")
        num_stops = min(n, self._num_stops)
        self._num_stops -= num_stops
        self._num_consumed -= n - num_stops
        if n > num_stops:
            self._matcher.rollback(n - num_stops)

    def is_terminated(self) -> bool:
        """True when nothing but the end may follow, or a stop id was consumed."""
        return self._num_stops > 0 or (self._matcher.is_stopped() and not self._matcher.is_error())

    def forced_tokens(self) -> list[int]:
        """Tokens that must come next, in canonical tokenization; empty where there is a choice."""
        if self._num_stops or self._matcher.is_stopped():
            return []
        forced: list[int] = self._matcher.compute_ff_tokens()
        return forced[: self._matcher.validate_tokens(forced)] if forced else forced

    def copy(self) -> Self:
        """An independent guide in the same state."""
        copy = type(self)(self._matcher.deep_copy(), self.vocabulary, nbytes=self.nbytes)
        copy._num_consumed, copy._num_stops = self._num_consumed, self._num_stops
        return copy

    def is_healthy(self) -> bool:
        """False when nothing may follow. All copies share one lexer, whose states have a limit: it can wear out."""
        matcher = self._matcher.deep_copy()
        row = np.zeros(self.vocabulary.num_words, np.int32)
        matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        return not matcher.is_error() and bool(row.any())

    def probe(self, num_tokens: int) -> str:
        """Follow the shortest allowed tokens from here, which open objects and strings; why that fails, or nothing."""
        matcher = self._matcher.deep_copy()
        token_bytes = self.vocabulary.token_bytes
        for _ in range(num_tokens):
            bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
            allowed = [int(i) for i in np.flatnonzero(bits)]
            texts = [(len(data), -data[0], i) for i in allowed if (data := token_bytes[i]) is not None]
            if texts:
                matcher.consume_token(min(texts)[2])
            if matcher.is_error():
                return _first_line(matcher.get_error())
        return ""

    def _allow_stops(self, row: NDArray[np.int32]) -> None:
        bits = row.view(np.uint32)
        for token_id in self.vocabulary.stop_token_ids:
            bits[token_id >> 5] |= np.uint32(1 << (token_id & 31))

    def _may_end(self) -> bool:
        accepting: bool = self._matcher.is_accepting()
        return accepting and not self._matcher.is_error()

    def _consume(self, token_id: int) -> bool:
        # An id outside the vocabulary would put the matcher in error for good.
        if not 0 <= token_id < self.vocabulary.vocab_size or self.vocabulary.token_bytes[token_id] is None:
            return False
        consumed: int = self._matcher.try_consume_tokens([token_id])
        return consumed == 1


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


def _first_line(message: str) -> str:
    lines = message.strip().splitlines()
    return lines[0][:200] if lines else ""
