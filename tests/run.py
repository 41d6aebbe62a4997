"""`make test` and `make test-fast`: first what may share the machine, in parallel; then what computes long, or bounds
time, alone: models and their ranks take all processors, and what runs beside them takes many times as long.

    python -m tests.run [--fast] [--coverage] [--workers N] [PATH ...] [-- OPTIONS OF PYTEST]

The last line counts both runs together, as pytest does. It fails when either does, also where a run collects nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
# One more than there are processors: some tests wait for a process or for time to pass.
WORKERS = min(len(os.sched_getaffinity(0)) + 1, 8)
PARALLEL = ("--dist", "loadgroup", "--no-loadscope-reorder")
COVERAGE = ("--cov=briton", "--cov=briton_server", "--cov=briton_engine_builder", "--cov-append", "--cov-report=")


def main(arguments: list[str] | None = None) -> int:
    """Run, count and say so; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="without the tests marked slow")
    parser.add_argument("--coverage", action="store_true", help="print which lines of the packages were not run")
    parser.add_argument("--workers", type=int, default=WORKERS, help=f"processes of the first run; default {WORKERS}")
    parser.add_argument("options", nargs="*", help="what else pytest is told")
    given = parser.parse_args(arguments)
    # Every process compiles the packages and rewrites the tests anew where bytecode may not be kept: half of the work.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    started, counted, failed = time.monotonic(), Counter[str](), 0
    coverage = Path(ROOT / ".coverage")
    if given.coverage:
        coverage.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, options in runs(given.fast, given.workers):
            report = Path(folder) / f"{name}.xml"
            command = [sys.executable, "-m", "pytest", "-q", f"--junit-xml={report}", *options, *given.options]
            code = subprocess.call([*command, *(COVERAGE if given.coverage else ())], cwd=ROOT, env=environ)
            if code == 5:
                print(f"tests.run: no test was found that runs {name}: that is a failure", file=sys.stderr)
            failed = failed or code
            if report.exists():
                counted += counts(report)
    if given.coverage:
        subprocess.call([sys.executable, "-m", "coverage", "report", "--skip-covered", "--sort=cover"], cwd=ROOT)
    print(summary(counted, time.monotonic() - started), flush=True)
    return failed


def runs(fast: bool, workers: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The name and pytest's options of each run."""
    yield "in parallel", ("-n", str(workers), *PARALLEL, "-m", "not timing and not slow")
    marks = ("mark.timing",) if fast else ("mark.timing", "mark.slow")
    files = [file for file in sorted(ROOT.glob("tests/**/test_*.py")) if _has(file, marks)]
    yield (
        "alone",
        ("-m", "timing and not slow" if fast else "timing or slow", *(str(file.relative_to(ROOT)) for file in files)),
    )


def _has(file: Path, marks: tuple[str, ...]) -> bool:
    """Whether a file's text has one of these marks: the others need not be collected."""
    text = file.read_text(encoding="utf-8")
    return any(mark in text for mark in marks)


def counts(report: Path) -> Counter[str]:
    """How the tests of one run ended, from its JUnit report."""
    found: Counter[str] = Counter()
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        number = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
        found["failed"] += number["failures"]
        found["errors"] += number["errors"]
        found["skipped"] += number["skipped"]
        found["passed"] += number["tests"] - number["failures"] - number["errors"] - number["skipped"]
    return found


def summary(counted: Counter[str], seconds: float) -> str:
    """One line, as pytest's last."""
    order = ("failed", "passed", "skipped", "errors")
    told = ", ".join(f"{counted[name]} {name}" for name in order if counted[name]) or "no tests ran"
    return f" {told} in {seconds:.1f}s ".center(80, "=")


if __name__ == "__main__":
    sys.exit(main())
