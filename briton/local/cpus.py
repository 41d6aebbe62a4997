"""How many threads can compute at once here."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from briton.local.cgroups import CGROUPS, PROC, cgroups_of


def available_cpus(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """The cores that this process may run on, cut to the quota of its cgroups (`docker --cpus`, Kubernetes' limits):
    more threads than that are stopped together for the rest of each period. A part of a core counts as one. At least
    1."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(proc, cgroups))]))


def _quotas(proc: Path, cgroups: Path) -> Iterator[float]:
    """Cores' worth of time a period, of each cgroup that has a limit."""
    for version, directory in cgroups_of("cpu", proc, cgroups):
        try:
            if version == 2:
                quota, period = (directory / "cpu.max").read_text().split()
            else:
                quota = (directory / "cpu.cfs_quota_us").read_text().strip()
                period = (directory / "cpu.cfs_period_us").read_text()
        except OSError:
            continue
        if quota not in ("max", "-1"):
            yield int(quota) / int(period)
