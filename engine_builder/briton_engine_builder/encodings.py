"""How a matrix is stored in an engine directory. Encodings work row by row, so that a matrix is written in slices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from briton.errors import BuildError
from briton_engine_builder.tensor import Rows, Tensor

GROUP = 32  # weights that share a scale in int4, and in the blocks of ggml
F16_MAX = 65504.0

Arrays = dict[str, tuple[str, tuple[int, ...]]]  # name -> (safetensors dtype, shape)


class Encoding(Protocol):
    """One way to store a matrix [out, in] as one or more arrays of `out` rows."""

    @property
    def stored(self) -> str:
        """What the manifest calls it: "f32", "bf16", "int8", "int4"."""
        ...

    def arrays(self, rows: int, columns: int) -> Arrays:
        """Suffix of the array's name ("", ".scale", ".zero") -> (safetensors dtype, shape)."""
        ...

    def encode(self, tensor: Tensor, start: int, stop: int) -> dict[str, Rows]:
        """Rows start..stop of a matrix, for each suffix. Raises BuildError for values that cannot be stored."""
        ...


@dataclass(frozen=True, slots=True)
class Float32:
    """F32, as it is."""

    stored: str = "f32"

    def arrays(self, rows: int, columns: int) -> Arrays:
        """One F32 array."""
        return {"": ("F32", (rows, columns))}

    def encode(self, tensor: Tensor, start: int, stop: int) -> dict[str, Rows]:
        """The values in float32."""
        return {"": tensor.read(start, stop)}


@dataclass(frozen=True, slots=True)
class BFloat16:
    """BF16, rounded to the nearest, ties to even."""

    stored: str = "bf16"

    def arrays(self, rows: int, columns: int) -> Arrays:
        """One BF16 array."""
        return {"": ("BF16", (rows, columns))}

    def encode(self, tensor: Tensor, start: int, stop: int) -> dict[str, Rows]:
        """The upper half of each float32, as uint16."""
        if tensor.dtype == "BF16":
            raw = tensor.raw(start, stop)
            if ((raw & 0x7F80) == 0x7F80).any():  # exponent all ones: infinite or NaN
                raise BuildError(f"{tensor.file}: tensor {tensor.name} has values that are not finite")
            return {"": raw}
        return {"": round_to_bf16(tensor.read(start, stop))}


@dataclass(frozen=True, slots=True)
class Int8Rows:
    """int8 with one symmetric scale a row."""

    stored: str = "int8"

    def arrays(self, rows: int, columns: int) -> Arrays:
        """The values and [out, 1] scales."""
        return {"": ("I8", (rows, columns)), ".scale": ("F16", (rows, 1))}

    def encode(self, tensor: Tensor, start: int, stop: int) -> dict[str, Rows]:
        """Scale = largest magnitude / 127, values rounded to nearest."""
        weights = tensor.read(start, stop)
        largest = np.maximum(weights.max(1, keepdims=True), -weights.min(1, keepdims=True))
        scale = _f16_at_least(largest / 127, tensor)
        weights *= _reciprocal(scale)  # the array is ours: read() made it
        np.rint(weights, out=weights)
        return {"": weights.astype(np.int8), ".scale": scale}


@dataclass(frozen=True, slots=True)
class Int4Groups:
    """int4 in groups of 32 columns, each with a scale and an integer zero point: a group spans its own range and 0."""

    stored: str = "int4"

    def arrays(self, rows: int, columns: int) -> Arrays:
        """Two values a byte, scales and zero points of [out, in / 32]."""
        groups = (rows, columns // GROUP)
        return {"": ("U8", (rows, columns // 2)), ".scale": ("F16", groups), ".zero": ("U8", groups)}

    def encode(self, tensor: Tensor, start: int, stop: int) -> dict[str, Rows]:
        """Scale = range / 15, values and zero point rounded to nearest."""
        weights = tensor.read(start, stop)
        rows, columns = weights.shape
        groups = weights.reshape(rows, columns // GROUP, GROUP)
        high = np.maximum(groups.max(2, keepdims=True), 0)
        low = np.minimum(groups.min(2, keepdims=True), 0)
        scale = _f16_at_least((high - low) / 15, tensor)
        inverse = _reciprocal(scale)
        zero = np.rint(-low * inverse)
        groups *= inverse
        np.rint(groups, out=groups)
        groups += zero
        np.clip(groups, 0, 15, out=groups)
        return {
            "": pack_nibbles(groups.astype(np.uint8).reshape(rows, columns)),
            ".scale": scale[:, :, 0],
            ".zero": zero[:, :, 0].astype(np.uint8),
        }


def round_to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Finite float32 to bfloat16 bits, to the nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def pack_nibbles(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """4-bit values [..., n] as bytes [..., n / 2], the lower nibble first."""
    low, high = values[..., 0::2], values[..., 1::2]
    packed: NDArray[np.uint8] = low | (high << np.uint8(4))
    return packed


def _f16_at_least(scale: NDArray[np.float32], tensor: Tensor) -> NDArray[np.float16]:
    """float16 rounded up, so that no value leaves its integers' range; values are then divided by exactly this."""
    if scale.max(initial=0) > F16_MAX:
        raise BuildError(
            f"{tensor.file}: tensor {tensor.name} has weights too large for a float16 scale ({scale.max():.3g})"
        )
    half = scale.astype(np.float16)
    below = half.astype(np.float32) < scale
    return np.where(below, np.nextafter(half, np.float16(np.inf)), half)


def _reciprocal(scale: NDArray[np.float16]) -> NDArray[np.float32]:
    wide = scale.astype(np.float32)
    return np.divide(1, wide, out=np.zeros_like(wide), where=wide != 0)
