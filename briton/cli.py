"""The `briton` command: parses and calls, decides nothing.

What a command needs is imported when it runs, so that `briton --help` is there at once.
"""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, cast

import typer

from briton.config.enums import EXECUTORS

if TYPE_CHECKING:
    from briton.config.config import Config
    from briton.config.enums import ExecutorName
    from briton.process.logs import LineWriter

app = typer.Typer(
    name="briton",
    help="Serve text-generation models: a Truss-style config.yaml in, an OpenAI-compatible endpoint out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Look at config files.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config")


@dataclass
class _GlobalOptions:
    debug: bool = False


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line (default: this process's) and exit.

    Exit codes: 0; 1 for what went wrong; 2 for a wrong config or command line. An error is one line on standard
    error; a traceback comes before it with --debug or BRITON_DEBUG, or when the error is a bug.
    """
    options = _GlobalOptions()
    try:
        app(args=list(sys.argv[1:] if arguments is None else arguments), prog_name="briton", obj=options)
    except Exception as error:
        raise SystemExit(_report(error, options.debug)) from None
    raise SystemExit(0)


def _report(error: Exception, debug: bool) -> int:
    """Tell standard error what went wrong; returns the exit code."""
    from briton.config.environment import load_environment
    from briton.errors import EXIT_CONFIG_ERROR, BritonError, exit_code_of
    from briton.process.child_process import ERROR_PREFIX
    from briton.process.supervisor import ChildFailed

    told = isinstance(error, (BritonError, OSError))
    if not told or debug or load_environment().debug:
        traceback.print_exception(error)
    message = str(error) if told else f"internal error, please report it: {type(error).__name__}: {error}"
    print(ERROR_PREFIX + " ".join(message.split()), file=sys.stderr)
    # What an engine says of its config when it starts is no other error than what `config check` says of it.
    refused = isinstance(error, ChildFailed) and error.returncode == EXIT_CONFIG_ERROR
    return EXIT_CONFIG_ERROR if refused else exit_code_of(error)


def _print_version(wanted: bool) -> None:
    if wanted:
        from briton import __version__

        typer.echo(f"briton {__version__}")
        raise typer.Exit


def _host_and_port(address: str) -> str:
    host, _, port = address.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise typer.BadParameter(f"{address!r} must be HOST:PORT")
    return address


def _executor_name(name: str | None) -> str | None:
    if name is not None and name not in EXECUTORS:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(EXECUTORS)}")
    return name


ConfigOption = Annotated[Path, typer.Option("--config", metavar="FILE", help="The model's config.yaml.")]
HostOption = Annotated[
    str | None,
    typer.Option(metavar="HOST", help="Address of HTTP to listen on. Default: the config's briton.host, 127.0.0.1."),
]
_GRPC_HOST_HELP = "Address of gRPC to listen on. Default: the config's briton.grpc_host, 127.0.0.1."
GrpcHostOption = Annotated[str | None, typer.Option("--grpc-host", metavar="HOST", help=_GRPC_HOST_HELP)]
EngineHostOption = Annotated[str | None, typer.Option("--host", metavar="HOST", help=_GRPC_HOST_HELP)]
SupervisedOption = Annotated[bool, typer.Option("--supervised", hidden=True, help="End when standard input closes.")]
HttpPortOption = Annotated[
    int | None,
    typer.Option(metavar="PORT", min=0, max=65535, help="HTTP port. Default: the config's briton.http_port, 8000."),
]
HostfileOption = Annotated[
    Path | None,
    typer.Option(
        "--hostfile",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="Hosts of the ranks, as mpiexec reads them. Default: the config's briton.mpi.hostfile, or this host.",
    ),
]
GrpcPortOption = Annotated[
    int | None,
    typer.Option(metavar="PORT", min=0, max=65535, help="gRPC port. Default: the config's briton.grpc_port, 50051."),
]
ExecutorOption = Annotated[
    str | None,
    typer.Option(
        "--executor",
        metavar="|".join(EXECUTORS),
        help="Plan for this executor. Default: the one that would run here.",
        callback=_executor_name,
    ),
]
ModelConfigOption = Annotated[
    Path | None,
    typer.Option("--model-config", metavar="FILE", help="A config.json to take the model's shapes from."),
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Ask no hub for the model's shapes.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the plan as one JSON document.")]


@app.callback()
def briton(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error (or BRITON_DEBUG=1).")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Serve text-generation models: a Truss-style config.yaml in, an OpenAI-compatible endpoint out."""
    context.obj.debug = debug


@app.command()
def init(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A directory or .gguf file, ORG/NAME[@REVISION] of the Hugging Face hub, NAME[==VERSION] of a Python "
            "package that ships weights, or a URL: s3://, gs://, azure://, or that of a tar.gz.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="What is written.")] = Path("config.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
) -> None:
    """Write a config to begin with.

    A config.yaml for a model, with comments, that serves it as it is. Nothing is fetched.
    """
    from briton.errors import ConfigError
    from briton.trtllm.machine import this_machine
    from briton_engine_builder.starter_config import starter_config

    starter = starter_config(model, output.parent, has_gpu=not this_machine().missing)
    try:
        with output.open("w" if force else "x", encoding="utf-8") as file:
            file.write(starter.text)
    except FileExistsError:
        raise ConfigError(f"{output} exists: --force overwrites it", "--output") from None
    except (OSError, UnicodeEncodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a name that is not Unicode"
        raise ConfigError(f"cannot write {output}: {reason}", "--output") from None
    typer.echo(f"{output}: {starter.checkpoint}")
    for note in starter.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"next: briton serve --config {shlex.quote(str(output))}")


@app.command()
def serve(
    context: typer.Context,
    config: ConfigOption,
    host: HostOption = None,
    port: HttpPortOption = None,
    grpc_host: GrpcHostOption = None,
    grpc_port: GrpcPortOption = None,
    hostfile: HostfileOption = None,
) -> None:
    """Serve a model as an OpenAI endpoint.

    Builds the engine unless it is cached, runs engine and gateway, starts again what dies, and drains on SIGTERM or
    Ctrl-C.
    """
    loaded, writer = _open_config(config, "serve")
    from briton.config.environment import load_environment
    from briton.process.serve import ServeOptions
    from briton.process.serve import serve as run
    from briton_engine_builder import build_engine

    options = ServeOptions(host, port, grpc_host, grpc_port, hostfile, context.obj.debug)
    raise typer.Exit(run(loaded, load_environment(), options, writer, build_engine))


@app.command()
def build(
    config: ConfigOption,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build nothing: print the plan of the build.")] = False,
    executor: ExecutorOption = None,
    offline: OfflineOption = False,
    model_config: ModelConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build an engine, print its directory.

    Fetches the checkpoint and converts its weights, unless the same was built before. With --dry-run it prints what
    `briton config explain` prints; the options after it belong to it.
    """
    if dry_run:
        _print_plan(config, executor, offline, model_config, as_json)
        return
    if executor or offline or model_config or as_json:
        raise typer.BadParameter("--executor, --offline, --model-config and --json belong to --dry-run")
    loaded, _ = _open_config(config, "build")
    from briton.config.environment import load_environment
    from briton_engine_builder import build_engine

    typer.echo(build_engine(loaded, load_environment()))


@app.command()
def engine(
    context: typer.Context,
    config: ConfigOption,
    engine_dir: Annotated[
        Path | None,
        typer.Option("--engine-dir", metavar="DIR", help="Default: the cached engine, built if need be."),
    ] = None,
    host: EngineHostOption = None,
    port: GrpcPortOption = None,
    hostfile: HostfileOption = None,
    supervised: SupervisedOption = False,
) -> None:
    """Run an engine alone (gRPC).

    The service that gateways and cluster clients talk to, with health and reflection: see
    proto/briton/v1/engine.proto. Starts all ranks of a tensor-parallel engine, or is one of them when mpiexec or srun
    has started it.
    """
    if supervised:
        _end_with_supervisor()
    from briton.config.environment import load_environment
    from briton.process.engine_command import EngineOptions, as_member, run_engine_command

    environment = load_environment()
    with as_member(environment) as member:
        loaded, _ = _open_config(config, "engine", supervised or member is not None, environment.mpi_rank)
        if engine_dir is None:
            from briton_engine_builder import build_engine

            engine_dir = build_engine(loaded, environment)
        host = loaded.briton.grpc_host if host is None else host
        port = loaded.briton.grpc_port if port is None else port
        options = EngineOptions(host, port, hostfile, context.obj.debug)
        code = run_engine_command(loaded, engine_dir, options, environment, member)
    raise typer.Exit(code)


@app.command()
def gateway(
    config: ConfigOption,
    engine: Annotated[
        str,
        typer.Option(
            "--engine", metavar="HOST:PORT", help="Where the engine's gRPC service is.", callback=_host_and_port
        ),
    ],
    tokenizer: Annotated[
        Path, typer.Option("--tokenizer", metavar="DIR", help="Where tokenizer.json is: the engine directory.")
    ],
    host: HostOption = None,
    port: HttpPortOption = None,
    supervised: SupervisedOption = False,
) -> None:
    """Run a gateway alone (HTTP).

    The OpenAI-compatible server in front of an engine that runs elsewhere.
    """
    if supervised:
        _end_with_supervisor()
    loaded, _ = _open_config(config, "gateway", supervised)
    from briton.process.cpu import never_preempt
    from briton.rpc.ports import claim_port
    from briton_server.main import run_gateway

    host = loaded.briton.host if host is None else host
    port = loaded.briton.http_port if port is None else port
    claim_port(host, port, "--port")
    never_preempt()
    raise typer.Exit(run_gateway(loaded, tokenizer_dir=tokenizer, engine_address=engine, host=host, port=port))


@config_app.command("explain")
def explain_config(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A config file.")],
    executor: ExecutorOption = None,
    offline: OfflineOption = False,
    model_config: ModelConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Explain what a config becomes.

    Prints the build, the quantization, the executor's own config, the command that starts it, and whether it fits in
    memory; nothing is built. Exit code 2 when it cannot be built or does not fit, with the field's name.
    """
    _print_plan(file, executor, offline, model_config, as_json)


def _print_plan(
    file: Path,
    executor: str | None,
    offline: bool,
    model_config: Path | None,
    as_json: bool,
) -> None:
    import json

    from briton.config.environment import load_environment
    from briton.config.loader import load_config
    from briton_engine_builder.explain import explain

    explanation = explain(
        load_config(file),
        load_environment(),
        executor=cast("ExecutorName | None", executor),
        offline=offline,
        model_config=model_config,
    )
    typer.echo(json.dumps(explanation.document, indent=2) if as_json else explanation.text())


@config_app.command()
def check(files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Config files.")]) -> None:
    """Check config files.

    Says what each would build and serve, by which executor and why. Exit code 2 when one is wrong, with the field's
    name.
    """
    from briton.config.loader import load_config
    from briton.errors import EXIT_CONFIG_ERROR, ConfigError
    from briton.process.child_process import ERROR_PREFIX
    from briton.process.config_report import report

    wrong = False
    for file in files:
        try:
            typer.echo(report(load_config(file)))
        except ConfigError as error:
            typer.echo(f"{ERROR_PREFIX}{error}", err=True)  # which names the file
            wrong = True
    raise typer.Exit(EXIT_CONFIG_ERROR if wrong else 0)


def _open_config(
    path: Path, process: str, supervised: bool = False, rank: int | None = None
) -> tuple[Config, LineWriter]:
    """Load a config that can be served here, and send the logs where it says.

    What is to be said about the config is said once: by the supervisor, where there is one. A gateway runs no model:
    whether one could be run here is not its matter.
    """
    import logging

    from briton.config.loader import load_config
    from briton.config.local_target import map_quantization
    from briton.process.executor_choice import check_servable, choose_executor
    from briton.process.logs import configure_logging

    config = load_config(path)
    remarks = []
    if process != "gateway":
        check_servable(config)
        executor, reason = choose_executor(config)
        substitution = map_quantization(config).substitution if executor == "local" else None
        remarks = [f"executor {executor}: {reason}", *([substitution] if substitution else [])]
    rank = rank if config.world_size > 1 else None
    writer = configure_logging(config.briton.logging.level, config.briton.logging.format, process=process, rank=rank)
    if not supervised:
        logger = logging.getLogger("briton.config")
        for warning in config.warnings:
            logger.warning("%s", warning)
        for remark in remarks:
            logger.info("%s", remark)
    return config, writer


def _end_with_supervisor() -> None:
    from briton.process.child_process import end_with_supervisor

    end_with_supervisor()
