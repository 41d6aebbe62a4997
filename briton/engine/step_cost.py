"""What a step costs, learned from every step as it runs. Whoever must guess how long something takes asks it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_EXACT_SIZES = 16  # steps of up to so many tokens are told apart one by one, larger ones by half octaves
_MEMORY = 64.0  # steps of one kind after which the oldest count no more than a 64th
_OUTLIER = 2.0  # a step counts as at most so many times what was expected of it,
_LEAST_S = 1e-6  # seconds that any step takes
_TRUSTED_AFTER = 8  # once so many steps were seen
_SHRINK = 2.0  # steps of one kind that it takes to believe them rather than the line through all kinds
_REFIT_EVERY = 32  # steps
# Of a step, a token, a row, an attended token. Where the steps seen do not tell what costs the time, the step and its
# tokens are held to: a line that blames the context would be wrong by much where contexts get long.
_PRIOR_SCALE = np.array([1.0, 1.0, 0.1, 1e-4])


class StepShape(NamedTuple):
    """What of a step decides its cost."""

    num_tokens: int  # computed
    num_rows: int = 1  # of logits
    num_attended: int = 0  # sum over computed tokens of the tokens that each attends to


@dataclass(slots=True)
class _Kind:
    """Means over the steps of one kind, which fade."""

    weight: float = 0.0
    seconds: float = 0.0
    tokens: float = 0.0
    rows: float = 0.0
    attended: float = 0.0

    def add(self, shape: StepShape, seconds: float) -> None:
        self.weight = min(self.weight + 1, _MEMORY)
        share = 1 / self.weight
        self.seconds += share * (seconds - self.seconds)
        self.tokens += share * (shape.num_tokens - self.tokens)
        self.rows += share * (shape.num_rows - self.rows)
        self.attended += share * (shape.num_attended - self.attended)


class StepCost:
    """Seconds of a step by its shape: a line through all kinds of steps seen, corrected by what its own kind took.

    A kind is a size and a length of context; each forgets at its own pace, so that an hour of decoding does not make
    the engine forget what a prompt costs. One busy moment counts for little (`_OUTLIER`), a lasting change soon. For
    one writer; readers in other threads may see a value that is a step old.
    """

    def __init__(self) -> None:
        self._kinds: dict[tuple[int, int], _Kind] = {}
        self._line: NDArray[np.float64] | None = None  # seconds: a step, a token, a row, an attended token
        self._until_refit = 0
        self.num_steps = 0  # observed

    def observe(self, shape: StepShape, seconds: float) -> None:
        """Learn from a step that took `seconds`. Steps of no tokens or no time teach nothing."""
        if shape.num_tokens < 1 or not 0 < seconds < math.inf:
            return
        seconds = max(seconds, _LEAST_S)
        if self.num_steps >= _TRUSTED_AFTER and (expected := self.expected(shape)) is not None:
            seconds = min(seconds, max(_OUTLIER * expected, _LEAST_S))
        key = _kind_of(shape)
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = _Kind()
            self._until_refit = 0
        kind.add(shape, seconds)
        self.num_steps += 1
        self._until_refit -= 1
        if self._until_refit < 0:
            self._line = _fit(list(self._kinds.values()))
            self._until_refit = _REFIT_EVERY

    def expected(self, shape: StepShape) -> float | None:
        """Seconds that such a step should take; None before the first step."""
        line = self._line
        if line is None:
            return None
        seconds = _on_line(line, shape)
        kind = self._kinds.get(_kind_of(shape))
        if kind is None or kind.weight <= 0:
            return seconds
        on_line = _on_line(line, StepShape(kind.tokens, kind.rows, kind.attended))  # type: ignore[arg-type]  # means
        correction = kind.seconds / on_line if on_line > 0 else 1.0
        share = kind.weight / (kind.weight + _SHRINK)
        return seconds * (1 + share * (correction - 1))

    def tokens_within(self, seconds: float, beside: StepShape, num_past: int, most: int) -> int:
        """How many tokens of a prompt, after `num_past` of its tokens, can be computed beside a step of shape
        `beside` in `seconds` altogether: 0 to `most`; `most` before the first step."""
        if self._line is None:
            return most
        low, high = 0, most  # `low` fits, or is 0
        while low < high:
            middle = (low + high + 1) // 2
            attended = beside.num_attended + middle * num_past + middle * (middle + 1) // 2
            expected = self.expected(StepShape(beside.num_tokens + middle, beside.num_rows, attended))
            assert expected is not None
            if expected <= seconds:
                low = middle
            else:
                high = middle - 1
        return low


def _kind_of(shape: StepShape) -> tuple[int, int]:
    size = shape.num_tokens
    if size > _EXACT_SIZES:
        size = _EXACT_SIZES + math.ceil(2 * math.log2(size / _EXACT_SIZES))
    context = shape.num_attended // shape.num_tokens
    return size, (context // 256).bit_length()


def _on_line(line: NDArray[np.float64], shape: StepShape) -> float:
    return float(line[0] + line[1] * shape.num_tokens + line[2] * shape.num_rows + line[3] * shape.num_attended)


def _fit(kinds: list[_Kind]) -> NDArray[np.float64]:
    """Coefficients >= 0 that are off by the least share of each kind's seconds, well-known kinds counting more.

    Of negative ones the most negative is left out, and the rest fitted again: more of anything makes no step faster.
    """
    features = np.array([[1.0, k.tokens, k.rows, k.attended] for k in kinds]) * _PRIOR_SCALE
    seconds = np.array([k.seconds for k in kinds])
    weights = np.sqrt([k.weight for k in kinds]) / seconds
    line = np.zeros(features.shape[1])
    used = list(range(len(line)))
    while used:
        solution = np.linalg.lstsq(features[:, used] * weights[:, None], seconds * weights, rcond=1e-6)[0]
        worst = int(solution.argmin())
        if solution[worst] >= 0:
            line[used] = solution
            break
        del used[worst]
    else:
        line[0] = float(np.average(seconds, weights=[k.weight for k in kinds]))
    scaled: NDArray[np.float64] = line * _PRIOR_SCALE
    return scaled
