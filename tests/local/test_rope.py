"""Rotary tables: values that the papers and reference codes give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from briton.errors import Unsupported
from briton.local.models.rope import inverse_frequencies, rope_tables
from briton.model.engine_dir import ModelConfig

MODEL = ModelConfig("llama", 32, 8, 16, 1, 2, 1, 4, 64, 1e-5, 10000.0)


def test_plain_frequencies() -> None:
    assert inverse_frequencies(MODEL).tolist() == [1.0, 0.01]
    cos, sin = rope_tables(MODEL, 300)
    assert cos.shape == sin.shape == (300, 1, 1, 4)
    assert cos[299, 0, 0] == pytest.approx([np.cos(299), np.cos(2.99)] * 2, abs=1e-6)
    assert sin[299, 0, 0] == pytest.approx([np.sin(299), np.sin(2.99)] * 2, abs=1e-6)


def test_linear_and_factors() -> None:
    linear = replace(MODEL, rope_scaling={"rope_type": "linear", "factor": 4.0})
    assert inverse_frequencies(linear).tolist() == [0.25, 0.0025]
    factors = replace(MODEL, rope_scaling={"rope_type": "factors", "factors": [1.0, 8.0]})
    assert inverse_frequencies(factors).tolist() == [1.0, 0.00125]


def test_llama3_keeps_short_wavelengths_and_divides_long_ones() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = replace(MODEL, head_dim=128, rope_theta=500000.0, rope_scaling=scaling)
    plain = inverse_frequencies(replace(model, rope_scaling=None))
    scaled = inverse_frequencies(model)
    assert scaled[0] == plain[0]
    assert scaled[-1] == pytest.approx(plain[-1] / 8)
    assert np.all(np.diff(scaled) < 0)
    middle = (scaled < plain) & (scaled > plain / 8)
    assert middle.any()


def test_unknown_type_is_named() -> None:
    with pytest.raises(Unsupported, match="'yarn'"):
        inverse_frequencies(replace(MODEL, rope_scaling={"rope_type": "yarn"}))
