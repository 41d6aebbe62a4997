"""`make test-torch` and `make test-cuda`: token masks in torch, tested and timed on one device.

    python tests/torch_device/run.py --device cuda|cpu

For an interpreter that has torch, numpy and pytest; neither TensorRT-LLM nor Briton has to be installed. Says first
what it runs on, and ends with one line of JSON: how long masks take there. Fails where the device or a package is
missing, and where a test is skipped that this device can run.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/trtllm/test_mask_device.py", "tests/trtllm/test_torch.py")
NEEDED = ("torch", "numpy", "pytest")
SKIPPED_ON_CPU = 1  # the one that compares the driver's answers


def main() -> int:
    """Test, then measure; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    device = parser.parse_args().device
    name = "test-cuda" if device == "cuda" else "test-torch"
    if wrong := missing(device):
        print(f"{name}: {wrong}", file=sys.stderr)
        return 1
    print(f"{name} runs on {description(device)}", flush=True)
    failed = run_tests(device)
    if failed:
        print(f"{name}: {failed}", file=sys.stderr)
        return 1
    timing = [sys.executable, str(Path(__file__).with_name("mask_timing.py")), "--device", device]
    return subprocess.call(timing, cwd=ROOT)


def missing(device: str) -> str:
    """What keeps the tests from running here; empty when nothing does."""
    here = f"{sys.executable} (Python {platform.python_version()})"
    if packages := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        return f"{here} lacks {', '.join(packages)}"
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return f"torch {torch.__version__} of {here} sees no CUDA device"
    return ""


def description(device: str) -> str:
    """The device and the versions, in words."""
    import numpy as np
    import torch

    versions = f"torch {torch.__version__}, numpy {np.__version__}, Python {platform.python_version()}"
    if device == "cpu":
        return f"the CPU ({os.cpu_count()} processors); {versions}"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} (sm_{major}{minor}), CUDA {torch.version.cuda}; {versions}"


def run_tests(device: str) -> str:
    """Run TESTS without the project's settings and fixtures, which need more packages; what went wrong, in words."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ("--noconftest", "-c", os.devnull, "--rootdir", str(ROOT), "-p", "no:cacheprovider", "-q", "-rs")
        command = [sys.executable, "-m", "pytest", *options, f"--junit-xml={report}", *TESTS]
        environ = {**os.environ, "BRITON_TORCH_DEVICE": device, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        code = subprocess.call(command, cwd=ROOT, env=environ)
        if code:
            return f"pytest ended with {code}"
        suites = ElementTree.parse(report).getroot().iter("testsuite")
        skipped = sum(int(suite.get("skipped", 0)) for suite in suites)
    allowed = SKIPPED_ON_CPU if device == "cpu" else 0
    return "" if skipped == allowed else f"{skipped} tests were skipped, where {allowed} may be"


if __name__ == "__main__":
    sys.exit(main())
