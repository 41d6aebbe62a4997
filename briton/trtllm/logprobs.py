"""Log probabilities from generation logits, which are taken before penalties and temperature.

A guide's masks are in them already: then the distribution is that over the tokens that it allowed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from briton.engine.types import TokenLogprob


def token_logprobs(logits: NDArray[np.float32], token_ids: Sequence[int], num_top: int) -> tuple[TokenLogprob, ...]:
    """One entry for each token, from its row of `logits` [tokens, vocab]; fewer than `num_top` where fewer were
    allowed. Raises ValueError when there are fewer rows than tokens."""
    if len(logits) < len(token_ids):
        raise ValueError(f"{len(logits)} rows of generation logits came for {len(token_ids)} tokens")
    return tuple(_token_logprob(row, token_id, num_top) for row, token_id in zip(logits, token_ids, strict=False))


def _token_logprob(row: NDArray[np.float32], token_id: int, num_top: int) -> TokenLogprob:
    peak = row.max()
    log_total = float(peak) + float(np.log(np.exp(row - peak).sum(dtype=np.float64)))
    top: tuple[tuple[int, float], ...] = ()
    if num_top:
        ids = np.argpartition(row, -num_top)[-num_top:]
        ids = ids[np.argsort(-row[ids], kind="stable")]
        top = tuple((int(i), float(row[i]) - log_total) for i in ids if np.isfinite(row[i]))
    return TokenLogprob(token_id, float(row[token_id]) - log_total, top)
