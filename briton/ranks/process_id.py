"""Which process is meant. Its number alone does not say: another machine or container has the same numbers, and the
kernel gives them out anew."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import NamedTuple

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_START_TIME = 19  # of the fields of /proc/PID/stat that follow the command's name, see proc_pid_stat(5)


class ProcessId(NamedTuple):
    """A process, told apart from all others."""

    space: str  # of process numbers
    pid: int
    started: str  # by its kernel's clock; empty where the kernel does not tell

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """A process that runs here now."""
        return cls(pid_space(), pid, _start_time(pid))

    def kill(self) -> bool:
        """SIGKILL, where it runs here; whether it was sent. Never to another process that has its number by now: what
        is asked for its start, and what is sent the signal, is one handle's process (Linux 5.3 and later)."""
        if self.pid <= 0 or self.space != pid_space():
            return False
        try:
            handle = _open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if _start_time(self.pid) != self.started:
                return False
            if handle is None:
                os.kill(self.pid, signal.SIGKILL)
            else:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        except OSError:  # it has just ended, or is not ours to kill
            return False
        finally:
            if handle is not None:
                os.close(handle)
        return True


def pid_space() -> str:
    """The same for two processes only where each could signal the other by its pid: one running kernel, one process
    namespace. Where the kernel tells neither (not Linux), the host's name. Host names alone do not tell: two machines,
    or containers, may share one."""
    try:
        return f"{_BOOT_ID.read_text(encoding='ascii').strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _open(pid: int) -> int | None:
    """A handle of the process that has this number now; None where the kernel has no such thing."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except (AttributeError, OSError):
        return None


def _start_time(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[_START_TIME].decode()
    except (OSError, IndexError):
        return ""
