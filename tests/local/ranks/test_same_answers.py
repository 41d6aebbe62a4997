"""One, two, three and four ranks give the same greedy answers in float32, and logits within 1e-4 of their size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from briton.config.environment import Environment
from briton_engine_builder import build_engine
from tests.conftest import TinyLlama
from tests.engine_builder.engines import config_for
from tests.local.ranks.mpi import run_ranks

pytestmark = pytest.mark.slow

SHAPES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "divisible": ((2, 4), {"num_attention_heads": 8, "num_key_value_heads": 4}),
    "replicated": ((2, 3), {"num_attention_heads": 6, "num_key_value_heads": 1}),
    "uneven": ((2, 3), {"num_attention_heads": 15, "num_key_value_heads": 5, "head_dim": 16}),
    "uneven-replicated": ((3, 4), {"num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 509}),
    "tied-biased": ((2,), {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
}


def answers(checkpoint: Path, folder: Path, size: int, num_prompts: int, max_tokens: int) -> dict[str, Any]:
    """Tokens and logits of the checkpoint on so many ranks."""
    config = config_for(checkpoint, folder, precision="f32", tensor_parallel_count=size)
    directory = build_engine(config, Environment(cache_dir=folder / "cache"), progress=False)
    out = folder / f"{size}.npz"
    run_ranks(size, "tests.local.ranks.answers", str(directory), str(out), str(num_prompts), str(max_tokens))
    with np.load(out) as arrays:
        return dict(arrays)


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    np.testing.assert_array_equal(found["tokens"], expected["tokens"])
    assert found["logits"].shape == expected["logits"].shape
    error = np.abs(found["logits"] - expected["logits"]).max(axis=1) / np.abs(expected["logits"]).max(axis=1)
    assert error.max() <= 1e-4


@pytest.mark.parametrize(("sizes", "shape"), SHAPES.values(), ids=SHAPES)
def test_tiny_models(tiny_llama: TinyLlama, tmp_path: Path, sizes: tuple[int, ...], shape: dict[str, Any]) -> None:
    checkpoint = tiny_llama(tmp_path, dtype="f32", **shape)
    expected = answers(checkpoint, tmp_path, 1, 100, 8)
    for size in sizes:
        assert_same(answers(checkpoint, tmp_path, size, 100, 8), expected)


def test_smollm2(smollm2_gguf: Path, tmp_path: Path) -> None:
    """Nine heads in three groups: two ranks get two groups and one."""
    expected = answers(smollm2_gguf, tmp_path, 1, 100, 6)
    for size in (2, 3):
        assert_same(answers(smollm2_gguf, tmp_path, size, 100, 6), expected)
