"""Every encoding, read back by the words of the engine directory's format, is as near as its type allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from briton.errors import BuildError
from briton_engine_builder.encodings import BFloat16, Encoding, Float32, Int4Groups, Int8Rows, round_to_bf16
from briton_engine_builder.tensor import Tensor
from tests.engine_builder.engines import dequantized

TINY = np.finfo(np.float32).tiny  # subnormal weights may become 0
WEIGHTS = arrays(np.float32, (3, 64), elements=st.floats(-1e4, 1e4, width=32))


def tensor_of(values: NDArray[Any], dtype: str = "F32") -> Tensor:
    return Tensor("some.weight", Path("model.safetensors"), dtype, values.shape, values)


def encoded(encoding: Encoding, values: NDArray[np.float32]) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
    """The stored arrays, checked against what the encoding announced, and the weights read back."""
    stored = {f"x{suffix}": rows for suffix, rows in encoding.encode(tensor_of(values), 0, len(values)).items()}
    announced = encoding.arrays(*values.shape)
    assert {f"x{suffix}": shape for suffix, (_, shape) in announced.items()} == {n: a.shape for n, a in stored.items()}
    return stored, dequantized(stored, "x")


def test_float32_is_exact() -> None:
    values = np.linspace(-1, 1, 192, dtype=np.float32).reshape(3, 64)
    _, back = encoded(Float32(), values)
    assert np.array_equal(back, values)


@pytest.mark.parametrize(
    ("bits", "rounded"),
    [
        (0x3F800000, 0x3F80),  # 1.0
        (0x3F808000, 0x3F80),  # half way, the lower neighbour is even
        (0x3F818000, 0x3F82),  # half way, the upper neighbour is even
        (0x3F808001, 0x3F81),
        (0xBF80FFFF, 0xBF81),
        (0x00000001, 0x0000),  # smallest subnormal
        (0x3FFFFFFF, 0x4000),  # carries into the exponent
    ],
)
def test_bf16_rounds_to_nearest_even(bits: int, rounded: int) -> None:
    assert round_to_bf16(np.array([bits], np.uint32).view(np.float32))[0] == rounded


def test_bf16_checkpoints_keep_their_bits() -> None:
    raw = np.arange(128, dtype=np.uint16).reshape(2, 64) + np.uint16(0x3F00)
    assert np.array_equal(BFloat16().encode(tensor_of(raw, "BF16"), 0, 2)[""], raw)


@given(WEIGHTS)
@settings(deadline=None, max_examples=60)
def test_int8_is_within_half_a_step(values: NDArray[np.float32]) -> None:
    stored, back = encoded(Int8Rows(), values)
    step = stored["x.scale"].astype(np.float32)
    assert np.isfinite(step).all()
    assert (np.abs(back - values) <= step * 0.5001 + TINY).all()
    assert stored["x"].min() >= -127
    # no wider than float16's own rounding of the ideal step (6e-8 apart among its subnormals)
    ideal = np.abs(values).max(1, keepdims=True) / 127
    assert (step <= ideal * 1.002 + 6e-8).all()


@given(WEIGHTS)
@settings(deadline=None, max_examples=60)
def test_int4_is_within_a_step(values: NDArray[np.float32]) -> None:
    """Half a step for the weight and half a step for the integer zero point."""
    stored, back = encoded(Int4Groups(), values)
    step = stored["x.scale"].astype(np.float32).repeat(32, axis=1)
    assert stored["x.zero"].max() <= 15
    assert (np.abs(back - values) <= step * 1.001 + TINY).all()
    assert np.array_equal(back[values == 0], np.zeros((values == 0).sum(), np.float32))


@pytest.mark.parametrize("encoding", [Int8Rows(), Int4Groups()])
@pytest.mark.parametrize("magnitude", [0.0, 1e-30, 1e-9, 1e-6])
def test_scales_below_float16_keep_weights_near(encoding: Encoding, magnitude: float) -> None:
    """Rows that small must neither divide by zero nor grow: float16 ends at 6e-8."""
    values = np.full((2, 32), magnitude, np.float32)
    with np.errstate(all="raise", under="ignore"):
        _, back = encoded(encoding, values)
    assert np.abs(back - values).max() <= 6e-8


@pytest.mark.parametrize("encoding", [Float32(), BFloat16(), Int8Rows(), Int4Groups()])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_name_file_and_tensor(encoding: Encoding, value: float) -> None:
    values = np.zeros((2, 32), np.float32)
    values[1, 3] = value
    with pytest.raises(BuildError, match=r"model\.safetensors: tensor some\.weight has values that are not finite"):
        encoding.encode(tensor_of(values), 0, 2)


def test_bf16_bits_that_are_not_finite() -> None:
    raw = np.array([[0x7FC0, 0]], np.uint16)
    with pytest.raises(BuildError, match="not finite"):
        BFloat16().encode(tensor_of(raw, "BF16"), 0, 1)


@pytest.mark.parametrize("encoding", [Int8Rows(), Int4Groups()])
def test_weights_too_large_for_a_float16_scale(encoding: Encoding) -> None:
    with pytest.raises(BuildError, match=r"some\.weight has weights too large for a float16 scale"):
        encoding.encode(tensor_of(np.full((1, 32), 1e8, np.float32)), 0, 1)


def test_a_type_nobody_can_read() -> None:
    with pytest.raises(BuildError, match=r"some\.weight is stored as F8_E4M3, which cannot be read"):
        Float32().encode(tensor_of(np.zeros((1, 32), np.uint8), "F8_E4M3"), 0, 1)
