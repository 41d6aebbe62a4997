"""A step survives its way through the broadcast, whatever is in it and however long it is."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from briton.local.plan import StepInputs
from briton.local.ranks.step_buffer import BLOCK, await_step, broadcast_step, broadcast_stop, pack, unpack
from briton.ranks.communicator import Communicator

NUMBERS = {"min_value": 0, "max_value": 2**31 - 1}


class Wire:
    """Two ranks' communicator: what the one broadcasts, the other gets, in the same order and the same sizes."""

    def __init__(self) -> None:
        self.sent: list[NDArray[np.int32]] = []
        self.following = False

    def broadcast(self, buffer: NDArray[np.int32]) -> None:
        if not self.following:
            assert buffer.dtype == np.int32
            self.sent.append(buffer.copy())
            return
        sent = self.sent.pop(0)
        assert sent.shape == buffer.shape  # MPI would truncate, or fail
        buffer[:] = sent

    def await_broadcast(self, buffer: NDArray[np.int32]) -> None:
        self.following = True
        self.broadcast(buffer)


def step_of(num_tokens: int, mask: NDArray[np.uint8] | None = None) -> StepInputs:
    """A prompt of so many tokens."""
    mask = np.zeros(0, np.uint8) if mask is None else mask
    return StepInputs(
        token_ids=np.arange(num_tokens, dtype=np.int64) * 7,
        position_ids=np.arange(num_tokens, dtype=np.int64),
        past_lens=np.zeros(1, np.int32),
        subsequence_begins=np.array([0, num_tokens], np.int32),
        block_indices=np.arange(-(-num_tokens // 32), dtype=np.int32),
        block_indices_begins=np.array([0, -(-num_tokens // 32)], np.int32),
        max_context_len=num_tokens,
        sampled_rows=np.array([num_tokens - 1], np.int64),
        qq_bias=mask,
        qq_bias_begins=np.array([0, len(mask)], np.int32),
    )


@st.composite
def steps(draw: st.DrawFn) -> StepInputs:
    """Any arrays of the right types: `pack` need not know what they mean."""

    def numbers(dtype: type[np.generic], longest: int = 40) -> NDArray[np.generic]:
        elements = st.integers(0, 255) if dtype is np.uint8 else st.integers(**NUMBERS)
        return draw(arrays(dtype, st.integers(0, longest), elements=elements, fill=elements))

    wide = {"token_ids", "position_ids", "sampled_rows"}
    values = {
        name: numbers(np.uint8 if name == "qq_bias" else np.int64 if name in wide else np.int32, 3 * BLOCK // 4)
        for name in StepInputs._fields
        if name != "max_context_len"
    }
    return StepInputs(max_context_len=draw(st.integers(**NUMBERS)), **values)  # type: ignore[arg-type]


def assert_same(one: StepInputs, other: StepInputs) -> None:
    assert one.max_context_len == other.max_context_len
    for name in StepInputs._fields:
        if name != "max_context_len":
            mine, theirs = getattr(one, name), getattr(other, name)
            assert mine.dtype == theirs.dtype, name
            assert np.array_equal(mine, theirs), name


def through(wire: Wire, buffer: NDArray[np.int32]) -> StepInputs | None:
    return await_step(cast("Communicator", wire), buffer)


@given(steps())
def test_any_step(inputs: StepInputs) -> None:
    packed = pack(inputs)
    assert packed.dtype == np.int32
    assert_same(unpack(packed), inputs)
    wire = Wire()
    broadcast_step(cast("Communicator", wire), inputs)
    assert len(wire.sent) == 1 + (len(packed) > BLOCK)
    received = through(wire, np.empty(BLOCK, np.int32))
    assert received is not None
    assert_same(received, inputs)
    assert wire.sent == []


@pytest.mark.parametrize("length", range(9))
def test_masks_of_any_length(length: int) -> None:
    mask = (np.arange(length) % 3 == 0).astype(np.uint8)
    assert_same(unpack(pack(step_of(3, mask))), step_of(3, mask))


def test_a_step_of_one_token_is_one_broadcast_of_one_size() -> None:
    """Followers wait for BLOCK numbers before they know what comes."""
    wire = Wire()
    broadcast_step(cast("Communicator", wire), step_of(1))
    assert [len(buffer) for buffer in wire.sent] == [BLOCK]


@pytest.mark.parametrize(("spare", "num_broadcasts"), [(1, 1), (0, 1), (-1, 2), (-BLOCK, 2)])
def test_where_a_second_broadcast_begins(spare: int, num_broadcasts: int) -> None:
    """A step of BLOCK numbers still fits into one."""
    empty = len(pack(step_of(1)))
    inputs = step_of(1)._replace(qq_bias=np.ones(4 * (BLOCK - empty - spare), np.uint8))
    assert len(pack(inputs)) == BLOCK - spare
    wire = Wire()
    broadcast_step(cast("Communicator", wire), inputs)
    assert len(wire.sent) == num_broadcasts
    assert sum(map(len, wire.sent)) == max(BLOCK, BLOCK - spare)
    received = through(wire, np.empty(BLOCK, np.int32))
    assert received is not None
    assert_same(received, inputs)


def test_steps_of_all_sizes_through_one_buffer_then_the_end() -> None:
    """What a longer step left in the buffer is not read again, and arrays of an earlier step are not overwritten."""
    wire, buffer = Wire(), np.empty(BLOCK, np.int32)
    sent = [step_of(5, np.ones(25, np.uint8)), step_of(3 * BLOCK), step_of(1), step_of(40)]
    received = []
    for inputs in sent:
        wire.following = False
        broadcast_step(cast("Communicator", wire), inputs)
        received.append(through(wire, buffer))
    for step, inputs in zip(received, sent, strict=True):
        assert step is not None
        assert_same(step, inputs)
    wire.following = False
    broadcast_stop(cast("Communicator", wire))
    assert [len(buffer) for buffer in wire.sent] == [BLOCK]
    assert through(wire, buffer) is None
