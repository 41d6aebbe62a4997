"""The sum over ranks inside a compiled graph: its shapes, its calls, and what it raises."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray
from openvino import opset13 as ops

from briton.local.models.all_reduce import AllReduce, SumOverRanks

Array = NDArray[np.float32]


def compiled(sum_over_ranks: SumOverRanks) -> ov.CompiledModel:
    """x -> 10 * sum(x + 1) + sum(2 * that sum), over [tokens, 4]."""
    x = ops.parameter([-1, 4], np.float32, name="x")
    first = AllReduce(ops.add(x, np.float32(1)).output(0), sum_over_ranks)
    second = AllReduce(ops.multiply(first, np.float32(2)).output(0), sum_over_ranks)
    model = ov.Model([ops.add(ops.multiply(first, np.float32(10)), second).output(0)], [x], "sums")
    return ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def test_it_sums_where_it_stands() -> None:
    """In order, whatever the number of tokens; here each of three ranks has the same part."""
    parts: list[Array] = []

    def triple(part: Array, total: Array) -> None:
        parts.append(part.copy())
        total[:] = 3 * part

    request = compiled(triple).create_infer_request()
    for num_tokens in (1, 5, 2):
        parts.clear()
        x = np.arange(num_tokens * 4, dtype=np.float32).reshape(num_tokens, 4)
        result = request.infer([x])[0]
        first = 3 * (x + 1)
        assert np.array_equal(result, 10 * first + 6 * first)
        assert [part.shape for part in parts] == [(num_tokens, 4)] * 2
        assert np.array_equal(parts[0], x + 1)
        assert np.array_equal(parts[1], 2 * first)


def test_what_it_raises_comes_out_of_the_call() -> None:
    def fail(part: Array, total: Array) -> None:
        raise OSError("rank 1 has gone")

    with pytest.raises(Exception, match="rank 1 has gone"):
        compiled(fail).create_infer_request().infer([np.ones((1, 4), np.float32)])
