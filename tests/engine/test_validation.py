"""What is refused, and in which words. What every executor refuses is in `tests/conformance.py`."""

from __future__ import annotations

import math
from typing import Any

import pytest

from briton.engine.types import GenerationRequest, SamplingParams
from briton.engine.validation import check_request, check_sampling
from briton.errors import InvalidRequest
from tests.local.paged_model import model_info

INFO = model_info(max_seq_len=64)


def sampling(field: str, value: Any) -> SamplingParams:
    """Parameters with one field as a caller gave it."""
    given: dict[str, Any] = {field: value}
    return SamplingParams(**given)


@pytest.mark.parametrize("field", ["n", "seed", "logprobs", "temperature"])
def test_integers_beyond_every_float(field: str) -> None:
    """They raised OverflowError instead of InvalidRequest."""
    with pytest.raises(InvalidRequest, match=f"{field} must be between") as caught:
        check_sampling(sampling(field, 10**400), INFO)
    assert caught.value.field == field


def test_any_max_tokens_is_cut_to_the_context() -> None:
    request = check_request(GenerationRequest(0, (1,) * 60, SamplingParams(max_tokens=10**400)), INFO)
    assert request.sampling.max_tokens == 4


def test_limits_are_written_out() -> None:
    """A seed of 2**64 was told that it must be between -9.22337e+18 and 1.84467e+19, not 1.84467e+19."""
    with pytest.raises(InvalidRequest, match=f"between {-(2**63)} and {2**64 - 1}, not {2**64}"):
        check_sampling(SamplingParams(seed=2**64), INFO)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty"])
def test_no_number_is_refused(field: str, value: float) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_sampling(sampling(field, value), INFO)
    assert caught.value.field == field
