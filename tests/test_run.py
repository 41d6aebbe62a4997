"""`make test` fails when any of its runs does, and counts what all of them ran."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import run

REPORT = '<testsuites><testsuite tests="{}" failures="{}" errors="{}" skipped="{}"/></testsuites>'


@pytest.mark.parametrize(
    ("codes", "reports", "code", "told"),
    [
        ([0, 0], [(7, 0, 0, 1), (3, 0, 0, 0)], 0, "9 passed, 1 skipped"),
        ([1, 0], [(7, 2, 0, 0), (3, 0, 0, 0)], 1, "2 failed, 8 passed"),
        ([0, 1], [(7, 0, 0, 0), (3, 0, 1, 0)], 1, "9 passed, 1 errors"),
        ([5, 0], [(0, 0, 0, 0), (3, 0, 0, 0)], 5, "3 passed"),
        ([0, 5], [(7, 0, 0, 0), (0, 0, 0, 0)], 5, "7 passed"),
        ([4, 4], [None, None], 4, "no tests ran"),
    ],
)
def test_both_runs_count(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    codes: list[int],
    reports: list[tuple[int, ...] | None],
    code: int,
    told: str,
) -> None:
    commands: list[list[str]] = []
    left = list(zip(codes, reports, strict=True))

    def call(command: list[str], **_: object) -> int:
        commands.append(command)
        ended, report = left.pop(0)
        if report is not None:
            file = next(option for option in command if option.startswith("--junit-xml="))
            Path(file.partition("=")[2]).write_text(REPORT.format(*report))
        return ended

    monkeypatch.setattr(subprocess, "call", call)
    assert run.main(["--fast"]) == code
    last = capsys.readouterr().out.splitlines()[-1]
    assert told in last
    assert last.startswith("===")
    parallel, alone = (command[command.index("-m", 3) + 1] for command in commands)
    assert "tests/test_cli.py" in commands[1]
    assert (parallel, alone) == ("not timing and not slow", "timing and not slow")
    assert "-n" in commands[0]
    assert "-n" not in commands[1]
