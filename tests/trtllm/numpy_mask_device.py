"""A MaskDevice in numpy, which keeps count of what crosses to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from briton.trtllm.mask_device import MaskSizes


class NumpyMaskDevice:
    """Does what TorchMaskDevice does. `num_sent` counts masks that were sent, `num_masked` rows that were masked."""

    def __init__(self, sizes: MaskSizes) -> None:
        self._sizes = sizes
        self._hosts = [np.full(sizes.num_buffer_words, -1, np.int32) for _ in range(2)]
        self._turn = 0
        self._slots = np.full((sizes.num_slots, sizes.num_words), -1, np.int32)  # all is allowed: what nobody wrote
        self.num_sent = 0
        self.num_masked = 0
        self.streams: set[int] = set()
        self.raises: Exception | None = None

    def host_buffer(self) -> NDArray[np.int32]:
        """See `MaskDevice.host_buffer`."""
        self._turn ^= 1
        return self._hosts[self._turn]

    def apply(self, logits: Sequence[Any], num_new: int, stream: int) -> None:
        """See `MaskDevice.apply`."""
        if self.raises is not None:
            raise self.raises
        sizes, buffer = self._sizes, self._hosts[self._turn]
        masks = buffer[sizes.num_header_words :].reshape(sizes.max_rows, sizes.num_words)
        self._slots[buffer[sizes.max_rows : sizes.max_rows + num_new]] = masks[:num_new]
        for slot, row in zip(buffer[: len(logits)], logits, strict=True):
            bits = np.unpackbits(self._slots[slot].view(np.uint8), bitorder="little")
            allowed = np.zeros(row.shape[-1], np.bool_)
            allowed[: min(len(bits), len(allowed))] = bits[: len(allowed)]
            row[..., ~allowed] = -np.inf
        self.num_sent += num_new
        self.num_masked += len(logits)
        self.streams.add(stream)
