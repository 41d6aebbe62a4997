"""Every request from its admission to its confirmed end: what is promised to whom, and what is still owed.

A request is open until the executor has confirmed its end, whoever has stopped listening before that. Queue limits,
drain, watchdog and estimates read it here; streams are views of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class LedgerEntry:
    """One open request. Times are of the event loop's clock, in seconds."""

    request_id: int
    admitted_at: float
    num_prompt_tokens: int = 0
    num_sequences: int = 1
    max_output_tokens: int = 0  # of one sequence
    has_limit: bool = True  # its caller has set it; else it is what the context leaves
    caller: str = ""
    priority: int = 0
    timeout_s: float | None = None  # from its admission on
    num_output_tokens: int = 0  # of all sequences, so far
    first_token_at: float | None = None
    is_submitted: bool = False  # the executor has it, and owes its end
    cancelled_at: float | None = None  # the executor was asked to end it

    @property
    def deadline(self) -> float | None:
        """When its caller gives up."""
        return None if self.timeout_s is None else self.admitted_at + self.timeout_s


class Ledger:
    """The open requests of one engine, by id. For one thread: the engine's event loop."""

    def __init__(self) -> None:
        self._entries: dict[int, LedgerEntry] = {}
        self._cancelled: dict[int, LedgerEntry] = {}  # in the order of asking
        self.num_submitted = 0  # whose end the executor owes

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[LedgerEntry]:
        return iter(self._entries.values())

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._entries

    def get(self, request_id: int) -> LedgerEntry | None:
        """An open request's entry."""
        return self._entries.get(request_id)

    def open(self, entry: LedgerEntry) -> None:
        """A request is admitted. Raises ValueError for an id that is open already."""
        if entry.request_id in self._entries:
            raise ValueError(f"request {entry.request_id} is open already")
        self._entries[entry.request_id] = entry

    def submit(self, request_id: int) -> None:
        """The executor is given an admitted request."""
        entry = self._entries[request_id]
        if not entry.is_submitted:
            entry.is_submitted = True
            self.num_submitted += 1

    def add_tokens(self, request_id: int, num_tokens: int, now: float) -> None:
        """The executor has given so many tokens. Unknown ids are fine: their last chunks come late."""
        entry = self._entries.get(request_id)
        if entry is not None and num_tokens:
            entry.num_output_tokens += num_tokens
            if entry.first_token_at is None:
                entry.first_token_at = now

    def cancel(self, request_id: int, now: float) -> None:
        """The executor is asked to end a request; the first time counts."""
        entry = self._entries.get(request_id)
        if entry is not None and entry.cancelled_at is None:
            entry.cancelled_at = now
            self._cancelled[request_id] = entry

    def close(self, request_id: int) -> LedgerEntry | None:
        """The executor has confirmed a request's end, or never had it; None if it was not open."""
        self._cancelled.pop(request_id, None)
        entry = self._entries.pop(request_id, None)
        if entry is not None and entry.is_submitted:
            self.num_submitted -= 1
        return entry

    def clear(self) -> None:
        """The executor is gone, and every request with it."""
        self._entries.clear()
        self._cancelled.clear()
        self.num_submitted = 0

    def forgive(self, seconds: float) -> None:
        """So much of the time since any cancel counts for nothing."""
        for entry in self._cancelled.values():
            if entry.cancelled_at is not None:
                entry.cancelled_at += seconds

    @property
    def num_cancelled(self) -> int:
        """Requests that were cancelled and whose end is not confirmed."""
        return len(self._cancelled)

    def longest_cancel_s(self, now: float) -> float:
        """How long the oldest unconfirmed cancel has waited; 0 when there is none."""
        oldest = next(iter(self._cancelled.values()), None)
        return 0.0 if oldest is None or oldest.cancelled_at is None else now - oldest.cancelled_at
