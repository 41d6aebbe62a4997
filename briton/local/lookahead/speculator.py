"""Speculation for a whole engine: what all sequences of a step propose, the choice among it, and what came of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from briton.engine.types import ModelInfo
from briton.local.draft import Draft
from briton.local.lookahead.costs import CostCurve
from briton.local.lookahead.drafter import Drafter, EngineRates
from briton.local.lookahead.policy import Proposal, choose
from briton.local.plan import ScheduledSequence, StepPlan
from briton.local.sampler import StepLogits
from briton.local.sequence import SequenceState
from briton.local.verification import Verified

logger = logging.getLogger(__name__)

_LEARNED_AT_ONCE = 4096  # tokens of all sequences: some 10 ms that a step takes longer


class Speculator:
    """Knows what drafts cost and how often they come true, over all requests. One loop's: not thread-safe."""

    def __init__(self, info: ModelInfo, costs: CostCurve) -> None:
        assert info.lookahead is not None
        self._info = info
        self._engine_config = info.lookahead
        self._costs = costs
        self._rates = EngineRates()
        # Of the sequences that were ever in a step, until they end. None: it gets no drafts (any more).
        self._drafters: dict[SequenceState, Drafter | None] = {}
        self._shape = 0  # tokens that the graph of any size was used for last
        self._left_to_learn = 0  # tokens, in this step

    @property
    def known(self) -> Collection[SequenceState]:
        """Sequences of which something is kept."""
        return self._drafters.keys()

    def with_drafts(self, plan: StepPlan, attach: Callable[[StepPlan, list[Draft | None]], StepPlan]) -> StepPlan:
        """A plan with what is worth trying, as `attach` adds it; the plan as it is where nothing is.

        Drafts are a convenience. What breaks them is logged, and the step is made without: the sequences at fault, all
        of the plan's where nobody knows which, get no more of them.
        """
        try:
            drafts = self.drafts(plan)
            return plan if drafts is None else attach(plan, drafts)
        except Exception:
            logger.exception("the %d sequences of a step go on without drafts", len(plan))
            self._drafters.update((entry.sequence, None) for entry in plan)
            return plan

    def drafts(self, plan: StepPlan) -> list[Draft | None] | None:
        """What to try beside each entry of a plan; None when there is nothing worth its cost."""
        num_tokens = sum(entry.num_new_tokens for entry in plan)
        self._left_to_learn = _LEARNED_AT_ONCE
        proposals = [self._propose(entry) for entry in plan]
        chosen: list[Draft | None] = []
        if any(proposals):
            num_due = sum(entry.samples for entry in plan)
            room = self._info.max_num_tokens - num_tokens
            chosen = choose(self._costs, num_tokens, num_due, proposals, room, self._shape)
        size = num_tokens + sum(len(draft or ()) for draft in chosen)
        size = self._costs.padded(size) if size > num_tokens else self._costs.plain_size(size)
        if size not in self._costs.fixed_sizes:
            self._shape = size
        return chosen if any(chosen) else None

    def update(self, entry: ScheduledSequence, verified: Verified, logits: StepLogits, row: int) -> None:
        """Learn from a step: `row` is the first of the entry's rows in `logits`."""
        drafter = self._drafters.get(entry.sequence)
        if drafter is None:
            return
        try:
            drafter.update(entry.sequence, entry.draft, verified, logits, row)
        except Exception:
            self._give_up(entry.sequence)

    def forget(self, sequence: SequenceState) -> None:
        """The sequence has ended. What its drafter knew of the prompt may be much, and its siblings go on."""
        self._drafters.pop(sequence, None)

    def forget_all(self) -> None:
        """No step follows."""
        self._drafters.clear()

    def _propose(self, entry: ScheduledSequence) -> Proposal | None:
        sequence = entry.sequence
        try:
            if sequence not in self._drafters:
                self._drafters[sequence] = self._new_drafter(sequence)
            drafter = self._drafters[sequence]
            if drafter is None:
                return None
            num_tokens = sequence.num_computed_tokens + entry.num_new_tokens
            self._left_to_learn -= drafter.learn(sequence, num_tokens, self._left_to_learn)
            return drafter.propose(sequence, self._info.max_seq_len) if entry.samples else None
        except Exception:
            self._give_up(sequence)
            return None

    def _give_up(self, sequence: SequenceState) -> None:
        """What breaks one sequence's drafts, such as a guide that cannot be copied, costs the others none."""
        logger.exception("request %d goes on without drafts", sequence.request.request_id)
        self._drafters[sequence] = None

    def _new_drafter(self, sequence: SequenceState) -> Drafter | None:
        """None where the request has turned lookahead off."""
        request = sequence.request
        config = request.lookahead or self._engine_config
        if config.is_off:
            return None
        limit = self._info.max_draft_tokens
        if request.lookahead is not None:
            limit = min(limit, config.max_draft_tokens)
        return Drafter(
            config,
            limit,
            self._rates,
            use_index=self._info.enable_b10_lookahead,
            vocab_size=self._info.vocab_size,
            prompt=request.prompt_token_ids,
            prediction=request.prediction_token_ids,
            cache_salt=request.cache_salt,
        )
