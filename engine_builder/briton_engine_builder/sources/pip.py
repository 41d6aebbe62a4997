"""Wheels through `pip download`, so that the user's own pip configuration (index, proxy, certificates, cache) holds."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from briton.config.environment import INDEX_CREDENTIALS, child_variables
from briton.errors import BuildError
from briton_engine_builder.progress import ProgressBar

_BROKEN = re.compile(r"after connection broken by '(.*)':")
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")


def download_wheel(requirement: str, directory: Path, progress: ProgressBar) -> Path:
    """Download the wheel of "name" or "name==version" into an empty directory. Raises BuildError with pip's reason."""
    if importlib.util.find_spec("pip") is None:
        raise BuildError(f"cannot fetch {requirement}: {sys.executable} has no pip (python -m ensurepip installs it)")
    command = [sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(directory), *_options(), "--", requirement]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=child_variables(INDEX_CREDENTIALS),
    ) as pip:
        assert pip.stdout is not None
        lines: list[str] = []
        try:
            for line in pip.stdout:
                if match := _PROGRESS.match(line):
                    progress.update(int(match[1]), int(match[2]))
                else:
                    lines.append(line.strip())
        except BaseException:
            pip.terminate()
            raise
    if pip.returncode != 0:
        raise BuildError(f"cannot fetch the package {requirement}: {_reason(lines)}")
    wheels = sorted(directory.glob("*.whl"))
    if len(wheels) != 1:
        raise BuildError(f"cannot fetch the package {requirement}: pip left {len(wheels)} wheels")
    return wheels[0]


def _options() -> list[str]:
    """What newer releases of pip can do: progress that a program can read, and going on after a broken connection."""
    release = tuple(int(part) for part in re.findall(r"\d+", version("pip"))[:2])
    options = ["--progress-bar", "raw" if release >= (24, 1) else "off"]
    return [*options, "--resume-retries", "5"] if release >= (25, 1) else options


def _reason(lines: list[str]) -> str:
    broken = [match[1] for line in lines if (match := _BROKEN.search(line))]
    if broken:  # pip goes on to say that there is no such package
        return f"the package index cannot be reached: {broken[-1]}"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    meant = [line for line in errors if not line.startswith("Could not find a version")] or errors or lines[-1:]
    return meant[0] if meant else "pip failed without a message"
