"""GuideSpec -> Guide, off the event loop, bounded and cached."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

from briton.errors import InvalidRequest, Unsupported
from briton.guidance.automaton import Automaton, AutomatonGuide
from briton.guidance.cache import SingleFlightCache
from briton.guidance.grammar import GrammarCompiler, GrammarGuide
from briton.guidance.guide import Guide, GuideSpec
from briton.guidance.limits import GuideLimits
from briton.guidance.pattern import CHOICE_FIELD, REGEX_FIELD, choice_pattern, regex_pattern
from briton.guidance.regex_process import RegexProcess
from briton.guidance.schema import SCHEMA_FIELD
from briton.guidance.vocabulary import Vocabulary

_NUM_THREADS = 2  # for schemas; regexes have a thread of their own, where one that explodes delays no schema

CompiledGuide = GrammarGuide | AutomatonGuide


class GuideCompiler:
    """Compiles guides for one model's vocabulary: schemas in threads, regexes and choices in a child process.

    Building it takes about 0.1 s for 50,000 tokens. For one event loop; `close` when done.
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
    ) -> None:
        """`vocabulary`: the bytes of each token id, None for control tokens and holes; `vocab_size`: the logits' width.

        `encode` tokenizes a text without special tokens. Raises ValueError on ids outside the vocabulary.
        """
        self._limits = limits or GuideLimits()
        self._tokenizer_hash = tokenizer_hash
        self._vocabulary = Vocabulary(vocabulary, vocab_size=vocab_size, stop_token_ids=stop_token_ids, encode=encode)
        self._grammars = GrammarCompiler(self._vocabulary, self._limits)
        self._regexes = RegexProcess(self._vocabulary, self._limits)
        self._grammar_threads = ThreadPoolExecutor(_NUM_THREADS, "guide-schema")
        self._regex_thread = ThreadPoolExecutor(1, "guide-regex")
        self._versions = {name: version(name) for name in ("llguidance", "outlines-core")}
        self._cache: SingleFlightCache[CompiledGuide] = SingleFlightCache(
            max_bytes=self._limits.cache_bytes,
            max_entries=self._limits.cache_entries,
            failure_ttl_s=self._limits.failure_ttl_s,
        )

    async def compile(self, spec: GuideSpec) -> Guide:
        """A guide in its start state, from the cache where it is there.

        Raises InvalidRequest for what is malformed or passes a limit, and Unsupported for what cannot be enforced; both
        name the field, and within a schema the keyword and its JSON pointer. Failures are remembered for a minute.
        """
        if not self._vocabulary.stop_token_ids:
            raise Unsupported("guided decoding needs a stop token, and this model has none", "guide")
        self._check_size(spec)
        key = self._key(spec)
        guide = await self._cache.get(key, lambda: self._make(spec))
        if not guide.is_healthy():
            self._cache.forget(key)
            guide = await self._cache.get(key, lambda: self._make(spec))
        return guide.copy()

    def close(self) -> None:
        """End the child process and the threads; compiles under way fail. Idempotent."""
        self._cache.cancel()
        self._regexes.close()
        self._grammar_threads.shutdown(wait=False, cancel_futures=True)
        self._regex_thread.shutdown(wait=False, cancel_futures=True)

    async def _make(self, spec: GuideSpec) -> CompiledGuide:
        loop = asyncio.get_running_loop()
        if spec.kind in ("regex", "choice"):
            return await loop.run_in_executor(self._regex_thread, self._make_automaton, spec)
        compiling = loop.run_in_executor(self._grammar_threads, self._make_grammar, spec)
        try:
            return await asyncio.wait_for(compiling, self._limits.compile_timeout_s)
        except asyncio.TimeoutError:
            raise InvalidRequest(
                f"{SCHEMA_FIELD}: compiling took longer than {self._limits.compile_timeout_s:g} s: simplify it",
                SCHEMA_FIELD,
            ) from None

    def _make_grammar(self, spec: GuideSpec) -> GrammarGuide:
        if spec.kind == "json_schema":
            return self._grammars.compile_schema(spec.text)
        return self._grammars.compile_object()

    def _make_automaton(self, spec: GuideSpec) -> AutomatonGuide:
        if spec.kind == "regex":
            field, pattern = REGEX_FIELD, regex_pattern(spec.text, self._limits)
        else:
            field, pattern = CHOICE_FIELD, choice_pattern(spec.choices, self._limits)
        return AutomatonGuide(Automaton(self._regexes.compile(pattern, field), self._vocabulary))

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
