"""The parts of `bench_traffic.py` that go through HTTP, to `briton serve` of the example."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
from chat_workload import ChatWorkload
from serving import Serving
from stream_client import chat
from traffic_client import Crowd, Outcome, ask, first_token_s
from traffic_figures import counted, percentile, retry_ratios
from traffic_model import example, variant

_T = TypeVar("_T")
_CLOSED_LOOP = 32  # requests at a time, that show how many a second there can be
_PATIENCE_S = 180.0  # for accepted requests to end


def _workload() -> ChatWorkload:
    config, engine_dir = example()
    return ChatWorkload(engine_dir, config.served_model_name)


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """To its end, which must come in time."""
    return asyncio.run(asyncio.wait_for(work, _PATIENCE_S + 60))


def clients_64(rounds: int, num_clients: int = 64, tokens: int = 128) -> tuple[float, float]:
    """64 clients with a prompt of 128 tokens, 128 output tokens each: output tokens a second, median of rounds, and
    the first token's p50 in seconds."""
    workload = _workload()
    rates, firsts = [], []
    with Serving(variant("example")) as serving:
        serving.settle()
        for number in range(rounds + 1):
            output = tokens if number else 8  # the first round warms up
            bodies = [workload.body(workload.prompt(tokens, [number, 64, i])[0], output) for i in range(num_clients)]
            answers = chat(serving.host, serving.port, bodies)
            if number:
                rates.append(answers.output_rate)
                firsts += [stream.time_to_first_token for stream in answers.streams]
    print(f"{num_clients} clients: {median(rates):.0f} output tokens/s, first token p50 {percentile(firsts, 50):.2f} s")
    return median(rates), percentile(firsts, 50)


def fair_ttft_ratio(num_requests: int = 1000, tokens: int = 64) -> float:
    """One caller has sent 1,000 requests; another's first token over what it takes on the idle engine."""
    workload = _workload()

    def body(user: str, seed: list[int]) -> dict[str, Any]:
        return {**workload.body(workload.prompt(tokens, seed)[0], 32), "user": user}

    async def measure(serving: Serving) -> float:
        address = serving.host, serving.port
        alone = [await first_token_s(*address, body("one", [3, 0, i])) for i in range(6)][1:]
        crowd = Crowd(*address)
        try:
            await crowd.send([body("many", [3, 1, i]) for i in range(num_requests)])
            await asyncio.sleep(2.0)
            beside = [await first_token_s(*address, body("one", [3, 2, i])) for i in range(3)]
        finally:
            await crowd.leave()
        ratio = median(beside) / median(alone)
        print(
            f"beside {num_requests} requests of another caller: first token {1e3 * median(beside):.0f} ms, "
            f"{1e3 * median(alone):.0f} alone, {ratio:.2f} times"
        )
        return ratio

    with Serving(variant("fair", max_queue_size=2 * num_requests)) as serving:
        serving.settle()
        return run(measure(serving))


@dataclass(frozen=True)
class Overload:
    """What became of the requests of an overload."""

    statuses: dict[str, int]
    retry_after_ratio_p50: float | None  # None: nothing was refused
    engine_bytes: tuple[int, int]  # resident, a third into the overload and at its end


def overload(seconds: float, factor: float = 5.0, tokens: int = 64, max_queue_size: int | None = None) -> Overload:
    """So many times the requests a second that can be served, at even distances; all that is accepted runs to its
    end. `max_queue_size`: of the engine, None for the config's own."""
    workload = _workload()

    def body(*seed: int) -> dict[str, Any]:
        return workload.body(workload.prompt(tokens, [4, *seed])[0], tokens)

    async def capacity(serving: Serving, total: int = 3 * _CLOSED_LOOP) -> float:
        gate = asyncio.Semaphore(_CLOSED_LOOP)

        async def one(number: int) -> None:
            async with gate:
                await first_token_s(serving.host, serving.port, body(0, number))

        began = time.perf_counter()
        await asyncio.gather(*(one(number) for number in range(total)))
        return total / (time.perf_counter() - began)

    async def measure(serving: Serving) -> Overload:
        rate = await capacity(serving)
        bodies = [body(1, number) for number in range(int(factor * rate * seconds))]
        engine = serving.children()["engine"]
        sizes: list[int] = []
        tasks: list[asyncio.Task[Outcome]] = []
        began = time.perf_counter()
        for number, each in enumerate(bodies):
            await asyncio.sleep(began + number / (factor * rate) - time.perf_counter())
            tasks.append(asyncio.create_task(ask(serving.host, serving.port, each)))
            if number == len(bodies) // 3:
                sizes.append(resident_bytes(engine))
        sizes.append(resident_bytes(engine))
        outcomes = await asyncio.gather(*tasks)
        ratios = retry_ratios(
            [(each.sent_at, each.retry_after_s) for each in outcomes if each.retry_after_s is not None],
            [(each.sent_at, each.first_token_s) for each in outcomes if each.stream is not None],
        )
        result = Overload(
            counted(each.kind for each in outcomes),
            percentile(ratios, 50) if ratios else None,
            (sizes[0], sizes[1]),
        )
        told = "" if not ratios else f"p10 {percentile(ratios, 10):.2f}, p50 {result.retry_after_ratio_p50:.2f}, "
        told += "" if not ratios else f"p90 {percentile(ratios, 90):.2f}"
        print(
            f"overload of {factor:g} x {rate:.1f} requests/s for {seconds:g} s: {result.statuses}; Retry-After over "
            f"the wait {told}; engine {sizes[0] / 2**20:.0f} MiB a third into it, {sizes[1] / 2**20:.0f} at its end"
        )
        return result

    path = variant("example") if max_queue_size is None else variant("overload", max_queue_size=max_queue_size)
    with Serving(path) as serving:
        serving.settle()
        return run(measure(serving))


def resident_bytes(pid: int) -> int:
    """Of a process. Linux only."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


def choices_first_tokens(rounds: int) -> tuple[float, float]:
    """Seconds to the first token of a `guided_choice` of 1,024 choices on an idle engine, and to that of one of two
    words sent after 40 requests of 256 choices each; medians. Every list of choices is new."""
    workload = _workload()
    generator = np.random.default_rng(5)

    def body(number: int) -> dict[str, Any]:
        letters = generator.integers(97, 123, (number, 24)).astype(np.uint8)
        choices = [bytes(row).decode() for row in letters]
        return {**workload.body("Choose one.", 16), "ignore_eos": False, "guided_choice": choices}

    async def measure(serving: Serving) -> tuple[float, float]:
        address = serving.host, serving.port
        await first_token_s(*address, body(2))
        many, behind = [], []
        for _ in range(rounds):
            many.append(await first_token_s(*address, body(1024)))
            crowd = Crowd(*address)
            await crowd.send([body(256) for _ in range(40)])
            behind.append(await first_token_s(*address, body(2)))
            await crowd.leave()
            await asyncio.sleep(1.0)
            await first_token_s(*address, body(2))  # whatever the crowd left has been worked off
        print(f"choices: {median(many):.2f} s to the first token of 1,024, {median(behind):.2f} s behind 40 of 256")
        return median(many), median(behind)

    with Serving(variant("example")) as serving:
        serving.settle()
        return run(measure(serving))


def start_first_token_s(rounds: int) -> float:
    """Seconds from `briton serve` of a built engine to the first token through HTTP; median of rounds after one."""
    workload = _workload()
    path = variant("example")
    body = workload.body("What is gravity?", 1)
    seconds = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        with Serving(path) as serving:
            run(first_token_s(serving.host, serving.port, body))
            seconds.append(time.perf_counter() - began)
    print("start to first token:", ", ".join(f"{each:.2f}" for each in seconds), "s")
    return median(seconds[1:])
