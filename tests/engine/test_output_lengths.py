"""What is reserved for an output without a limit: enough for nine in ten, and always more than it has."""

from __future__ import annotations

import random

from briton.engine.output_lengths import OutputLengths


def test_a_guess_before_any_output_ended() -> None:
    assert OutputLengths().likely_end(0) == 256
    assert OutputLengths().mean == 256


def test_nine_in_ten_end_within_it() -> None:
    lengths, random_ = OutputLengths(), random.Random(3)
    for _ in range(1000):
        lengths.observe(int(random_.expovariate(1 / 200)))
    end = lengths.likely_end(0)
    assert 0.85 < sum(random_.expovariate(1 / 200) <= end for _ in range(5000)) / 5000 < 0.95


def test_an_output_that_goes_on_is_compared_with_those_that_did() -> None:
    lengths = OutputLengths()
    for _ in range(90):
        lengths.observe(10)
    for _ in range(10):
        lengths.observe(1000)
    assert lengths.likely_end(0) in (10, 256)
    assert lengths.likely_end(300) == 1000


def test_it_is_always_more_than_there_is() -> None:
    lengths = OutputLengths()
    for length in (5, 50, 500):
        lengths.observe(length)
    for length in range(0, 3000, 7):
        assert lengths.likely_end(length) > length


def test_what_is_long_ago_is_forgotten() -> None:
    lengths = OutputLengths()
    for _ in range(300):
        lengths.observe(2000)
    for _ in range(256):
        lengths.observe(20)
    assert lengths.likely_end(0) == 20
    assert lengths.mean == 20
