"""GuideSpec -> Guide, off the event loop, bounded, cached, and fair to all callers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version

from briton.errors import BritonError, InvalidRequest, Unsupported
from briton.guidance.automaton import Automaton, AutomatonGuide
from briton.guidance.cache import SingleFlightCache
from briton.guidance.compile_process import CompileProcess
from briton.guidance.compile_queue import CompileQueue
from briton.guidance.grammar import GrammarCompiler
from briton.guidance.grammar_guide import GrammarGuide
from briton.guidance.guide import Guide, GuideSpec
from briton.guidance.limits import GuideLimits
from briton.guidance.pattern import CHOICE_FIELD, REGEX_FIELD, choice_pattern, is_small, regex_pattern
from briton.guidance.schema import SCHEMA_FIELD
from briton.guidance.vocabulary import Vocabulary

CompiledGuide = GrammarGuide | AutomatonGuide

logger = logging.getLogger(__name__)

_MAX_TABLES_WAITING = 64


class GuideCompiler:
    """Compiles guides for one model's vocabulary, each once.

    Schemas and large regexes are tried in a child process first, which may be killed; choices and small regexes are
    bounded as they are, and wait for nobody who needs the child. Building this takes about half a second for 50,000
    tokens; so does the child, which the first that needs it starts. For one event loop; `close` when done.
    """

    def __init__(
        self,
        vocabulary: Sequence[bytes | None],
        *,
        vocab_size: int,
        stop_token_ids: Iterable[int],
        encode: Callable[[str], list[int]],
        tokenizer_hash: str,
        limits: GuideLimits | None = None,
        mask_tables: bool = False,
    ) -> None:
        """`vocabulary`: the bytes of each token id, None for control tokens and holes; `vocab_size`: the logits' width.

        `encode` tokenizes a text without special tokens. `mask_tables`: the executor keeps masks on its device, so that
        finite tables of them pay: they are made behind the first request for a regex or choices, for those that follow.
        Raises ValueError on ids outside the vocabulary.
        """
        self._limits = limits or GuideLimits()
        self._tokenizer_hash = tokenizer_hash
        self._vocabulary = Vocabulary(vocabulary, vocab_size=vocab_size, stop_token_ids=stop_token_ids, encode=encode)
        self._grammars = GrammarCompiler(self._vocabulary, self._limits)
        self._child = CompileProcess("grammar", self._vocabulary, self._limits)
        self._checked = CompileQueue("guide-checked", self._limits.compile_wait_s)
        self._unchecked = CompileQueue("guide", self._limits.compile_wait_s)
        self._callers: dict[bytes, list[str]] = {}  # who wait for a guide
        self._tables = _MaskTables(self._vocabulary, self._limits) if mask_tables else None
        self._versions = {name: version(name) for name in ("llguidance", "outlines-core")}
        self._cache: SingleFlightCache[CompiledGuide] = SingleFlightCache(
            max_bytes=self._limits.cache_bytes,
            max_entries=self._limits.cache_entries,
            failure_ttl_s=self._limits.failure_ttl_s,
        )

    async def compile(self, spec: GuideSpec, *, caller: str = "") -> Guide:
        """A guide in its start state, from the cache where it is there. Callers get equal shares of the time it takes
        to make new ones.

        Raises InvalidRequest for what is malformed or passes a limit, and Unsupported for what cannot be enforced; both
        name the field, and within a schema the keyword and its JSON pointer. Failures are remembered for a minute.
        Raises QueueFull when others compile for too long, or the guides of open requests fill the memory for them.
        """
        if not self._vocabulary.stop_token_ids:
            raise Unsupported("guided decoding needs a stop token, and this model has none", "guide")
        self._check_size(spec)
        key = self._key(spec)
        guide = await self._get(key, spec, caller)
        if not guide.is_healthy():
            self._cache.forget(key)
            guide = await self._get(key, spec, caller)
        return guide.copy()

    def close(self) -> None:
        """End the child processes and the threads; compiles under way fail. Idempotent."""
        self._cache.cancel()
        self._child.close()
        self._checked.close()
        self._unchecked.close()
        if self._tables is not None:
            self._tables.close()

    async def _get(self, key: bytes, spec: GuideSpec, caller: str) -> CompiledGuide:
        callers = self._callers.setdefault(key, [])
        callers.append(caller)
        try:
            return await self._cache.get(key, lambda: self._make(key, spec, callers))
        finally:
            callers.remove(caller)
            if not callers and self._callers.get(key) is callers:
                del self._callers[key]

    async def _make(self, key: bytes, spec: GuideSpec, callers: Sequence[str]) -> CompiledGuide:
        if spec.kind == "json_object":
            return await self._unchecked.run(lambda: self._grammars.compile({"type": "object"}), callers)
        if spec.kind == "json_schema":
            return await self._checked.run(lambda: self._make_schema(spec.text), callers)
        size = len(spec.text) + sum(map(len, spec.choices))
        if spec.kind == "choice":
            is_checked, is_bounded = True, size <= self._limits.max_unchecked_bytes
        else:
            is_checked = is_bounded = is_small(spec.text)
        queue = self._unchecked if is_bounded else self._checked
        guide = await queue.run(lambda: self._make_regex(spec, is_checked), callers, size)
        if self._tables is not None:
            pattern, field = await asyncio.to_thread(self._pattern, spec)
            self._tables.start(pattern, field, callers, lambda tables: self._cache.put(key, tables))
        return guide

    def _make_schema(self, text: str) -> GrammarGuide:
        return self._grammars.compile(self._child.compile("schema", text, SCHEMA_FIELD))

    def _make_regex(self, spec: GuideSpec, is_checked: bool) -> GrammarGuide:
        pattern, field = self._pattern(spec)
        if not is_checked:
            self._child.compile("regex", pattern, field)
        return self._grammars.compile_regex(pattern, field, "".join(spec.choices) or None)

    def _pattern(self, spec: GuideSpec) -> tuple[str, str]:
        """A regex or choices as one regex, and their field's name."""
        if spec.kind == "regex":
            return regex_pattern(spec.text, self._limits), REGEX_FIELD
        return choice_pattern(spec.choices, self._limits), CHOICE_FIELD

    def _check_size(self, spec: GuideSpec) -> None:
        """Refuse what is too long even to be remembered. Characters are at least as many bytes."""
        limits = {"json_schema": (SCHEMA_FIELD, self._limits.max_schema_bytes)}
        limits["regex"] = (REGEX_FIELD, self._limits.max_regex_bytes)
        field, limit = limits.get(spec.kind, ("", 0))
        if field and len(spec.text) > limit:
            size = len(spec.text.encode(errors="surrogatepass"))
            raise InvalidRequest(f"{field} has {size} bytes; the limit is {limit}", field)
        if len(spec.choices) > self._limits.max_choices:
            choice_pattern(spec.choices, self._limits)

    def _key(self, spec: GuideSpec) -> bytes:
        """Everything a compiled guide depends on. The text is taken as it is: the order of its keys is meaning."""
        parts = (
            spec.kind,
            spec.text,
            spec.choices,
            self._limits.whitespace_pattern,
            self._tokenizer_hash,
            self._versions,
        )
        return hashlib.sha256(json.dumps(parts).encode()).digest()


class _MaskTables:
    """The masks of all states of a regex, made behind the requests: outlines-core's one use here."""

    def __init__(self, vocabulary: Vocabulary, limits: GuideLimits) -> None:
        self._vocabulary = vocabulary
        self._child = CompileProcess("tables", vocabulary, limits)
        self._lane = CompileQueue("guide-tables", max_wait_s=math.inf)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, pattern: str, field: str, callers: Sequence[str], then: Callable[[AutomatonGuide], None]) -> None:
        """Make them, and call `then`; nothing comes of what passes a limit, or while many others wait."""
        if len(self._tasks) < _MAX_TABLES_WAITING:
            task = asyncio.ensure_future(self._make(pattern, field, tuple(callers), then))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """End the child. Idempotent."""
        for task in self._tasks:
            task.cancel()
        self._child.close()
        self._lane.close()

    async def _make(
        self, pattern: str, field: str, callers: Sequence[str], then: Callable[[AutomatonGuide], None]
    ) -> None:
        try:
            arrays = await self._lane.run(lambda: self._child.compile("regex", pattern, field), callers, len(pattern))
        except BritonError as error:
            logger.info("a guide goes without tables of its masks: %s", error)
        else:
            then(AutomatonGuide(Automaton(arrays, self._vocabulary)))
