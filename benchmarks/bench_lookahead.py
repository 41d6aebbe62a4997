"""Lookahead decoding, with over without, on the same prompts in turns: what it brings, and why no more.

    .venv/bin/python benchmarks/bench_lookahead.py [--quick] [--rounds N] [--every N] [--modes NAME ...] [--peers]

Every ratio is of output tokens a second, with lookahead over without, greedy, answers ending where they end. Alone in
the engine (b1) it counts from the first token to the last, which leaves out the prompt; the ratio end to end is printed
beside it. In a batch (b4, b16: so many requests at a time, all kinds mixed) it is end to end. Without lookahead means
the same engine, asked to do without for a request; a full run proves that an engine without a speculator is no faster.

`--quick` (under 4 minutes): n-gram mode alone, every other prompt, once. A full run takes an hour. `--peers`: the ratio
of openvino-genai's and llama.cpp's prompt lookup over themselves. The last line is one JSON document; `identical` is
whether every answer in float32 was the same, token for token, however much was drafted.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
from dataclasses import replace
from itertools import chain
from typing import Any

import machine
from comparison import Comparison, compare_alone, compare_batch, sides
from lookahead_engine import (
    BOTH,
    BOTH_FORCED,
    NGRAM,
    PLAIN,
    WINDOW,
    WINDOW_FORCED,
    LookaheadEngine,
    Mode,
    compile_guides,
    start_engine,
)
from lookahead_report import show_costs, show_differences, show_mode
from lookup_peers import compare_peers
from prompt_set import KINDS, Prompt, load_prompts
from served_model import Limits, prepare

from briton.config.environment import load_environment
from briton.guidance.guide import Guide

MODES = {mode.name: mode for mode in (NGRAM, WINDOW, BOTH, WINDOW_FORCED)}
ROUNDS, QUICK_ROUNDS = 2, 1
EVERY, QUICK_EVERY = 1, 2  # of a kind's prompts, the first and each so many further
QUICK_S = 240.0  # by when the last round shall have ended
BATCHES, QUICK_BATCHES = (4, 16), (16,)
BATCH_REPEATS, QUICK_BATCH_REPEATS = 1, 3
WARM_UP = 16  # output tokens of the runs before a round
IDENTITY_TOKENS, QUICK_IDENTITY_TOKENS = 128, 48  # of each answer
GUIDED = "guided_json"

Prompts = dict[str, list[Prompt]]
Comparisons = dict[str, Comparison]  # by workload


def main() -> None:
    """Measure, print tables and the JSON document."""
    began = time.perf_counter()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing started here is left running
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}, quick {QUICK_ROUNDS}")
    parser.add_argument("--every", type=int, help=f"take every N-th prompt (default {EVERY}, quick {QUICK_EVERY})")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="of a full run")
    parser.add_argument("--peers", action="store_true", help="after `make peers`")
    parser.add_argument("--threads", type=int, default=machine.cores())
    arguments = parser.parse_args()
    rounds = arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS)
    modes = [NGRAM] if arguments.quick else [MODES[name] for name in arguments.modes]
    limits = Limits(threads=arguments.threads)

    served = prepare(limits, load_environment())
    prompts = load_prompts(served.engine_dir)
    guides = compile_guides((p.schema for p in chain(*prompts.values()) if p.schema), served.engine_dir)
    every = arguments.every or (QUICK_EVERY if arguments.quick else EVERY)
    prompts = {kind: of[::every] for kind, of in prompts.items()}
    print(f"{machine.describe()}; load {machine.load():.1f}; {limits}")

    identical = check_identity(limits, guides, prompts, arguments.quick)
    results: dict[str, Comparisons] = {mode.name: {} for mode in modes}
    longest = 0.0
    for number in range(rounds):
        started = time.perf_counter()
        if arguments.quick and number and started + longest > began + QUICK_S:
            print(f"stopped after {number} of {rounds} rounds: the machine is slow", file=sys.stderr)
            break
        for mode in modes:
            run_round(mode, limits, guides, prompts, number, arguments.quick, results[mode.name])
        longest = max(longest, time.perf_counter() - started)
    for mode in modes:
        show_mode(mode.name, results[mode.name])
    document: dict[str, Any] = summary(results[modes[0].name])
    document["identical"] = identical
    if not arguments.quick:
        document["modes"] = {name: summary(comparisons) for name, comparisons in results.items()}
    if arguments.peers:
        document["peers"] = compare_peers(limits, served.gguf, prompts)
    print(json.dumps(document))


def run_round(
    mode: Mode, limits: Limits, guides: dict[str, Guide], prompts: Prompts, number: int, quick: bool, into: Comparisons
) -> None:
    """One round of one mode, in an engine of its own: it learns from what it says, and nobody asks it twice.

    That it sees the prompts of batches again does not matter: what outlives a request are rates, and, under guides
    alone, tokens.
    """
    engine = start_engine(mode, limits, guides)
    plain = start_engine(PLAIN, limits, guides) if mode is NGRAM and not quick else None
    try:
        run_workloads(mode, engine, plain, prompts, number, quick, into)
    finally:
        engine.asker.executor.shutdown()
        if plain is not None:
            plain.asker.executor.shutdown()
    if number == 0 and engine.costs is not None and not mode.forced:
        show_costs(mode.name, engine.costs)


def run_workloads(
    mode: Mode,
    engine: LookaheadEngine,
    plain: LookaheadEngine | None,
    prompts: Prompts,
    number: int,
    quick: bool,
    into: Comparisons,
) -> None:
    """All workloads in their order."""
    pair = sides(engine.asker)
    alone = pair if plain is None else sides(engine.asker, plain.asker)
    for side in alone:
        side.asker.ask([of[0] for of in prompts.values()], concurrency=2, lookahead=side.lookahead, max_tokens=WARM_UP)
    for kind in KINDS:
        compare_alone(into.setdefault(f"{kind}_b1", Comparison()), alone, prompts[kind], number, guided=False)
    guided = into.setdefault(f"{GUIDED}_b1", Comparison())
    compare_alone(guided, alone, prompts["extract"], number, guided=True)
    if not mode.forced:
        mixed = [prompt for column in zip(*prompts.values(), strict=True) for prompt in column]
        for size in QUICK_BATCHES if quick else BATCHES:
            batch = into.setdefault(f"mixed_b{size}", Comparison())
            repeats = QUICK_BATCH_REPEATS if quick else BATCH_REPEATS
            compare_batch(batch, pair, mixed, number, size, repeats)
    if number == 0:
        show_differences(mode.name, into, engine.asker)


def check_identity(limits: Limits, guides: dict[str, Guide], prompts: Prompts, quick: bool) -> bool:
    """Whether an engine in float32 that drafts all it can, with n-grams and window, says what it says without."""
    exact = replace(limits, precision="f32", kv_cache="f32", quantization="no_quant")
    engine = start_engine(BOTH_FORCED, exact, guides)
    longest = QUICK_IDENTITY_TOKENS if quick else IDENTITY_TOKENS
    comparison = Comparison()
    try:
        for guided in (False, True):
            asked = prompts["extract"] if guided else list(chain(*prompts.values()))
            runs = [
                side.asker.ask(
                    asked, concurrency=limits.batch, lookahead=side.lookahead, guided=guided, max_tokens=longest
                )
                for side in sides(engine.asker)
            ]
            comparison.answers += zip(*(run.answers for run in runs), strict=True)
            for answer in runs[0].answers:
                comparison.note(answer)
    finally:
        engine.asker.executor.shutdown()
    different = comparison.different
    print(
        f"float32, drafts forced: {len(comparison.answers) - len(different)} of {len(comparison.answers)} answers "
        f"identical; {comparison.num_draft_tokens} draft tokens, {comparison.num_accepted_tokens} accepted"
    )
    for ours, _ in different:
        print(f"  differs: {ours.prompt.kind} {ours.prompt.name}")
    return not different and comparison.num_accepted_tokens > 0


def summary(comparisons: Comparisons) -> dict[str, float]:
    """A mode's ratios, and tokens per step of requests alone in the engine."""
    alone = {name: each for name, each in comparisons.items() if name.endswith("_b1")}
    ratios = {
        name: round(each.decode_ratio() if name in alone else each.end_to_end_ratio(), 3)
        for name, each in comparisons.items()
    }
    tokens, steps = (sum(getattr(c, f) for c in alone.values()) for f in ("num_output_tokens", "num_steps"))
    return {**ratios, "tokens_per_step": round(tokens / max(1, steps), 3) if steps else math.nan}


if __name__ == "__main__":
    main()
