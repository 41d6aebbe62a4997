"""The process of one rank: rank 0 serves the engine, the others follow it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from briton.config.config import Config
from briton.errors import BritonError, exit_code_of
from briton.process.child_process import ERROR_PREFIX
from briton.process.executor_choice import choose_executor
from briton.process.executors import follow_executor
from briton.ranks.member import Member
from briton.ranks.seat import Seat, leave_world, take_seat


def run_rank(config: Config, engine_dir: Path, *, host: str, port: int, rank: int, member: Member | None) -> int:
    """Serve as rank 0, or follow, until rank 0 ends. Returns 0 after a drain; a rank that fails ends its process."""
    seat = take_seat(rank, config.world_size, member, choose_executor(config).name)
    try:
        code = _serve(config, engine_dir, host, port, seat) if rank == 0 else _follow(config, engine_dir, seat)
    except BaseException as error:
        _end(seat, rank, error)
    seat.member.leave()
    leave_world()
    return code


def _serve(config: Config, engine_dir: Path, host: str, port: int, seat: Seat) -> int:
    from briton.process.engine_process import run_engine

    return run_engine(config, engine_dir, host=host, port=port, seat=seat)


def _follow(config: Config, engine_dir: Path, seat: Seat) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # rank 0 says when to end
    follow_executor(config, engine_dir, seat)
    return 0


def _end(seat: Seat, rank: int, error: BaseException) -> NoReturn:
    """Tell why, and end without waiting for other ranks, which MPI's own end would do."""
    message = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, BritonError):
        traceback.print_exception(error)
    if not isinstance(error, SystemExit):
        print(f"{ERROR_PREFIX}rank {rank}: {message}", file=sys.stderr)
        seat.member.fail(message, exit_code_of(error))
    logging.shutdown()
    sys.stderr.flush()
    os._exit(exit_code_of(error))
