"""`briton serve`: one config in, a served model out. Says which processes run; the supervisor keeps them running."""

from __future__ import annotations

import functools
import json
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from briton.config.config import Config
from briton.config.environment import Environment
from briton.errors import ConfigError
from briton.process import probes
from briton.process.executor_choice import choose_executor
from briton.process.logs import ChildLines, LineWriter
from briton.process.supervisor import ChildSpec, RestartPolicy, Supervisor
from briton.rpc.ports import claim_port

BuildEngine = Callable[[Config, Environment], Path]  # the builder stands above this room


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What the command line says. None: what the config says. Port 0: any free one."""

    host: str | None = None
    port: int | None = None
    grpc_host: str | None = None
    grpc_port: int | None = None
    hostfile: Path | None = None
    debug: bool = False


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the two servers of `briton serve` listen."""

    host: str  # of the gateway
    http_port: int
    grpc_host: str  # of the engine
    grpc_port: int

    @property
    def gateway(self) -> str:
        """HOST:PORT of the gateway, as a client on this machine reaches it."""
        return f"{probes.local_host(self.host)}:{self.http_port}"

    @property
    def engine(self) -> str:
        """HOST:PORT of the engine, as a client on this machine reaches it."""
        return f"{probes.local_host(self.grpc_host)}:{self.grpc_port}"


def serve(
    config: Config, environment: Environment, options: ServeOptions, writer: LineWriter, build: BuildEngine
) -> int:
    """`build` the engine if it is not cached, then serve until a signal comes. Blocks; returns the exit code.

    Raises BritonError for a port in use, a failed build, and a child that cannot be kept running.
    """
    addresses = claim_addresses(config, options)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit_on_signal)  # a SystemExit: the builder cleans up after itself
    engine_dir = build(config, environment)
    supervisor = Supervisor(
        child_specs(config, engine_dir, addresses, writer, hostfile=options.hostfile, debug=options.debug),
        policy=RestartPolicy(config.start_timeout_s(choose_executor(config).name)),
        drain_timeout_s=config.briton.drain_timeout_s,
        on_ready=functools.partial(LineWriter(sys.stdout).write_line, banner(config.served_model_name, addresses)),
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda signum, frame: supervisor.stop(signum))
    return supervisor.run()


def claim_addresses(config: Config, options: ServeOptions) -> Addresses:
    """Flags over config; raises BritonError when a port is in use or both are the same."""
    host = config.briton.host if options.host is None else options.host
    grpc_host = config.briton.grpc_host if options.grpc_host is None else options.grpc_host
    http_port = config.briton.http_port if options.port is None else options.port
    grpc_port = config.briton.grpc_port if options.grpc_port is None else options.grpc_port
    if http_port == grpc_port != 0:
        raise ConfigError(f"--port and --grpc-port are both {http_port}: they must differ", "briton.grpc_port")
    http_port = claim_port(host, http_port, "--port")
    return Addresses(host, http_port, grpc_host, claim_port(grpc_host, grpc_port, "--grpc-port", "--grpc-host"))


def child_specs(
    config: Config,
    engine_dir: Path,
    addresses: Addresses,
    writer: LineWriter,
    *,
    hostfile: Path | None = None,
    debug: bool = False,
) -> tuple[ChildSpec, ChildSpec]:
    """The engine, and the gateway, which is ready when the engine serves."""
    briton = (sys.executable, "-u", "-m", "briton", *(["--debug"] if debug else []))
    common = ("--config", str(config.path), "--supervised")
    hosts = () if hostfile is None else ("--hostfile", str(hostfile))
    engine_listens = ("--host", addresses.grpc_host, "--port", str(addresses.grpc_port))
    engine_args = ("--engine-dir", str(engine_dir), *engine_listens, *hosts)
    gateway_listens = ("--host", addresses.host, "--port", str(addresses.http_port))
    gateway_args = ("--engine", addresses.engine, "--tokenizer", str(engine_dir), *gateway_listens)
    log_format = config.briton.logging.format
    engine = ChildSpec(
        "engine",
        (*briton, "engine", *common, *engine_args),
        functools.partial(probes.engine_is_serving, addresses.engine),
        ChildLines(writer, "engine", log_format),
        functools.partial(probes.engine_is_live, addresses.engine),
    )
    gateway = ChildSpec(
        "gateway",
        (*briton, "gateway", *common, *gateway_args),
        functools.partial(probes.gateway_is_ready, addresses.gateway),
        ChildLines(writer, "gateway", log_format),
        functools.partial(probes.gateway_is_live, addresses.gateway),
    )
    return engine, gateway


def banner(model_name: str, addresses: Addresses) -> str:
    """What is printed once the model is served: the URL, what listens where, a command for a shell."""
    url = f"http://{addresses.gateway}"
    messages = [{"role": "user", "content": "What is gravity?"}]
    body = {"model": model_name, "messages": messages, "max_tokens": 100, "temperature": 0}
    return (
        f"\nServing {model_name} at {url}/v1 (API docs: {url}/docs).\n"
        f"HTTP listens on {_listening(addresses.host, addresses.http_port)}, "
        f"gRPC on {_listening(addresses.grpc_host, addresses.grpc_port)}. Try:\n\n"
        f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}\n"
    )


def _listening(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _exit_on_signal(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)
