"""A whole step at once gives what each sequence gives by itself, on however many threads."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from briton.engine.types import GenerationRequest, SamplingParams
from briton.local import step_sampler
from briton.local.draft import Draft
from briton.local.output import OutputProcessor
from briton.local.plan import ScheduledSequence, StepPlan
from briton.local.sampler import StepLogits
from briton.local.sequence import RequestState, SequenceState
from briton.local.step_sampler import StepSampler
from briton.local.verification import Verified
from tests.scripted_guide import ScriptedGuide

VOCAB_SIZE = 6000
STOP = 7
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0, "top_p": 0.9, "frequency_penalty": 0.5},
    {"temperature": 0.7, "top_k": 40, "logprobs": 3},
    {"temperature": 0.0, "repetition_penalty": 1.2, "logprobs": 1},
]


def sequences(count: int, guide: Any = None) -> list[SequenceState]:
    """Of all kinds, each behind the other."""
    made = []
    for i in range(count):
        params = SamplingParams(max_tokens=100, seed=i, **KINDS[i % len(KINDS)])
        made.append(RequestState.create(GenerationRequest(i, (1, 2, 3), params, guide)).sequences[0])
    return made


def plan_of(sequences: list[SequenceState]) -> StepPlan:
    """Every third has a draft."""
    return [
        ScheduledSequence(sequence, sequence.num_tokens, Draft.chain([i, 11]) if i % 3 == 0 else None)
        for i, sequence in enumerate(sequences)
    ]


def rows(plan: StepPlan) -> NDArray[np.float32]:
    count = sum(entry.num_rows for entry in plan)
    return np.random.default_rng(5).normal(0, 3, (count, VOCAB_SIZE)).astype(np.float32)


def sampled(sampler: StepSampler, plan: StepPlan) -> list[Verified]:
    sampler.prepare(plan)
    verified = sampler.verify(plan, [True] * len(plan), StepLogits(rows(plan)), OutputProcessor([STOP]))
    for each in verified:
        assert isinstance(each, Verified), each
    return [each for each in verified if isinstance(each, Verified)]


def test_threads_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_sampler, "_WIDE", 1)
    alone = sampled(StepSampler(VOCAB_SIZE, [STOP], 1), plan_of(sequences(30)))
    for num_threads in (2, 5, 64):
        assert sampled(StepSampler(VOCAB_SIZE, [STOP], num_threads), plan_of(sequences(30))) == alone


class SlowGuide(ScriptedGuide):
    """Fills its masks only when it is let go, and notes from which thread."""

    go = threading.Event()
    threads: ClassVar[list[str]] = []

    def fill_bitmask(self, row: NDArray[np.int32]) -> None:
        assert self.go.wait(10)
        self.threads.append(threading.current_thread().name)
        super().fill_bitmask(row)


def test_masks_are_filled_while_the_model_computes() -> None:
    SlowGuide.threads.clear()
    SlowGuide.go.clear()
    plan = plan_of(sequences(4, SlowGuide([{20}, {21}], (STOP,))))
    sampler = StepSampler(VOCAB_SIZE, [STOP], 2)
    sampler.prepare(plan)  # returns, though no mask is there
    logits = StepLogits(rows(plan))
    SlowGuide.go.set()
    verified = sampler.verify(plan, [True] * 4, logits, OutputProcessor([STOP]))
    assert [each.sampled[0].token_id for each in verified if isinstance(each, Verified)] == [20] * 4
    assert all(name.startswith("briton-sampling") for name in SlowGuide.threads[:4])


class BrokenGuide(ScriptedGuide):
    """Cannot say what may come."""

    def fill_bitmask(self, row: NDArray[np.int32]) -> None:
        raise RuntimeError("no mask")


def test_a_guide_that_fails_ends_its_own_request_alone() -> None:
    (broken,) = sequences(1, BrokenGuide([{20}], (STOP,)))
    plan = plan_of([*sequences(2), broken, *sequences(2, ScriptedGuide([{20}], (STOP,)))])
    verified = sampled(StepSampler(VOCAB_SIZE, [STOP], 2), plan)
    assert [each.error is not None for each in verified] == [False, False, True, False, False]
    assert str(verified[2].error) == "no mask"
    assert [len(each.sampled) > 0 for each in verified] == [True, True, False, True, True]


def test_what_is_not_due_is_left_alone() -> None:
    plan = plan_of(sequences(3))
    due = [True, False, True]
    logits = StepLogits(rows([entry for entry, is_due in zip(plan, due, strict=True) if is_due]))
    sampler = StepSampler(VOCAB_SIZE, [STOP], 2)
    verified = sampler.verify(plan, due, logits, OutputProcessor([STOP]))
    assert [len(each.sampled) > 0 for each in verified if isinstance(each, Verified)] == due
    assert plan[1].sequence.num_output_tokens == 0
