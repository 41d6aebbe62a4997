"""The logits processor: which tokens it forbids, what crosses to the device, and who fails with whom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from briton.engine.types import GenerationRequest, SamplingParams
from briton.errors import BritonError
from briton.guidance.automaton import Automaton, AutomatonGuide
from briton.guidance.guide import Guide
from briton.guidance.regex_index import RegexIndexer
from briton.guidance.vocabulary import Vocabulary
from briton.trtllm.constraint import Constraint
from briton.trtllm.logits import LogitsProcessor
from briton.trtllm.mask_device import MaskSizes
from briton.trtllm.mask_slots import MaskSlots
from tests.scripted_guide import ScriptedGuide
from tests.trtllm.numpy_mask_device import NumpyMaskDevice

VOCAB, PADDED = 90, 96
STOPS = (80, 81)
PROMPT = (1, 2, 3)
STREAM = 4096


class Rig:
    """A processor, and the calls that the library would make."""

    def __init__(self, max_rows: int = 4, num_slots: int = 32) -> None:
        sizes = MaskSizes(num_words=3, num_slots=num_slots, max_rows=max_rows)
        self.device = NumpyMaskDevice(sizes)
        self.processor = LogitsProcessor(self.device, sizes, VOCAB)

    def add(self, request_id: int, guide: Guide | None = None, **sampling: Any) -> Constraint:
        """Register a request."""
        request = GenerationRequest(request_id, PROMPT, SamplingParams(**sampling), guide)
        constraint = Constraint(request, STOPS)
        self.processor.add(request_id, constraint)
        return constraint

    def step(self, *rows: tuple[int, int | None, Sequence[int]]) -> list[list[int]]:
        """One call. A row is (the library's id, ours, the output so far); what each allows."""
        logits = [np.zeros((1, 1, PADDED), np.float32) for _ in rows]
        self.processor(
            [row[0] for row in rows],
            logits,
            [[[*PROMPT, *row[2]]] for row in rows],
            STREAM,
            [row[1] for row in rows],
        )
        return [_allowed(tensor) for tensor in logits]


def _allowed(logits: NDArray[np.float32]) -> list[int]:
    assert np.all((logits == 0) | (logits == -math.inf))
    return [int(i) for i in np.flatnonzero(logits.reshape(-1) == 0)]


def _guide(*steps: set[int]) -> ScriptedGuide:
    return ScriptedGuide(steps, STOPS)


def test_a_guide_is_followed_to_its_end() -> None:
    rig = Rig()
    rig.add(7, _guide({10, 11}, {20, 89}))
    assert rig.step((1, 7, ())) == [[10, 11]]
    assert rig.step((1, 7, (11,))) == [[20, 89]]
    assert rig.step((1, 7, (11, 89))) == [list(STOPS)]
    assert rig.device.streams == {STREAM}


def test_the_same_context_again_changes_nothing() -> None:
    """Every chunk of a context calls the processor, with the same tokens."""
    rig = Rig()
    rig.add(7, _guide({10}, {20}, {30}))
    for _ in range(3):
        assert rig.step((1, 7, ())) == [[10]]
    for _ in range(2):
        assert rig.step((1, 7, (10, 20))) == [[30]]


def test_a_shorter_output_takes_the_guide_back() -> None:
    rig = Rig()
    rig.add(7, _guide({10}, {20}, {30}))
    rig.step((1, 7, (10, 20)))
    assert rig.step((1, 7, (10,))) == [[20]]
    assert rig.step((1, 7, (10, 20))) == [[30]]


def test_sequences_of_one_request_go_their_own_ways() -> None:
    rig = Rig()
    rig.add(7, _guide({10, 11}, {20}), n=2)
    assert rig.step((1, 7, ()), (2, 7, ())) == [[10, 11], [10, 11]]
    assert rig.step((1, 7, (10,)), (2, 7, (11, 20))) == [[20], list(STOPS)]


def test_requests_that_are_not_ours_stay_as_they_are() -> None:
    rig = Rig()
    rig.add(7, _guide({10}))
    everything = list(range(PADDED))
    assert rig.step((1, None, ()), (2, 9, ()), (3, 7, ())) == [everything, everything, [10]]
    rig.processor.drop(7)
    rig.processor.drop(7)
    assert rig.step((3, 7, ())) == [everything]


def test_more_rows_than_one_buffer_holds() -> None:
    rig = Rig(max_rows=2)
    for request_id in range(5):
        rig.add(request_id, _guide({request_id + 10}))
    rows = [(request_id + 1, request_id, ()) for request_id in range(5)]
    assert rig.step(*rows) == [[request_id + 10] for request_id in range(5)]


# min_tokens.


def test_stop_ids_are_held_off() -> None:
    rig = Rig()
    rig.add(7, min_tokens=2, max_tokens=5)
    assert rig.step((1, 7, ())) == [[i for i in range(VOCAB) if i not in STOPS]]
    assert rig.step((1, 7, (5,))) == [[i for i in range(VOCAB) if i not in STOPS]]
    assert rig.step((1, 7, (5, 6))) == [list(range(PADDED))]
    assert rig.device.num_sent == 1  # the same mask, once
    assert rig.device.num_masked == 2


def test_a_guide_outranks_min_tokens() -> None:
    rig = Rig()
    rig.add(7, _guide({10, 80}, {20}), min_tokens=5, max_tokens=9)
    assert rig.step((1, 7, ())) == [[10]]
    assert rig.step((1, 7, (10, 20))) == [list(STOPS)]


# What crosses.


def _automaton(pattern: str) -> Automaton:
    """Over a vocabulary in which token i is the character i."""
    tokens = [bytes([i]) if i >= 32 else None for i in range(VOCAB)]
    vocabulary = Vocabulary(tokens, vocab_size=VOCAB, stop_token_ids=STOPS, encode=lambda text: list(text.encode()))
    return Automaton(RegexIndexer(vocabulary.token_bytes, STOPS, max_bytes=1 << 24).compile(pattern), vocabulary)


@pytest.fixture(scope="module")
def automaton() -> Automaton:
    return _automaton("[AB]*C")


def test_a_regexs_masks_are_sent_once(automaton: Automaton) -> None:
    rig = Rig()
    a, b, c = b"ABC"
    for request_id in range(3):
        rig.add(request_id, AutomatonGuide(automaton))
    sent = []
    for output in ((), (a,), (a, b), (a, b, a)):
        allowed = rig.step(*[(i + 1, i, output) for i in range(3)])
        assert allowed == [[a, b, c]] * 3
        sent.append(rig.device.num_sent)
    assert sent[0] == sent[-1] == 1
    assert rig.step((1, 0, (a, b, a, c))) == [list(STOPS)]


def test_a_forced_token_is_a_mask_of_its_own() -> None:
    rig = Rig()
    rig.add(7, AutomatonGuide(_automaton("AB(C|D)")))
    assert rig.step((1, 7, ())) == [[ord("A")]]
    assert rig.step((1, 7, b"A")) == [[ord("B")]]
    assert rig.step((1, 7, b"AB")) == [[ord("C"), ord("D")]]


def test_a_mask_that_others_pushed_out_is_sent_again(automaton: Automaton) -> None:
    rig = Rig(max_rows=2, num_slots=4)  # two masks are kept
    rig.add(7, AutomatonGuide(automaton))
    rig.step((1, 7, ()))
    for request_id, stop in ((8, 70), (9, 71)):
        request = GenerationRequest(request_id, PROMPT, SamplingParams(min_tokens=1))
        rig.processor.add(request_id, Constraint(request, (stop,)))
        (allowed,) = rig.step((request_id, request_id, ()))
        assert allowed == [i for i in range(VOCAB) if i != stop]
    before = rig.device.num_sent
    assert rig.step((1, 7, ())) == [list(b"ABC")]
    assert rig.device.num_sent == before + 1


def test_slots_never_push_out_their_own_step() -> None:
    with pytest.raises(ValueError, match="7 slots are too few for 4 rows: at least 8 are needed"):
        MaskSlots(7, 4)
    slots = MaskSlots(8, 4)
    numbers = [slots.named(name).number for name in "abcd"]
    assert sorted(numbers) == [4, 5, 6, 7]
    assert not slots.named("a").is_new
    assert slots.named("e") == (numbers[1], True)  # b was used longest ago


# Failures.


def test_a_guide_without_a_way_on_ends_alone() -> None:
    rig = Rig()
    stuck, fine = rig.add(7, _guide({10}, set())), rig.add(8, _guide({10}, {20}))
    rig.step((1, 7, ()), (2, 8, ()))
    assert rig.step((1, 7, (10,)), (2, 8, (10,))) == [list(STOPS), [20]]
    assert stuck.failure is not None
    assert isinstance(stuck.failure.error, BritonError)
    assert stuck.failure.num_tokens == 1
    assert fine.failure is None
    assert rig.processor.take_failed() == [7]
    assert rig.processor.take_failed() == []
    assert rig.step((1, 7, (10, 80))) == [list(STOPS)]  # until it is gone


def test_a_token_that_the_guide_refuses_ends_its_request() -> None:
    rig = Rig()
    constraint = rig.add(7, _guide({10}, {20}))
    rig.step((1, 7, ()))
    assert rig.step((1, 7, (55,))) == [list(STOPS)]
    assert constraint.failure is not None
    assert constraint.failure.num_tokens == 0
    assert "refused tokens [55]" in str(constraint.failure.error)


class _Broken(ScriptedGuide):
    """Raises at its second mask."""

    def fill_bitmask(self, row: NDArray[np.int32]) -> None:
        if self._position == 1:
            raise OSError("the guide is broken")
        super().fill_bitmask(row)


def test_a_guide_that_raises_ends_its_request_alone() -> None:
    rig = Rig()
    broken, fine = rig.add(7, _Broken([{10}, {20}], STOPS)), rig.add(8, _guide({10}, {20}))
    rig.step((1, 7, ()), (2, 8, ()))
    assert rig.step((1, 7, (10,)), (2, 8, (10,))) == [list(STOPS), [20]]
    assert broken.failure is not None
    assert isinstance(broken.failure.error, OSError)
    assert fine.failure is None


def test_a_device_that_raises_ends_the_steps_masked_requests_and_no_exception_leaves(automaton: Automaton) -> None:
    rig = Rig()
    constraints = [rig.add(7, AutomatonGuide(automaton)), rig.add(8, _guide({10}))]
    rig.device.raises = RuntimeError("CUDA error")
    everything = list(range(PADDED))
    assert rig.step((1, 7, ()), (2, 8, ()), (3, None, ())) == [everything] * 3
    for constraint in constraints:
        assert constraint.failure is not None
        assert constraint.failure.num_tokens == 0
        assert "CUDA error" in str(constraint.failure.error)
    assert sorted(rig.processor.take_failed()) == [7, 8]
    rig.device.raises = None
    rig.add(9, AutomatonGuide(automaton))
    assert rig.step((4, 9, ())) == [list(b"ABC")]  # sent again: the first time it may not have arrived


def test_arguments_that_nobody_foresaw_raise_nothing() -> None:
    rig = Rig()
    constraint = rig.add(7, _guide({10}))
    rig.processor([1], [], [], STREAM, [7])
    assert constraint.failure is not None
    assert rig.processor.seconds > 0
