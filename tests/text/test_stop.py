"""Stop strings against a naive reading of the whole text, for every way of cutting it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from briton.errors import InvalidRequest
from briton.text.stop import StopMatcher

few_letters = st.text(alphabet="ab\n", max_size=30)
stops_strategy = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=6), max_size=5)


def oracle(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Read a character at a time; the first stop the text ends with is it, the longest of several."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


def longest_beginning(text: str, stops: list[str]) -> int:
    """How much of the end of `text` begins a stop."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)


@given(text=few_letters, stops=stops_strategy, cuts=st.lists(st.integers(0, 7)))
def test_every_cut_gives_what_the_whole_text_gives(text: str, stops: list[str], cuts: list[int]) -> None:
    expected_text, expected_stop = oracle(text, stops)
    matcher = StopMatcher(stops)
    sent, fed, matched = "", 0, None
    for size in [*cuts, *([1] * len(text))]:
        safe, matched = matcher.feed(text[fed : fed + size])
        fed = min(len(text), fed + size)
        sent += safe
        assert expected_text.startswith(sent)  # nothing of the stop is ever out
        if matched is not None:
            break
        assert sent == text[: fed - longest_beginning(text[:fed], stops)]  # and nothing is held back without need
    assert matched == expected_stop
    assert sent + matcher.flush() == expected_text


@given(text=few_letters, stops=stops_strategy)
def test_after_a_match_nothing_comes(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    _, matched = matcher.feed(text)
    if matched is not None:
        assert matcher.feed("more ab") == ("", matched)
        assert matcher.flush() == ""


def test_the_first_to_be_complete_wins() -> None:
    assert StopMatcher(["abcd", "bc"]).feed("xabcd") == ("xa", "bc")
    assert StopMatcher(["bc", "abc"]).feed("xabcd") == ("x", "abc")
    assert StopMatcher(["one", "two"]).feed("zero two one") == ("zero ", "two")


def test_a_stop_that_does_not_come_true_is_text() -> None:
    matcher = StopMatcher(["\nUser:"])
    assert matcher.feed("Hello\nUs") == ("Hello", None)
    assert matcher.feed("e") == ("", None)
    assert matcher.feed("d\n") == ("\nUsed", None)
    assert matcher.flush() == "\n"
    assert matcher.flush() == ""


def test_without_stops_everything_passes() -> None:
    assert StopMatcher([]).feed("text") == ("text", None)


def test_limits() -> None:
    with pytest.raises(InvalidRequest, match="stop has 1000 entries; the limit is 16") as caught:
        StopMatcher(["x"] * 1000)
    assert caught.value.field == "stop"
    with pytest.raises(InvalidRequest, match=r"stop\[1\] must be of 1 to 1000 characters, not 0") as caught:
        StopMatcher(["x", ""])
    assert caught.value.field == "stop[1]"
    with pytest.raises(InvalidRequest, match=r"sampling\.stop\[0\] must be of 1 to 1000 characters, not 1001"):
        StopMatcher(["x" * 1001], field="sampling.stop")


@pytest.mark.timing
def test_sixteen_long_stops_stay_fast() -> None:
    """The worst text for them: it nearly completes every one, again and again."""
    stops = ["a" * (999 - i) + chr(ord("b") + i) for i in range(16)]
    matcher = StopMatcher(stops)
    started = time.perf_counter()
    sent = "".join(matcher.feed("aaaa")[0] for _ in range(2_000))
    assert len(sent) == 8_000 - 999
    assert matcher.feed("q") == ("a" * 15, stops[15])
    assert (time.perf_counter() - started) / 2_000 < 1e-3  # seconds for each token of four characters
