"""The process environment. It is read here and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from briton.errors import ConfigError

_SECRET_PREFIX = "TRUSS_SECRET_"
_MPI_RANK_NAMES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")
_MPI_SIZE_NAMES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
_MPI_HOSTS_NAMES = ("HYDRA_HOST_FILE", "SLURM_JOB_ID", "PBS_NODEFILE", "LSB_JOBID", "PE_HOSTFILE", "COBALT_NODEFILE")
_TOKEN_NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ACCESS_TOKEN")
HUB_CREDENTIALS = _TOKEN_NAMES
INDEX_CREDENTIALS = ("PIP_",)  # an index's URL may hold a password
# What the names of variables begin with that only whoever fetches checkpoints needs.
_CREDENTIALS = (_SECRET_PREFIX, "AWS_", "AZURE_", "GOOGLE_APPLICATION_", *HUB_CREDENTIALS, *INDEX_CREDENTIALS)


@dataclass(frozen=True)
class Environment:
    """What Briton takes from its surroundings. Secrets are left out of its repr."""

    cache_dir: Path  # BRITON_CACHE_DIR, else $XDG_CACHE_HOME/briton, else ~/.cache/briton
    hf_token: str | None = field(default=None, repr=False)  # HF_TOKEN, HUGGING_FACE_HUB_TOKEN or HF_ACCESS_TOKEN
    azure_connection_string: str | None = field(default=None, repr=False)  # AZURE_STORAGE_CONNECTION_STRING
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)  # TRUSS_SECRET_<name>
    secrets_dir: Path = Path("/secrets")  # one file a secret, as Truss mounts them
    debug: bool = False  # BRITON_DEBUG: tracebacks with errors; any value but 0
    mpi_rank: int | None = None  # as whoever starts ranks tells it: MPICH, Slurm, Open MPI, PMIx; None: nobody did
    mpi_size: int | None = None  # the same; PMIx does not tell it
    has_mpi_hosts: bool = False  # mpiexec may find hosts without a hostfile of ours: Hydra's own, or a batch system's
    job: str | None = field(default=None, repr=False)  # BRITON_JOB: where a rank finds its hub

    def hf_token_for(self, runtime_secret_name: str) -> str | None:
        """The Hugging Face token of a checkpoint, the most specific first.

        The secret, then `hf_token`. None leaves it to huggingface_hub, which knows the token of `hf auth login`.
        Raises ConfigError for a secret that cannot be read.
        """
        return self.secret(runtime_secret_name) or self.hf_token

    def secret(self, runtime_secret_name: str) -> str | None:
        """TRUSS_SECRET_<name>, else the file <name> in the secrets mount, else None.

        Raises ConfigError for a secret that cannot be read.
        """
        if secret := self.secrets.get(runtime_secret_name):
            return secret
        file = self.secrets_dir / runtime_secret_name
        try:
            return file.read_text(encoding="utf-8").strip() or None
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the secret {file} cannot be read: {error}", "runtime_secret_name") from None


def load_environment(environ: Mapping[str, str] | None = None) -> Environment:
    """Read the environment (`environ` stands in for os.environ in tests). Empty variables count as unset.

    Raises ConfigError when no cache directory is given and there is no home directory.
    """
    variables = {name: value for name, value in (os.environ if environ is None else environ).items() if value.strip()}
    return Environment(
        cache_dir=_cache_dir(variables),
        hf_token=next((variables[name].strip() for name in _TOKEN_NAMES if name in variables), None),
        azure_connection_string=variables.get("AZURE_STORAGE_CONNECTION_STRING"),
        secrets={
            name.removeprefix(_SECRET_PREFIX): value.strip()
            for name, value in variables.items()
            if name.startswith(_SECRET_PREFIX)
        },
        debug=variables.get("BRITON_DEBUG", "0") != "0",
        mpi_rank=_first_number(variables, _MPI_RANK_NAMES),
        mpi_size=_first_number(variables, _MPI_SIZE_NAMES),
        has_mpi_hosts=any(name in variables for name in _MPI_HOSTS_NAMES),
        job=variables.get("BRITON_JOB"),
    )


def child_variables(credentials: tuple[str, ...] = ()) -> dict[str, str]:
    """This process's environment for a program that it starts: without secrets, tokens and credentials, but for those
    that it needs."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(credentials) or not name.startswith(_CREDENTIALS)
    }


def set_defaults(variables: Mapping[str, str]) -> None:
    """Set what is not set in this process's environment, for a library that reads it when it is imported."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def _first_number(variables: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    return next((int(variables[name]) for name in names if variables.get(name, "").isdigit()), None)


def _cache_dir(variables: Mapping[str, str]) -> Path:
    if explicit := variables.get("BRITON_CACHE_DIR"):
        return Path(explicit).expanduser().absolute()
    if xdg := variables.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser().absolute() / "briton"
    home = variables.get("HOME") or os.path.expanduser("~")
    if not os.path.isabs(home):  # no HOME, and a user id without an entry in the password database
        raise ConfigError("there is no home directory to keep a cache in: set BRITON_CACHE_DIR", "BRITON_CACHE_DIR")
    return Path(home) / ".cache" / "briton"
