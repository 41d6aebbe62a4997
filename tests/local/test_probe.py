"""Steps that nobody asked for: within the cache and the limits, and timed as they are."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from briton.local.plan import StepInputs
from briton.local.probe import SIZES, StepTimer, first_tokens, measure_costs, one_sequence


@dataclass
class FakeModel:
    """A step takes `seconds`, and one a token, and one for every 100 tokens of context, and three when the size
    changes."""

    monkeypatch: pytest.MonkeyPatch
    seconds: float = 10.0
    scale: float = 1e-4
    now: float = 0.0
    steps: list[tuple[int, int]] = field(default_factory=list)
    end: int = 0  # of the longest sequence

    def __post_init__(self) -> None:
        self.monkeypatch.setattr("briton.local.probe.time.perf_counter", lambda: self.now)

    def forward(self, inputs: StepInputs) -> NDArray[np.float32]:
        num_tokens, context = len(inputs.token_ids), int(inputs.past_lens[0])
        changed = bool(self.steps) and self.steps[-1][0] != num_tokens
        self.now += (self.seconds + num_tokens + context / 100 + 3 * changed) * self.scale
        self.steps.append((num_tokens, context))
        self.end = max(self.end, inputs.max_context_len)
        return np.zeros((len(inputs.sampled_rows), 4), np.float32)


def test_a_curve_of_real_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeModel(monkeypatch)
    curve = measure_costs(model.forward, max_num_tokens=512, max_num_positions=1152, fixed_sizes={16, 1, 8})
    assert curve.sizes == SIZES
    assert curve.fixed_sizes == (1, 8, 16)
    assert [point.seconds for point in curve.points] == pytest.approx([(10 + n) * 1e-4 for n in SIZES])
    assert [point.seconds_per_context_token for point in curve.points] == pytest.approx([1e-6] * len(SIZES))
    assert curve.switch_seconds == pytest.approx(3e-4)
    assert model.end == 1088


@pytest.mark.parametrize(
    ("max_num_tokens", "max_num_positions", "sizes"),
    [
        (512, 64, (1, 4, 8, 16, 24, 32)),
        (20, 1152, (1, 4, 8, 16)),
        (512, 20, (1, 4, 8)),
        (3, 1152, (1,)),
        (512, 2, (1,)),
    ],
)
def test_no_more_than_the_limits(
    monkeypatch: pytest.MonkeyPatch, max_num_tokens: int, max_num_positions: int, sizes: tuple[int, ...]
) -> None:
    model = FakeModel(monkeypatch)
    curve = measure_costs(
        model.forward, max_num_tokens=max_num_tokens, max_num_positions=max_num_positions, fixed_sizes=()
    )
    assert curve.sizes == sizes
    assert model.end <= max_num_positions
    assert curve.switch_seconds == (0 if len(sizes) == 1 else pytest.approx(3e-4))


def test_a_slow_step_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeModel(monkeypatch, scale=1.0)
    timer = StepTimer(model.forward)
    assert [timer(8, 0), timer(8, 0), timer(8, 0), timer(8, 100)] == [18, 18, 18, 19]
    assert model.steps == [(8, 0), (8, 100)]


def test_the_switch_is_never_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeModel(monkeypatch)
    model.scale = -1e-4
    assert StepTimer(model.forward).switch(24, 32) == 0


def test_arrays() -> None:
    batch = first_tokens(3)
    assert batch.block_indices.tolist() == [0, 1, 2]
    assert batch.past_lens.tolist() == [0, 0, 0]
    assert batch.sampled_rows.tolist() == [0, 1, 2]
    step = one_sequence(4, 62)
    assert step.position_ids.tolist() == [62, 63, 64, 65]
    assert step.block_indices.tolist() == [0, 1, 2]
    assert step.subsequence_begins.tolist() == [0, 4]
    assert step.max_context_len == 66
