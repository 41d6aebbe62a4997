"""Blocks of ggml carried over into an engine directory as they are: no weight is rounded a second time.

Q4_0: 32 weights (q - 8) * d.  Q4_1: q * d + m.  Q8_0: q * d.
In a 4-bit block byte j holds weight j (low nibble) and weight j + 16.
Source: ggml-common.h and ggml-quants.c of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from briton_engine_builder.encodings import GROUP, Arrays, Encoding, pack_nibbles
from briton_engine_builder.tensor import Rows, Tensor

_MAX_ZERO = 60000.0  # float16 ends at 65504
_Q4_ZERO = 8  # of Q4_0


@dataclass(frozen=True, slots=True)
class CarriedInt4:
    """Q4_0 with its zero point of 8, or Q4_1 (and a mixture of both) with the fractional zero point -m / d."""

    fractional: bool
    stored: str = "int4"

    def arrays(self, rows: int, columns: int) -> Arrays:
        """Two values a byte, scales and zero points of [out, in / 32]."""
        groups = (rows, columns // GROUP)
        return {
            "": ("U8", (rows, columns // 2)),
            ".scale": ("F16", groups),
            ".zero": ("F16" if self.fractional else "U8", groups),
        }

    def encode(self, tensor: Tensor, start: int, stop: int) -> dict[str, Rows]:
        """The blocks' nibbles in the order of their weights."""
        header = 2 if tensor.dtype == "Q4_0" else 4
        blocks = _blocks(tensor, start, stop, header + GROUP // 2)
        halves = blocks[:, :, header:]
        packed = np.concatenate([pack_nibbles(halves & np.uint8(15)), pack_nibbles(halves >> np.uint8(4))], axis=2)
        scale = _halves(blocks, 0)
        tensor.check_finite(scale)
        if tensor.dtype == "Q4_0":
            zero = np.full(scale.shape, _Q4_ZERO, np.float16 if self.fractional else np.uint8)
        else:
            minimum = _halves(blocks, 2)
            tensor.check_finite(minimum)
            scale, zero, constant = split_minimum(scale, minimum)
            packed[constant] = 0
        return {"": packed.reshape(len(packed), -1), ".scale": scale, ".zero": zero}


@dataclass(frozen=True, slots=True)
class CarriedInt8:
    """Q8_0, and Q4_0 beside it, whose values - 8 are int8 as well."""

    stored: str = "int8"

    def arrays(self, rows: int, columns: int) -> Arrays:
        """The values, and scales of [out, in / 32]."""
        return {"": ("I8", (rows, columns)), ".scale": ("F16", (rows, columns // GROUP))}

    def encode(self, tensor: Tensor, start: int, stop: int) -> dict[str, Rows]:
        """The blocks' values and scales."""
        if tensor.dtype == "Q4_0":
            blocks = _blocks(tensor, start, stop, 2 + GROUP // 2)
            halves = blocks[:, :, 2:]
            values = np.concatenate([halves & np.uint8(15), halves >> np.uint8(4)], axis=2).view(np.int8) - np.int8(
                _Q4_ZERO
            )
        else:
            blocks = _blocks(tensor, start, stop, 2 + GROUP)
            values = blocks[:, :, 2:].view(np.int8)
        scale = _halves(blocks, 0)
        tensor.check_finite(scale)
        return {"": np.ascontiguousarray(values).reshape(len(values), -1), ".scale": scale}


def carried_encoding(parts: tuple[Tensor, ...]) -> Encoding | None:
    """The encoding that holds the blocks of all parts exactly; None when there is none."""
    types = {part.dtype for part in parts}
    if types == {"Q4_0"}:
        return CarriedInt4(fractional=False)
    if types <= {"Q4_0", "Q4_1"}:
        return CarriedInt4(fractional=True)
    if types <= {"Q4_0", "Q8_0"}:
        return CarriedInt8()
    return None


def split_minimum(
    scale: NDArray[np.float16], minimum: NDArray[np.float16]
) -> tuple[NDArray[np.float16], NDArray[np.float16], NDArray[np.bool_]]:
    """Q4_1's q * d + m as (q - zero) * scale: (scale, zero, blocks whose q must be 0).

    Blocks with d = 0, or so small that -m / d leaves float16, are constant: m = (0 - zero) * |m|, zero = -sign(m).
    """
    d, m = scale.astype(np.float32), minimum.astype(np.float32)
    constant = np.abs(m) > _MAX_ZERO * np.abs(d)
    zero = np.divide(-m, d, out=np.zeros_like(d), where=(d != 0) & ~constant)
    return (
        np.where(constant, np.abs(minimum), scale),
        np.where(constant, -np.sign(m), zero).astype(np.float16),
        constant,
    )


def _blocks(tensor: Tensor, start: int, stop: int, block_bytes: int) -> NDArray[np.uint8]:
    raw = np.ascontiguousarray(tensor.raw(start, stop))
    return raw.reshape(len(raw), -1, block_bytes)


def _halves(blocks: NDArray[np.uint8], offset: int) -> NDArray[np.float16]:
    """The float16 at a byte offset of every block: [rows, blocks]."""
    return np.ascontiguousarray(blocks[:, :, offset : offset + 2]).view("<f2")[:, :, 0]
