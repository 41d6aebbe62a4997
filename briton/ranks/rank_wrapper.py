"""A process between mpiexec and a rank. mpiexec ends all ranks as soon as it sees one die, and rank 0 must be able to
tell its clients first: so what mpiexec sees is a parent that outlives its rank a little. And a rank never outlives it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time

OUTLIVE_S = 6.0  # longer than `launcher` waits for rank 0's farewell
_PR_SET_PDEATHSIG = 1


def fork_rank(outlive_s: float = OUTLIVE_S) -> None:
    """Fork: the child returns, and is the rank; the parent never does. To be called before there are threads.

    The parent passes SIGTERM and SIGINT on, ends with the rank when that ends well, and `outlive_s` later with the same
    exit code when it does not. The rank is killed when the parent ends, even if it is stopped (Linux).
    """
    parent, awaited = os.getpid(), {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)  # one that came before a wait would be seen after it
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _die_with_parent(parent)
        return
    code = _wait_for(child, awaited)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if code != 0:
        time.sleep(outlive_s)
    os._exit(code if code >= 0 else 128 - code)


def _wait_for(child: int, awaited: set[signal.Signals]) -> int:
    """Pass the awaited signals on until the child ends; its exit code, minus the signal's number if one ended it."""
    while True:
        number = signal.sigwait(awaited)
        if number != signal.SIGCHLD:
            os.kill(child, number)
            continue
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)


def _die_with_parent(parent: int) -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended in between
        os._exit(1)
