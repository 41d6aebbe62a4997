"""How many threads the model gets where a container has a quota."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from briton.local.cpus import available_cpus


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def available(root: Path, own: str, files: dict[str, str]) -> int:
    """With /proc/self/cgroup of this content, and these files below /sys/fs/cgroup."""
    for name, text in {"proc/self/cgroup": own, **{f"cgroup/{name}": text for name, text in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return available_cpus(root / "proc", root / "cgroup")


def test_no_cgroups() -> None:
    assert available_cpus(Path("/nowhere"), Path("/nowhere")) == 8


def test_the_cores_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 1 <= available_cpus() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "threads"),
    [
        ("200000 100000", 2),
        ("150000 100000", 2),  # a thread that is stopped now and then does more than one that is not there
        ("20000 100000", 1),
        ("100000 50000", 2),
        ("1600000 100000", 8),  # more than there are cores
        ("max 100000", 8),
    ],
)
def test_a_container(tmp_path: Path, quota: str, threads: int) -> None:
    """64 threads on a quota of 2 cores were throttled: as many as the machine has cores were started."""
    assert available(tmp_path, "0::/", {"cpu.max": quota}) == threads


def test_the_limit_of_a_parent_counts(tmp_path: Path) -> None:
    files = {"pod/cpu.max": "300000 100000", "pod/one/cpu.max": "max 100000"}
    assert available(tmp_path, "0::/pod/one", files) == 3


@pytest.mark.parametrize(("quota", "threads"), [("250000", 3), ("-1", 8)])
def test_version_1(tmp_path: Path, quota: str, threads: int) -> None:
    """Inside a container its path is the host's, and only the container's part is mounted."""
    own = "7:memory:/docker/0a1b\n4:cpu,cpuacct:/docker/0a1b\n0::/"
    files = {"cpu/cpu.cfs_quota_us": quota, "cpu/cpu.cfs_period_us": "100000"}
    assert available(tmp_path, own, files) == threads


def test_cores_that_the_process_may_not_use_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert available(tmp_path, "0::/", {"cpu.max": "400000 100000"}) == 1
