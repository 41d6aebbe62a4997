"""Who runs next, and who gives way: one total order for both.

Priority comes first, capped by the operator and aged by waiting; then the caller that was served least (the virtual
token counter of Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024); then arrival.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

PROMPT_WEIGHT, OUTPUT_WEIGHT = 1.0, 2.0  # of a token, as in the paper: prompts are computed many at a time
MAX_REMEMBERED = 1024  # callers without an open request


class Rank(NamedTuple):
    """A sequence's place in the order; the smallest goes first, the largest gives way first."""

    level: int  # negated: a higher priority is smaller
    served: float  # weighted tokens that its caller has had
    arrival: int  # the request's number
    sibling: int  # the sequence among its request's


@dataclass(frozen=True, slots=True)
class OrderRules:
    """What the operator decides."""

    max_priority: int = 20  # nobody asks for more
    aging_s: float = 10.0  # of waiting that count as one step of priority

    def level(self, priority: int, waited_s: float, highest: int) -> int:
        """Priority as it counts after so many seconds of waiting: it rises to the `highest` that anybody has, and no
        further. So nobody waits for ever behind those who ask for more, and among equals waiting decides nothing:
        fairness does."""
        own = min(priority, self.max_priority)
        return max(own, min(own + int(max(0.0, waited_s) // self.aging_s), highest))

    def age_key(self, priority: int, arrived_at: float) -> float:
        """Orders one caller's requests as their levels do, at any time: a step of priority is `aging_s` of arrival."""
        return arrived_at - self.aging_s * min(priority, self.max_priority)


class CallerCounters:
    """Weighted tokens that each caller was served. A caller who comes back has not saved up for it."""

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._floor = 0.0  # no active caller ever had less

    def served(self, caller: str) -> float:
        """What the caller had."""
        return max(self._served.get(caller, 0.0), self._floor)

    def join(self, caller: str, active: Collection[str]) -> None:
        """A caller with nothing open has a request again: it starts beside the active caller that had least."""
        others = [self.served(other) for other in active if other != caller]
        if others:
            self._served[caller] = max(self.served(caller), min(others))

    def charge(self, caller: str, num_prompt_tokens: int = 0, num_output_tokens: int = 0) -> None:
        """It was served these."""
        weight = PROMPT_WEIGHT * num_prompt_tokens + OUTPUT_WEIGHT * num_output_tokens
        self._served[caller] = self.served(caller) + weight

    def leave(self, caller: str, active: Collection[str]) -> None:
        """A caller has nothing open any more. What it had is remembered as long as it is more than the others had."""
        had = self.served(caller)
        if not active:
            self._floor = had
            self._served.clear()
        elif had <= min(map(self.served, active)):
            self._served.pop(caller, None)
        elif len(self._served) > MAX_REMEMBERED:
            absent = self._served.keys() - set(active)
            del self._served[min(absent, key=self.served)]

    def __len__(self) -> int:
        """Callers that are remembered."""
        return len(self._served)
