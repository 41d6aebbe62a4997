"""The `briton` command on a machine that pretends to have TensorRT-LLM: every rank's library is the stand-in, and its
ranks end together over a real MPI.

    python -m tests.trtllm.job_program engine --config FILE --engine-dir DIR
"""

from __future__ import annotations

import threading
from typing import Any

import pytest

import briton.process.engine_command as engine_command
import briton.process.executor_choice as serving
from briton.cli import main
from briton.trtllm import loader
from briton.trtllm.library import Library
from briton.trtllm.machine import LIBRARY_VERSION, Machine
from tests.trtllm.stand_in.executor import World
from tests.trtllm.stand_in.library import stand_in_library

MODULE = "tests.trtllm.job_program"


class _End(threading.Event):
    """Set on rank 0, and awaited on the others: a barrier."""

    def __init__(self, comm: Any) -> None:
        super().__init__()
        self._comm = comm

    def set(self) -> None:
        """Let the others go."""
        self._comm.Barrier()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for rank 0."""
        self._comm.Barrier()
        return True


def _load_library() -> Library:
    from mpi4py import MPI

    assert MPI.Query_thread() == MPI.THREAD_MULTIPLE, "the library starts with nothing less"
    comm = MPI.COMM_WORLD
    return stand_in_library(comm.Get_rank(), World(comm.Get_size(), _End(comm)))


def _rank_program(*arguments: Any) -> tuple[str, ...]:
    return tuple(MODULE if part == "briton" else part for part in _command_of_a_rank(*arguments))


if __name__ == "__main__":
    _command_of_a_rank = engine_command.rank_program
    replaced = pytest.MonkeyPatch()  # until this process ends
    replaced.setattr(engine_command, "rank_program", _rank_program)
    replaced.setattr(serving, "this_machine", lambda: Machine(LIBRARY_VERSION, ("a stand-in",)))
    replaced.setattr(loader, "load_library", _load_library)
    main()
