"""Faults inside rank 1, on demand: Python imports this at start where the folder is in PYTHONPATH.

The file that BRITON_TEST_FAULT names says what breaks in the next sum over ranks, and is gone when it has:

    raise     an exception in a layer
    compute   no end of a computation
    lost      no end of a collective that all ranks have entered
    memory    no memory for what a layer allocates
    exit      the process ends, as C code ends it
    load      (at start) the rank's part of the model cannot be built
"""

import os
import sys

if os.environ.get("BRITON_TEST_FAULT") and os.environ.get("PMI_RANK") == "1" and "briton" in sys.orig_argv:
    import resource
    import time
    from pathlib import Path
    from typing import Any

    import numpy as np

    from briton.errors import BuildError
    from briton.local.model_runner import ModelRunner
    from briton.ranks.communicator import Communicator
    from briton.ranks.progress import Phase

    _order = Path(os.environ["BRITON_TEST_FAULT"])
    _sum, _load = Communicator.sum_over_ranks, ModelRunner.__init__

    def _take_order() -> str:
        try:
            order = _order.read_text()
            _order.unlink()
        except FileNotFoundError:
            return ""
        return order

    def _faulty_sum(self: Communicator, part: Any, total: Any) -> None:
        match _take_order():
            case "raise":
                raise RuntimeError("layer 1 is broken")
            case "compute":
                time.sleep(1000)
            case "lost":
                self.progress.enter(Phase.WAITING)
                time.sleep(1000)
            case "memory":
                now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (now, now))
                np.ones(1 << 32)
            case "exit":
                os._exit(0)
        _sum(self, part, total)

    def _faulty_load(self: ModelRunner, *arguments: Any, **options: Any) -> None:
        if _take_order() == "load":
            raise BuildError("there is no room for layer 1")
        _load(self, *arguments, **options)

    Communicator.sum_over_ranks = _faulty_sum  # type: ignore[method-assign]
    ModelRunner.__init__ = _faulty_load  # type: ignore[method-assign]
