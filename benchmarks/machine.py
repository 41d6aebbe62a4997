"""What machine a benchmark ran on, in one line for the log."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def describe() -> str:
    """Cores, the CPU's name and the features that matter here."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in values.items()}
    features = [name for name in _FEATURES if name in fields.get("flags", "").split()]
    return f"{cores()} cores, {fields.get('model name', platform.processor())} ({' '.join(features)})"


def load() -> float:
    """How many processes were running over the last minute; much more than ours, and the figures mean little."""
    return os.getloadavg()[0]


def settle(pid: int | None = None, timeout_s: float = 60.0) -> None:
    """Wait until a process (None: this one) rests: an engine that has just started still compiles graphs."""
    stat = Path(f"/proc/{pid or 'self'}/stat")
    deadline, resting, before = time.monotonic() + timeout_s, 0, cpu_ticks(stat)
    while resting < 3 and time.monotonic() < deadline:
        time.sleep(0.4)
        now = cpu_ticks(stat)
        resting, before = (resting + 1 if now - before <= 2 else 0), now


def cpu_ticks(stat: Path) -> int:
    """User and system time of a process so far, in hundredths of a second, from its /proc/PID/stat."""
    fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
