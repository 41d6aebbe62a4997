"""A step as one buffer of int32: what rank 0 broadcasts, and the other ranks compute.

    [kind, length, max_context_len, the six array lengths..., then the arrays in the order of StepInputs]

The first BLOCK numbers go in one broadcast, which most decode steps fit into; the rest, if any, in a second.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from briton.local.plan import StepInputs
from briton.ranks.communicator import Communicator

BLOCK = 1024  # numbers: 4 KB
_STOP, _STEP = 0, 1
_ARRAYS = tuple(name for name in StepInputs._fields if name != "max_context_len")
_HEADER = 3 + len(_ARRAYS)
_DTYPES = dict.fromkeys(("token_ids", "position_ids", "sampled_rows"), np.int64)


def broadcast_step(communicator: Communicator, inputs: StepInputs) -> None:
    """On rank 0: tell the others what is computed next."""
    _broadcast(communicator, pack(inputs))


def broadcast_stop(communicator: Communicator) -> None:
    """On rank 0: no step will follow."""
    _broadcast(communicator, np.array([_STOP, _HEADER], np.int32))


def await_step(communicator: Communicator, buffer: NDArray[np.int32]) -> StepInputs | None:
    """On the other ranks: the next step, None when there is none. `buffer` has BLOCK numbers and is used again."""
    communicator.await_broadcast(buffer)
    if buffer[0] == _STOP:
        return None
    length = int(buffer[1])
    if length <= BLOCK:
        return unpack(buffer[:length])
    rest = np.empty(length - BLOCK, np.int32)
    communicator.broadcast(rest)
    return unpack(np.concatenate([buffer, rest]))


def pack(inputs: StepInputs) -> NDArray[np.int32]:
    """The step as int32; masks, which are bytes, four to a number."""
    arrays = [_to_int32(getattr(inputs, name)) for name in _ARRAYS]
    lengths = [len(getattr(inputs, name)) for name in _ARRAYS]
    total = _HEADER + sum(map(len, arrays))
    return np.concatenate([np.array([_STEP, total, inputs.max_context_len, *lengths], np.int32), *arrays])


def unpack(buffer: NDArray[np.int32]) -> StepInputs:
    """What `pack` packed."""
    position = _HEADER
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, length in zip(_ARRAYS, buffer[3:_HEADER].tolist(), strict=True):
        if name == "qq_bias":
            words = -(-length // 4)
            arrays[name] = buffer[position : position + words].view(np.uint8)[:length].copy()
            position += words
        else:
            arrays[name] = buffer[position : position + length].astype(_DTYPES.get(name, np.int32))
            position += length
    return StepInputs(max_context_len=int(buffer[2]), **arrays)  # type: ignore[arg-type]


def _to_int32(array: NDArray[np.generic]) -> NDArray[np.int32]:
    if array.dtype != np.uint8:
        return array.astype(np.int32, copy=False)
    return np.pad(array, (0, -len(array) % 4)).view(np.int32)


def _broadcast(communicator: Communicator, packed: NDArray[np.int32]) -> None:
    first = np.zeros(BLOCK, np.int32)
    first[: len(packed)] = packed[:BLOCK]
    communicator.broadcast(first)
    if len(packed) > BLOCK:
        communicator.broadcast(packed[BLOCK:])
