"""`briton serve` as a process of the benchmark, on free ports of the loopback interface."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import machine

_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 45.0


class Serving:
    """A context: the served model inside, nothing left running outside."""

    def __init__(self, config_path: Path, program: Sequence[str] = ("-m", "briton")) -> None:
        """`program`: what the interpreter runs; it takes the arguments of `briton`."""
        self.host = "127.0.0.1"
        self.port, grpc_port = free_ports(2)
        self.engine = f"{self.host}:{grpc_port}"
        command = [sys.executable, *program, "serve", "--config", str(config_path), "--host", self.host]
        self._process = subprocess.Popen(
            [*command, "--port", str(self.port), "--grpc-port", str(grpc_port)], stdout=subprocess.DEVNULL
        )

    def __enter__(self) -> Serving:
        self.await_ready()
        return self

    def await_ready(self) -> None:
        """Until /ready says 200. Raises RuntimeError when it does not in time; nothing is left running then."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._is_ready():
            code = self._process.poll()
            if code is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"briton serve is not ready: exit code {code}")
            time.sleep(0.02)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time so far, user and system, of each child by its command ("engine", "gateway"). Linux only."""
        return {name: machine.cpu_ticks(Path(f"/proc/{pid}/stat")) / 100 for name, pid in self.children().items()}

    def children(self) -> dict[str, int]:
        """Process ids by command. Linux only."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return {_command(pid): int(pid) for pid in children}

    def settle(self) -> None:
        """Wait until the engine rests: when it serves, it still compiles graphs."""
        machine.settle(self.children()["engine"])

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.host}:{self.port}/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def free_ports(count: int) -> list[int]:
    """Different ports of the loopback that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _command(pid: str) -> str:
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return next((name for name in ("engine", "gateway") if name in arguments), pid)
