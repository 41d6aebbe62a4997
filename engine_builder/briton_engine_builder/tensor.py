"""A tensor of a checkpoint: where its bytes are, and how to read some of its rows when they are needed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from briton.errors import BuildError

Rows = NDArray[Any]  # some consecutive rows, in the type that they are stored in


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor, mapped from its file.

    `dtype` is "F32", "F16", "BF16" or the name of a ggml block type ("Q4_1"). The first axis of `data` is the tensor's
    first axis; a matrix is [out, in]. BF16 is held as uint16, blocks as uint8 [out, bytes of a row].
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    data: Rows
    row_order: NDArray[np.int64] | None = None  # row i of the tensor is row row_order[i] of data

    def reordered(self, row_order: NDArray[np.int64]) -> Tensor:
        """The same tensor with its rows in another order; the rows themselves stay as they are stored."""
        return replace(self, row_order=row_order)

    def raw(self, start: int, stop: int) -> Rows:
        """Rows start..stop as stored."""
        return self.data[start:stop] if self.row_order is None else self.data[self.row_order[start:stop]]

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows start..stop in float32. Raises BuildError when a value is not finite."""
        rows = self.raw(start, self.shape[0] if stop is None else stop)
        if self.dtype == "BF16":
            values = (rows.astype(np.uint32) << 16).view(np.float32)
        elif self.dtype in ("F32", "F16", "F64"):
            values = rows.astype(np.float32)
        else:
            try:
                values = gguf.quants.dequantize(np.ascontiguousarray(rows), gguf.GGMLQuantizationType[self.dtype])
            except (NotImplementedError, KeyError):
                raise BuildError(
                    f"{self.file}: tensor {self.name} is stored as {self.dtype}, which cannot be read"
                ) from None
        self.check_finite(values)
        return values

    def check_finite(self, values: Rows) -> None:
        """Raise BuildError, naming this tensor, when a float of `values` is NaN or infinite."""
        if not np.isfinite(values).all():
            raise BuildError(f"{self.file}: tensor {self.name} has values that are not finite")

    def check_shape(self, shape: tuple[int, ...]) -> Tensor:
        """This tensor, if it has that shape; else raises BuildError."""
        if self.shape != shape:
            raise BuildError(
                f"{self.file}: tensor {self.name} has shape {list(self.shape)}; the config asks for {list(shape)}"
            )
        return self
