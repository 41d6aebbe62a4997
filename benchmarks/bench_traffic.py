"""What happens across requests and over time: admission, fairness, prompts beside streams, overload, a hang, a start.

    .venv/bin/python benchmarks/bench_traffic.py [--quick] [--only NAME...]

Each measure stands for itself (see the functions below, whose names are what --only takes). The last line is one JSON
document.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import machine
from traffic import engine_measures, http_measures, step_measures

Measure = Callable[[bool], dict[str, Any]]

MEASURES: dict[str, Measure] = {
    "unset_limit": step_measures.unset_limit,
    "prefill": engine_measures.prefill_beside_a_stream,
    "fairness": engine_measures.fairness,
    "sampling": step_measures.sampling_share,
    "clients": http_measures.sixty_four_clients,
    "overload": http_measures.overload,
    "choices": http_measures.choices,
    "hang": http_measures.hang,
    "start": http_measures.start,
}


def main() -> None:
    """Measure, print each result as it comes, and the JSON document."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing started here is left running
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter runs of each")
    parser.add_argument("--only", nargs="+", choices=tuple(MEASURES), default=tuple(MEASURES))
    arguments = parser.parse_args()
    print(f"{machine.describe()}; load {machine.load():.1f}", flush=True)
    result: dict[str, Any] = {}
    for name in arguments.only:
        began = time.perf_counter()
        figures = MEASURES[name](arguments.quick)
        print(f"{name} ({time.perf_counter() - began:.0f} s): {json.dumps(figures)}", flush=True)
        result |= figures
    print(json.dumps(result))


if __name__ == "__main__":
    main()
