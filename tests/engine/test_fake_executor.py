"""The fake executor keeps the promises of a real one, so that what runs on it says something."""

from __future__ import annotations

from briton.engine.executor import Executor
from tests.conformance import SIZES, ExecutorConformance, ExecutorLimits
from tests.fake_executor import FAKE_INFO, FakeExecutor
from tests.request_runner import RequestRunner


class FakeConformance(ExecutorConformance):
    """The fake with `tokens_per_step` tokens a step."""

    tokens_per_step: int

    def make_executor(self, limits: ExecutorLimits) -> Executor:
        return FakeExecutor(limits.of(FAKE_INFO), tokens_per_step=self.tokens_per_step)


class TestOneTokenAStep(FakeConformance):
    tokens_per_step = 1


class TestSeveralTokensAStep(FakeConformance):
    tokens_per_step = 3


class TestSpeculating(FakeConformance):
    tokens_per_step = 3
    limits = ExecutorLimits(lookahead=SIZES, enable_b10_lookahead=True)


def test_script_then_stop_id() -> None:
    runner = RequestRunner(FakeExecutor(script=lambda request, index: list(b"hi")))
    result = runner.run((1, 2), ignore_eos=False)
    assert result.tokens() == (*b"hi", FAKE_INFO.stop_token_ids[0])
    assert result.final.stop_token_id == FAKE_INFO.stop_token_ids[0]


def test_scripted_error_ends_the_request() -> None:
    runner = RequestRunner(FakeExecutor(script=lambda request, index: ValueError("scripted")))
    assert str(runner.run((1, 2), n=2).final.error) == "scripted"
