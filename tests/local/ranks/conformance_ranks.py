"""A program for ranks: rank 0 runs the conformance tests, and invites the others to each executor that they make.

mpiexec -n N python -m tests.local.ranks.conformance_ranks ENGINE_DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from briton.local.loader import follow_local_executor
from briton.local.settings import LocalSettings
from briton.ranks.communicator import Communicator
from tests.local.ranks.mpi import communicator, world


def invite(settings: LocalSettings) -> tuple[Path, Communicator | None]:
    """On rank 0: let the other ranks load an engine with these settings. Returns its directory, and the ranks."""
    world().bcast(settings)
    return Path(sys.argv[1]), communicator(world())


def main() -> int:
    """The exit code of pytest on rank 0."""
    if world().Get_rank() == 0:
        cases = Path(__file__).with_name("conformance_cases.py")
        code = pytest.main(["-q", "-p", "no:cacheprovider", str(cases)])
        world().bcast(None)
        return int(code)
    while (settings := world().bcast(None)) is not None:
        ranks = communicator(world())
        assert ranks is not None
        follow_local_executor(Path(sys.argv[1]), settings, ranks, lambda: None)
    return 0


if __name__ == "__main__":
    # the module that the cases import is this one, not a second copy
    sys.modules["tests.local.ranks.conformance_ranks"] = sys.modules["__main__"]
    sys.exit(main())
