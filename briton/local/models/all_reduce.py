"""The sum over tensor-parallel ranks as an OpenVINO operation, so that a step of the model stays one call."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import Op

# (this rank's part, where the sum goes), float32 of one shape. Called on a thread of the plugin, by all ranks in the
# same order.
SumOverRanks = Callable[[NDArray[np.float32], NDArray[np.float32]], None]


class AllReduce(Op):  # type: ignore[misc]
    """Its input, summed element by element over all ranks."""

    def __init__(self, part: ov.Output, sum_over_ranks: SumOverRanks) -> None:
        super().__init__(self, [part])
        self._sum_over_ranks = sum_over_ranks

    def validate_and_infer_types(self) -> None:
        """float32 in, the same out."""
        self.set_output_type(0, self.get_input_element_type(0), self.get_input_partial_shape(0))

    def clone_with_new_inputs(self, new_inputs: list[ov.Output]) -> AllReduce:
        """The plugin compiles a copy."""
        return AllReduce(new_inputs[0], self._sum_over_ranks)

    def has_evaluate(self) -> bool:
        """It is computed here."""
        return True

    def evaluate(self, outputs: list[ov.Tensor], inputs: list[ov.Tensor]) -> bool:
        """Sum. What it raises comes out of the model's call."""
        if outputs[0].shape != inputs[0].shape:
            outputs[0].shape = inputs[0].shape
        self._sum_over_ranks(inputs[0].data, outputs[0].data)
        return True
