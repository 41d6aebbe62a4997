"""Token masks on the GPU: the host buffer they are written to, and what is done with it on the executor's stream.

Not yet run on a GPU: TorchMaskDevice was run with torch on a CPU only, where there are no streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

ROWS_AT_ONCE = 64  # of logits, in one fill: unpacked masks take 32 times a packed one's memory


@dataclass(frozen=True, slots=True)
class MaskSizes:
    """How much room masks need. A mask is `num_words` int32: bit i % 32 of word i // 32 allows token i."""

    num_words: int
    num_slots: int  # masks kept on the device
    max_rows: int  # of logits in one step, and of new masks

    @property
    def num_header_words(self) -> int:
        """The host buffer begins with `max_rows` slots, one for each row of logits, and `max_rows` slots of new
        masks; the new masks follow."""
        return 2 * self.max_rows

    @property
    def num_buffer_words(self) -> int:
        """int32 in a host buffer."""
        return self.num_header_words + self.max_rows * self.num_words


class MaskDevice(Protocol):
    """Where masks are applied. For one thread, the executor's."""

    def host_buffer(self) -> NDArray[np.int32]:
        """Where to write the next step: header and new masks, laid out as `MaskSizes` says. Two take turns, so that
        the one before may still be on its way."""
        ...

    def apply(self, logits: Sequence[Any], num_new: int, stream: int) -> None:
        """Keep the buffer's `num_new` new masks in their slots, then forbid in each of `logits` [1, 1, vocab] what
        the mask in its slot does not allow. On the CUDA stream at address `stream`, without waiting for it."""
        ...


class TorchMaskDevice:
    """A MaskDevice in torch: one copy to the device, and one addition of 0 and -inf to all rows."""

    def __init__(self, torch: Any, sizes: MaskSizes, device: str = "cuda") -> None:
        self._torch = torch
        self._sizes = sizes
        self._on_gpu = device != "cpu"
        words = sizes.num_buffer_words
        self._hosts = [torch.empty(words, dtype=torch.int32, pin_memory=self._on_gpu) for _ in range(2)]
        self._arrays: list[NDArray[np.int32]] = [host.numpy() for host in self._hosts]
        self._copied: list[Any] = [None, None]  # events: this buffer may be written again
        self._turn = 0
        self._buffer = torch.empty(words, dtype=torch.int32, device=device)
        self._slots = torch.zeros((sizes.num_slots, sizes.num_words), dtype=torch.int32, device=device)
        self._bits = torch.arange(32, dtype=torch.int32, device=device)
        if self._on_gpu:
            torch.cuda.synchronize()  # other streams will use them

    def host_buffer(self) -> NDArray[np.int32]:
        """See `MaskDevice.host_buffer`."""
        self._turn ^= 1
        if self._copied[self._turn] is not None:
            self._copied[self._turn].synchronize()  # long past: a whole step lies between
        return self._arrays[self._turn]

    def apply(self, logits: Sequence[Any], num_new: int, stream: int) -> None:
        """See `MaskDevice.apply`."""
        torch = self._torch
        if not self._on_gpu:
            self._apply(logits, num_new)
            return
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            self._apply(logits, num_new)

    def _apply(self, logits: Sequence[Any], num_new: int) -> None:
        torch, sizes = self._torch, self._sizes
        length = sizes.num_header_words + num_new * sizes.num_words
        buffer = self._buffer[:length]
        buffer.copy_(self._hosts[self._turn][:length], non_blocking=True)
        if self._on_gpu:
            self._copied[self._turn] = torch.cuda.Event()
            self._copied[self._turn].record()
        if num_new:
            new_slots = buffer[sizes.max_rows : sizes.max_rows + num_new].long()
            self._slots.index_copy_(0, new_slots, buffer[sizes.num_header_words :].view(num_new, sizes.num_words))
        for start in range(0, len(logits), ROWS_AT_ONCE):
            rows = [row.view(-1) for row in logits[start : start + ROWS_AT_ONCE]]
            packed = self._slots.index_select(0, buffer[start : start + len(rows)])
            torch._foreach_add_(rows, list(self._penalties(packed, rows[0]).unbind(0)))

    def _penalties(self, packed: Any, like: Any) -> Any:
        """[rows, vocab] 0 where a packed mask [rows, words] allows, -inf elsewhere and beyond its words."""
        torch = self._torch
        allowed = ((packed.unsqueeze(-1) >> self._bits) & 1).bool().flatten(1)[:, : like.numel()]
        penalties = torch.full((len(packed), like.numel()), -torch.inf, dtype=like.dtype, device=like.device)
        penalties[:, : allowed.shape[1]].masked_fill_(allowed, 0)
        return penalties
