"""A model whose logits are a hash of the context, and the decoder that the library puts behind it."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

PADDING_LOGIT = 50.0  # of the padded part of the vocabulary: high, so that nobody may forget to ignore it

Row = NDArray[np.float32]  # [vocab_size_padded]


def logits_of(context: list[int], vocab_size: int, vocab_size_padded: int, adapter: bytes = b"") -> Row:
    """What the model gives after `context`, with the weights of an adapter if there are any."""
    seed = zlib.crc32(adapter + np.asarray([len(context), *context[-16:]], np.int32).tobytes())
    row = np.full(vocab_size_padded, PADDING_LOGIT, np.float32)
    row[:vocab_size] = np.random.Generator(np.random.PCG64(seed)).standard_normal(vocab_size, np.float32) * 2
    return row


class Decoder:
    """One sequence's way from logits to a token. Lookahead mode is greedy, and knows no penalties and no bad words."""

    def __init__(self, request: Any, index: int, vocab_size: int, lookahead: bool) -> None:
        self._request = request
        self._sampling = request.sampling_config
        self._vocab_size = vocab_size
        self._lookahead = lookahead
        seed = 0 if self._sampling.seed is None else self._sampling.seed
        self._random = np.random.Generator(np.random.PCG64((seed + index) % 2**64))

    def next_token(self, logits: Row, prompt: list[int], output: list[int]) -> int:
        """The token that follows. The logits are left as they are."""
        row = logits[: self._vocab_size].astype(np.float64)
        if self._request.embedding_bias is not None:
            row += self._request.embedding_bias[: self._vocab_size]
        if self._lookahead:
            return int(row.argmax())
        self._penalize(row, prompt, output)
        top_k, top_p = self._sampling.top_k or 0, self._sampling.top_p or 0.0
        if top_k == 1 or (top_k == 0 and top_p == 0.0):
            return int(row.argmax())
        return self._draw(row, top_k, top_p or 1.0)

    def _penalize(self, row: NDArray[np.float64], prompt: list[int], output: list[int]) -> None:
        sampling, request = self._sampling, self._request
        if sampling.temperature:
            row /= sampling.temperature
        if sampling.repetition_penalty is not None:
            seen = list({*prompt, *output})
            row[seen] = np.where(
                row[seen] > 0, row[seen] / sampling.repetition_penalty, row[seen] * sampling.repetition_penalty
            )
        for token_id in set(output):
            row[token_id] -= sampling.presence_penalty or 0.0
            row[token_id] -= (sampling.frequency_penalty or 0.0) * output.count(token_id)
        if request.end_id is not None and len(output) < (sampling.min_tokens or 0):
            row[request.end_id] = -np.inf
        for *head, last in request.bad_words or []:
            if not head or output[-len(head) :] == head:
                row[last] = -np.inf

    def _draw(self, row: NDArray[np.float64], top_k: int, top_p: float) -> int:
        order = np.argsort(-row, kind="stable")
        if top_k:
            order = order[:top_k]
        mass = np.exp(row[order] - row[order[0]])
        mass /= mass.sum()
        kept = int(np.searchsorted(np.cumsum(mass), top_p)) + 1
        if self._sampling.min_p:
            kept = min(kept, int((mass >= self._sampling.min_p * mass[0]).sum()))
        mass = mass[:kept] / mass[:kept].sum()
        return int(self._random.choice(order[:kept], p=mass))
