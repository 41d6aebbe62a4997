"""The compiled model: one graph for steps of any size, and copies for a few fixed numbers of tokens.

A graph that knows its number of tokens, and of rows, has nothing to prepare anew between steps. Each copy holds the
packed weights again; the KV cache is one for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from briton.local.plan import StepInputs

_SIZED_INPUTS = ("token_ids", "position_ids", "sampled_rows")  # what a fixed number of tokens fixes


class StepGraph:
    """One compiled copy of the model, for steps of `num_tokens` tokens; None: of any number."""

    def __init__(self, compiled: ov.CompiledModel, num_tokens: int | None) -> None:
        self.num_tokens = num_tokens
        self._compiled = compiled
        self._request = compiled.create_infer_request()

    def kv_cache_ports(self) -> dict[str, ov.ConstOutput]:
        """The cache inputs by name, with the type and layout the plugin has chosen: [blocks, ...]."""
        ports = {port.get_any_name(): port for port in self._compiled.inputs}
        return {name: port for name, port in ports.items() if "_cache." in name}

    def set_kv_cache(self, tensors: Mapping[str, ov.Tensor]) -> None:
        """Use these tensors, which other graphs may use too, by turns."""
        for name, tensor in tensors.items():
            self._request.set_tensor(name, tensor)

    def compute(self, inputs: StepInputs) -> NDArray[np.float32]:
        """Logits [rows, vocab], valid until the next call."""
        num_rows = len(inputs.sampled_rows)
        if self.num_tokens is not None:  # the rows that are missing repeat the first
            inputs = inputs._replace(
                sampled_rows=np.append(inputs.sampled_rows, np.zeros(self.num_tokens - num_rows, np.int64))
            )
        for name, value in zip(inputs._fields, inputs, strict=True):
            # max_context_len must stay 0-d: np.ascontiguousarray would make it 1-d, and the call would be refused
            array = np.array(value, np.int32) if name == "max_context_len" else value
            self._request.set_tensor(name, ov.Tensor(array))
        # infer() swallows what a node raises when the plugin has one thread (2026.4.1), and leaves half a step's logits
        self._request.start_async()
        self._request.wait()
        logits: NDArray[np.float32] = self._request.get_tensor("logits").data
        return logits[:num_rows]


def compile_step_graphs(
    core: ov.Core, model: ov.Model, properties: Mapping[str, Any], sizes: Sequence[int]
) -> list[StepGraph]:
    """The graph of any size, then those of `sizes`. Compiled two at a time: much of it uses one core."""
    graphs = [_sized(model, size) for size in sizes]

    def compile_graph(graph: ov.Model) -> ov.CompiledModel:
        return core.compile_model(graph, "CPU", dict(properties))

    with ThreadPoolExecutor(2, "briton-compile") as pool:
        compiled = list(pool.map(compile_graph, [model, *graphs]))
    return [StepGraph(graph, size) for graph, size in zip(compiled, (None, *sizes), strict=True)]


def _sized(model: ov.Model, num_tokens: int) -> ov.Model:
    """A copy that shares the model's constants."""
    copy = model.clone()
    copy.reshape({port: [num_tokens] for port in copy.inputs if port.get_any_name() in _SIZED_INPUTS})
    return copy
