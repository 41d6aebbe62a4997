"""`briton serve` as a process: its ports, its signals, its last words. Builder and children are fakes."""

from __future__ import annotations

import io
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from briton.config.loader import load_config
from briton.errors import ConfigError
from briton.process.logs import LineWriter
from briton.process.probes import local_host
from briton.process.serve import Addresses, ServeOptions, banner, child_specs, claim_addresses
from briton.rpc.ports import claim_port
from tests.processes import free_port, is_running, wait_until

PROGRAM = Path(__file__).with_name("serve_with_fakes.py")
CONFIG = """\
model_name: fake
trt_llm:
  build:
    checkpoint_repository: {source: PYPI, repo: fake}
briton: {drain_timeout_s: 5}
"""

Serve = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config that is valid; nothing is built from it."""
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def serve(tmp_path: Path, config: Path) -> Iterator[Serve]:
    """Starts `briton serve` with fakes, in a session of its own as in a terminal of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(*behaviours: str, http_port: int | None = None, grpc_port: int | None = None) -> subprocess.Popen[str]:
        ports = [str(free_port() if port is None else port) for port in (http_port, grpc_port)]
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(tmp_path), str(config), *ports, *behaviours],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=PROGRAM.parents[2],
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_until_ready(process: subprocess.Popen[str]) -> str:
    """Read standard output up to the curl line, and return that."""
    assert process.stdout is not None
    line = ""
    while "curl" not in line:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
    return line


def pids(directory: Path) -> list[int]:
    """The process ids of the fake children."""
    return [int(file.read_text()) for file in [*directory.glob("*.pid"), *directory.glob("*.grandchild")]]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_ends_with_code_0(serve: Serve, tmp_path: Path, signum: signal.Signals) -> None:
    process = serve()
    wait_until_ready(process)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 0, errors
    events = (tmp_path / "events").read_text().splitlines()
    assert events[2:] == ["gateway SIGTERM", "gateway ended", "engine SIGTERM", "engine ended"]
    assert not any(is_running(pid) for pid in pids(tmp_path))


def test_ctrl_c_in_a_terminal_reaches_the_children_only_through_the_supervisor(serve: Serve, tmp_path: Path) -> None:
    process = serve("gateway=slow")
    wait_until_ready(process)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    process.communicate(timeout=10)
    assert process.returncode == 0
    events = (tmp_path / "events").read_text().splitlines()
    assert events[2:] == ["gateway SIGTERM", "gateway ended", "engine SIGTERM", "engine ended"]


def test_a_second_signal_ends_at_once(serve: Serve, tmp_path: Path) -> None:
    process = serve("gateway=deaf")
    wait_until_ready(process)
    process.terminate()
    wait_until(lambda: "gateway SIGTERM" in (tmp_path / "events").read_text())
    process.terminate()
    process.communicate(timeout=4)
    assert process.returncode == 128 + signal.SIGTERM
    wait_until(lambda: not any(is_running(pid) for pid in pids(tmp_path)))


def test_children_do_not_outlive_a_killed_supervisor(serve: Serve, tmp_path: Path) -> None:
    process = serve("engine=grandchild")
    wait_until_ready(process)
    children = pids(tmp_path)
    assert len(children) == 3
    assert all(is_running(pid) for pid in children)
    process.kill()
    wait_until(lambda: not any(is_running(pid) for pid in children))


def test_lines_of_children_are_prefixed_and_the_error_comes_last(serve: Serve) -> None:
    process = serve("engine=crash")
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 1
    lines = errors.splitlines()
    assert "engine  | engine speaks" in lines
    assert lines[-1] == "briton: error: the engine did not start: it ended with exit code 3: the flux is low"
    assert "Traceback" not in errors


def test_an_engine_that_takes_too_long_to_start(serve: Serve, config: Path) -> None:
    """Regression: nothing that loads for longer than ten minutes could be served, and no config could say otherwise."""
    config.write_text(CONFIG.replace("drain_timeout_s: 5", "start_timeout_s: 0.5"))
    process = serve("engine=unready")
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 1
    told = "the engine did not start: it was not ready after 0.5 s (briton.start_timeout_s)"
    assert errors.splitlines()[-1] == f"briton: error: {told}"


def test_children_get_no_secrets_of_the_builder(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: engine and gateway inherited every secret and token that only whoever fetches checkpoints needs."""
    names = [
        "TRUSS_SECRET_hf_access_token",
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_ACCESS_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AZURE_STORAGE_CONNECTION_STRING",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "PIP_INDEX_URL",
    ]
    for name in names:
        monkeypatch.setenv(name, f"hush-{name}")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    process = serve("engine=environ", "gateway=environ")
    wait_until_ready(process)
    process.terminate()
    _, errors = process.communicate(timeout=10)
    for child in ("engine ", "gateway"):
        assert f"{child} | OMP_NUM_THREADS=7\n" in errors
    assert "hush" not in errors


def test_a_failed_build_is_one_line(serve: Serve, tmp_path: Path) -> None:
    process = serve("builder=fail")
    out, errors = process.communicate(timeout=10)
    assert process.returncode == 1
    assert out == ""
    assert errors.splitlines()[-1] == "briton: error: the checkpoint is cut short"
    assert "Traceback" not in errors
    assert not (tmp_path / "events").exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_build_and_lets_it_clean_up(serve: Serve, tmp_path: Path, signum: signal.Signals) -> None:
    process = serve("builder=slow")
    wait_until((tmp_path / "building").exists)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 128 + signum
    assert not (tmp_path / "building").exists()
    assert "Traceback" not in errors


@pytest.mark.parametrize(("flag", "argument"), [("--port", "http_port"), ("--grpc-port", "grpc_port")])
def test_a_port_in_use_is_one_line_before_anything_else(serve: Serve, tmp_path: Path, flag: str, argument: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        _, errors = serve(**{argument: port}).communicate(timeout=10)
    told = [line for line in errors.splitlines() if line.startswith("briton: error: ")]
    assert told == [f"briton: error: port {port} on 127.0.0.1 is in use: choose another with {flag}"]
    assert not (tmp_path / "events").exists()


def test_equal_ports_are_refused(serve: Serve) -> None:
    process = serve(http_port=1234, grpc_port=1234)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 2
    assert "briton: error: --port and --grpc-port are both 1234: they must differ" in errors


def test_port_0_takes_a_free_port(serve: Serve) -> None:
    process = serve(http_port=0, grpc_port=0)
    assert ":0/" not in wait_until_ready(process)
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 0


def test_a_hostfile_is_the_engines(config: Path, tmp_path: Path) -> None:
    writer = LineWriter(io.StringIO())
    loaded, addresses = load_config(config), Addresses("127.0.0.1", 1, "127.0.0.1", 2)
    hosts = tmp_path / "hosts"
    engine, gateway = child_specs(loaded, tmp_path, addresses, writer, hostfile=hosts)
    assert engine.command[-2:] == ("--hostfile", str(hosts))
    assert "--hostfile" not in gateway.command
    engine, _ = child_specs(loaded, tmp_path, addresses, writer)
    assert "--hostfile" not in engine.command


def test_only_http_is_opened_by_host(config: Path, tmp_path: Path) -> None:
    """Regression: --host 0.0.0.0 opened the engine's gRPC port too, which asks for no credentials."""
    loaded, writer = load_config(config), LineWriter(io.StringIO())
    addresses = claim_addresses(loaded, ServeOptions(host="0.0.0.0", port=0, grpc_port=0))
    engine, gateway = child_specs(loaded, tmp_path, addresses, writer)
    assert option(engine.command, "--host") == "127.0.0.1"
    assert option(gateway.command, "--host") == "0.0.0.0"
    text = banner("m", addresses)
    assert f"HTTP listens on 0.0.0.0:{addresses.http_port}, gRPC on 127.0.0.1:{addresses.grpc_port}." in text

    open_to_all = claim_addresses(loaded, ServeOptions(port=0, grpc_host="0.0.0.0", grpc_port=0))
    engine, gateway = child_specs(loaded, tmp_path, open_to_all, writer)
    assert option(engine.command, "--host") == "0.0.0.0"
    assert option(gateway.command, "--host") == "127.0.0.1"
    assert option(gateway.command, "--engine") == f"127.0.0.1:{open_to_all.grpc_port}"


def test_the_config_may_open_grpc(config: Path) -> None:
    config.write_text(CONFIG.replace("{drain_timeout_s: 5}", "{grpc_host: '::1', grpc_port: 0, http_port: 0}"))
    addresses = claim_addresses(load_config(config), ServeOptions())
    assert addresses.engine == f"[::1]:{addresses.grpc_port}"
    assert f"gRPC on [::1]:{addresses.grpc_port}" in banner("m", addresses)
    with pytest.raises(ConfigError, match=r"--grpc-host 192\.0\.2\.1 is not an address") as caught:
        claim_addresses(load_config(config), ServeOptions(grpc_host="192.0.2.1"))
    assert caught.value.field == "briton.grpc_host"


def option(command: Sequence[str], name: str) -> str:
    """What a command line gives for an option."""
    return command[command.index(name) + 1]


def test_a_lingering_connection_does_not_make_a_port_used() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            connection, _ = server.accept()
            connection.close()  # closed first here: TIME_WAIT on the server's side
            time.sleep(0.05)
    assert claim_port("127.0.0.1", port, "--port") == port


def test_a_host_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--host 192\.0\.2\.1 is not an address of this machine"):
        claim_port("192.0.2.1", 0, "--port")
    with pytest.raises(ConfigError, match="--host no such host"):
        claim_port("no such host", 0, "--port")


@pytest.mark.parametrize(
    ("host", "reachable"),
    [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("10.1.2.3", "10.1.2.3"), ("localhost", "localhost")],
)
def test_where_a_client_on_this_machine_reaches_a_server(host: str, reachable: str) -> None:
    assert local_host(host) == reachable


def test_the_curl_line_survives_a_shell() -> None:
    name = """it's a "model" $HOME `x` \\ ü"""
    line = next(
        line for line in banner(name, Addresses("0.0.0.0", 8000, "127.0.0.1", 50051)).splitlines() if "curl" in line
    )
    words = shlex.split(line)
    assert words[:2] == ["curl", "http://127.0.0.1:8000/v1/chat/completions"]
    script = f"import json, sys; print(json.loads(sys.argv[1])['model'] == {name!r})"
    shell = f"{shlex.quote(sys.executable)} -c {shlex.quote(script)} {line.partition(' -d ')[2]}"
    assert subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout == "True\n"
