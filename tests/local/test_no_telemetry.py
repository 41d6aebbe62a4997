"""Importing the local executor tells nobody."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys

def refuse(event, arguments):
    if event in ("os.fork", "socket.connect", "subprocess.Popen"):
        sys.exit(f"{event} {arguments}")

sys.addaudithook(refuse)
import briton.local.loader
import openvino.tools.ovc.telemetry_stub
"""


def test_importing_openvino_forks_nothing_and_connects_to_nobody() -> None:
    """`import openvino` sent an event to Google Analytics from a forked process."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
