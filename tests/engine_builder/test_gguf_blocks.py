"""Blocks carried over hold the very weights that the gguf package reads from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from briton.errors import BuildError
from briton_engine_builder.gguf_blocks import CarriedInt4, carried_encoding
from briton_engine_builder.tensor import Tensor
from tests.engine_builder.engines import dequantized


def quantized(dtype: str, values: NDArray[np.float32]) -> Tensor:
    data = gguf.quants.quantize(values, GGMLQuantizationType[dtype])
    return Tensor("blk.0.attn_q.weight", Path("model.gguf"), dtype, values.shape, data)


def carried(tensor: Tensor, *others: str) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
    """The arrays of a tensor in the encoding that holds it and parts of other types; and the weights read back."""
    empty = [Tensor("other", tensor.file, dtype, tensor.shape, tensor.data) for dtype in others]
    encoding = carried_encoding((tensor, *empty))
    assert encoding is not None
    stored = {f"x{suffix}": rows for suffix, rows in encoding.encode(tensor, 0, tensor.shape[0]).items()}
    assert {n: a.shape for n, a in stored.items()} == {f"x{s}": a[1] for s, a in encoding.arrays(*tensor.shape).items()}
    return stored, dequantized(stored, "x")


def expected(tensor: Tensor) -> NDArray[np.float32]:
    values: NDArray[np.float32] = gguf.quants.dequantize(tensor.data, GGMLQuantizationType[tensor.dtype])
    return values


@pytest.fixture
def values() -> NDArray[np.float32]:
    return np.random.default_rng(5).standard_normal((24, 128)).astype(np.float32)


@pytest.mark.parametrize(
    ("dtype", "others"), [("Q4_0", ()), ("Q4_0", ("Q4_1",)), ("Q8_0", ()), ("Q8_0", ("Q4_0",)), ("Q4_0", ("Q8_0",))]
)
def test_exact(values: NDArray[np.float32], dtype: str, others: tuple[str, ...]) -> None:
    tensor = quantized(dtype, values)
    _, back = carried(tensor, *others)
    assert np.array_equal(back, expected(tensor))


def test_q4_0_has_the_integer_zero_point_8(values: NDArray[np.float32]) -> None:
    stored, _ = carried(quantized("Q4_0", values))
    assert stored["x.zero"].dtype == np.uint8
    assert (stored["x.zero"] == 8).all()


def test_q4_1_has_a_fractional_zero_point(values: NDArray[np.float32]) -> None:
    """Its rounding to float16 is all that is lost: at most 2^-11 of the block's minimum (bf16 would lose 2^-9)."""
    tensor = quantized("Q4_1", values + 0.3)
    stored, back = carried(tensor)
    assert stored["x.zero"].dtype == np.float16
    wanted = expected(tensor)
    minimum = np.abs(wanted.reshape(24, 4, 32).min(2)).repeat(32, axis=1)
    assert (np.abs(back - wanted) <= minimum * 2**-10).all()
    assert np.abs(back - wanted).mean() < 5e-4 * np.abs(wanted).mean()


@pytest.mark.parametrize("constant", [0.0, 0.25, -3.0, 60000.0])
@pytest.mark.parametrize("dtype", ["Q4_0", "Q4_1", "Q8_0"])
def test_constant_blocks(dtype: str, constant: float) -> None:
    """A Q4_1 block of equal weights has d = 0: m / d does not exist."""
    tensor = quantized(dtype, np.full((1, 64), constant, np.float32))
    with np.errstate(all="raise"):
        stored, back = carried(tensor)
    assert np.isfinite(back).all()
    np.testing.assert_allclose(back, expected(tensor), rtol=1e-3)
    assert np.isfinite(stored["x.scale"].astype(np.float32)).all()


def test_blocks_whose_zero_point_leaves_float16() -> None:
    """d = 1e-5 under m = 10: -m / d is 10^6."""
    values = np.full((1, 32), 10.0, np.float32)
    values[0, 0] += 1.5e-4
    block = np.concatenate(
        [np.array([1e-5, 10.0], np.float16).view(np.uint8), np.arange(16, dtype=np.uint8) * 17]
    ).reshape(1, 20)
    tensor = Tensor("blk.0.attn_q.weight", Path("model.gguf"), "Q4_1", (1, 32), block)
    _, back = carried(tensor)
    np.testing.assert_allclose(back, expected(tensor), rtol=1e-3)


@pytest.mark.parametrize("types", [("F16",), ("Q4_1", "Q8_0"), ("Q6_K",), ("Q4_0", "F32"), ("Q5_1",)])
def test_no_encoding_holds_these(types: tuple[str, ...]) -> None:
    parts = tuple(Tensor("x", Path("f"), dtype, (1, 32), np.zeros((1, 32), np.uint8)) for dtype in types)
    assert carried_encoding(parts) is None


def test_rows_can_be_reordered_within_the_file(values: NDArray[np.float32]) -> None:
    tensor = quantized("Q4_0", values)
    order = np.arange(24)[::-1].copy()
    stored = CarriedInt4(fractional=False).encode(tensor.reordered(order), 2, 5)
    assert np.array_equal(stored[".scale"], CarriedInt4(fractional=False).encode(tensor, 0, 24)[".scale"][order[2:5]])


@pytest.mark.parametrize(("dtype", "at"), [("Q4_0", 0), ("Q4_1", 0), ("Q4_1", 2), ("Q8_0", 0)])
def test_scales_that_are_not_finite(values: NDArray[np.float32], dtype: str, at: int) -> None:
    tensor = quantized(dtype, values)
    tensor.data[3, at : at + 2] = (0x00, 0x7E)  # NaN
    with pytest.raises(BuildError, match=r"model\.gguf: tensor blk\.0\.attn_q\.weight has values that are not finite"):
        carried(tensor)
