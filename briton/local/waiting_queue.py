"""Sequences that wait for a place in the batch: by caller, so that one with a thousand does not keep out the rest."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from briton.engine.order import CallerCounters, OrderRules, Rank
from briton.local.sequence import SequenceState

_Entry = tuple[float, int, int, SequenceState]  # age key, request, sibling: unique before the sequence is compared


class WaitingQueue:
    """Heaps of waiting sequences, one for each caller. What is removed stays in its heap until it comes up, or until
    half of the heap is of that kind."""

    def __init__(self, rules: OrderRules, counters: CallerCounters) -> None:
        self._rules = rules
        self._counters = counters
        self._heaps: dict[str, list[_Entry]] = {}
        self._entries: dict[int, _Entry] = {}  # of the sequences that wait, by their id()
        self._num_stale: dict[str, int] = {}  # entries of each heap that wait no more

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, sequence: SequenceState) -> bool:
        return id(sequence) in self._entries

    def __iter__(self) -> Iterator[SequenceState]:
        """In no particular order."""
        return (entry[3] for entry in self._entries.values())

    def push(self, sequence: SequenceState) -> None:
        """It waits from now on. It must not wait already."""
        assert id(sequence) not in self._entries
        state = sequence.request_state
        key = self._rules.age_key(state.request.priority, state.submitted_at)
        entry = self._entries[id(sequence)] = (key, state.request.request_id, sequence.index, sequence)
        heapq.heappush(self._heaps.setdefault(state.request.caller, []), entry)

    def remove(self, sequence: SequenceState) -> bool:
        """It waits no more; False if it did not."""
        if self._entries.pop(id(sequence), None) is None:
            return False
        caller = sequence.request.caller
        self._num_stale[caller] = self._num_stale.get(caller, 0) + 1
        heap = self._heaps[caller]
        if 2 * self._num_stale[caller] > len(heap):
            heap[:] = [entry for entry in heap if self._waits(entry)]
            heapq.heapify(heap)
            del self._num_stale[caller]
        if not heap:
            del self._heaps[caller]
        return True

    def first(self, now: float, highest: int) -> SequenceState | None:
        """The one whose turn it is, where `highest` is the highest priority of all; None when nobody waits."""
        heads = []
        for caller, heap in self._heaps.items():
            while not self._waits(heap[0]):  # never all of a heap: see `remove`
                heapq.heappop(heap)
                self._num_stale[caller] -= 1
            heads.append(heap[0][3])
        return min(heads, key=lambda s: rank_of(s, now, highest, self._rules, self._counters), default=None)

    def _waits(self, entry: _Entry) -> bool:
        return self._entries.get(id(entry[3])) is entry


def rank_of(sequence: SequenceState, now: float, highest: int, rules: OrderRules, counters: CallerCounters) -> Rank:
    """A sequence's place in the total order: the smallest runs first, the largest gives way first.

    One that runs keeps the place that it started with: what its caller is served meanwhile would else have sequences of
    different callers stop each other in turns.
    """
    state = sequence.request_state
    request = state.request
    started = sequence.started_at
    level = rules.level(request.priority, (now if started is None else started) - state.submitted_at, highest)
    served = counters.served(request.caller) if started is None else sequence.served_at_start
    return Rank(-level, served, request.request_id, sequence.index)
