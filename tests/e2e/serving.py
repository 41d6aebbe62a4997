"""`briton serve` as a process of a test."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import grpc

from briton.v1 import engine_pb2, engine_pb2_grpc
from tests.processes import free_port, is_running, wait_until

EXAMPLE = Path(__file__).parents[2] / "examples" / "smollm2-135m-instruct" / "config.yaml"
MODEL = "smollm2-135m-instruct"
LOOKAHEAD_OFF = {"window_size": 1, "ngram_size": 1, "verification_set_size": 0}
START_TIMEOUT_S = 240.0  # with a download and a build


def alike() -> dict[str, object]:
    """Fields of a request that is to be computed just as another is: in bf16 a prompt that shares its first blocks with
    another one, or a token that was guessed, is rounded otherwise. So is all in other graphs: see `await_graphs`."""
    return {"cache_salt": uuid4().hex, "lookahead_decoding_config": LOOKAHEAD_OFF}


class Serving:
    """A running `briton serve`: its addresses, its children, what it printed."""

    def __init__(self, config: Path, directory: Path) -> None:
        """Start it; `wait_until_ready` follows."""
        self.http_port, self.grpc_port = free_port(), free_port()
        self._out, self._log = directory / "stdout", directory / "stderr"
        arguments = [
            "serve",
            "--config",
            str(config),
            "--port",
            str(self.http_port),
            "--grpc-port",
            str(self.grpc_port),
        ]
        with self._out.open("w") as out, self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "briton", *arguments], stdout=out, stderr=log, start_new_session=True
            )

    @property
    def url(self) -> str:
        """The OpenAI base URL."""
        return f"http://127.0.0.1:{self.http_port}/v1"

    @property
    def output(self) -> str:
        """What it has printed to standard output."""
        return self._out.read_text()

    @property
    def log(self) -> str:
        """What it and its children have logged."""
        return self._log.read_text()

    def wait_until_ready(self) -> None:
        """Until the curl line is printed; fails with the log when the process ends before."""

        def ready() -> bool:
            assert self.process.poll() is None, self.log
            return "curl" in self.output

        wait_until(ready, START_TIMEOUT_S)

    def await_graphs(self) -> None:
        """Until the engine that runs has all its graphs: in bf16 a step is rounded otherwise in another graph."""
        wait_until(lambda: self.log.count("are ready, ") >= self.log.count("engine started, pid"), 60)

    def pid(self, child: str) -> int:
        """The process id of "engine" or "gateway", the latest."""
        return int(re.findall(rf"{child} started, pid (\d+)", self.log)[-1])

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a GET; (0, "") when nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def channel(self) -> grpc.Channel:
        """A channel to the engine."""
        return grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}", options=[("grpc.enable_http_proxy", 0)])

    def stats(self) -> engine_pb2.Stats:
        """The engine's counters now."""
        with self.channel() as channel:
            return engine_pb2_grpc.EngineStub(channel).GetStats(engine_pb2.GetStatsRequest(), timeout=5)

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(signum)
        return self.process.wait(timeout=60)

    def end(self) -> None:
        """End it, whatever its state, and see that it leaves nothing behind."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        children = [int(pid) for pid in re.findall(r"(?:engine|gateway) started, pid (\d+)", self.log)]
        wait_until(lambda: not any(is_running(pid) for pid in children))
