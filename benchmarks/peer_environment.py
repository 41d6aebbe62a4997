"""The environment of the peers that are a download and no more: made by the first benchmark that wants it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from peer_process import PEERS_PYTHON

REQUIREMENTS = Path(__file__).parent / "peers" / "requirements.txt"
TIMEOUT_S = 600.0


def install_peers() -> None:
    """Install openvino-genai in .peers/venv unless that is there. When it fails, says so: its ratios will be null."""
    if PEERS_PYTHON.exists():
        return
    directory = PEERS_PYTHON.parent.parent
    print(f"installing openvino-genai into {directory} (once)", file=sys.stderr)
    try:
        for command in (
            [sys.executable, "-m", "venv", str(directory)],
            [str(PEERS_PYTHON), "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS)],
        ):
            subprocess.run(command, check=True, timeout=TIMEOUT_S, stdout=sys.stderr)
    except (subprocess.SubprocessError, OSError) as error:
        print(f"openvino-genai could not be installed: {error}", file=sys.stderr)
