"""GuideSpec -> Guide, off the event loop, bounded and cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version

from briton.errors import InvalidRequest, Unsupported
from briton.guidance.automaton import Automaton, AutomatonGuide
from briton.guidance.cache import SingleFlightCache
from briton.guidance.compile_process import CompileProcess
from briton.guidance.compile_thread import CompileThread
from briton.guidance.grammar import GrammarCompiler, GrammarGuide
from briton.guidance.guide import Guide, GuideSpec
from briton.guidance.limits import GuideLimits
from briton.guidance.pattern import CHOICE_FIELD, REGEX_FIELD, choice_pattern, regex_pattern
from briton.guidance.schema import SCHEMA_FIELD
from briton.guidance.vocabulary import Vocabulary

CompiledGuide = GrammarGuide | AutomatonGuide


class GuideCompiler:
    """Compiles guides for one model's vocabulary: schemas in one child process, regexes and choices in another.

    What the children let through becomes a guide here, in a thread. Building this takes about 0.1 s for 50,000 tokens;
    the first compile of either sort starts its child, half a second. For one event loop; `close` when done.
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
        self._schemas = CompileProcess("schema", self._vocabulary, self._limits)
        self._regexes = CompileProcess("regex", self._vocabulary, self._limits)
        self._schema_thread = CompileThread("guide-schema", self._limits.compile_wait_s)
        self._regex_thread = CompileThread("guide-regex", self._limits.compile_wait_s)
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
        Raises QueueFull when others compile for too long.
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
        """End the child processes and the threads; compiles under way fail. Idempotent."""
        self._cache.cancel()
        self._schemas.close()
        self._regexes.close()
        self._schema_thread.close()
        self._regex_thread.close()

    async def _make(self, spec: GuideSpec) -> CompiledGuide:
        if spec.kind in ("regex", "choice"):
            return await self._regex_thread.run(lambda: self._make_automaton(spec))
        return await self._schema_thread.run(lambda: self._make_grammar(spec))

    def _make_grammar(self, spec: GuideSpec) -> GrammarGuide:
        if spec.kind == "json_object":
            return self._grammars.compile({"type": "object"})
        return self._grammars.compile(self._schemas.compile(spec.text, SCHEMA_FIELD))

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
