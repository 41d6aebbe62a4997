"""From logits to tokens: one row of float32 [vocab] for each token.

Order: penalties, logit bias, bad words and min_tokens, guide mask, temperature, top_k, top_p, min_p (TensorRT-LLM,
vLLM). A row's result depends on nothing but the row and its sequence, so that a seed reproduces whatever else is in the
batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from briton.engine.types import SamplingParams, TokenLogprob
from briton.errors import BritonError
from briton.guidance.guide import Guide
from briton.local.candidates import nucleus, top_ids
from briton.local.penalties import PenaltyState
from briton.local.sequence import SequenceState

Row = NDArray[np.float32]  # [vocab]
Mask = NDArray[np.int32]  # [ceil(vocab / 32)]: which tokens a guide allows


class Sampled(NamedTuple):
    """One sequence's next token."""

    token_id: int
    logprob: TokenLogprob | None = None
    ends_guide: bool = False  # nothing but the end may follow


class StepLogits:
    """The logits [rows, vocab] of one step. Rows may be edited, each by its own sequence."""

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self._logits = logits
        self._argmax: list[int] | None = None  # of all rows at once, when first asked for

    def __len__(self) -> int:
        return len(self._logits)

    def __getitem__(self, row: int) -> Row:
        values: Row = self._logits[row]
        return values

    def argmax(self, row: int) -> int:
        """The most likely token of a row that nobody has edited."""
        if self._argmax is None:
            self._argmax = self._logits.argmax(axis=1).tolist()
        return self._argmax[row]


class Sampler:
    """Chooses tokens, and moves guides on with them. Holds the model's constants only; what a sequence needs over
    time lives in the sequence."""

    def __init__(self, vocab_size: int, stop_token_ids: Sequence[int]) -> None:
        self._vocab_size = vocab_size
        self._stop_token_ids = list(stop_token_ids)

    def sample(
        self, logits: StepLogits, row: int, sequence: SequenceState, mask: Mask | Exception | None = None
    ) -> Sampled:
        """The next token of a sequence whose last token's logits are `row`. Raises what ends the sequence's request
        alone.

        `mask` is what its guide gave for this token, where it was asked already. For any thread: one for a sequence.
        """
        if isinstance(mask, Exception):
            raise mask
        if is_plain(sequence):
            token_id = logits.argmax(row)
            if not math.isfinite(logits[row][token_id]):
                raise _no_logit_is_finite()
            return Sampled(token_id)
        return self._sample_row(logits[row], sequence, mask)

    def _sample_row(self, row: Row, sequence: SequenceState, mask: Mask | None) -> Sampled:
        sampling = sequence.sampling
        edits = _Edits(row)
        self._edit(edits, sequence)
        peak = row.max()
        if not np.isfinite(peak):
            raise _no_logit_is_finite()
        final = row
        if sequence.guide is not None:
            final = self._masked(row, sequence.guide, mask)
            peak = final.max()
        token_id = int(final.argmax()) if sampling.temperature == 0 else draw(final, sampling, sequence.rng, peak)
        if sequence.guide is not None and not sequence.guide.advance([token_id]):
            raise RuntimeError(f"the guide refused token {token_id}, which its own mask allowed")
        if sequence.penalties is not None:
            sequence.penalties.add(token_id)
        logprob = None
        if sampling.logprobs is not None:
            edits.undo()
            logprob = token_logprob(row, token_id, sampling.logprobs)
        return Sampled(token_id, logprob, sequence.guide is not None and sequence.guide.is_terminated())

    def _edit(self, edits: _Edits, sequence: SequenceState) -> None:
        sampling, row = sequence.sampling, edits.row
        if PenaltyState.wanted(sampling):
            if sequence.penalties is None:
                sequence.penalties = PenaltyState(sequence.token_ids, sequence.num_prompt_tokens)
            edits.begin(sequence.penalties.token_ids)
            sequence.penalties.apply(row, sampling)
        if sampling.logit_bias:
            biased = np.fromiter(sampling.logit_bias, np.int64)
            edits.begin(biased)
            row[biased] += np.fromiter(sampling.logit_bias.values(), np.float32)
        if bad_words := sequence.request_state.bad_words:
            edits.forbid(bad_words.forbidden(sequence.token_ids))
        if sequence.num_output_tokens < sampling.min_tokens:
            edits.forbid(self._stop_token_ids)
            edits.forbid(sampling.stop_token_ids)

    def _masked(self, row: Row, guide: Guide, mask: Mask | None) -> Row:
        """The row with what the guide forbids at -inf. The guide outranks min_tokens and bad words."""
        if mask is None:
            mask = np.empty((self._vocab_size + 31) // 32, np.int32)
            guide.fill_bitmask(mask)
        allowed = np.unpackbits(mask.view(np.uint8), bitorder="little")[: self._vocab_size].view(np.bool_)
        masked: Row = np.where(allowed, row, np.float32(-np.inf))
        if masked.max() > -np.inf:
            return masked
        if not allowed.any():
            raise BritonError("the guide allows no token here: the output cannot be completed as asked")
        free: Row = np.where(allowed, np.float32(0), np.float32(-np.inf))
        return free


class _Edits:
    """What is changed of a row, to be put back where the model's own logits are wanted: a copy of a whole row would
    cost as much as drawing from it."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self._before: list[tuple[NDArray[np.int64], Row]] = []

    def begin(self, ids: NDArray[np.int64]) -> None:
        """These are about to change."""
        self._before.append((ids, self.row[ids]))

    def forbid(self, token_ids: Sequence[int]) -> None:
        """They cannot come."""
        ids = np.asarray(token_ids, np.int64)
        self.begin(ids)
        self.row[ids] = -np.inf

    def undo(self) -> None:
        """The row as it was."""
        for ids, values in reversed(self._before):
            self.row[ids] = values


def draw(row: Row, sampling: SamplingParams, rng: np.random.Generator, peak: np.float32 | None = None) -> int:
    """Draw from softmax(row / temperature) within top_k, top_p and min_p, with one number of `rng`. `peak` is the
    largest of the row, where it is known."""
    uniform = rng.random()
    inverse = np.float32(1 / max(sampling.temperature, 1e-5))
    ids: NDArray[np.int64] | None = None  # None: all
    if 0 < sampling.top_k < len(row):
        ids = top_ids(row, sampling.top_k)
        row = row[ids]
    if peak is None:
        peak = row.max()
    # In one array: the passes over a whole vocabulary are what this costs.
    mass = row * inverse if inverse != 1 else row
    mass = np.subtract(mass, peak * inverse, out=mass if inverse != 1 else None)
    np.exp(mass, out=mass)  # the most likely has mass 1
    if sampling.top_p < 1:
        kept = nucleus(mass, sampling.top_p)
        if sampling.min_p > 0:
            kept = kept[mass[kept] >= np.float32(sampling.min_p)]
    elif sampling.min_p > 0:
        kept = np.flatnonzero(mass >= np.float32(sampling.min_p))
    else:
        kept = None
    if kept is not None:
        mass, ids = mass.take(kept), kept if ids is None else ids[kept]
    chosen = _inverse_cdf(mass, uniform)
    return chosen if ids is None else int(ids[chosen])


def token_logprob(raw: Row, token_id: int, num_top: int) -> TokenLogprob:
    """Log probabilities under softmax(raw): of the token, and of the `num_top` most likely."""
    peak = raw.max()
    mass = raw - peak
    log_total = float(peak) + float(np.log(np.exp(mass, out=mass).sum(dtype=np.float64)))
    if not num_top:
        return TokenLogprob(token_id, float(raw[token_id]) - log_total)
    ids = top_ids(raw, num_top)
    ids = ids[np.argsort(-raw[ids], kind="stable")]
    return TokenLogprob(
        token_id, float(raw[token_id]) - log_total, tuple((int(i), float(raw[i]) - log_total) for i in ids)
    )


def _no_logit_is_finite() -> RuntimeError:
    return RuntimeError("no logit is finite: the model's output is damaged, or every token is forbidden")


def is_plain(sequence: SequenceState) -> bool:
    """Greedy, and nothing touches the logits."""
    s = sequence.sampling
    return (
        s.temperature == 0
        and s.logprobs is None
        and sequence.guide is None
        and not s.logit_bias
        and not s.bad_words
        and sequence.num_output_tokens >= s.min_tokens
        and not PenaltyState.wanted(s)
    )


def _inverse_cdf(mass: Row, uniform: float, bucket: int = 256) -> int:
    """The first index whose cumulative mass exceeds `uniform` of the total. Two levels: a sum a bucket, then one
    bucket in full."""
    starts = np.arange(0, len(mass), bucket)
    sums = np.cumsum(np.add.reduceat(mass, starts), dtype=np.float64)
    target = min(uniform * sums[-1], np.nextafter(sums[-1], 0))  # below the total, whatever the rounding
    which = int(np.searchsorted(sums, target, side="right"))
    inside = np.cumsum(mass[starts[which] : starts[which] + bucket], dtype=np.float64)
    inside += sums[which - 1] if which else 0.0
    index = int(np.searchsorted(inside, target, side="right"))
    if index < len(inside) and mass[starts[which] + index] > 0:
        return int(starts[which]) + index
    return int(
        starts[which] + np.flatnonzero(mass[starts[which] : starts[which] + bucket])[-1]
    )  # rounding at a bucket's end
