"""What a compile worker answers is plain data: nothing in it is executed, and nothing is believed."""

from __future__ import annotations

import json
import pickle
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from briton.errors import InvalidRequest
from briton.guidance.automaton import Automaton, AutomatonArrays
from briton.guidance.compile_answer import DONE, INVALID, MalformedAnswer, decode_answer, encode_answer
from briton.guidance.compile_process import CompileProcess
from briton.guidance.limits import GuideLimits
from briton.guidance.regex_index import RegexIndexer
from briton.guidance.vocabulary import Vocabulary
from tests.guidance import vocabularies

_MODEL = vocabularies.byte_level()
VOCABULARY = Vocabulary(
    _MODEL.token_bytes, vocab_size=_MODEL.vocab_size, stop_token_ids=_MODEL.stop_token_ids, encode=_MODEL.encode
)
WORDS = VOCABULARY.num_words


@pytest.fixture(scope="module")
def arrays() -> AutomatonArrays:
    """The automaton of a small pattern."""
    return RegexIndexer(VOCABULARY.token_bytes, VOCABULARY.stop_token_ids, 1 << 24).compile("(ab)+c?")


def test_arrays_come_through_unchanged(arrays: AutomatonArrays) -> None:
    outcome, content = decode_answer(encode_answer(DONE, arrays), WORDS)
    assert outcome == DONE
    assert isinstance(content, AutomatonArrays)
    for ours, theirs in zip(content, arrays, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert Automaton(content, VOCABULARY).accepts == arrays.accepts


@pytest.mark.parametrize("answer", [(DONE, {"type": "object", "ü": [1.5, "\ud800"]}), (INVALID, "is\nwrong")])
def test_words_come_through_unchanged(answer: tuple[str, Any]) -> None:
    assert decode_answer(encode_answer(*answer), WORDS) == answer


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_nothing_is_unpickled(tmp_path: Path, protocol: int) -> None:
    with pytest.raises(MalformedAnswer):
        decode_answer(pickle.dumps((DONE, Touch(str(tmp_path / "touched"))), protocol), WORDS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b'{"outcome": "else"}',
        b'{"outcome": "done"}',
        b'{"outcome": "done", "content": "text"}',
        b'{"outcome": "invalid", "content": {}}',
        b'{"outcome": "done", "shapes": []}',
        b'{"outcome": "done", "shapes": [[1], [1], [1], [1], [1], [1], [1], [1]], "start": 0}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_answer(answer: bytes) -> None:
    with pytest.raises(MalformedAnswer):
        decode_answer(answer, WORDS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("next_state", 1_000_000),
        ("next_state", -1),
        ("row_of_state", 1_000_000),
        ("row_of_state", -1),
        ("forced_byte", 256),
        ("byte_class", 255),
    ],
)
def test_arrays_do_not_point_out_of_each_other(arrays: AutomatonArrays, name: str, value: int) -> None:
    given = getattr(arrays, name)
    changed = np.frombuffer(given, np.uint8).copy() if isinstance(given, bytes) else given.copy()
    changed.flat[-1] = value
    wrong = arrays._replace(**{name: changed.tobytes() if isinstance(given, bytes) else changed})
    with pytest.raises(MalformedAnswer, match=f"{name} points out of the automaton"):
        decode_answer(encode_answer(DONE, wrong), WORDS)


def test_sizes_fit_each_other(arrays: AutomatonArrays) -> None:
    for wrong in (
        arrays._replace(accepts=arrays.accepts[:-1]),
        arrays._replace(start=len(arrays.accepts)),
        arrays._replace(start=-1),
        arrays._replace(longest_token=arrays.longest_token[:-1]),
        arrays._replace(byte_class=arrays.byte_class[:-1]),
    ):
        with pytest.raises(MalformedAnswer, match="do not fit"):
            decode_answer(encode_answer(DONE, wrong), WORDS)
    with pytest.raises(MalformedAnswer, match="its masks do not fit"):
        decode_answer(encode_answer(DONE, arrays), WORDS + 1)
    with pytest.raises(MalformedAnswer, match="longest_token is cut short"):
        decode_answer(encode_answer(DONE, arrays)[:-1], WORDS)


@pytest.mark.parametrize("answer", [b"nonsense", json.dumps({"outcome": "done", "content": "x"}).encode()])
def test_a_malformed_answer_fails_its_request_alone(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    """And the child that sent it is not asked again."""
    process = CompileProcess("tables", VOCABULARY, GuideLimits())
    try:
        assert isinstance(process.compile("regex", "a", "guided_regex"), AutomatonArrays)
        first, connection = process.pid, process._connection
        assert connection is not None
        monkeypatch.setattr(connection, "recv_bytes", lambda maxlength: answer)
        with pytest.raises(InvalidRequest, match="guided_regex: the compiler failed on it"):
            process.compile("regex", "b", "guided_regex")
        assert isinstance(process.compile("regex", "c", "guided_regex"), AutomatonArrays)
        assert process.pid != first
    finally:
        process.close()


def test_an_answer_that_begins_and_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child is killed, as one that computes for too long is; the next text gets another."""
    process = CompileProcess("tables", VOCABULARY, GuideLimits(compile_timeout_s=0.5))
    try:
        assert isinstance(process.compile("regex", "a", "guided_regex"), AutomatonArrays)
        connection, child = process._connection, process._child
        assert connection is not None
        assert child is not None
        whole = Connection.recv_bytes

        def stuck(maxlength: int) -> bytes:
            answer = whole(connection, maxlength)
            return whole(connection, maxlength) or answer  # for which nobody has asked

        monkeypatch.setattr(connection, "recv_bytes", stuck)
        with pytest.raises(InvalidRequest, match="guided_regex: compiling"):
            process.compile("regex", "b", "guided_regex")
        assert child.returncode is not None
        assert isinstance(process.compile("regex", "c", "guided_regex"), AutomatonArrays)
    finally:
        process.close()
