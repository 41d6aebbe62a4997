"""What the compile worker answers, as bytes: a line of JSON, and arrays behind it.

The worker is limited since what it runs is not trusted to behave: its answers are read as plain data and checked, so
that a wrong one is an error of one request and not of the engine.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from briton.guidance.automaton import AutomatonArrays

DONE, INVALID, UNSUPPORTED = "done", "invalid", "unsupported"  # invalid, unsupported: the content is a message
Content = str | dict[str, Any] | AutomatonArrays
Answer = tuple[str, Content]

_OUTCOMES = (DONE, INVALID, UNSUPPORTED)
_ARRAYS = {  # of AutomatonArrays, in the order of the wire: type, dimensions
    "byte_class": ("|u1", 1),
    "next_state": ("<i4", 2),
    "accepts": ("|u1", 1),
    "lives": ("|u1", 1),
    "forced_byte": ("<i2", 1),
    "row_of_state": ("<i4", 1),
    "rows": ("<i4", 2),
    "longest_token": ("<i4", 1),
}
_AS_BYTES = ("byte_class", "accepts", "lives")


class MalformedAnswer(ValueError):
    """It is not what a worker answers; the message says what is wrong."""


def encode_answer(outcome: str, content: Content) -> bytes:
    """An answer as `decode_answer` reads it."""
    if not isinstance(content, AutomatonArrays):
        return json.dumps({"outcome": outcome, "content": content}).encode()
    arrays = [_as_array(content, name) for name in _ARRAYS]
    head = {"outcome": outcome, "start": content.start, "shapes": [array.shape for array in arrays]}
    return b"".join([json.dumps(head).encode(), b"\n", *(array.tobytes() for array in arrays)])


def decode_answer(data: bytes, num_words: int) -> Answer:
    """(outcome, content): a message, a schema, or the arrays of an automaton with masks of `num_words` int32.

    Raises MalformedAnswer for anything else, also for arrays that point out of each other.
    """
    line, _, body = data.partition(b"\n")
    try:
        head = json.loads(line)
    except (ValueError, RecursionError):
        raise MalformedAnswer("it does not begin with JSON") from None
    if not isinstance(head, dict) or head.get("outcome") not in _OUTCOMES:
        raise MalformedAnswer("it has no outcome")
    outcome = head["outcome"]
    if "shapes" in head and outcome == DONE:
        return outcome, _check(_decode_arrays(head, body), num_words)
    content = head.get("content")
    if not isinstance(content, dict if outcome == DONE else str):
        raise MalformedAnswer(f"{outcome} has no content")
    return outcome, content


def _as_array(arrays: AutomatonArrays, name: str) -> NDArray[Any]:
    value, dtype = getattr(arrays, name), _ARRAYS[name][0]
    return np.frombuffer(value, dtype) if isinstance(value, bytes) else np.ascontiguousarray(value, dtype)


def _decode_arrays(head: dict[str, Any], body: bytes) -> AutomatonArrays:
    shapes, start, position = head["shapes"], head.get("start"), 0
    if not isinstance(shapes, list) or len(shapes) != len(_ARRAYS) or type(start) is not int:
        raise MalformedAnswer("its arrays are not described")
    values: dict[str, Any] = {}
    for (name, (dtype, dimensions)), shape in zip(_ARRAYS.items(), shapes, strict=True):
        is_shape = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
        if not is_shape or len(shape) != dimensions:
            raise MalformedAnswer(f"{name} has no shape")
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if position + size > len(body):
            raise MalformedAnswer(f"{name} is cut short")
        array = np.frombuffer(body, dtype, math.prod(shape), position).reshape(shape)
        values[name] = array.tobytes() if name in _AS_BYTES else array
        position += size
    return AutomatonArrays(start=start, **values)


def _check(arrays: AutomatonArrays, num_words: int) -> AutomatonArrays:
    """The arrays, if no look-up in them can fail."""
    num_states, (num_rows, words) = len(arrays.accepts), arrays.rows.shape
    num_classes = arrays.next_state.shape[1]
    sizes = {
        "states": {len(arrays.lives), len(arrays.forced_byte), len(arrays.row_of_state), len(arrays.next_state)}
        == {num_states},
        "classes": len(arrays.byte_class) == 256,
        "masks": len(arrays.longest_token) == num_rows and words == num_words,
        "start": 0 <= arrays.start < num_states,
    }
    for name, is_right in sizes.items():
        if not is_right:
            raise MalformedAnswer(f"its {name} do not fit")
    _check_range("byte_class", np.frombuffer(arrays.byte_class, np.uint8), 0, num_classes)
    _check_range("next_state", arrays.next_state, 0, num_states)
    _check_range("row_of_state", arrays.row_of_state, 0, num_rows)
    _check_range("forced_byte", arrays.forced_byte, -1, 256)
    return arrays


def _check_range(name: str, array: NDArray[Any], least: int, end: int) -> None:
    if array.size and not (least <= array.min() and array.max() < end):
        raise MalformedAnswer(f"{name} points out of the automaton")
