"""What `briton engine` runs: the engine itself, one rank of it, or the job of all its ranks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from briton.config.config import Config
from briton.config.environment import Environment, child_variables
from briton.errors import BritonError, ConfigError, exit_code_of

if TYPE_CHECKING:
    from briton.ranks.member import Member


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What the command line says."""

    host: str
    port: int
    hostfile: Path | None = None  # None: the config's
    debug: bool = False


@contextmanager
def as_member(environment: Environment) -> Iterator[Member | None]:
    """This process's membership, if it is a rank that a launcher of ours has started: whatever it fails in from now on
    is told to the job, which then ends. Any rank goes on in a child of this process."""
    if environment.mpi_rank is None:
        yield None
        return
    from briton.ranks.rank_wrapper import fork_rank

    fork_rank()
    if environment.job is None:
        yield None
        return
    from briton.ranks.member import Member
    from briton.ranks.messages import HubAddress

    member = Member(HubAddress.parse(environment.job), environment.mpi_rank)
    try:
        yield member
    except BritonError as error:
        member.fail(error.message, exit_code_of(error))
        raise


def run_engine_command(
    config: Config, engine_dir: Path, options: EngineOptions, environment: Environment, member: Member | None = None
) -> int:
    """Blocks until the engine has ended; returns the exit code. Raises BritonError.

    Several ranks are started by this process, unless it is one of them already (mpiexec or srun was called first).
    """
    size = config.world_size
    if environment.mpi_rank is not None and max(size, environment.mpi_size or 1) > 1:
        from briton.process.rank_process import run_rank

        return run_rank(
            config,
            engine_dir,
            host=options.host,
            port=options.port,
            rank=environment.mpi_rank,
            member=member,
        )
    if size == 1:
        from briton.process.engine_process import run_engine

        return run_engine(config, engine_dir, host=options.host, port=options.port)
    return _run_job(config, engine_dir, options, may_spread=environment.has_mpi_hosts)


def _run_job(config: Config, engine_dir: Path, options: EngineOptions, *, may_spread: bool) -> int:
    from briton.ranks.launcher import JOB_VARIABLE, Launcher
    from briton.ranks.mpiexec import find_mpiexec

    mpi = config.briton.mpi
    hostfile = options.hostfile or config.mpi_hostfile
    if hostfile is not None and not hostfile.is_file():
        raise ConfigError(f"the hostfile {hostfile} does not exist", "briton.mpi.hostfile")
    size = config.world_size
    command = find_mpiexec(mpi.mpiexec).command(
        rank_program(config, engine_dir, options),
        size,
        variables=(JOB_VARIABLE, "PATH", "LD_LIBRARY_PATH"),
        hostfile=hostfile,
        arguments=mpi.arguments,
    )
    is_local = hostfile is None and not mpi.arguments and not may_spread  # arguments may name hosts, too
    return Launcher(command, size, child_variables(), is_local=is_local).run()


def rank_program(config: Config, engine_dir: Path, options: EngineOptions) -> tuple[str, ...]:
    """The command of each rank: paths are absolute, since hosts differ in where it runs."""
    return (
        *(sys.executable, "-u", "-m", "briton", *(["--debug"] if options.debug else []), "engine"),
        *("--config", str(config.path.absolute()), "--engine-dir", str(engine_dir.absolute())),
        *("--host", options.host, "--port", str(options.port)),
    )
