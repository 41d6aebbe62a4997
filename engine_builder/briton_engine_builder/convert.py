"""From an open checkpoint to the weights of an engine: which encoding each matrix gets; the writing, on all cores,
one file a rank."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from briton.errors import BuildError
from briton.local.cpus import available_cpus
from briton.model.engine_dir import rank_file
from briton.model.sharding import Shard
from briton_engine_builder.checkpoint import Checkpoint
from briton_engine_builder.encodings import GROUP, Arrays, BFloat16, Encoding, Float32, Int4Groups, Int8Rows
from briton_engine_builder.gguf_blocks import carried_encoding
from briton_engine_builder.llama import Matrix, Vector, matrices, vectors
from briton_engine_builder.rank_cut import Cut, cut
from briton_engine_builder.weights_file import SPARE_BYTES, WeightsFile, check_free_space

logger = logging.getLogger(__name__)

_ENCODINGS: dict[str, type[Encoding]] = {"f32": Float32, "bf16": BFloat16, "int8": Int8Rows, "int4": Int4Groups}
_SLICE_WEIGHTS = 1 << 20  # weights in one slice of work: 4 MB in float32, near the size of a cache
_MAX_THREADS = 16
_METADATA = {"format": "briton"}


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


def write_weights(
    checkpoint: Checkpoint, target: Target, shards: Sequence[Shard], directory: Path, advance: Callable[[int], None]
) -> str:
    """Write a checkpoint's weights, one file a shard; return what was stored, as EngineManifest.weights_dtype says it.

    Every weight is encoded once, as a whole row, whatever ranks share it: they compute with the numbers that one rank
    would have. `advance` is called with the weights done since its last call, from several threads. Raises BuildError.
    """
    plan = [(matrix, choose_encoding(matrix, target)) for matrix in matrices(checkpoint)]
    norms = list(vectors(checkpoint))
    ranks = range(len(shards))
    cuts = [[cut(matrix, checkpoint.model, shards[rank], rank) for rank in ranks] for matrix, _ in plan]
    with ExitStack() as stack:
        files = [
            WeightsFile(directory / rank_file(rank), _arrays(plan, [of[rank] for of in cuts], norms), _METADATA)
            for rank in ranks
        ]
        check_free_space(directory, sum(file.size for file in files) + SPARE_BYTES, "the weights")
        for file in files:
            stack.enter_context(file)
        for norm in norms:
            values = norm.tensor.read()
            for file in files:
                file.write_rows(norm.name, 0, values)
        threads = min(_MAX_THREADS, available_cpus())
        with ThreadPoolExecutor(threads, thread_name_prefix="convert") as pool:
            slices = [
                job
                for (matrix, encoding), of in zip(plan, cuts, strict=True)
                for job in _slices(matrix, encoding, list(zip(files, of, strict=True)), advance)
            ]
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


def _arrays(plan: Sequence[tuple[Matrix, Encoding]], cuts: Sequence[Cut], norms: Sequence[Vector]) -> Arrays:
    """What one rank's file holds."""
    arrays: Arrays = {norm.name: ("F32", norm.tensor.shape) for norm in norms}
    for (matrix, encoding), its in zip(plan, cuts, strict=True):
        for suffix, (dtype, (_, width)) in encoding.arrays(*matrix.shape).items():
            columns = its.columns_of(width, matrix)
            arrays[matrix.name + suffix] = (dtype, (its.num_rows, columns.size))
        if any(matrix.biases) and its.has_bias:
            arrays[f"{matrix.name}.bias"] = ("F32", (its.num_rows,))
    return arrays


def _slices(
    matrix: Matrix, encoding: Encoding, ranks: list[tuple[WeightsFile, Cut]], advance: Callable[[int], None]
) -> list[Callable[[], None]]:
    """The work of one matrix, cut into pieces of a bounded size."""
    jobs: list[Callable[[], None]] = []
    step = max(1, _SLICE_WEIGHTS // matrix.shape[1])
    for number, (part, bias) in enumerate(zip(matrix.parts, matrix.biases, strict=True)):
        for start in range(0, part.shape[0], step):
            stop = min(start + step, part.shape[0])
            jobs.append(partial(_write_slice, matrix, number, encoding, ranks, start, stop, advance))
        if any(matrix.biases):
            values = np.zeros(part.shape[0], np.float32) if bias is None else bias.read()
            for file, its in ranks:
                if its.has_bias:
                    file.write_rows(f"{matrix.name}.bias", its.above(number), values[slice(*its.rows[number])])
    return jobs


def _write_slice(
    matrix: Matrix,
    number: int,
    encoding: Encoding,
    ranks: list[tuple[WeightsFile, Cut]],
    start: int,
    stop: int,
    advance: Callable[[int], None],
) -> None:
    """Rows start..stop of a matrix's part of that number, encoded and dealt out to the ranks that share them."""
    part = matrix.parts[number]
    for suffix, rows in encoding.encode(part, start, stop).items():
        for file, its in ranks:
            own = its.rows[number]
            begin, end = max(start, own.begin), min(stop, own.end)
            if begin < end:
                columns = its.columns_of(rows.shape[1], matrix)
                mine = rows[begin - start : end - start, slice(*columns)]
                file.write_rows(matrix.name + suffix, its.above(number) + begin - own.begin, mine)
    advance((stop - start) * part.shape[1])
