"""Bounds of constrained decoding: what a guide may cost before its first token."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GuideLimits:
    """Limits of one compile and of the cache. Exceeding one is the caller's error, and names it."""

    max_schema_bytes: int = 262_144  # of a schema's text, UTF-8
    max_depth: int = 32  # schemas within schemas, and containers within their enum and const values
    max_regex_bytes: int = 4_096  # of a pattern's text, UTF-8
    max_choices: int = 1_024
    max_choices_bytes: int = 65_536  # of all choices together, UTF-8
    compile_timeout_s: float = 5.0  # wall clock
    compile_wait_s: float = 20.0  # for the compiles of others, before its own begins
    max_unchecked_bytes: int = 32_768  # of choices that compile at once; larger ones wait behind schemas
    compile_memory_bytes: int = 2 << 30  # what compiling may add to the process that does it
    max_guide_bytes: int = 256 << 20  # of the tables of one regex or choice
    cache_bytes: int = 512 << 20  # of all guides, those of open requests and those that are kept for the next
    cache_entries: int = 1_024  # guides that are kept; and as many failures
    failure_ttl_s: float = 60.0  # a failure is answered from the cache for this long
    # Between JSON tokens, once a place: models loop on unbounded space. With llguidance before 1.8: none.
    whitespace_pattern: str = r"[\x20\x0A]{1,4}"
