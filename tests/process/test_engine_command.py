"""What `briton engine` runs: the engine, one rank of it, or the job of all its ranks; and how ranks are started."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from briton.config.config import Config
from briton.config.environment import Environment
from briton.config.loader import load_config
from briton.errors import BuildError, ConfigError
from briton.process.engine_command import EngineOptions, as_member, rank_program, run_engine_command
from briton.ranks import mpiexec, rank_context
from briton.ranks.communicator import RankCounters
from briton.ranks.hub import Hub, JobFailure, LeaderExit
from briton.ranks.member import Member
from briton.ranks.mpiexec import Mpiexec
from tests.processes import wait_until
from tests.ranks.jobs import HOST, Events, end

ALONE = Environment(cache_dir=Path("/cache"))
RANK = replace(ALONE, mpi_rank=1, mpi_size=2)
OPTIONS = EngineOptions("127.0.0.1", 7000)
ConfigOf = Callable[..., Config]


@pytest.fixture
def config_of(tmp_path: Path) -> ConfigOf:
    """A config of so many ranks, with keys of briton.mpi."""

    def make(ranks: int, **mpi: Any) -> Config:
        build = {"checkpoint_repository": {"source": "LOCAL", "repo": "."}, "tensor_parallel_count": ranks}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({"trt_llm": {"build": build}, "briton": {"mpi": mpi}}))
        return load_config(path)

    return make


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What would have been run: ("engine", ...), ("rank", ...) or ("job", command, size, environment)."""
    seen: list[tuple[Any, ...]] = []

    def record(kind: str) -> Callable[..., int]:
        def run(*arguments: Any, **options: Any) -> int:
            seen.append((kind, *arguments, options))
            return 4

        return run

    class Launcher:
        def __init__(self, command: tuple[str, ...], size: int, environ: dict[str, str], *, is_local: bool) -> None:
            seen.append(("job", command, size, environ, is_local))

        def run(self) -> int:
            return 5

    monkeypatch.setattr("briton.process.engine_process.run_engine", record("engine"))
    monkeypatch.setattr("briton.process.rank_process.run_rank", record("rank"))
    monkeypatch.setattr("briton.ranks.launcher.Launcher", Launcher)
    monkeypatch.setattr(mpiexec, "find_mpiexec", lambda asked: Mpiexec(asked or "/opt/mpiexec", "openmpi"))
    return seen


@pytest.mark.parametrize("environment", [ALONE, replace(RANK, mpi_rank=0, mpi_size=1), replace(RANK, mpi_size=None)])
def test_one_rank_is_this_process(config_of: ConfigOf, runs: list[tuple[Any, ...]], environment: Environment) -> None:
    """Also under `srun -n 1`."""
    config = config_of(1)
    assert run_engine_command(config, Path("engine"), OPTIONS, environment) == 4
    assert runs == [("engine", config, Path("engine"), {"host": "127.0.0.1", "port": 7000})]


def test_one_of_several_ranks(config_of: ConfigOf, runs: list[tuple[Any, ...]]) -> None:
    config, member = config_of(2), object()
    assert run_engine_command(config, Path("engine"), OPTIONS, RANK, member) == 4  # type: ignore[arg-type]
    told = {"host": "127.0.0.1", "port": 7000, "rank": 1, "member": member}
    assert runs == [("rank", config, Path("engine"), told)]


def test_ranks_of_a_config_with_one_are_ranks(config_of: ConfigOf, runs: list[tuple[Any, ...]]) -> None:
    """They would otherwise be engines that fight for a port."""
    run_engine_command(config_of(1), Path("engine"), OPTIONS, RANK)
    assert runs[0][0] == "rank"


def test_several_ranks_are_a_job(
    config_of: ConfigOf, runs: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "mine")
    monkeypatch.setenv("HF_HOME", "/models")
    monkeypatch.chdir(tmp_path)
    assert run_engine_command(config_of(3), Path("engine"), OPTIONS, ALONE) == 5
    (kind, command, size, environ, is_local) = runs[0]
    assert (kind, size, environ["HF_HOME"], is_local) == ("job", 3, "/models", True)
    assert "HF_TOKEN" not in environ, "ranks need no secrets"
    assert command[:3] == ("/opt/mpiexec", "-n", "3")
    for name in ("BRITON_JOB", "PATH", "LD_LIBRARY_PATH"):  # what ranks on other hosts cannot do without
        assert command[command.index(name) - 1] == "-x"
    program = (sys.executable, "-u", "-m", "briton", "engine", "--config", str(tmp_path / "config.yaml"))
    told = ("--engine-dir", str(tmp_path / "engine"), "--host", "127.0.0.1", "--port", "7000")
    assert command[-len(program + told) :] == program + told
    assert "--hostfile" not in command


def test_a_rank_debugs_as_its_launcher_does(config_of: ConfigOf) -> None:
    program = rank_program(config_of(2), Path("/engine"), replace(OPTIONS, debug=True))
    assert program[3:6] == ("briton", "--debug", "engine")


def test_a_batch_system_may_spread_the_ranks(config_of: ConfigOf, runs: list[tuple[Any, ...]]) -> None:
    """So ranks on other hosts have to reach the hub."""
    run_engine_command(config_of(2), Path("engine"), OPTIONS, replace(ALONE, has_mpi_hosts=True))
    assert runs[0][-1] is False


def test_mpiexec_as_the_config_says(config_of: ConfigOf, runs: list[tuple[Any, ...]], tmp_path: Path) -> None:
    """A hostfile is beside the config, unless the command line has another."""
    (tmp_path / "hosts").touch()
    (tmp_path / "others").touch()
    config = config_of(2, mpiexec="/opt/other", hostfile="hosts", arguments=["--mca", "btl", "self,tcp"])
    run_engine_command(config, Path("engine"), OPTIONS, ALONE)
    run_engine_command(config, Path("engine"), replace(OPTIONS, hostfile=tmp_path / "others"), ALONE)
    for (_, command, _, _, is_local), hosts in zip(runs, ("hosts", "others"), strict=True):
        assert not is_local
        assert command[0] == "/opt/other"
        assert command[command.index("--hostfile") + 1] == str(tmp_path / hosts)
        assert command[command.index("btl") - 1 : command.index("btl") + 2] == ("--mca", "btl", "self,tcp")


def test_a_hostfile_that_is_not_there(config_of: ConfigOf, runs: list[tuple[Any, ...]]) -> None:
    with pytest.raises(ConfigError, match=r"hosts does not exist") as caught:
        run_engine_command(config_of(2, hostfile="hosts"), Path("engine"), OPTIONS, ALONE)
    assert caught.value.field == "briton.mpi.hostfile"
    assert runs == []


# Membership.


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Environment, Events]]:
    """The environment of a job's only rank, and what the hub reports; the rank is this process, without a wrapper."""
    monkeypatch.setattr("briton.ranks.rank_wrapper.fork_rank", lambda: None)
    events = Events()
    hub = Hub(1, events.put)
    hub.start()
    yield replace(RANK, mpi_rank=0, job=str(hub.address)), events
    hub.close()


def test_who_is_no_member() -> None:
    with as_member(ALONE) as member:
        assert member is None
    with as_member(replace(ALONE, job="of@1@another")) as member:  # inherited, and not a rank
        assert member is None


def test_a_rank_without_a_launcher_has_a_wrapper(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[int] = []
    monkeypatch.setattr("briton.ranks.rank_wrapper.fork_rank", lambda: entered.append(1))
    with as_member(RANK) as member:
        assert member is None
    assert entered == [1]


@pytest.mark.parametrize(("error", "code"), [(ConfigError("no good", "f"), 2), (BuildError("no good"), 1)])
def test_what_a_rank_fails_in_is_told(job: tuple[Environment, Events], error: BuildError, code: int) -> None:
    """From the first line of its config on: a job must not wait for a rank that has ended."""
    environment, events = job
    members: list[Member] = []

    def fail() -> None:
        with as_member(environment) as member:
            assert member is not None
            members.append(member)
            member.on_abort = lambda reason: None
            raise error

    with pytest.raises(type(error)):
        fail()
    assert events.failure() == JobFailure(f"rank 0 on {HOST}: no good", code, 0)
    end(members[0])


def test_a_member_that_leaves(job: tuple[Environment, Events]) -> None:
    environment, events = job
    with as_member(environment) as member:
        assert member is not None
        end(member)
    assert events.next() == LeaderExit()


def test_a_hub_of_ranks_that_nobody_launched(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Rank 0 makes one, all join it; a failure is logged, a regular end is not."""
    world = SimpleNamespace(Get_size=lambda: 1, Get_rank=lambda: 0, bcast=lambda address: address, Barrier=lambda: None)
    world.Split_type = lambda kind: world
    monkeypatch.setattr(rank_context, "_world", lambda thread_level: world)
    monkeypatch.setattr(
        rank_context,
        "Communicator",
        lambda world, progress: SimpleNamespace(progress=progress, counters=RankCounters()),
    )
    taken = rank_context.join_ranks(0, 1, None, "local", 10.0)
    assert taken.communicator is not None
    base = taken.communicator.counters.base_pss_bytes
    assert base > 1 << 20
    wait_until(lambda: [s.base_pss_bytes for s in taken.member.all_stats()] == [base])
    stats = taken.member.all_stats()[0]
    assert (stats.rank, stats.host) == (0, HOST)
    taken.member.on_abort = lambda reason: None
    end(taken.member)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_ranks_of_the_library_may_be_silent_as_long_as_they_may_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: ranks were granted half an hour, and the supervisor ended them after ten minutes."""
    world = SimpleNamespace(Get_size=lambda: 1, Barrier=lambda: None)
    monkeypatch.setattr(rank_context, "_world", lambda thread_level: world)
    granted: list[float] = []
    member: Any = SimpleNamespace(expect_silence=granted.append)
    assert rank_context.join_ranks(0, 1, member, "trtllm", 7200.0).communicator is None
    assert granted == [7200.0]


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_another_number_of_ranks_than_the_configs(monkeypatch: pytest.MonkeyPatch, num_ranks: int) -> None:
    monkeypatch.setattr(
        rank_context, "_world", lambda thread_level: SimpleNamespace(Get_size=lambda: num_ranks, Barrier=lambda: None)
    )
    with pytest.raises(ConfigError, match=f"{num_ranks} ranks were started; the config asks for 2") as caught:
        rank_context.join_ranks(0, 2, None, "local", 10.0)
    assert caught.value.field == "trt_llm.build.tensor_parallel_count"
    assert ("another MPI's" in str(caught.value)) is (num_ranks == 1)
