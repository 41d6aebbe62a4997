"""The control groups of this process, version 1 or 2: where a container's limits stand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


class Cgroup(NamedTuple):
    """A directory of limits. It may lack any file, and the whole of it may be missing."""

    version: int
    directory: Path


def cgroups_of(controller: str, proc: Path = PROC, mount: Path = CGROUPS) -> Iterator[Cgroup]:
    """Of one controller ("memory", "cpu"), from this process's own up to the root: what limits any of them limits the
    process. Nothing where the kernel has no cgroups."""
    try:
        entries = [line.split(":", 2) for line in (proc / "self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in entries:
        if not controllers:
            version, root = 2, mount
        elif controller in controllers.split(","):
            version, root = 1, mount / controller
        else:
            continue
        own = root / path.lstrip("/")  # not there when only the container's part is mounted: its parents are
        for directory in (own, *own.parents):
            if not directory.is_relative_to(root):
                break
            yield Cgroup(version, directory)
