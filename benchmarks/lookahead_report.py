"""What `bench_lookahead.py` prints for people: ratios and acceptance by workload, differing answers, costs of steps."""

from __future__ import annotations

import sys

from answers import Asker
from comparison import PLAIN, WITH, WITHOUT, Comparison

from briton.local.lookahead.costs import CostCurve

_CONTEXT = 1024  # tokens, of the long-context column


def show_mode(name: str, comparisons: dict[str, Comparison]) -> None:
    """A line for each workload."""
    print(f"\n{name}: output tokens/s with over without")
    print(
        f"{'':16} {'ratio':>6} {'rounds':>13} {'end to end':>10} {'with/s':>8} {'without/s':>9} "
        f"{'tokens/step':>11} {'drafted':>8} {'accepted':>8} {'equal':>6}"
    )
    for workload, each in comparisons.items():
        rates = [round_.decode or round_.end_to_end for round_ in each.rounds]
        ratios = [rate[WITH].per_second / rate[WITHOUT].per_second for rate in rates]
        ratio = each.decode_ratio() if each.rounds[0].decode else each.end_to_end_ratio()
        with_s, without_s = (
            sum(rate[side].tokens for rate in rates) / sum(rate[side].seconds for rate in rates)
            for side in (WITH, WITHOUT)
        )
        equal = 1 - len(each.different) / len(each.answers)
        print(
            f"{workload:16} {ratio:6.3f} {min(ratios):6.3f}-{max(ratios):6.3f} {each.end_to_end_ratio():10.3f} "
            f"{with_s:8.1f} {without_s:9.1f} {each.tokens_per_step:11.2f} {each.num_draft_tokens:8d} "
            f"{each.acceptance:8.1%} {equal:6.0%}"
        )
    with_plain = [c for c in comparisons.values() if c.rounds[0].decode and PLAIN in c.rounds[0].decode]
    if with_plain:
        ratios = [each.off_ratio() for each in with_plain]
        print(
            "the engine asked to do without, over an engine without a speculator: "
            f"{sum(ratios) / len(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f} by workload)"
        )
    sys.stdout.flush()


def show_differences(name: str, comparisons: dict[str, Comparison], asker: Asker) -> None:
    """How many answers to requests alone in the engine differ in bf16, and how near a tie each first difference was."""
    alone = [each for workload, each in comparisons.items() if workload.endswith("_b1")]
    num_answers = sum(len(each.answers) for each in alone)
    gaps = sorted(asker.gap(*pair) for each in alone for pair in each.different)
    print(f"{name}, bf16: {num_answers - len(gaps)} of {num_answers} answers identical", end="")
    if gaps:
        middle = gaps[len(gaps) // 2]
        print(
            f"; the others part where two tokens are {middle:.2f} apart in log-probability, at most {gaps[-1]:.2f}",
            end="",
        )
    print(flush=True)


def show_costs(name: str, costs: CostCurve) -> None:
    """What a step costs by its number of tokens, over one of a single token."""
    least, *_ = costs.points
    print(f"\ncost of a step, {name} engine; at a context of {_CONTEXT} tokens")
    print(f"{'tokens':>7} {'ms':>7} {'of 1':>6} {'ms':>8} {'graph':>8}")
    for point in costs.points:
        seconds = point.seconds
        graph = "own" if point.num_tokens in costs.fixed_sizes else "any size"
        long = seconds + _CONTEXT * point.seconds_per_context_token
        print(f"{point.num_tokens:7} {1e3 * seconds:7.2f} {seconds / least.seconds:6.2f} {1e3 * long:8.2f} {graph:>8}")
    print(f"another number of tokens in the graph of any size: {1e3 * costs.switch_seconds:.2f} ms more", flush=True)
