"""A model of 64 tokens with a real paged cache and no mathematics: the logits of a row depend on all tokens before
it, read back through the block tables. A block given to two sequences, lost, or reused with wrong content changes the
output."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from briton.engine.types import ModelInfo
from briton.local.plan import StepInputs

VOCAB_SIZE = 64
EOS = 0


class PagedModel:
    """Its `forward` is what ModelRunner's is: writes the new tokens to the cache, returns logits of the sampled
    rows."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._cache = np.full((num_blocks, block_size), -1, np.int64)
        self._block_size = block_size
        self.num_tokens_seen: list[int] = []
        self.largest_position = 0

    def forward(self, inputs: StepInputs) -> NDArray[np.float32]:
        rows = []
        self.num_tokens_seen.append(len(inputs.token_ids))
        self.largest_position = max(self.largest_position, int(inputs.position_ids.max()))
        for i, past in enumerate(inputs.past_lens):
            begin, end = inputs.subsequence_begins[i : i + 2]
            table = inputs.block_indices[inputs.block_indices_begins[i] : inputs.block_indices_begins[i + 1]]
            mask = self._mask(inputs, i, end - begin)
            for offset, token in enumerate(inputs.token_ids[begin:end]):
                slot = int(past) + offset
                assert inputs.position_ids[begin + offset] == past + mask[offset].sum() - 1, "position is not depth"
                self._cache[table[slot // self._block_size], slot % self._block_size] = token
            context = self._cache[table].ravel()
            for offset in range(end - begin):
                if begin + offset in inputs.sampled_rows:
                    seen = [*context[:past], *context[past : past + end - begin][mask[offset] == 1]]
                    rows.append(self.logits([int(token) for token in seen]))
        assert len(rows) == len(inputs.sampled_rows)
        return np.array(rows, np.float32).reshape(-1, VOCAB_SIZE)

    def logits(self, token_ids: list[int]) -> NDArray[np.float32]:
        """Of the token after these: [vocab]. Another model may give others."""
        return logits_after(token_ids)

    @staticmethod
    def _mask(inputs: StepInputs, i: int, size: int) -> NDArray[np.uint8]:
        """Who attends to whom among the new tokens of sequence i: [query, query]."""
        begin, end = inputs.qq_bias_begins[i : i + 2]
        if begin == end:
            return np.tri(size, dtype=np.uint8)
        mask: NDArray[np.uint8] = inputs.qq_bias[begin:end].reshape(size, size)
        return mask


def logits_after(token_ids: list[int]) -> NDArray[np.float32]:
    """Logits [vocab], a function of all tokens before."""
    assert min(token_ids) >= 0, "a cache slot was read before it was written"
    digest = hashlib.blake2b(np.array(token_ids, np.int64).tobytes(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little")).normal(0, 2, VOCAB_SIZE).astype(np.float32)


def greedy(prompt: tuple[int, ...], max_tokens: int, stop: int | None = EOS) -> list[int]:
    """The greedy continuation without any cache."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens:
        tokens.append(int(logits_after(tokens).argmax()))
        if tokens[-1] == stop:
            break
    return tokens[len(prompt) :]


def model_info(num_blocks: int = 64, block_size: int = 4, **limits: int) -> ModelInfo:
    """Limits that make every queue and cache overflow soon."""
    usual: dict[str, Any] = {"max_seq_len": 64, "max_batch_size": 8, "max_num_tokens": 16, "max_queue_size": 100}
    return ModelInfo(
        model_name="paged",
        executor="local",
        architecture="fake",
        vocab_size=VOCAB_SIZE,
        kv_cache_tokens=num_blocks * block_size,
        kv_block_size=block_size,
        stop_token_ids=(EOS,),
        **(usual | limits),
    )
