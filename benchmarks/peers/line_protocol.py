"""The peer's end of the line protocol of `peer_process.py`. Runs in the peers' environment: standard library only."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

Run = Callable[..., dict[str, Any]]  # takes a request's fields by name


def serve(load: Callable[[], tuple[str, Run]]) -> None:
    """Load, say so, and answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    version, run = load()
    print(json.dumps({"version": version}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), file=answers, flush=True)
