"""The Dockerfile, read by a parser of Dockerfiles: what no container engine is needed to know.

Not built here: neither target.
"""

from __future__ import annotations

import json
import re
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from dockerfile_parse import DockerfileParser

from briton import cli
from briton.trtllm.machine import LIBRARY_VERSION

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = {Path(package).parts[0] for package in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]}
Instructions = list[dict[str, Any]]


def stages() -> tuple[dict[str, str], dict[str, Instructions]]:
    """The arguments' defaults, and the instructions of each target, comments left out."""
    parser = DockerfileParser(fileobj=BytesIO((ROOT / "Dockerfile").read_bytes()))
    arguments: dict[str, str] = {}
    found: dict[str, Instructions] = {}
    for entry in parser.structure:
        if entry["instruction"] == "ARG" and not found:
            name, _, default = entry["value"].partition("=")
            arguments[name] = default
        elif entry["instruction"] == "FROM":
            image, _, name = entry["value"].partition(" AS ")
            found[name] = [{"instruction": "FROM", "value": image}]
        elif entry["instruction"] != "COMMENT":
            found[list(found)[-1]].append(entry)
    return arguments, found


ARGUMENTS, STAGES = stages()


def values(target: str, instruction: str) -> list[str]:
    """The values of one instruction in a target, in order."""
    return [entry["value"] for entry in STAGES[target] if entry["instruction"] == instruction]


def base(target: str) -> str:
    """The image of a target, unless somebody asks for another."""
    (image,) = values(target, "FROM")
    return re.sub(r"\$\{(\w+)\}", lambda name: ARGUMENTS[name[1]], image)


def position(target: str, instruction: str, pattern: str) -> int:
    """Where the one instruction is whose value has the pattern."""
    (found,) = (
        i
        for i, entry in enumerate(STAGES[target])
        if entry["instruction"] == instruction and re.search(pattern, entry["value"])
    )
    return found


def test_the_targets() -> None:
    assert set(STAGES) == {"cpu", "gpu"}
    assert base("gpu").endswith(f"/tensorrt-llm/release:{LIBRARY_VERSION}")
    python = tuple(map(int, re.findall(r"python:(\d+)\.(\d+)", base("cpu"))[0]))
    assert (3, 10) <= python < (3, 14)


@pytest.mark.parametrize("target", STAGES)
def test_a_base_can_be_pinned_and_is_not_the_latest(target: str) -> None:
    (image,) = values(target, "FROM")
    assert re.fullmatch(r"\$\{\w+\}", image)
    tag = base(target).rpartition("/")[2].partition(":")[2]
    assert tag not in ("", "latest")


@pytest.mark.parametrize("target", STAGES)
def test_an_edit_of_the_sources_does_not_fetch_the_dependencies_again(target: str) -> None:
    """What is copied before they are installed does not change with the sources."""
    dependencies = position(target, "RUN", r"pip install .*'\.\[")
    before = {
        source
        for entry in STAGES[target][:dependencies]
        if entry["instruction"] in ("COPY", "ADD")
        for source in entry["value"].split()[:-1]
    }
    assert before <= {"pyproject.toml", "constraints"}
    installed = position(target, "RUN", r"pip install .*--no-deps \.$")
    for package in PACKAGES:
        assert dependencies < position(target, "COPY", rf"^{package} {package}$") < installed


@pytest.mark.parametrize(
    ("target", "expected"), [("cpu", {"mpi", "s3", "gcs", "azure"}), ("gpu", {"s3", "gcs", "azure"})]
)
def test_the_extras_are_the_packages(target: str, expected: set[str]) -> None:
    """The GPU's image has an MPI that TensorRT-LLM is built with."""
    (extras,) = re.findall(r"'\.\[(.*?)\]'", " ".join(values(target, "RUN")))
    assert set(extras.split(",")) == expected <= PROJECT["project"]["optional-dependencies"].keys()


def test_tensorrt_llms_own_requirements_hold() -> None:
    (constraints,) = re.findall(r"pip install .*-c (\S+) '\.\[", " ".join(values("gpu", "RUN")))
    assert (ROOT / constraints).is_file()
    assert LIBRARY_VERSION in constraints


@pytest.mark.parametrize("target", STAGES)
def test_it_does_not_run_as_root(target: str) -> None:
    (user,) = values(target, "USER")
    assert user not in ("root", "0")
    assert re.search(rf"useradd .*--uid \d+ .*{user}\b", " ".join(values(target, "RUN")))
    names = [entry["instruction"] for entry in STAGES[target]]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))


@pytest.mark.parametrize("target", STAGES)
def test_the_first_process_is_an_init(target: str) -> None:
    """Regression: nobody reaped what ranks and killed children left, since `briton` was PID 1."""
    (entrypoint,) = values(target, "ENTRYPOINT")
    init, *rest = json.loads(entrypoint)
    assert rest == ["--", "briton"]
    assert re.search(rf"apt-get install .*\b{init}\b", " ".join(values(target, "RUN")))


@pytest.mark.parametrize("target", STAGES)
def test_the_command_is_one_that_briton_knows(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    (value,) = values(target, "CMD")
    command, *arguments = json.loads(value)
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    shown = capsys.readouterr().out
    options = [argument for argument in arguments if argument.startswith("--")]
    assert {"--config", "--host"} <= set(options)
    assert all(f" {option} " in shown for option in options)
    assert "--grpc-host" not in options  # gRPC knows no keys
    config = Path(arguments[arguments.index("--config") + 1])
    if target == "cpu":
        assert (ROOT / config.relative_to("/opt/briton")).is_file()


@pytest.mark.parametrize("target", STAGES)
def test_its_health_is_asked_on_the_port_that_is_open(target: str) -> None:
    (check,) = values(target, "HEALTHCHECK")
    options, _, command = check.partition(" CMD ")
    assert "--start-period=" in options
    program = json.loads(command)[2]
    compile(program, "HEALTHCHECK", "exec")
    (port,) = values(target, "EXPOSE")
    assert f"http://127.0.0.1:{port}/health" in program


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
