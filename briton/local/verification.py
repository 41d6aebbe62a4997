"""Which of a draft is kept: the sampler walks it, token by token, as if each had been computed in a step of its own.

A node is accepted when its token is the very one that was sampled after its parent. So the output is the model's own,
whatever was drafted, for any sampling: for a draft that is one guess at each place, this accepts as often as rejection
sampling does (Leviathan et al. 2023), and the random numbers are drawn in the order of the output's tokens.
"""

from __future__ import annotations

from typing import NamedTuple

from briton.engine.types import FinishReason
from briton.local.draft import ROOT
from briton.local.output import OutputProcessor
from briton.local.plan import ScheduledSequence
from briton.local.sampler import Mask, Sampled, Sampler, StepLogits


class Verified(NamedTuple):
    """One sequence's tokens of one step."""

    sampled: list[Sampled]  # appended to the sequence already
    accepted: list[int]  # nodes of the draft, from the root on; each of their tokens is among the sampled
    error: Exception | None = None  # what ends the request, after these tokens
    finish_reason: FinishReason | None = None  # not the sequence's yet: its siblings may be verified at the same time

    @property
    def num_in_place(self) -> int:
        """Accepted nodes that lie in the cache where the sequence's next tokens belong. Others are computed again."""
        in_place = 0
        while in_place < len(self.accepted) and self.accepted[in_place] == in_place:
            in_place += 1
        return in_place


def verify(
    entry: ScheduledSequence,
    logits: StepLogits,
    first_row: int,
    sampler: Sampler,
    output: OutputProcessor,
    mask: Mask | Exception | None = None,
) -> Verified:
    """Sample after the sequence's last token, and on along its draft for as long as the draft is right.

    The entry's rows start at `first_row`: its last own token's, then one for each of the draft's `rows`. `mask` is its
    guide's for the first token, or why there is none.
    """
    sequence, _, draft = entry
    sampled: list[Sampled] = []
    accepted: list[int] = []
    node = ROOT
    while True:
        try:
            # Candidates are the first of the rows.
            token = sampler.sample(logits, first_row + 1 + node, sequence, mask)
        except Exception as error:
            return Verified(sampled, accepted, error)
        mask = None
        sampled.append(token)
        output.append(sequence, token)
        child = None if draft is None or sequence.finish_reason is not None else draft.child(node, token.token_id)
        if child is None:
            reason, sequence.finish_reason = sequence.finish_reason, None
            return Verified(sampled, accepted, finish_reason=reason)
        accepted.append(child)
        node = child
