"""Who may enter, by what is open and what it costs; and what the others are told."""

from __future__ import annotations

import pytest

from briton.engine.admission import CALLERS_ROOM, Capacity, Demand, Load, admit, expected_wait_s
from briton.engine.ledger import Ledger, LedgerEntry
from briton.engine.output_lengths import OutputLengths
from briton.engine.step_cost import StepCost, StepShape
from briton.errors import QUEUE_SIZE, QueueFull

CAPACITY = Capacity(max_batch_size=64, kv_cache_tokens=32_768, max_queue_size=8, max_queue_tokens=50_000)


def ledger_of(running: int = 0, starting: int = 0, prompt: int = 100, output: int = 100, n: int = 1) -> Ledger:
    ledger = Ledger()
    for i in range(running + starting):
        entry = LedgerEntry(i, 0.0, num_prompt_tokens=prompt, num_sequences=n, max_output_tokens=output)
        ledger.open(entry)
        ledger.submit(i)
        if i < running:
            ledger.add_tokens(i, output // 2 * n, 1.0)
    return ledger


def cost_of(step_s: float = 0.01) -> StepCost:
    cost = StepCost()
    for batch in (1, 8, 64):
        cost.observe(StepShape(batch, batch, batch * 100), step_s)
    cost.observe(StepShape(512, 1, 512 * 256), 0.35)
    return cost


def load_of(ledger: Ledger, num_running: int = 0) -> Load:
    return Load.of(ledger, CAPACITY, OutputLengths(), num_running)


def refusal(demand: Demand, ledger: Ledger, capacity: Capacity = CAPACITY) -> QueueFull | None:
    try:
        admit(demand, ledger, capacity, cost_of(), OutputLengths())
    except QueueFull as error:
        return error
    return None


def test_a_burst_enters_as_long_as_there_are_slots() -> None:
    """Of a burst of 32 with 63 free slots and a queue of 8, 24 were refused: no step had looked at them yet."""
    ledger = ledger_of(running=1)
    for i in range(63 + 8):
        assert refusal(Demand(100, max_output_tokens=100), ledger) is None
        ledger.open(LedgerEntry(1000 + i, 0.0, num_prompt_tokens=100, max_output_tokens=100))
        ledger.submit(1000 + i)
    error = refusal(Demand(100, max_output_tokens=100), ledger)
    assert error is not None
    assert str(error) == "8 requests are waiting, and the limit is 8: try again later"
    assert error.code == QUEUE_SIZE


def test_what_the_cache_does_not_hold_waits() -> None:
    ledger = ledger_of(starting=9, prompt=8000, output=1000)
    assert len(load_of(ledger).waiting) == 9 - 32_768 // 9000
    full = ledger_of(starting=11, prompt=8000, output=1000)
    assert refusal(Demand(10, max_output_tokens=10), full) is not None


def test_the_queue_counts_tokens_too() -> None:
    """256 prompts of 130k tokens were 1.5 GiB outside every plan."""
    ledger = ledger_of(running=64, starting=3, prompt=16_000)
    error = refusal(Demand(10_000), ledger)
    assert error is not None
    assert "have 48000 tokens, and the limit is 50000" in str(error)
    assert error.code is None, "a shorter one may enter"
    assert refusal(Demand(1_000), ledger) is None


def test_one_that_alone_is_over_the_limit_may_wait_alone() -> None:
    assert refusal(Demand(60_000), ledger_of(running=64)) is None


def test_siblings_count() -> None:
    ledger = ledger_of(running=1, n=64)
    assert load_of(ledger).free_slots == 0


def test_cancelled_ones_wait_for_nothing() -> None:
    ledger = ledger_of(running=64, starting=8)
    assert refusal(Demand(1), ledger) is not None
    ledger.cancel(70, 2.0)
    assert refusal(Demand(1), ledger) is None


def test_who_cannot_be_in_time_is_told_at_once() -> None:
    ledger = ledger_of(running=64, starting=7)
    assert refusal(Demand(100, timeout_s=60), ledger) is None
    error = refusal(Demand(100, timeout_s=0.2), ledger)
    assert error is not None
    assert "longer than its 0.2 s" in str(error)
    assert error.code is None, "one with more time may enter"


def test_the_wait_grows_with_what_waits_and_what_steps_cost() -> None:
    lengths = OutputLengths()
    short, long = ledger_of(running=64, starting=1), ledger_of(running=64, starting=200)
    waits = [expected_wait_s(ledger, CAPACITY, cost_of(), lengths) for ledger in (short, long)]
    # 201 outputs of 100 tokens, 64 at a time, 10 ms a step; and 200 prompts of 100 tokens
    assert waits[1] == pytest.approx(201 * 100 / 64 * 0.01 + 20_000 / 512 * 0.35, rel=0.3)
    assert waits[0] < waits[1] / 20
    assert expected_wait_s(long, CAPACITY, cost_of(0.1), lengths) > waits[1]


def test_an_empty_engine_takes_anything() -> None:
    assert refusal(Demand(32_000, max_output_tokens=32_000, timeout_s=0.001), Ledger()) is None


def test_one_callers_thousand_keep_no_other_out() -> None:
    ledger = ledger_of(running=64, starting=8)
    for entry in ledger:
        entry.caller = "many"
    assert refusal(Demand(10, max_output_tokens=10, caller="many"), ledger) is not None
    assert refusal(Demand(10, max_output_tokens=10, caller="one"), ledger) is None
    for i in range(4):  # its share of 8
        ledger.open(LedgerEntry(900 + i, 0.0, max_output_tokens=10, caller="one"))
        ledger.submit(900 + i)
    assert refusal(Demand(10, max_output_tokens=10, caller="one"), ledger) is not None


def test_many_callers_have_a_bound_together() -> None:
    ledger = ledger_of(running=64, starting=CALLERS_ROOM * 8)
    for i, entry in enumerate(ledger):
        entry.caller = f"caller {i}"
    assert refusal(Demand(10, max_output_tokens=10, caller="yet another"), ledger) is not None


def test_what_does_not_stream_runs_all_the_same() -> None:
    """It gives no token until its end: 64 that ran were taken for 64 that wait, at one a step."""
    streaming, silent = ledger_of(running=64, starting=10), ledger_of(starting=74)
    assert len(load_of(silent, num_running=64).running) == 64
    waits = [
        expected_wait_s(ledger, CAPACITY, cost_of(), OutputLengths(), number)
        for ledger, number in ((streaming, 0), (silent, 64))
    ]
    assert 0.7 < waits[1] / waits[0] < 1.5


def test_the_wait_for_the_cache_counts_too() -> None:
    """With 60 free slots and no free cache a request was told 0.3 s, and waited 27."""
    ledger = ledger_of(running=4, starting=36, prompt=7000, output=1000)
    load = load_of(ledger)
    assert load.free_slots > 0
    assert len(load.waiting) == 36
    # 36 more of 8000 tokens, of which 4 are held at a time: nine times their length, and the prompts
    wait_s = expected_wait_s(ledger, CAPACITY, cost_of(), OutputLengths())
    assert wait_s > 36 / 4 * 256 * 0.01
    assert refusal(Demand(7000, max_output_tokens=1000, timeout_s=1.0), ledger) is not None


def test_who_is_being_prepared_does_not_wait() -> None:
    """320 guides that were compiled kept a plain request out of an idle engine."""
    ledger = Ledger()
    for i in range(64 + CALLERS_ROOM * 8 - 1):
        ledger.open(LedgerEntry(i, 0.0, num_prompt_tokens=10, max_output_tokens=10))
    assert refusal(Demand(10, max_output_tokens=10), ledger) is None
    ledger.open(LedgerEntry(999, 0.0))
    error = refusal(Demand(10, max_output_tokens=10), ledger)
    assert error is not None
    assert "are being prepared" in str(error)


def test_a_wait_longer_than_any_retry_is_still_compared_with_the_deadline() -> None:
    ledger = ledger_of(running=64, starting=7, output=1_000_000)
    lengths = OutputLengths()
    for _ in range(300):
        lengths.observe(1_000_000)
    with pytest.raises(QueueFull) as refused:
        admit(Demand(10, timeout_s=600.0), ledger, CAPACITY, cost_of(), lengths)
    assert refused.value.retry_after_s == 600.0
