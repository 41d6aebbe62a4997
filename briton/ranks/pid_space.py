"""Where the number of a process means something. Host names do not tell: two machines, or containers, may share one."""

from __future__ import annotations

import os
import socket
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def pid_space() -> str:
    """The same for two processes only where each could signal the other by its pid: one running kernel, one process
    namespace. Where the kernel tells neither (not Linux), the host's name."""
    try:
        return f"{_BOOT_ID.read_text(encoding='ascii').strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()
