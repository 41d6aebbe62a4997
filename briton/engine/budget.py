"""How many tokens a step may compute, given who is waiting for a token meanwhile (Sarathi-Serve, Agrawal et al. 2024).

While nobody generates, a step is as large as pays. Beside running streams it is as large as their time between tokens
allows: a long prompt then comes in slower steps of its own, and stalls nobody.
"""

from __future__ import annotations

from briton.engine.step_cost import StepCost, StepShape

PROMPT_SHARE = 1 / 3  # of a step's time is theirs where the streams alone take all that they should
MIN_CHUNK = 16  # tokens of a prompt that a step computes in any case: whoever waits for its first token gets on


def prompt_tokens(cost: StepCost, decoding: StepShape, num_past: int, *, target_s: float | None, most: int) -> int:
    """Tokens of prompts that a step computes beside sequences that generate (`decoding`, of no tokens: none do).

    `num_past` tokens of the first prompt are computed already; `target_s` is the time between tokens that running
    streams are to keep, None for none; `most` is what else limits the step. Never more than `most`.
    """
    if target_s is None or decoding.num_tokens == 0:
        return most
    alone_s = cost.expected(decoding)
    seconds = target_s if alone_s is None else max(target_s, alone_s / (1 - PROMPT_SHARE))
    return max(min(MIN_CHUNK, most), cost.tokens_within(seconds, decoding, num_past, most))
