"""The batched logits post-processor: guides, and stop tokens held off, as masks on the device.

It runs on the executor's own thread, under the GIL, between the model and the sampler of every step. It never waits
for the device, and never raises: an exception would end every request of the step. What fails ends its own request.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from briton.errors import BritonError
from briton.guidance.automaton import Automaton, AutomatonGuide
from briton.trtllm.constraint import ConstrainedSequence, Constraint
from briton.trtllm.mask_device import MaskDevice, MaskSizes
from briton.trtllm.mask_slots import MaskSlots, Slot

logger = logging.getLogger(__name__)

_KEPT_BYTES = 64 << 20  # of masks on the device: 4,096 of a vocabulary of 128k

Mask = NDArray[np.int32]  # [num_words]


def mask_sizes(vocab_size: int, max_batch_size: int) -> MaskSizes:
    """The room for masks of `vocab_size` tokens, for steps of `max_batch_size` sequences."""
    num_words = -(-vocab_size // 32)
    num_slots = 2 * max_batch_size + _KEPT_BYTES // (4 * num_words)
    return MaskSizes(num_words=num_words, num_slots=num_slots, max_rows=max_batch_size)


def pack_mask(allowed: Iterable[int], num_words: int) -> Mask:
    """A mask that allows these tokens alone."""
    mask = np.zeros(num_words, np.uint32)
    for token_id in allowed:
        mask[token_id >> 5] |= np.uint32(1 << (token_id & 31))
    return mask.view(np.int32)


class LogitsProcessor:
    """Callable as `LogitsPostProcessorConfig(processor_batched=...)` wants it.

    A mask that has a name (a row of a regex's table, the stop ids of a request) stays on the device once it was sent:
    from then on its slot's index is all that crosses.
    """

    def __init__(self, device: MaskDevice, sizes: MaskSizes, vocab_size: int) -> None:
        self.seconds = 0.0  # spent here
        self._device = device
        self._sizes = sizes
        self._vocab_size = vocab_size
        self._slots = MaskSlots(sizes.num_slots, sizes.max_rows)
        self._constraints: dict[int, Constraint] = {}  # by our request id
        self._failed: deque[int] = deque()
        self._automata: WeakKeyDictionary[Automaton, int] = WeakKeyDictionary()
        self._serials = itertools.count()

    def add(self, request_id: int, constraint: Constraint) -> None:
        """Before the request is enqueued."""
        self._constraints[request_id] = constraint

    def drop(self, request_id: int) -> None:
        """The request has ended. Idempotent."""
        self._constraints.pop(request_id, None)

    def take_failed(self) -> list[int]:
        """Requests that failed since the last look: to be cancelled."""
        return [self._failed.popleft() for _ in range(len(self._failed))]

    def __call__(
        self,
        library_ids: Sequence[int],
        logits: Sequence[Any],
        token_ids: Sequence[Sequence[Sequence[int]]],
        stream: int,
        client_ids: Sequence[int | None],
    ) -> None:
        """Edit `logits` (one tensor [1, beam, vocab] a sequence) on the CUDA stream at address `stream`.

        `token_ids` are prompt and output of each beam; beams are one. `client_ids` are our request ids.
        """
        started = time.perf_counter()
        try:
            step = self._sizes.max_rows
            for first in range(0, len(library_ids), step):
                rows = range(first, min(first + step, len(library_ids)))
                self._mask_rows(rows, library_ids, logits, token_ids, stream, client_ids)
        except Exception as error:
            logger.exception("masks could not be applied: the requests of this step that need them end")
            self._slots.forget()  # what was sent may not have arrived
            failure = RuntimeError(f"the masks of a step could not be applied: {error}")
            for library_id, client_id in zip(library_ids, client_ids, strict=False):
                constraint = None if client_id is None else self._constraints.get(client_id)
                if client_id is not None and constraint is not None:
                    self._fail(client_id, constraint, library_id, failure)
        self.seconds += time.perf_counter() - started

    def _mask_rows(
        self,
        rows: range,
        library_ids: Sequence[int],
        logits: Sequence[Any],
        token_ids: Sequence[Sequence[Sequence[int]]],
        stream: int,
        client_ids: Sequence[int | None],
    ) -> None:
        sizes = self._sizes
        buffer = self._device.host_buffer()
        slots, new_slots = buffer[: sizes.max_rows], buffer[sizes.max_rows : sizes.num_header_words]
        masks = buffer[sizes.num_header_words :].reshape(sizes.max_rows, sizes.num_words)
        masked: list[Any] = []
        num_new = 0
        for i in rows:
            client_id = client_ids[i]
            constraint = None if client_id is None else self._constraints.get(client_id)
            if client_id is None or constraint is None:
                continue  # it has ended for us, and is being cancelled
            slot = self._place(client_id, constraint, library_ids[i], token_ids[i][0], masks[num_new], len(masked))
            if slot is None:
                continue
            slots[len(masked)] = slot.number
            if slot.is_new:
                new_slots[num_new] = slot.number
                num_new += 1
            masked.append(logits[i])
        if masked:
            self._device.apply(masked, num_new, stream)

    def _place(
        self,
        client_id: int,
        constraint: Constraint,
        library_id: int,
        token_ids: Sequence[int],
        mask: Mask,
        unnamed_slot: int,
    ) -> Slot | None:
        """The slot of a row's mask, which is written to `mask` if it is new; None where all is allowed."""
        if constraint.failure is None:
            try:
                sequence = constraint.sequence(library_id)
                sequence.follow(token_ids, constraint.num_prompt)
                return self._write(constraint, sequence, mask, unnamed_slot)
            except Exception as error:
                if not isinstance(error, BritonError):
                    logger.exception("the guide of request %d failed", client_id)
                self._fail(client_id, constraint, library_id, error)
        return self._only_stops(constraint, mask)

    def _write(
        self, constraint: Constraint, sequence: ConstrainedSequence, mask: Mask, unnamed_slot: int
    ) -> Slot | None:
        guide, stops = sequence.guide, constraint.stop_token_ids
        held_off = stops if sequence.num_output < constraint.min_tokens else ()
        if guide is None:
            return self._all_but(held_off, mask) if held_off else None
        if not held_off and isinstance(guide, AutomatonGuide) and (row := guide.mask_row()) is not None:
            slot = self._slots.named((self._serial(guide.automaton), row))
            if slot.is_new:
                mask[:] = guide.automaton.rows[row]
            return slot
        guide.fill_bitmask(mask)
        if not mask.any():
            raise BritonError("the guide allows no token here: the output cannot be completed as asked")
        if held_off:  # the guide outranks min_tokens, as in the local executor
            rest = mask & ~pack_mask(held_off, self._sizes.num_words)
            if rest.any():
                mask[:] = rest
        return Slot(unnamed_slot, is_new=True)

    def _only_stops(self, constraint: Constraint, mask: Mask) -> Slot:
        """The end of a request that failed: its next token is a stop token, which nobody gets to see."""
        stops = constraint.stop_token_ids
        if not stops:  # then it is cancelled in its next step
            return self._all_but((), mask)
        return self._named(("only", stops), lambda: pack_mask(stops, self._sizes.num_words), mask)

    def _all_but(self, stops: tuple[int, ...], mask: Mask) -> Slot:
        def allowed() -> Mask:
            everything = np.full(self._sizes.num_words, -1, np.int32)
            if tail := self._vocab_size % 32:
                everything[-1] = (1 << tail) - 1
            return everything & ~pack_mask(stops, self._sizes.num_words)

        return self._named(("all but", stops), allowed, mask)

    def _named(self, name: Hashable, make: Callable[[], Mask], mask: Mask) -> Slot:
        slot = self._slots.named(name)
        if slot.is_new:
            mask[:] = make()
        return slot

    def _serial(self, automaton: Automaton) -> int:
        """A number that no other automaton ever has, unlike an id."""
        serial = self._automata.get(automaton)
        if serial is None:
            serial = self._automata[automaton] = next(self._serials)
        return serial

    def _fail(self, client_id: int, constraint: Constraint, library_id: int, error: Exception) -> None:
        if constraint.fail(error, constraint.num_sound(library_id)):
            self._failed.append(client_id)


def no_op(
    library_ids: Sequence[int],
    logits: Sequence[Any],
    token_ids: Sequence[Sequence[Sequence[int]]],
    stream: int,
    client_ids: Sequence[int | None],
) -> None:
    """The processor of ranks other than 0: tokens are sampled on rank 0, and sent to them."""
