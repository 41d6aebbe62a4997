"""The command line: what is printed, and the exit codes."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest

from briton import __version__, cli
from briton.config.loader import load_config
from briton.errors import BuildError, ConfigError, Unsupported
from briton.process.engine_command import EngineOptions
from briton.process.supervisor import ChildFailed

EXAMPLE = Path(__file__).parents[1] / "examples" / "smollm2-135m-instruct" / "config.yaml"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run([sys.executable, "-m", "briton", *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.timing
def test_help_names_every_command_and_is_quick() -> None:
    run("--help")  # once, for bytecode and page cache
    start = time.monotonic()
    done = run("--help")
    assert time.monotonic() - start < 0.5
    assert done.returncode == 0
    for command in ("init", "serve", "build", "engine", "gateway", "config"):
        assert f"\n  {command} " in done.stdout


def test_help_imports_nothing_heavy() -> None:
    heavy = ("grpc", "openvino", "numpy", "pydantic", "rich")
    program = f"import sys, briton.cli; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


def test_version() -> None:
    assert run("--version").stdout == f"briton {__version__}\n"


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("serve", ("--config", "--host", "--port", "--grpc-host", "--grpc-port", "--hostfile")),
        ("build", ("--config", "--dry-run", "--executor", "--offline", "--model-config", "--json")),
        ("engine", ("--config", "--engine-dir", "--host", "--port", "--hostfile")),
        ("gateway", ("--config", "--engine", "--tokenizer", "--host", "--port")),
    ],
)
def test_every_option_is_explained(command: str, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    for option in options:
        assert f"  {option} " in text
    assert "--supervised" not in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve"],
        ["nonsense"],
        ["serve", "--config", "x", "--port", "65536"],
        ["serve", "--config", "x", "--port", "a"],
        ["serve", "--config", "x", "--hostfile", "/nowhere"],
        ["config", "explain", "x", "--executor", "gpu"],
        ["engine", "--config", "x", "--hostfile", "/nowhere"],
    ],
)
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert "Error: " in capsys.readouterr().err


def test_an_unknown_executor_is_named_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["build", "--dry-run", "--config", "x", "--executor", "gpu"])
    assert "'gpu' is not one of trtllm, local" in capsys.readouterr().err


def test_config_check_of_the_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["config", "check", *map(str, EXAMPLE.parents[1].glob("*/config.yaml"))])
    out, err = capsys.readouterr()
    assert "smollm2-135m-instruct" in out
    assert err == ""


def test_config_check_names_the_field_and_looks_at_every_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(EXAMPLE.read_text().replace("max_batch_size: 64", "max_batch_size: none"))
    with pytest.raises(SystemExit, match="2"):
        cli.main(["config", "check", str(wrong), str(tmp_path / "absent.yaml"), str(EXAMPLE)])
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert len(lines) == 2
    assert str(wrong) in lines[0]
    assert "trt_llm.build.max_batch_size" in lines[0]
    assert "absent.yaml" in lines[1]
    assert f"{EXAMPLE}: valid" in out


@pytest.mark.parametrize("command", [["serve"], ["build"], ["engine"], ["gateway", "--engine=a:1", "--tokenizer=x"]])
def test_a_wrong_config_is_one_line_and_exit_code_2(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(EXAMPLE.read_text() + "  local_: {}\n")
    with pytest.raises(SystemExit, match="2"):
        cli.main([*command, "--config", str(wrong)])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("briton: error: ")
    assert "briton.local_" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("section", "flags", "host"),
    [
        ("host: 0.0.0.0", [], "127.0.0.1"),
        ("grpc_host: 0.0.0.0", [], "0.0.0.0"),
        ("grpc_host: 0.0.0.0", ["--host", "::1"], "::1"),
    ],
)
def test_the_host_of_an_engine_is_grpcs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, flags: list[str], host: str
) -> None:
    """Regression: `briton.host`, which is HTTP's, opened the engine's port."""
    config = tmp_path / "config.yaml"
    config.write_text(EXAMPLE.read_text() + f"  {section}\n")
    seen: list[EngineOptions] = []

    def run_engine_command(config: object, engine_dir: Path, options: EngineOptions, *others: object) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr("briton.process.engine_command.run_engine_command", run_engine_command)
    monkeypatch.setattr(cli, "_open_config", lambda path, *others: (load_config(path), None))
    with pytest.raises(SystemExit, match="0"):
        cli.main(["engine", "--config", str(config), "--engine-dir", str(tmp_path), *flags])
    assert [options.host for options in seen] == [host]


def test_a_gateway_on_a_port_in_use_names_port_and_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match="1"):
            cli.main(["gateway", "--config", str(EXAMPLE), "--engine=a:1", "--tokenizer=x", f"--port={port}"])
    expected = f"briton: error: port {port} on 127.0.0.1 is in use: choose another with --port\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("address", ["nonsense", ":1", "a:", "a:0", "a:65536", "http://a"])
def test_an_engine_address_is_host_and_port(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["gateway", "--config", str(EXAMPLE), f"--engine={address}", "--tokenizer=x"])
    assert f"'{address}' must be HOST:PORT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("no\n good", "f"), 2),
        (BuildError("no\n good"), 1),
        (Unsupported("no\n good"), 1),
        (PermissionError("no\n good"), 1),
        (ChildFailed("no\n good", "engine", 1), 1),
        (ChildFailed("no\n good", "engine", 2), 2),  # it refused its config
    ],
)
def test_an_error_is_one_line(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: object, environment: object) -> NoReturn:
        raise error

    monkeypatch.setattr("briton_engine_builder.build_engine", fail)
    monkeypatch.setattr(cli, "_open_config", lambda path, process: (None, None))
    monkeypatch.delenv("BRITON_DEBUG", raising=False)
    with pytest.raises(SystemExit, match=str(code)):
        cli.main(["build", "--config", "any"])
    assert capsys.readouterr().err == "briton: error: no good\n"
    with pytest.raises(SystemExit, match=str(code)):
        cli.main(["--debug", "build", "--config", "any"])
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("BRITON_DEBUG", "1")
    with pytest.raises(SystemExit, match=str(code)):
        cli.main(["build", "--config", "any"])
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_shows_its_traceback_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: object, process: object) -> NoReturn:
        raise KeyError("x")

    monkeypatch.setattr(cli, "_open_config", fail)
    with pytest.raises(SystemExit, match="1"):
        cli.main(["build", "--config", "any"])
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("briton: error: internal error, please report it: KeyError: 'x'\n")
