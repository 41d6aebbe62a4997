"""A peer program in a process and an environment of its own, driven by one JSON document a line.

    -> {"prompts": [[token ids] ...], "max_tokens": n}
    <- {"wall_s": ..., "first_tokens_s": ..., "output_tokens": ..., "decode_tokens": ...}

(The peers of prompt lookup take and give more, which their own files describe.)

Its first line says that it is ready: {"version": ...}. Whatever the peer's libraries print goes to standard error.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workload import Measured, Workload

ROOT = Path(__file__).parent.parent
PEERS_PYTHON = ROOT / ".peers" / "venv" / "bin" / "python"
TIMEOUT_S = 180.0


class PeerMissing(Exception):
    """The peer is not installed, or does not start; the message says why."""


class LineProcess:
    """A program that is driven so; raises PeerMissing when it does not start."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self.version = str(self._read()["version"])
        except PeerMissing:
            self.close()
            raise

    def ask(self, **request: Any) -> dict[str, Any]:
        """The peer's answer to a request of these fields."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        try:
            self._process.communicate(timeout=10)  # closes the pipes, too
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], TIMEOUT_S)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            problem = f"ended with exit code {self._process.wait()}" if ready else f"said nothing for {TIMEOUT_S:.0f} s"
            raise PeerMissing(f"{self.name} {problem}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class PeerProcess(LineProcess):
    """Starts `benchmarks/peers/NAME.py`; raises PeerMissing."""

    def __init__(self, name: str, arguments: list[str]) -> None:
        if not PEERS_PYTHON.exists():
            raise PeerMissing(f"{name} is not installed: run `make peers`")
        script = Path(__file__).parent / "peers" / f"{name}.py"
        super().__init__(name, [str(PEERS_PYTHON), str(script), *arguments])

    def run(self, workload: Workload, run: int) -> Measured:
        """Let the peer do the workload once."""
        return Measured(**self.ask(prompts=workload.prompts(run), max_tokens=workload.output_tokens))


def start_peer(name: str, arguments: list[str]) -> PeerProcess | None:
    """The peer, or None with the reason on standard error."""
    try:
        return PeerProcess(name, arguments)
    except PeerMissing as missing:
        print(missing, file=sys.stderr)
        return None
