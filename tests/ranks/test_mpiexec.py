"""Which mpiexec is taken, and how each kind of it is told what to start."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from briton.errors import ConfigError
from briton.ranks import mpiexec
from briton.ranks.mpiexec import Mpiexec, find_mpiexec

PROGRAM = ("python", "-m", "briton", "engine")
HYDRA = "HYDRA build details:\n    Version:                                 4.3.1"
OPEN_MPI = "mpirun (Open MPI) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/"
PRRTE = "mpiexec (PRRTE) 3.0.0\nReport bugs to https://www.open-mpi.org/community/help/"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a program that answers --version."""

    def make(folder: str, told: str = HYDRA, *, name: str = "mpiexec") -> Path:
        path = tmp_path / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && cat <<"END"\n{told}\nEND\n')
        path.chmod(0o755)
        return path

    return make


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any: a Python and a PATH of its own."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python" / "python"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:/bin:/usr/bin")


def test_hydra(tmp_path: Path) -> None:
    found = Mpiexec("/opt/mpiexec", "hydra")
    assert found.command(PROGRAM, 2) == ("/opt/mpiexec", "-n", "2", *PROGRAM)
    whole = found.command(PROGRAM, 3, variables=("PATH",), hostfile=tmp_path / "hosts", arguments=("-launcher", "ssh"))
    assert whole == ("/opt/mpiexec", "-n", "3", "-f", str(tmp_path / "hosts"), "-launcher", "ssh", *PROGRAM)


def test_open_mpi(tmp_path: Path) -> None:
    """Root in a container, more ranks than cores, and threads that may run on all cores: all refused by default."""
    found = Mpiexec("/opt/mpiexec", "openmpi")
    allowed = ("--allow-run-as-root", "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none")
    assert found.command(PROGRAM, 2) == ("/opt/mpiexec", "-n", "2", *allowed, *PROGRAM)
    whole = found.command(
        PROGRAM,
        3,
        variables=("BRITON_JOB", "PATH"),
        hostfile=tmp_path / "hosts",
        arguments=("--mca", "btl", "tcp,self"),
    )
    assert whole == (
        *("/opt/mpiexec", "-n", "3", *allowed, "-x", "BRITON_JOB", "-x", "PATH"),
        *("--hostfile", str(tmp_path / "hosts"), "--mca", "btl", "tcp,self", *PROGRAM),
    )


@pytest.mark.parametrize(("told", "flavor"), [(HYDRA, "hydra"), (OPEN_MPI, "openmpi"), (PRRTE, "openmpi")])
def test_kinds(write: Write, told: str, flavor: str) -> None:
    path = write("somewhere", told)
    assert find_mpiexec(str(path)) == Mpiexec(str(path), flavor)  # type: ignore[arg-type]


def test_the_one_asked_for_then_beside_python_then_of_the_path(write: Write) -> None:
    on_path = write("path", OPEN_MPI)
    assert find_mpiexec() == Mpiexec(str(on_path), "openmpi")
    beside = write("python", HYDRA)
    assert find_mpiexec() == Mpiexec(str(beside), "hydra")
    asked = write("path", OPEN_MPI, name="mpiexec.openmpi")
    assert find_mpiexec("mpiexec.openmpi") == Mpiexec(str(asked), "openmpi")


def test_none_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"mpiexec is not there, .* pip install 'briton\[mpi\]'") as caught:
        find_mpiexec()
    assert caught.value.field == "briton.mpi.mpiexec"
    with pytest.raises(ConfigError, match="/opt/none/mpiexec is not there"):
        find_mpiexec("/opt/none/mpiexec")


def test_a_file_that_may_not_be_run_is_not_there(write: Write) -> None:
    path = write("somewhere")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="is not there"):
        find_mpiexec(str(path))


def test_an_unknown_kind(write: Write) -> None:
    path = write("somewhere", "Intel(R) MPI Library for Linux* OS")
    with pytest.raises(ConfigError, match=r"neither MPICH's nor Open MPI's mpiexec: 'Intel\(R\) MPI") as caught:
        find_mpiexec(str(path))
    assert caught.value.field == "briton.mpi.mpiexec"


def test_one_that_cannot_be_run_or_does_not_answer(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("somewhere")
    path.write_bytes(b"\x7fELF cut short")
    with pytest.raises(ConfigError, match=r"mpiexec --version: .*Exec format error") as caught:
        find_mpiexec(str(path))
    assert caught.value.field == "briton.mpi.mpiexec"
    monkeypatch.setattr(mpiexec, "_VERSION_TIMEOUT_S", 0.1)
    path.write_text("#!/bin/sh\nexec sleep 5\n")
    with pytest.raises(ConfigError, match=r"timed out after 0\.1 seconds"):
        find_mpiexec(str(path))
