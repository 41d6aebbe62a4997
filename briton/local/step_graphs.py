"""The compiled model: one graph for steps of any size, and copies for a few fixed numbers of tokens.

A graph that knows its number of tokens, and of rows, has nothing to prepare anew between steps. Each copy holds the
packed weights again; the KV cache is one for all. The copies may be compiled later than the first, while that serves.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as opset

from briton.local.plan import StepInputs

logger = logging.getLogger(__name__)

LATER_NICENESS = 10  # of the thread that compiles beside running requests: a tenth of a core that they want
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


class GraphCompiler:
    """Compiles one model, whose constants all copies share, for one device."""

    def __init__(self, core: ov.Core, model: ov.Model, properties: Mapping[str, Any]) -> None:
        self._core = core
        self._model = model
        self._properties = dict(properties)

    def compile(self, sizes: Sequence[int | None]) -> list[StepGraph]:
        """A graph for each number of tokens; None: for any. Two at a time: much of it uses one core."""
        with ThreadPoolExecutor(2, "briton-compile") as pool:
            return list(pool.map(self._compile, [self._copy(size) for size in sizes], sizes))

    def compile_later(self, sizes: Sequence[int], take: Callable[[StepGraph], None]) -> LaterGraphs:
        """Start to compile graphs of these sizes, one after the other, in a thread that gives way to running requests.

        `take` gets each from that thread. Call it where threads have their normal priority.
        """
        self._prepare_executors(len(sizes))
        return LaterGraphs(lambda: [self._copy(size) for size in sizes], self._compile, sizes, take)

    def _compile(self, model: ov.Model, size: int | None) -> StepGraph:
        return StepGraph(self._core.compile_model(model, "CPU", self._properties), size)

    def _copy(self, size: int | None) -> ov.Model:
        return self._model if size is None else _sized(self._model, size)

    def _prepare_executors(self, count: int) -> None:
        """Let the plugin start the threads that so many graphs will be computed by.

        Threads inherit the priority of the one that starts them, for good. The plugin keeps those of a graph that is
        gone, and gives them to the next that is compiled with the same properties.
        """
        parameter = opset.parameter([1], np.float32)
        model = ov.Model([opset.relu(parameter)], [parameter], "nothing")
        graphs = [self._core.compile_model(model, "CPU", self._properties) for _ in range(count)]
        del graphs


class LaterGraphs:
    """The thread of `GraphCompiler.compile_later`. What fails in it is logged, and the graph is not taken: the graph of
    any size goes on."""

    def __init__(
        self,
        copy: Callable[[], list[ov.Model]],
        compile_graph: Callable[[ov.Model, int], StepGraph],
        sizes: Sequence[int],
        take: Callable[[StepGraph], None],
    ) -> None:
        self._stopping = False
        # not a daemon: the interpreter must not end while the plugin is at work
        self._thread = threading.Thread(
            target=self._run, args=(copy, compile_graph, sizes, take), name="briton-compile-later"
        )
        self._thread.start()

    def stop(self) -> None:
        """Compile no more graphs; the one at hand is finished."""
        self._stopping = True

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether all is done, within this time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(
        self,
        copy: Callable[[], list[ov.Model]],
        compile_graph: Callable[[ov.Model, int], StepGraph],
        sizes: Sequence[int],
        take: Callable[[StepGraph], None],
    ) -> None:
        started = time.monotonic()
        try:
            models = copy()  # in Python, holding the interpreter's lock: nobody may have to wait for it at low priority
            _give_way()
            for model, size in zip(models, sizes, strict=True):
                if self._stopping:
                    return
                take(compile_graph(model, size))
        except Exception:
            logger.exception("not all graphs of fixed sizes could be made: steps go on in the graph of any size")
        else:
            seconds = time.monotonic() - started
            logger.info("graphs for steps of %s tokens are ready, %.1f s later", list(sizes), seconds)


def _give_way() -> None:
    """Lower this thread's priority, where threads have one of their own."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + LATER_NICENESS)  # 19 at most


def _sized(model: ov.Model, num_tokens: int) -> ov.Model:
    """A copy that shares the model's constants."""
    copy = model.clone()
    copy.reshape({port: [num_tokens] for port in copy.inputs if port.get_any_name() in _SIZED_INPUTS})
    return copy
