"""Programs of these tests as ranks of a real MPI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from briton.ranks.communicator import Communicator
from briton.ranks.mpiexec import find_mpiexec
from briton.ranks.progress import Progress

ROOT = Path(__file__).parents[3]


def run_ranks(size: int, module: str, *arguments: str, timeout_s: float = 240.0) -> str:
    """Run `python -m module arguments` as `size` ranks, and return what they printed. Fails when one of them does."""
    program = (sys.executable, "-m", module, *arguments)
    done = subprocess.run(
        find_mpiexec().command(program, size),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def world() -> Any:
    """In a rank: MPI's communicator of all of them, of the thread level that `briton.ranks.rank_context` asks for."""
    import mpi4py

    mpi4py.rc.thread_level = "serialized"
    from mpi4py import MPI

    return MPI.COMM_WORLD


def communicator(world: Any) -> Communicator | None:
    """The product's own; None for one rank."""
    return Communicator(world, Progress()) if world.Get_size() > 1 else None
