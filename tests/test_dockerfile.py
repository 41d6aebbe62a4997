"""The Dockerfile, read by a parser of Dockerfiles: what no container engine is needed to know."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from dockerfile_parse import DockerfileParser

from briton.trtllm.machine import LIBRARY_VERSION

ROOT = Path(__file__).parents[1]
Instructions = list[dict[str, Any]]


def stages() -> dict[str, Instructions]:
    """The instructions of each target, comments left out."""
    parser = DockerfileParser(fileobj=BytesIO((ROOT / "Dockerfile").read_bytes()))
    found: dict[str, Instructions] = {}
    for entry in parser.structure:
        if entry["instruction"] == "FROM":
            image, _, name = entry["value"].partition(" AS ")
            found[name] = [{"instruction": "FROM", "value": image}]
        elif entry["instruction"] != "COMMENT":
            found[list(found)[-1]].append(entry)
    return found


STAGES = stages()


def values(target: str, instruction: str) -> list[str]:
    """The values of one instruction in a target, in order."""
    return [entry["value"] for entry in STAGES[target] if entry["instruction"] == instruction]


def test_the_targets() -> None:
    assert list(STAGES) == ["cpu", "gpu"]
    assert values("cpu", "FROM") == ["python:3.12-slim"]
    assert values("gpu", "FROM") == [f"nvcr.io/nvidia/tensorrt-llm/release:{LIBRARY_VERSION}"]


@pytest.mark.parametrize("target", STAGES)
def test_it_does_not_run_as_root(target: str) -> None:
    (user,) = values(target, "USER")
    assert user not in ("root", "0")
    assert any(f"useradd --system --uid 10001 --create-home {user}" in run for run in values(target, "RUN"))
    names = [entry["instruction"] for entry in STAGES[target]]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))


@pytest.mark.parametrize("target", STAGES)
def test_health_and_command(target: str) -> None:
    (check,) = values(target, "HEALTHCHECK")
    options, _, command = check.partition(" CMD ")
    assert "--start-period=" in options
    compile(json.loads(command)[2], "HEALTHCHECK", "exec")
    assert "http://127.0.0.1:8000/health" in command
    assert values(target, "ENTRYPOINT") == ['["briton"]']
    (command,) = values(target, "CMD")
    assert json.loads(command)[0] == "serve"


@pytest.mark.parametrize("target", STAGES)
def test_what_is_copied_is_there_and_not_ignored(target: str) -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for value in values(target, "COPY"):
        *sources, _ = value.split()
        assert set(sources) <= kept
        assert all((ROOT / source).exists() for source in sources)


def test_no_instruction_is_misspelt() -> None:
    known = {*("FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD")}
    assert {entry["instruction"] for stage in STAGES.values() for entry in stage} == known
