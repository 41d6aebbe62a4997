"""What looks across requests and over time: reservations, steps beside streams, fairness, overload, a hang, the start.

    .venv/bin/python benchmarks/bench_traffic.py [--quick] [--only NAME ...]

The model is the example's, with its config (`traffic_model.py`); what is varied is said by each part. The parts:

- unset_limit: 128 requests of 200 + 200 tokens without max_tokens, a cache of 32k tokens, a made-up model: steps under
  guaranteed_no_evict over those under max_utilization.
- prefill: the executor in-process. One stream decodes while prompts of 6,000 tokens come one after the other: the
  stream's p99 between tokens, in ms; the prompts' tokens a second over those without the stream.
- c64: 64 clients over HTTP, 128 + 128 tokens each.
- fairness: a caller (`user`) has sent 1,000 requests, another sends one: its first token over that on an idle engine.
- overload: five times the requests a second that can be served, for 60 s (quick: 15, and a queue of 48): statuses, and
  the median of Retry-After over what the accepted request sent nearest to the refused one waited for its first token.
- hang: a step that never returns, under callers with deadlines of a second: from the limit to NOT_SERVING, and from the
  hang to an answered request.
- choices: seconds to the first token of a `guided_choice` of 1,024; and of one of two words behind 40 of 256.
- host_share: random weights, a vocabulary of 262k, 16 sequences with top_p 0.9 and penalties: the share of a step that
  is not the model's.
- start: `briton serve` of a built engine to the first token through HTTP.

The last line is one JSON document; a part that failed says null in it, and why on standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import machine
from traffic_executor import host_share_262k, prefill_beside_a_stream, unset_limit_steps_ratio
from traffic_hang import hang
from traffic_http import choices_first_tokens, clients_64, fair_ttft_ratio, overload, start_first_token_s

from briton.errors import BritonError

Figures = dict[str, Any]


def unset_limit(quick: bool) -> Figures:
    """See the module."""
    return {"unset_limit_steps_ratio": round(unset_limit_steps_ratio(), 3)}


def prefill(quick: bool) -> Figures:
    """See the module."""
    itl_ms, share = prefill_beside_a_stream(2 if quick else 6)
    return {"prefill_itl_p99_ms": round(itl_ms, 1), "prefill_rate_share": round(share, 3)}


def c64(quick: bool) -> Figures:
    """See the module."""
    rate, first_s = clients_64(1 if quick else 5)
    return {"c64_output_tokens_per_s": round(rate, 1), "c64_ttft_p50_s": round(first_s, 3)}


def fairness(quick: bool) -> Figures:
    """See the module."""
    return {"fair_ttft_ratio": round(fair_ttft_ratio(), 2)}


def overloaded(quick: bool) -> Figures:
    """See the module."""
    result = overload(15.0, max_queue_size=48) if quick else overload(60.0)
    ratio = result.retry_after_ratio_p50
    return {
        "overload_statuses": result.statuses,
        "retry_after_ratio_p50": None if ratio is None else round(ratio, 2),
    }


def hanging(quick: bool) -> Figures:
    """See the module."""
    not_serving_s, again_s = hang()
    return {"hang_not_serving_s": round(not_serving_s, 2), "hang_serving_again_s": round(again_s, 2)}


def choices(quick: bool) -> Figures:
    """See the module."""
    many_s, behind_s = choices_first_tokens(1 if quick else 5)
    return {"choice_1024_first_token_s": round(many_s, 3), "choice_behind_40_s": round(behind_s, 3)}


def host_share(quick: bool) -> Figures:
    """See the module."""
    return {"host_share_262k": round(host_share_262k(32 if quick else 128), 4)}


def start(quick: bool) -> Figures:
    """See the module."""
    return {"start_first_token_s": round(start_first_token_s(2 if quick else 5), 2)}


class Part(NamedTuple):
    """A part of the benchmark, and what it says in the JSON document."""

    measure: Callable[[bool], Figures]  # told whether it is to be quick
    keys: tuple[str, ...]


PARTS: dict[str, Part] = {
    "unset_limit": Part(unset_limit, ("unset_limit_steps_ratio",)),
    "prefill": Part(prefill, ("prefill_itl_p99_ms", "prefill_rate_share")),
    "c64": Part(c64, ("c64_output_tokens_per_s", "c64_ttft_p50_s")),
    "fairness": Part(fairness, ("fair_ttft_ratio",)),
    "overload": Part(overloaded, ("overload_statuses", "retry_after_ratio_p50")),
    "hang": Part(hanging, ("hang_not_serving_s", "hang_serving_again_s")),
    "choices": Part(choices, ("choice_1024_first_token_s", "choice_behind_40_s")),
    "host_share": Part(host_share, ("host_share_262k",)),
    "start": Part(start, ("start_first_token_s",)),
}


def measured(part: Part, quick: bool) -> Figures:
    """What a part gives; nulls, and a line on standard error, when what it measures fails: the other parts go on."""
    try:
        figures = part.measure(quick)
    except (RuntimeError, TimeoutError, asyncio.TimeoutError, BritonError, OSError) as error:  # two in Python 3.10
        print(f"failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return dict.fromkeys(part.keys)
    assert tuple(figures) == part.keys
    return figures


def main() -> None:
    """Measure, print what was seen and the JSON document."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing started here is left running
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few minutes: fewer rounds, a shorter overload")
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=tuple(PARTS), metavar="NAME")
    arguments = parser.parse_args()
    print(f"{machine.describe()}; load {machine.load():.1f}", flush=True)
    figures: Figures = {}
    for name in arguments.only:
        began = time.perf_counter()
        figures |= measured(PARTS[name], arguments.quick)
        print(f"({name}: {time.perf_counter() - began:.0f} s, load {machine.load():.1f})", flush=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
