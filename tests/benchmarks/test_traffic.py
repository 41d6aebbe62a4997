"""bench_traffic: that its figures are what they are called, on input that is written here."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from briton.config.loader import load_config
from briton.engine.types import SamplingParams
from briton.process import serve
from briton.process.logs import LineWriter
from briton.process.serve import Addresses
from tests.fake_executor import FakeExecutor

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
KEYS = (  # what reads the JSON document relies on
    "unset_limit_steps_ratio",
    "prefill_itl_p99_ms",
    "prefill_rate_share",
    "c64_output_tokens_per_s",
    "c64_ttft_p50_s",
    "fair_ttft_ratio",
    "overload_statuses",
    "retry_after_ratio_p50",
    "hang_not_serving_s",
    "hang_serving_again_s",
    "choice_1024_first_token_s",
    "choice_behind_40_s",
    "host_share_262k",
    "start_first_token_s",
)

Load = Callable[[str], Any]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports a module of the benchmarks, which are scripts beside each other and no package."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_percentiles_and_gaps(load: Load) -> None:
    figures = load("traffic_figures")
    assert figures.percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert figures.percentile([float(value) for value in range(101)], 99) == 99.0
    with pytest.raises(ValueError, match="nothing"):
        figures.percentile([], 50)
    # between 0 and 10 a token each second, then none until 14: the gap counts though it ends outside
    times = [*map(float, range(11)), 14.0, 15.0]
    assert figures.gaps_within(times, 8.5, 12.0) == [1.0, 1.0, 4.0]


def test_a_refusal_is_held_against_the_wait_of_its_moment(load: Load) -> None:
    ratios = load("traffic_figures").retry_ratios
    accepted = [(20.0, 4.0), (0.0, 1.0), (10.0, 2.0)]  # in the order of their ends
    assert ratios([(1.0, 2.0), (4.0, 3.0), (9.0, 1.0), (99.0, 4.0)], accepted) == [2.0, 3.0, 0.5, 1.0]
    assert ratios([(1.0, 2.0)], []) == []


def _event(**fields: object) -> bytes:
    return b"data: " + json.dumps({"choices": [], **fields}).encode() + b"\n\n"


HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
TEXT = _event(choices=[{"delta": {"content": "a"}}])
END = _event(usage={"prompt_tokens": 5, "completion_tokens": 1}) + b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("reads", "kind", "retry_after_s", "first_token_s"),
    [
        ([(0.1, HEAD), (0.25, TEXT), (0.5, END)], "200", None, 0.25),
        ([(0.1, HEAD), (0.25, TEXT)], "200, broken off", None, None),
        ([(0.1, HEAD + _event(error={"message": "died"}))], "200, broken off", None, None),
        ([(0.1, b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\n\r\n{}")], "429", 7.0, None),
        ([(0.1, b"HTTP/1.1 503 Service Unavailable\r\n\r\nretry-after: 7\r\n")], "503", None, None),
        ([], "0", None, None),
    ],
)
def test_what_an_answer_says(
    load: Load,
    reads: list[tuple[float, bytes]],
    kind: str,
    retry_after_s: float | None,
    first_token_s: float | None,
) -> None:
    outcome = load("traffic_client").outcome_of(3.0, reads)
    assert (outcome.sent_at, outcome.kind, outcome.retry_after_s) == (3.0, kind, retry_after_s)
    if first_token_s is None:
        with pytest.raises(ValueError, match="no first token"):
            outcome.first_token_s  # noqa: B018
    else:
        assert outcome.first_token_s == first_token_s


def test_outcomes_are_counted_by_what_became_of_them(load: Load) -> None:
    assert load("traffic_figures").counted(["429", "200", "429"]) == {"200": 1, "429": 2}


async def test_a_crowd_leaves_its_connections(load: Load) -> None:
    """What it has sent would otherwise run on under the next measurement."""
    sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    left: asyncio.Queue[bytes] = asyncio.Queue()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        sent.put_nowait(json.loads(await reader.readexactly(length)))
        writer.write(HEAD + TEXT)
        try:
            left.put_nowait(await reader.read())
        except ConnectionResetError:  # closed with bytes that were not read
            left.put_nowait(b"")
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        crowd = load("traffic_client").Crowd("127.0.0.1", server.sockets[0].getsockname()[1])
        await crowd.send([{"messages": [], "user": "many"} for _ in range(3)])
        for _ in range(3):
            assert await sent.get() == {"messages": [], "user": "many", "stream": True}
        assert left.empty()
        await crowd.leave()
        assert [await asyncio.wait_for(left.get(), 10) for _ in range(3)] == [b""] * 3


def test_requests_without_a_limit_take_about_as_many_steps(load: Load) -> None:
    executor = load("traffic_executor")
    assert executor.unset_limit_steps_ratio(num_requests=12, prompt=40, output=30) == pytest.approx(1.0, abs=0.3)
    # 40 tokens of 12 prompts fit in the first step, and each sequence has 30 tokens and its end
    assert executor._steps("max_utilization", 12, 40, 30) in (30, 31)


def test_tokens_of_an_executor_have_times(load: Load) -> None:
    module = load("traffic_executor")
    executor = FakeExecutor(step_s=0.01)
    try:
        timed = module.Timed(executor)
        sampling = SamplingParams(max_tokens=5, ignore_eos=True)
        one, two = (timed.submit([3, 4], sampling) for _ in range(2))
        timed.wait(one, num_tokens=2)
        assert one not in timed.ended
        timed.wait(one)
        timed.wait(two)
        assert timed.ended == {one, two}
        for times in timed.token_times.values():
            assert times == sorted(times)
            assert 2 <= len(times) <= 5
    finally:
        executor.shutdown()


def test_the_document_has_the_keys_that_are_relied_on(load: Load) -> None:
    parts = load("bench_traffic").PARTS
    assert tuple(key for part in parts.values() for key in part.keys) == KEYS


def test_a_part_that_fails_says_null(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    bench = load("bench_traffic")

    def fails(quick: bool) -> dict[str, float]:
        raise RuntimeError("the server answered 503")

    assert bench.measured(bench.Part(fails, ("a_s", "b_s")), True) == {"a_s": None, "b_s": None}
    assert "the server answered 503" in capsys.readouterr().err
    assert bench.measured(bench.Part(lambda quick: {"a_s": 1.0 if quick else 2.0}, ("a_s",)), True) == {"a_s": 1.0}


def test_a_variant_changes_what_it_says_and_nothing_else(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BRITON_CACHE_DIR", str(tmp_path))
    module = load("traffic_model")
    plain, changed = load_config(module.EXAMPLE), load_config(module.variant("x", max_queue_size=7))
    assert changed.briton.max_queue_size == 7
    assert changed.briton.logging.level == "error"
    assert changed.briton.local == plain.briton.local
    assert changed.trt_llm == plain.trt_llm
    assert module.merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "e": 5}) == {
        "a": {"b": 1, "c": 4},
        "d": 3,
        "e": 5,
    }


def test_the_engine_that_hangs_is_the_supervisors_own(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its command is that of `briton serve`, but for the program; the gateway's is untouched."""
    config = load_config(BENCHMARKS.parent / "examples" / "smollm2-135m-instruct" / "config.yaml")
    addresses, writer = Addresses("127.0.0.1", 1, "127.0.0.1", 2), LineWriter(sys.stdout)
    engine, gateway = serve.child_specs(config, tmp_path, addresses, writer)
    monkeypatch.setattr(serve, "child_specs", serve.child_specs)  # put back afterwards
    load("hanging_engine")._start_engine_through_this(tmp_path / "hang")
    hanging, same = serve.child_specs(config, tmp_path, addresses, writer)
    assert same.command == gateway.command
    at = engine.command.index("-m")
    program = (str(BENCHMARKS / "hanging_engine.py"), str(tmp_path / "hang"))
    assert hanging.command == (*engine.command[:at], *program, *engine.command[at + 2 :])
