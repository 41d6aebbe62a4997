"""A process between mpiexec and a rank. mpiexec ends all ranks as soon as it sees one die, and rank 0 must be able to
tell its clients first: so what mpiexec sees is a parent that outlives its rank a little. And a rank never outlives it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from types import FrameType

OUTLIVE_S = 6.0  # longer than `launcher` waits for rank 0's farewell
_PR_SET_PDEATHSIG = 1


def enter_shelter(outlive_s: float = OUTLIVE_S) -> None:
    """Fork: the child returns, and is the rank; the parent never does. To be called before there are threads.

    The parent passes SIGTERM and SIGINT on, ends with the rank when that ends well, and `outlive_s` later with the same
    exit code when it does not. The rank is killed when the parent ends, even if it is stopped (Linux).
    """
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _die_with_parent(parent)
        return

    def pass_on(signum: int, frame: FrameType | None) -> None:
        os.kill(child, signum)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    if code != 0:
        time.sleep(outlive_s)
    os._exit(code if code >= 0 else 128 - code)


def _die_with_parent(parent: int) -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended in between
        os._exit(1)
