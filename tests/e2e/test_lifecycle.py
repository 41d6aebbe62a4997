"""What happens to running requests and to the processes: clients that leave, children that die, signals."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.e2e.conftest import Start, strict_client
from tests.e2e.serving import MODEL, Serving, alike
from tests.processes import is_running, wait_until

pytestmark = pytest.mark.slow

STORY: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me a very long story about a fox."}]
LONG: dict[str, Any] = {"model": MODEL, "messages": STORY, "temperature": 0, "extra_body": {"ignore_eos": True}}


def long_alike() -> dict[str, Any]:
    """LONG, to be computed just as another is."""
    return {**LONG, "extra_body": {**LONG["extra_body"], **alike()}}


def is_idle(serving: Serving) -> bool:
    """Whether the engine runs nothing and no request holds KV blocks."""
    stats = serving.stats()
    return stats.num_running == stats.num_waiting == stats.kv_blocks_used == 0


def seconds_until_idle(serving: Serving) -> float:
    """How long it takes until nothing runs."""
    start = time.monotonic()
    wait_until(lambda: is_idle(serving), 5.0)
    return time.monotonic() - start


@pytest.mark.timing
def test_a_streaming_client_that_leaves_frees_its_blocks(serving: Serving, client: openai.OpenAI) -> None:
    wait_until(lambda: is_idle(serving))
    stream = client.chat.completions.create(**LONG, max_tokens=4000, stream=True)
    for _ in range(5):
        next(stream)
    assert serving.stats().kv_blocks_used > 0
    stream.close()
    assert seconds_until_idle(serving) < 0.5


@pytest.mark.timing
def test_a_waiting_client_that_leaves_frees_its_blocks(serving: Serving) -> None:
    wait_until(lambda: is_idle(serving))
    body = json.dumps({"model": MODEL, "messages": STORY, "max_tokens": 4000, "ignore_eos": True})
    connection = http.client.HTTPConnection("127.0.0.1", serving.http_port)
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    wait_until(lambda: serving.stats().kv_blocks_used > 0)
    connection.close()
    assert seconds_until_idle(serving) < 0.5


@pytest.mark.parametrize("child", ["engine", "gateway"])
def test_a_killed_child_comes_back(start: Start, child: str) -> None:
    serving = start()
    with strict_client(serving) as client:
        serving.await_graphs()
        before = client.chat.completions.create(**long_alike(), max_tokens=8).choices[0].message.content
        stream = client.chat.completions.create(**LONG, max_tokens=4000, stream=True)
        next(stream)
        pid = serving.pid(child)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(openai.APIError):
            list(stream)
        wait_until(lambda: serving.log.count(f"{child} is ready") == 2, 60)
        wait_until(lambda: serving.get("/ready")[0] == 200, 10)
        serving.await_graphs()
        after = client.chat.completions.create(**long_alike(), max_tokens=8).choices[0].message.content
        assert after == before
    assert serving.stop() == 0


def test_ready_says_no_while_the_engine_is_away(start: Start) -> None:
    serving = start()
    os.kill(serving.pid("engine"), signal.SIGKILL)
    wait_until(lambda: serving.get("/ready")[0] == 503, 10)
    assert serving.get("/live")[0] == 200
    wait_until(lambda: serving.get("/ready")[0] == 200, 60)
    assert serving.stop() == 0


def test_sigterm_lets_a_running_stream_finish(start: Start) -> None:
    serving = start()
    with strict_client(serving) as client:
        serving.await_graphs()
        alone = client.chat.completions.create(**long_alike(), max_tokens=200).choices[0].message.content
        stream = client.chat.completions.create(**long_alike(), max_tokens=200, stream=True)
        next(stream)
        serving.process.send_signal(signal.SIGTERM)
        wait_until(lambda: serving.get("/ready")[0] != 200, 2)
        choices = [chunk.choices[0] for chunk in stream]
        assert "".join(choice.delta.content or "" for choice in choices) == alone
        assert choices[-1].finish_reason == "length"
    assert serving.process.wait(timeout=30) == 0, serving.log
    assert serving.get("/live") == (0, "")


def test_a_second_signal_ends_at_once(start: Start) -> None:
    serving = start()
    with strict_client(serving) as client:
        stream = client.chat.completions.create(**LONG, max_tokens=4000, stream=True)
        next(stream)
        serving.process.send_signal(signal.SIGINT)
        wait_until(lambda: "draining" in serving.log)
        serving.process.send_signal(signal.SIGINT)
        assert serving.process.wait(timeout=3) == 128 + signal.SIGINT


def test_children_do_not_outlive_the_supervisor(start: Start) -> None:
    serving = start()
    pids = [serving.pid("engine"), serving.pid("gateway")]
    serving.process.kill()
    wait_until(lambda: not any(is_running(pid) for pid in pids), 5)


@pytest.mark.timing
def test_the_second_start_takes_seconds(serving: Serving, start: Start) -> None:
    began = time.monotonic()
    start()
    assert time.monotonic() - began < 20
