"""`make test-gpu` on a machine without a GPU says what is missing, and fails; with one it says what it runs on."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from briton.trtllm import machine
from briton.trtllm.machine import Machine, this_machine
from tests.gpu import run

ROOT = Path(__file__).parents[1]
HERE = this_machine()


@pytest.mark.skipif(not HERE.missing, reason="this machine has all that TensorRT-LLM needs")
@pytest.mark.parametrize(
    "command", [["-m", "tests.gpu.run"], ["benchmarks/bench_trtllm.py"], ["-m", "pytest", "-q", "tests/gpu"]]
)
def test_it_is_not_skipped(command: list[str]) -> None:
    ended = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    lines = [line for line in (ended.stdout + ended.stderr).splitlines() if line.strip()]
    assert HERE.missing[0] in lines[-1]
    assert len(lines) == 1 or command[1] == "pytest"  # which says it twice


def test_it_says_what_it_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, ranks in ((1, "NOT two ranks, for want of a second GPU"), (2, "LoRA, two ranks")):
        here = Machine("1.2.1", ("NVIDIA L4",) * count, None, ("sm_89",) * count)
        monkeypatch.setattr(machine, "this_machine", lambda here=here: here)
        told = run.describe("acme/tiny")
        assert "NVIDIA L4 (sm_89)" in told
        assert "tensorrt_llm 1.2.1" in told
        assert "model acme/tiny" in told
        assert ranks in told


def test_packages_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "NEEDED", ("no_such_package",))
    assert "lacks no_such_package (pip install -c constraints/tensorrt-llm-1.2.1.txt" in run.missing_here()[-1]


def test_the_other_tests_do_not_collect_it(tmp_path: Path) -> None:
    """With the project's settings: a folder of the same name beside another."""
    assert any((ROOT / "tests" / "gpu").glob("test_*.py"))
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    for folder in ("gpu", "guidance"):
        file = tmp_path / "tests" / folder / f"test_of_{folder}.py"
        file.parent.mkdir(parents=True)
        file.write_text("def test_nothing(): ...\n")
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q"]
    collected = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert collected.returncode == 0, collected.stdout
    assert "tests/guidance/test_of_guidance.py::test_nothing" in collected.stdout
    assert "gpu" not in collected.stdout


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_masks_in_torch_fail_without_it(device: str, tmp_path: Path) -> None:
    """`make test-cuda` and `make test-torch`, by an interpreter that has nothing installed."""
    venv.create(tmp_path, with_pip=False)
    command = [str(tmp_path / "bin" / "python"), "tests/torch_device/run.py", "--device", device]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "lacks torch, numpy, pytest" in ended.stderr
    assert ended.stdout == ""
