"""What a rank has of its job: how it joins the other ranks, and what it talks to them with."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from briton.config.enums import ExecutorName
from briton.engine.types import RankStats
from briton.errors import BritonError, ConfigError
from briton.ranks.communicator import Communicator
from briton.ranks.hub import Hub, JobFailure, LeaderExit
from briton.ranks.member import Member
from briton.ranks.memory import proportional_set_size
from briton.ranks.messages import HubAddress

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RankContext:
    """One rank among those of its model."""

    communicator: Communicator | None  # None: TensorRT-LLM's ranks talk to each other by themselves
    member: Member


def join_ranks(
    rank: int, size: int, member: Member | None, executor: ExecutorName, start_timeout_s: float
) -> RankContext:
    """Join the other ranks over MPI.

    `member` is this rank's membership where a launcher of ours has started it; without it (mpiexec or srun was called
    by somebody else) rank 0 makes the hub. TensorRT-LLM's ranks may say nothing for `start_timeout_s` while they load:
    the library keeps the interpreter's lock from beginning to end. Raises ConfigError, naming both numbers, when there
    are other than `size` ranks, BritonError without MPI.
    """
    is_local = executor == "local"
    # One thread at a time calls MPI; TensorRT-LLM does so from several, and starts with nothing less.
    world = _world("serialized" if is_local else "multiple")
    _forget_shared_files(world)
    if world.Get_size() != size:
        raise ConfigError(
            f"{world.Get_size()} ranks were started; the config asks for {size}"
            + ("" if world.Get_size() > 1 else " (is mpiexec another MPI's than the one that mpi4py loads?)"),
            "trt_llm.build.tensor_parallel_count",
        )
    member = member or Member(_own_hub(world), rank)
    if not is_local:
        member.expect_silence(start_timeout_s)
        return RankContext(None, member)
    communicator = Communicator(world, member.progress)
    communicator.counters.base_pss_bytes = proportional_set_size()
    member.own_stats = lambda: RankStats(rank, **asdict(communicator.counters))
    return RankContext(communicator, member)


def leave_world() -> None:
    """The regular end of MPI in this process, which all ranks reach together."""
    from mpi4py import MPI

    MPI.Finalize()


def _world(thread_level: str) -> Any:
    try:
        import mpi4py
    except ImportError:
        raise BritonError("several ranks need mpi4py: pip install 'briton[mpi]'") from None
    # A rank that fails must be able to end: finalizing waits for the others.
    mpi4py.rc.thread_level, mpi4py.rc.finalize = thread_level, False
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise BritonError(f"mpi4py finds no MPI library: pip install 'briton[mpi]' ({error})") from None
    return MPI.COMM_WORLD


def _forget_shared_files(world: Any) -> None:
    """Take away the names of the memory that a host's ranks share, now that all of them have it: ranks that are killed
    would leave their files in /dev/shm, and who finds that full cannot start."""
    world.Barrier()
    for line in Path("/proc/self/maps").read_text().splitlines():
        name = line.partition("/dev/shm/")[2]
        if name and not name.endswith(" (deleted)"):
            Path("/dev/shm", name).unlink(missing_ok=True)


def _own_hub(world: Any) -> HubAddress:
    from mpi4py import MPI

    is_local = world.Split_type(MPI.COMM_TYPE_SHARED).Get_size() == world.Get_size()
    address = None
    if world.Get_rank() == 0:
        hub = Hub(world.Get_size(), _tell, is_local=is_local)
        hub.start()
        address = str(hub.address)
    return HubAddress.parse(world.bcast(address))


def _tell(event: JobFailure | LeaderExit) -> None:
    """The members have been told, and end; so does whoever called mpiexec."""
    if isinstance(event, JobFailure):
        logger.error("the job has failed: %s", event.message)
