"""Each stored weight format, as the plugin multiplies with it, against numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset14 as ops
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from briton.errors import BuildError
from briton.local.models.weights import Weights

OUT, IN, GROUPS = 48, 64, 2
RNG = np.random.default_rng(0)
NIBBLES = RNG.integers(0, 16, (OUT, IN)).astype(np.uint8)
SCALE = RNG.uniform(0.01, 0.1, (OUT, GROUPS)).astype(np.float16)
BYTES = RNG.integers(-127, 128, (OUT, IN)).astype(np.int8)
INTEGER_ZERO = RNG.integers(0, 16, (OUT, GROUPS)).astype(np.uint8)
FRACTIONAL_ZERO = RNG.uniform(-1, 16, (OUT, GROUPS)).astype(np.float16)


def packed(nibbles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(nibbles[:, ::2] | nibbles[:, 1::2] << 4, np.uint8)


def spread(per_group: NDArray[Any]) -> NDArray[np.float32]:
    return np.repeat(per_group.astype(np.float32), IN // per_group.shape[1], axis=1)


FORMATS = {
    "f32": ({"w": BYTES.astype(np.float32)}, BYTES.astype(np.float32)),
    "int8 by row": ({"w": BYTES, "w.scale": SCALE[:, :1].copy()}, BYTES * spread(SCALE[:, :1])),
    "int8 by group": ({"w": BYTES, "w.scale": SCALE}, BYTES * spread(SCALE)),
    "int4 with integer zero": (
        {"w": packed(NIBBLES), "w.scale": SCALE, "w.zero": INTEGER_ZERO},
        (NIBBLES - spread(INTEGER_ZERO)) * spread(SCALE),
    ),
    "int4 with fractional zero": (
        {"w": packed(NIBBLES), "w.scale": SCALE, "w.zero": FRACTIONAL_ZERO},
        (NIBBLES - spread(FRACTIONAL_ZERO)) * spread(SCALE),
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_product_is_numpys(name: str, tmp_path: Path) -> None:
    tensors, expected = FORMATS[name]
    save_file(tensors, str(tmp_path / "w.safetensors"))
    weights = Weights(tmp_path / "w.safetensors")
    x = ops.parameter([-1, IN], np.float32, name="x")
    model = ov.Model([ops.result(ops.matmul(x, weights.matrix("w"), False, True))], [x], "product")
    # dynamic quantization of activations is off: this is about the weights
    options = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    compiled = ov.Core().compile_model(model, "CPU", options)
    assert not [n for n in compiled.get_runtime_model().get_ops() if n.get_type_name() == "Multiply"], "not fused"
    value = RNG.normal(0, 1, (3, IN)).astype(np.float32)
    got = next(iter(compiled([value]).values()))
    assert np.abs(got - value @ expected.T).max() <= 2e-3 * np.abs(value @ expected.T).max()


def test_missing_and_truncated_tensors_are_named(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"w": BYTES}, str(file))
    with pytest.raises(BuildError, match=r"no tensor w\.scale"):
        Weights(file).matrix("w")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BuildError, match="truncated: tensor w"):
        Weights(file)
    with pytest.raises(BuildError, match="No such file"):
        Weights(tmp_path / "none.safetensors")
