"""How log lines look, and that lines of several threads stay whole."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections.abc import Iterator

import pytest

from briton.process.logs import ChildLines, LineWriter, configure_logging, is_routine
from briton.v1.current_request import current_request


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """Undo what `configure_logging` does to the root logger."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level


def test_text_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "text", process="engine")
    logging.getLogger("briton.engine").info("%d tokens", 3)
    logging.getLogger("briton.engine").debug("unseen")
    logging.getLogger("httpx").info("unseen")
    line = capsys.readouterr().err
    assert line.endswith(" INFO briton.engine: 3 tokens\n")
    assert line.count("\n") == 1


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_records_below_error_are_routine(capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    configure_logging("debug", log_format, process="engine")
    logger = logging.getLogger("briton.engine")
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logger.log(level, "INFO")
    lines = capsys.readouterr().err.splitlines()
    assert [is_routine(line) for line in lines] == [True, True, True, False]
    assert not is_routine("RuntimeError: INFO")


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug", "json", process="engine")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("briton.engine").exception("it broke")
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    entry = json.loads(line)
    assert entry["time"].endswith("Z")
    assert {name: entry[name] for name in ("level", "logger", "process", "message")} == {
        "level": "error",
        "logger": "briton.engine",
        "process": "engine",
        "message": "it broke",
    }
    assert "ValueError: two\nlines" in entry["traceback"]


@pytest.fixture
def request_id() -> Iterator[str]:
    """A request that this test works for."""
    token = current_request.set("abc\n1")
    yield "abc\n1"
    current_request.reset(token)


def test_lines_say_which_request_they_are_about(request_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    for log_format in ("text", "json"):
        configure_logging("info", log_format, process="engine")
        try:
            raise ValueError("it broke")
        except ValueError:
            logging.getLogger("briton.text").exception("the tokenizer failed")
    *text, line = capsys.readouterr().err.splitlines()
    assert text[0].endswith(" ERROR briton.text: the tokenizer failed (request 'abc\\n1')")
    assert text[-1] == "ValueError: it broke"
    assert json.loads(line)["request"] == request_id
    configure_logging("info", "text", process="engine")
    current_request.set("abc")
    logging.getLogger("briton.rpc").error("request %r failed", "abc")
    assert capsys.readouterr().err.endswith(" ERROR briton.rpc: request 'abc' failed\n")


def test_a_rank_is_told_where_there_are_several(capsys: pytest.CaptureFixture[str]) -> None:
    for log_format in ("text", "json"):
        configure_logging("info", log_format, process="engine", rank=1)
        logging.getLogger("briton.engine").info("ready")
    text, line = capsys.readouterr().err.splitlines()
    assert text.endswith(" INFO briton.engine: rank 1: ready")
    assert is_routine(text)
    assert json.loads(line)["process"] == "engine rank 1"
    assert json.loads(line)["message"] == "ready"


def test_lines_of_a_child_as_text_and_as_json() -> None:
    stream = io.StringIO()
    writer = LineWriter(stream)
    ChildLines(writer, "engine", "text")("hello")
    ChildLines(writer, "gateway", "text")("")
    ChildLines(writer, "gateway", "json")('{"message": "whole"}')
    ChildLines(writer, "gateway", "json")("from a library")
    ChildLines(writer, "gateway", "json")("")
    lines = stream.getvalue().splitlines()
    assert lines[:3] == ["engine  | hello", "gateway | ", '{"message": "whole"}']
    assert json.loads(lines[3])["message"] == "from a library"
    assert json.loads(lines[3])["process"] == "gateway"
    assert len(lines) == 4


def test_lines_of_several_threads_stay_whole() -> None:
    stream = io.StringIO()
    writer = LineWriter(stream)
    threads = [
        threading.Thread(target=lambda lines: [*map(writer.write_line, lines)], args=([letter * 500] * 200,))
        for letter in "abcd"
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    lines = stream.getvalue().splitlines()
    assert sorted(lines) == sorted(letter * 500 for letter in "abcd" for _ in range(200))


def test_a_closed_stream_does_not_end_the_writer() -> None:
    stream = io.StringIO()
    writer = LineWriter(stream)
    stream.close()
    writer.write_line("lost")
