"""What tests of processes share: waiting for something, and asking the kernel about a process."""

from __future__ import annotations

import itertools
import os
import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_NEXT_PORT = itertools.count(random.randrange(1000))


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Poll until the condition holds; fail when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether the process runs: neither gone nor a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on now.

    Below those that the kernel hands out, and each worker of pytest-xdist has a thousand of its own: what one test was
    given, no other connection or test takes before a server listens there.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = 20_000 + 1000 * (worker % 12) + next(_NEXT_PORT) % 1000
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
