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
from briton.ranks.rank_context import RankContext, join_ranks, leave_world


def run_rank(config: Config, engine_dir: Path, *, host: str, port: int, rank: int, member: Member | None) -> int:
    """Serve as rank 0, or follow, until rank 0 ends. Returns 0 after a drain; a rank that fails ends its process."""
    executor = choose_executor(config).name
    rank_context = join_ranks(rank, config.world_size, member, executor, config.start_timeout_s(executor))
    try:
        code = (
            _serve(config, engine_dir, host, port, rank_context)
            if rank == 0
            else _follow(config, engine_dir, rank_context)
        )
    except BaseException as error:
        _end(rank_context, rank, error)
    rank_context.member.leave()
    leave_world()
    return code


def _serve(config: Config, engine_dir: Path, host: str, port: int, rank_context: RankContext) -> int:
    from briton.process.engine_process import run_engine

    return run_engine(config, engine_dir, host=host, port=port, rank_context=rank_context)


def _follow(config: Config, engine_dir: Path, rank_context: RankContext) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # rank 0 says when to end
    follow_executor(config, engine_dir, rank_context)
    return 0


def _end(rank_context: RankContext, rank: int, error: BaseException) -> NoReturn:
    """Tell why, and end without waiting for other ranks, which MPI's own end would do."""
    message = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, BritonError):
        traceback.print_exception(error)
    if not isinstance(error, SystemExit):
        print(f"{ERROR_PREFIX}rank {rank}: {message}", file=sys.stderr)
        rank_context.member.fail(message, exit_code_of(error))
    logging.shutdown()
    sys.stderr.flush()
    os._exit(exit_code_of(error))
