"""From an open checkpoint to the weights of an engine: which encoding each matrix gets; the writing, on all cores."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from briton.errors import BuildError
from briton_engine_builder.checkpoint import Checkpoint
from briton_engine_builder.encodings import GROUP, Arrays, BFloat16, Encoding, Float32, Int4Groups, Int8Rows
from briton_engine_builder.gguf_blocks import carried_encoding
from briton_engine_builder.llama import Matrix, matrices, vectors
from briton_engine_builder.tensor import Tensor
from briton_engine_builder.weights_file import WeightsFile

logger = logging.getLogger(__name__)

_ENCODINGS: dict[str, type[Encoding]] = {"f32": Float32, "bf16": BFloat16, "int8": Int8Rows, "int4": Int4Groups}
_SLICE_WEIGHTS = 1 << 20  # weights in one slice of work: 4 MB in float32, near the size of a cache
_MAX_THREADS = 16


class Target(Protocol):
    """What is to be stored: the part of `briton.config.local_target.LocalTarget` that matters here."""

    @property
    def attention(self) -> str:
        """dtype of attention, embedding and lm_head: "f32", "bf16", "int8", "int4"."""
        ...

    @property
    def mlp(self) -> str:
        """dtype of the MLP's matrices."""
        ...

    @property
    def carry_over(self) -> bool:
        """Whether 4 and 8 bit blocks of a GGUF stay what they are, whatever the dtypes say."""
        ...


def write_weights(checkpoint: Checkpoint, target: Target, path: Path, advance: Callable[[int], None]) -> str:
    """Write a checkpoint's weights as one file; return what was stored, as EngineManifest.weights_dtype says it.

    `advance` is called with the weights done since its last call, from several threads. Raises BuildError.
    """
    plan = [(matrix, choose_encoding(matrix, target)) for matrix in matrices(checkpoint)]
    norms = list(vectors(checkpoint))
    arrays: Arrays = {norm.name: ("F32", norm.tensor.shape) for norm in norms}
    for matrix, encoding in plan:
        for suffix, array in encoding.arrays(*matrix.shape).items():
            arrays[matrix.name + suffix] = array
        if any(matrix.biases):
            arrays[f"{matrix.name}.bias"] = ("F32", matrix.shape[:1])
    with WeightsFile(path, arrays, {"format": "briton"}) as file:
        for norm in norms:
            file.write_rows(norm.name, 0, norm.tensor.read())
        threads = min(_MAX_THREADS, os.cpu_count() or 1)
        with ThreadPoolExecutor(threads, thread_name_prefix="convert") as pool:
            slices = [job for matrix, encoding in plan for job in _slices(matrix, encoding, file, advance)]
            futures = [pool.submit(job) for job in slices]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                pool.shutdown(cancel_futures=True)
            for future in done:
                future.result()
    return describe_stored([(matrix.family, encoding.stored) for matrix, encoding in plan])


def num_weights(checkpoint: Checkpoint) -> int:
    """The weights of all matrices: the total of what `write_weights` advances by."""
    return sum(matrix.shape[0] * matrix.shape[1] for matrix in matrices(checkpoint))


def choose_encoding(matrix: Matrix, target: Target) -> Encoding:
    """Carried blocks if the target asks for their width or for nothing, else the target's dtype. Raises BuildError."""
    wanted = target.mlp if matrix.family == "mlp" else target.attention
    carried = carried_encoding(matrix.parts)
    if carried is not None and (target.carry_over or carried.stored == wanted):
        return carried
    types = sorted({part.dtype for part in matrix.parts})
    logger.debug("%s: %s is stored as %s", matrix.name, " + ".join(types), wanted)
    if wanted == "int4" and matrix.shape[1] % GROUP:
        part = matrix.parts[0]
        raise BuildError(
            f"{part.file}: tensor {part.name} has {matrix.shape[1]} columns; int4 needs a multiple of {GROUP}"
        )
    return _ENCODINGS[wanted]()


def describe_stored(stored: list[tuple[str, str]]) -> str:
    """(family, dtype) of every matrix -> "int8", or "int4/int8" (MLP/attention) where they differ, by majority."""

    def most(family: str) -> str:
        return Counter(dtype for kind, dtype in stored if kind == family).most_common(1)[0][0]

    mlp, attention = most("mlp"), most("attention")
    return mlp if mlp == attention else f"{mlp}/{attention}"


def _slices(
    matrix: Matrix, encoding: Encoding, file: WeightsFile, advance: Callable[[int], None]
) -> list[Callable[[], None]]:
    """The work of one matrix, cut into pieces of a bounded size."""
    jobs: list[Callable[[], None]] = []
    step = max(1, _SLICE_WEIGHTS // matrix.shape[1])
    above = 0  # rows of the parts before
    for part, bias in zip(matrix.parts, matrix.biases, strict=True):
        for start in range(0, part.shape[0], step):
            stop = min(start + step, part.shape[0])
            jobs.append(partial(_write_slice, file, matrix.name, encoding, part, start, stop, above, advance))
        if any(matrix.biases):
            values = np.zeros(part.shape[0], np.float32) if bias is None else bias.read()
            file.write_rows(f"{matrix.name}.bias", above, values)
        above += part.shape[0]
    return jobs


def _write_slice(
    file: WeightsFile,
    name: str,
    encoding: Encoding,
    part: Tensor,
    start: int,
    stop: int,
    above: int,
    advance: Callable[[int], None],
) -> None:
    """Rows start..stop of a part, which lies below `above` other rows of its matrix."""
    for suffix, rows in encoding.encode(part, start, stop).items():
        file.write_rows(name + suffix, above + start, rows)
    advance((stop - start) * part.shape[1])
