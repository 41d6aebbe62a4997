"""A rank's weight file as OpenVINO constants: mapped, not copied. The format is `briton.model.engine_dir`'s."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset14 as ops
from numpy.typing import NDArray

from briton.errors import BuildError
from briton.model.safetensors_file import map_safetensors


class Weights:
    """The tensors of one safetensors file.

    `ov.Tensor(ndarray, shape, type)` shares memory and keeps nothing alive: this object must live as long as the
    compiled model.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tensors = map_safetensors(path)
        self._kept: list[NDArray[Any]] = []

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def array(self, name: str) -> NDArray[Any]:
        """The stored tensor, BF16 as its raw uint16. Raises BuildError when it is missing."""
        if name not in self._tensors:
            raise BuildError(f"{self._path} has no tensor {name}: build the engine again")
        return self._tensors[name].data

    def vector(self, name: str) -> NDArray[np.float32]:
        """A stored F32 vector, as a copy."""
        return np.array(self.array(name), np.float32)

    def matrix(self, name: str) -> ov.Node:
        """A matrix [out, in] as a float32 node: a constant, and the decompression that the plugin fuses into the
        product that uses it."""
        stored = self.array(name)
        dtype = self._tensors[name].dtype
        if dtype == "F32":
            return self._constant(stored, ov.Type.f32)
        if dtype == "BF16":
            return ops.convert(self._constant(stored, ov.Type.bf16), np.float32)
        if dtype == "I8":
            return self._int8(stored, self.array(f"{name}.scale"))
        if dtype == "U8":
            return self._int4(stored, self.array(f"{name}.scale"), self.array(f"{name}.zero"))
        raise BuildError(f"{self._path}: tensor {name} has dtype {dtype}, which is no weight format")

    def _int8(self, stored: NDArray[np.int8], scale: NDArray[np.float16]) -> ov.Node:
        out, width = stored.shape
        groups = scale.shape[1]
        if groups == 1:
            weight = ops.multiply(ops.convert(self._constant(stored, ov.Type.i8), np.float16), ops.constant(scale))
            return ops.convert(weight, np.float32)
        grouped = ops.convert(self._constant(stored.reshape(out, groups, width // groups), ov.Type.i8), np.float16)
        return self._ungrouped(ops.multiply(grouped, ops.constant(scale.reshape(out, groups, 1))), out, width)

    def _int4(self, stored: NDArray[np.uint8], scale: NDArray[np.float16], zero: NDArray[Any]) -> ov.Node:
        out, width = stored.shape[0], stored.shape[1] * 2
        groups = scale.shape[1]
        grouped = ops.convert(self._constant(stored, ov.Type.u4, (out, groups, width // groups)), np.float16)
        if zero.dtype == np.uint8:
            flat = np.append(zero.ravel(), np.zeros(zero.size % 2, np.uint8))
            packed = self._constant(flat[::2] | flat[1::2] << 4, ov.Type.u4, (out, groups, 1))
            zeros = ops.convert(packed, np.float16)
        else:
            zeros = ops.constant(zero.reshape(out, groups, 1))
        shifted = ops.subtract(grouped, zeros)
        return self._ungrouped(ops.multiply(shifted, ops.constant(scale.reshape(out, groups, 1))), out, width)

    def _ungrouped(self, weight: ov.Node, out: int, width: int) -> ov.Node:
        return ops.convert(ops.reshape(weight, ops.constant(np.array([out, width], np.int64)), False), np.float32)

    def _constant(self, stored: NDArray[Any], dtype: ov.Type, shape: tuple[int, ...] | None = None) -> ov.Node:
        kept = np.require(stored, requirements="C")
        self._kept.append(kept)
        return ops.constant(ov.Tensor(kept, ov.Shape(list(shape or stored.shape)), dtype))
