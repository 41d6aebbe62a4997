"""Runs the child process, passes its lines to the log, and makes one line of however it ends."""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path

from briton.config.environment import HUB_CREDENTIALS
from briton.errors import BuildError
from briton.process.child_process import ChildProcess
from briton.ranks.mpiexec import Mpiexec
from briton.trtllm.executor_plan import LaunchPlan
from briton_engine_builder.trtllm.job import PHASE, SAVED

logger = logging.getLogger(__name__)

CHILD = "briton_engine_builder.trtllm.child"
_POLL_S = 1.0  # between two looks for an interrupt


def child_command(job_file: Path, world_size: int, launch: LaunchPlan) -> tuple[str, ...]:
    """The command that builds. For several ranks it is one process that spawns their builders over MPI, which mpirun
    has to have started; its options are those that ranks are launched with."""
    command: tuple[str, ...] = (sys.executable, "-m", CHILD, str(job_file))
    if world_size > 1:
        command = Mpiexec(launch.command[0], "openmpi").command(command, 1)
    return ("env", *(f"{name}={value}" for name, value in launch.env.items()), *command)


def run_child(command: tuple[str, ...], directory: Path, *, progress: bool) -> None:
    """Build the job in `directory`, and return when the engine is there. The child ends with this process, and when
    this is interrupted.

    Its phases are log lines, as is what the library says, one level lower without `progress`. Raises BuildError with
    one line: the library's message, or the signal that ended the child.
    """
    level, ended = logging.INFO if progress else logging.DEBUG, threading.Event()

    def pass_on(line: str) -> None:
        if line.startswith(PHASE):
            logger.log(level, "building the engine: %s", line.removeprefix(PHASE))
        elif line.strip():
            logger.log(level, "tensorrt_llm | %s", line)

    try:
        # The library may fetch a dataset to calibrate with.
        child = ChildProcess(command, on_line=pass_on, on_exit=lambda _: ended.set(), credentials=HUB_CREDENTIALS)
    except OSError as error:  # no mpirun, no env
        raise BuildError(f"TensorRT-LLM's builder cannot be started: {error}") from error
    try:
        while not ended.wait(_POLL_S):
            pass
    except BaseException:
        child.kill()
        child.join(timeout_s=10)
        raise
    if not (directory / SAVED).exists():
        raise BuildError(f"TensorRT-LLM's builder {child.describe_exit()}")
    if child.returncode != 0:  # in taking itself down, which is no reason to lose an engine
        logger.warning("the engine is saved, but TensorRT-LLM's builder %s", child.describe_exit())
