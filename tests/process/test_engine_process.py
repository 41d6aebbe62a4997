"""The engine process from its first health answer to its exit code, with the fake executor in it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from briton.ranks.hub import Hub, LeaderExit
from briton.ranks.messages import encode
from briton.v1 import engine_pb2 as pb
from briton.v1 import engine_pb2_grpc as pb_grpc
from tests.fake_engine import write_tokenizer
from tests.processes import wait_until
from tests.ranks.jobs import Events, introduce

ROOT = Path(__file__).parents[2]
CONFIG = """
model_name: fake
trt_llm:
  build:
    base_model: decoder
    checkpoint_repository: {source: LOCAL, repo: /nowhere}
  runtime: {served_model_name: fake}
briton:
  stall_timeout_s: 0.5
  give_up_timeout_s: 0.5
  drain_timeout_s: %s
"""
# argv: config, engine directory, port, what create_executor does, and for rank 0 of several: its hub
PROGRAM = """
import sys, time, threading
from pathlib import Path
from types import SimpleNamespace
import briton.process.engine_process as engine_process
from briton.config.loader import load_config
from briton.errors import BuildError
from briton.ranks.member import Member
from briton.ranks.messages import HubAddress
from briton.process.logs import configure_logging
from tests.fake_executor import FakeExecutor

class Stuck(FakeExecutor):
    def shutdown(self):
        threading.Event().wait()

class Telling(FakeExecutor):
    def shutdown(self):
        print("the executor was shut down", file=sys.stderr)
        super().shutdown()

def create_executor(config, engine_dir, rank_context):
    how = sys.argv[4]
    if how == "slow":
        time.sleep(1.0)
    if how == "never":
        threading.Event().wait()
    if how == "broken":
        raise BuildError("rank0.safetensors is truncated")
    if how == "unreadable":
        return Telling(step_s=0.01)
    executor = Stuck(step_s=0.01) if how == "stuck" else FakeExecutor(step_s=0.01)
    if how == "hangs":
        threading.Timer(0.5, executor.hang).start()
    if how == "dies":
        threading.Timer(0.5, executor.fail, ("out of memory",)).start()
    return executor

engine_process.create_executor = create_executor
if sys.argv[4] == "unreadable":
    (Path(sys.argv[2]) / "tokenizer.json").write_text("{")
config = load_config(Path(sys.argv[1]))
configure_logging("info", "text", process="engine")
rank_context = None
if len(sys.argv) > 5:
    rank_context = SimpleNamespace(member=Member(HubAddress.parse(sys.argv[5]), 0))
try:
    code = engine_process.run_engine(
        config, Path(sys.argv[2]), host="127.0.0.1", port=int(sys.argv[3]), rank_context=rank_context
    )
except Exception as error:
    print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
    code = 7
raise SystemExit(code)
"""


class Process:
    """A running engine process. `lines` are those of its standard error."""

    def __init__(
        self, directory: Path, how: str, *, port: int = 0, drain_timeout_s: float = 10, hub: Hub | None = None
    ) -> None:
        config = directory / "config.yaml"
        config.write_text(CONFIG % drain_timeout_s)
        if not port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
        self.port = port
        write_tokenizer(directory / "engine")
        address = [] if hub is None else [str(hub.address)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(config), str(directory / "engine"), str(port), how, *address],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=(("grpc.max_reconnect_backoff_ms", 100),))

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines += [line.rstrip() for line in iter(self.process.stderr.readline, "")]

    def health(self) -> int | None:
        """Its health, or None while nobody answers."""
        try:
            return int(
                health_pb2_grpc.HealthStub(self.channel).Check(health_pb2.HealthCheckRequest(), timeout=2).status
            )
        except grpc.RpcError:
            return None

    def wait_for(self, health: int) -> None:
        """Wait until its health says so."""
        deadline = time.monotonic() + 30
        while self.health() != health:
            assert self.process.poll() is None, self.lines
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def generate(self, max_tokens: int) -> Iterator[pb.GenerateResponse]:
        """One call."""
        request = pb.GenerateRequest(text="hi", sampling=pb.SamplingParams(max_tokens=max_tokens))
        return iter(pb_grpc.EngineStub(self.channel).Generate(request))

    def exit_code(self) -> int:
        """Wait for its end."""
        code = self.process.wait(15)
        self._reader.join(5)
        return code


SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a process; whatever runs at the end of the test is killed."""
    started: list[Process] = []

    def start_process(how: str, **options: Any) -> Process:
        started.append(Process(tmp_path, how, **options))
        return started[-1]

    yield start_process
    for process in started:
        process.channel.close()
        process.process.kill()
        process.process.wait(5)
        process._reader.join(5)
        assert process.process.stderr is not None
        process.process.stderr.close()


def count(answers: Iterator[pb.GenerateResponse]) -> int:
    return sum(len(output.token_ids) for answer in answers for output in answer.outputs)


def test_health_drain_and_exit_code(start: Start) -> None:
    engine = start("slow")
    engine.wait_for(NOT_SERVING)  # answers while the model loads
    engine.wait_for(SERVING)
    answers = engine.generate(60)
    next(answers)
    engine.process.send_signal(signal.SIGTERM)
    engine.wait_for(NOT_SERVING)
    with pytest.raises(grpc.RpcError, match="draining"):
        count(engine.generate(1))
    assert 1 <= count(answers) < 60
    assert engine.exit_code() == 0
    starts = [line for line in engine.lines if "serving" in line]
    assert len(starts) == 1
    assert "fake executor, none weights, none KV cache of 32768 tokens" in starts[0]


def test_a_drain_is_bounded(start: Start) -> None:
    engine = start("at once", drain_timeout_s=0.2)
    engine.wait_for(SERVING)
    answers = engine.generate(2000)
    next(answers)
    engine.process.send_signal(signal.SIGTERM)
    with pytest.raises(grpc.RpcError, match="shutting down") as caught:
        count(answers)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert engine.exit_code() == 0


def test_a_second_signal_cuts_the_drain_short(start: Start) -> None:
    engine = start("at once", drain_timeout_s=60)
    engine.wait_for(SERVING)
    answers = engine.generate(2000)
    next(answers)
    engine.process.send_signal(signal.SIGINT)
    engine.wait_for(NOT_SERVING)
    engine.process.send_signal(signal.SIGINT)
    with pytest.raises(grpc.RpcError):
        count(answers)
    assert engine.exit_code() == 0


def test_a_step_without_end_does_not_keep_the_process(start: Start) -> None:
    """The executor's thread was waited for without a limit, before streams ended, and more signals were ignored."""
    engine = start("stuck", drain_timeout_s=0.2)
    engine.wait_for(SERVING)
    answers = engine.generate(2000)
    next(answers)
    signalled_at = time.monotonic()
    engine.process.send_signal(signal.SIGTERM)
    with pytest.raises(grpc.RpcError, match="shutting down"):
        count(answers)
    assert time.monotonic() - signalled_at < 3, "the stream was told after the executor had its time"
    assert engine.exit_code() == 1
    assert time.monotonic() - signalled_at < 0.2 + 5 + 5
    assert any("did not shut down within 5 s" in line for line in engine.lines)


def test_a_second_signal_ends_a_stuck_executor_at_once(start: Start) -> None:
    engine = start("stuck", drain_timeout_s=0.2)
    engine.wait_for(SERVING)
    engine.process.send_signal(signal.SIGTERM)
    wait_until(lambda: any("draining" in line for line in engine.lines))
    time.sleep(0.5)  # the drain is over: nothing is open
    signalled_at = time.monotonic()
    engine.process.send_signal(signal.SIGTERM)
    assert engine.exit_code() == 1
    assert time.monotonic() - signalled_at < 3


def test_a_hung_executor_ends_the_process_whatever_its_callers_do(start: Start) -> None:
    """Callers with deadlines shorter than the stall time kept a hung engine serving for ever."""
    engine = start("hangs")
    engine.wait_for(SERVING)
    stub, deadline = pb_grpc.EngineStub(engine.channel), time.monotonic() + 20
    request = pb.GenerateRequest(text="hi", sampling=pb.SamplingParams(max_tokens=2000))
    while engine.process.poll() is None and time.monotonic() < deadline:
        with pytest.raises(grpc.RpcError):
            list(stub.Generate(request, timeout=0.2))
    assert engine.exit_code() == 1
    assert any("no progress" in line for line in engine.lines)


def test_a_signal_while_loading(start: Start) -> None:
    engine = start("never")
    engine.wait_for(NOT_SERVING)
    engine.process.send_signal(signal.SIGTERM)
    assert engine.exit_code() == 0


def test_a_dead_executor_ends_the_process(start: Start) -> None:
    """With a code that makes its supervisor start it again."""
    engine = start("dies")
    assert engine.exit_code() == 1
    assert "out of memory" in engine.lines[-1]


def test_an_engine_that_cannot_be_loaded(start: Start) -> None:
    engine = start("broken")
    assert engine.exit_code() == 7
    assert engine.lines == ["error: BuildError: rank0.safetensors is truncated"]


def test_a_port_in_use(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        engine = start("at once", port=port)
        assert engine.exit_code() == 7
    assert len(engine.lines) == 1
    assert f"port {port} on 127.0.0.1 is in use" in engine.lines[0]


# Rank 0 of several. The other rank is a connection of the test's.


@pytest.fixture
def job() -> Iterator[tuple[Hub, Events, socket.socket]]:
    """A job of two: its hub, what that reports, and rank 1."""
    events = Events()
    hub = Hub(2, events.put)
    hub.start()
    with introduce(hub, 1) as other:
        yield hub, events, other
    hub.close()


Job = tuple[Hub, Events, socket.socket]


def fail(other: socket.socket, message: str) -> float:
    """Rank 1 fails; returns when."""
    other.sendall(encode("failed", message=message, exit_code=1))
    return time.monotonic()


@pytest.mark.timing
@pytest.mark.parametrize("how", ["at once", "hangs"])
def test_the_failure_of_another_rank_ends_open_requests(start: Start, job: Job, how: str) -> None:
    """And the process, though its executor may wait for that rank for ever."""
    hub, events, other = job
    engine = start(how, hub=hub)
    engine.wait_for(SERVING)
    answers = engine.generate(2000)
    next(answers)
    if how == "hangs":
        time.sleep(0.6)
    failed_at = fail(other, "out of memory")
    with pytest.raises(grpc.RpcError, match=r"rank 1 on elsewhere: out of memory") as caught:
        count(answers)
    assert time.monotonic() - failed_at < 1
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert engine.exit_code() == 1
    assert time.monotonic() - failed_at < 4
    assert any("the engine ends: rank 1 on elsewhere: out of memory" in line for line in engine.lines)
    assert events.failure().rank == 1
    assert events.next() == LeaderExit()


@pytest.mark.timing
def test_the_failure_of_another_rank_ends_the_loading(start: Start, job: Job) -> None:
    """The thread that loads waits for that rank for ever, and was waited for."""
    hub, _, other = job
    engine = start("never", hub=hub)
    engine.wait_for(NOT_SERVING)
    failed_at = fail(other, "no room")
    assert engine.exit_code() == 1
    assert time.monotonic() - failed_at < 2
    assert engine.lines[-1].endswith("the engine ends: rank 1 on elsewhere: no room")


def test_the_hub_asks_for_a_drain(start: Start, job: Job) -> None:
    hub, _, _ = job
    engine = start("at once", hub=hub)
    engine.wait_for(SERVING)
    answers = engine.generate(60)
    next(answers)
    assert hub.drain()
    assert 1 <= count(answers) < 60
    assert engine.exit_code() == 0
    assert any(line.endswith("drained") for line in engine.lines)


def test_a_drain_while_loading_is_no_failure(start: Start, job: Job) -> None:
    hub, events, _ = job
    engine = start("never", hub=hub)
    engine.wait_for(NOT_SERVING)
    wait_until(hub.drain)
    assert engine.exit_code() == 0
    assert events.next() == LeaderExit()


def test_a_tokenizer_that_cannot_be_read_ends_the_executor_too(start: Start) -> None:
    """Both are loaded at the same time: an executor that nobody ends compiles graphs on."""
    engine = start("unreadable")
    assert engine.exit_code() == 7
    assert "the executor was shut down" in engine.lines
    assert "error: BuildError" in engine.lines[-1]
