"""The peer's end of the line protocol of `peer_process.py`. Runs in the peers' environment: standard library only."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

Run = Callable[[list[list[int]], int], dict[str, Any]]


def serve(load: Callable[[], tuple[str, Run]]) -> None:
    """Load, say so, and answer workloads until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    version, run = load()
    print(json.dumps({"version": version}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(run(request["prompts"], request["max_tokens"])), file=answers, flush=True)
