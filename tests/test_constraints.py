"""Our dependencies can be installed together with what tensorrt-llm 1.2.1 requires: a resolver finds versions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints" / "tensorrt-llm-1.2.1.txt"
PLATFORM = "x86_64-manylinux_2_28"  # of the library's wheel; it has one for Python 3.10 and one for 3.12

pytestmark = pytest.mark.slow  # asks the package index


def resolve(python: str, *requirements: Path) -> subprocess.CompletedProcess[str]:
    """What `uv pip compile` says of our package with all its extras, and of these files."""
    options = ["--python-version", python, "--python-platform", PLATFORM, "--no-header", "--no-annotate", "--quiet"]
    files = [str(file) for file in requirements]
    command = [sys.executable, "-m", "uv", "pip", "compile", *options, "--all-extras", str(ROOT / "pyproject.toml")]
    return subprocess.run([*command, *files], capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("python", ["3.10", "3.12"])
def test_a_resolver_finds_versions(python: str) -> None:
    found = resolve(python, CONSTRAINTS)
    assert found.returncode == 0, found.stderr
    versions = dict(line.split("==") for line in found.stdout.splitlines() if "==" in line)
    assert versions["transformers"] == "4.57.3"
    assert versions["llguidance"] == "0.7.29"
    assert versions["numpy"].startswith("1.26.")
    assert {"openvino", "outlines-core", "fastapi", "torch"} <= versions.keys()


def test_the_check_finds_what_does_not_go_together(tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("numpy>=2\n")
    found = resolve("3.12", CONSTRAINTS, other)
    assert found.returncode != 0
    assert "numpy" in found.stderr
