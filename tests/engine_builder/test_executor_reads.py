"""What the builder writes means the same to the local executor: logits of carried blocks against plain floats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from briton.config.environment import Environment
from briton.local.model_runner import ModelRunner
from briton.local.plan import StepInputs
from briton.local.settings import BLOCK_SIZE, LocalSettings
from briton.model.engine_dir import load_manifest
from briton_engine_builder import build_engine
from tests.engine_builder.engines import config_for
from tests.engine_builder.tiny_gguf import write_tiny_gguf

TOKENS = np.random.default_rng(7).integers(0, 512, 24)


def logits(path: Path, quantization: str, folder: Path) -> NDArray[np.float32]:
    """[tokens, vocabulary] of the engine built from a file, with activations and cache in float32."""
    folder.mkdir()
    config = config_for(path, folder, quantization, precision="f32")
    directory = build_engine(config, Environment(cache_dir=folder / "cache"), progress=False)
    settings = LocalSettings(
        max_batch_size=1, max_num_tokens=64, max_queue_size=1, threads=2, precision="f32", kv_cache_tokens=64
    )
    runner = ModelRunner(directory, load_manifest(directory), settings)
    count = len(TOKENS)
    inputs = StepInputs(
        token_ids=TOKENS.astype(np.int64),
        position_ids=np.arange(count, dtype=np.int64),
        past_lens=np.zeros(1, np.int32),
        subsequence_begins=np.array([0, count], np.int32),
        block_indices=np.arange(-(-count // BLOCK_SIZE), dtype=np.int32),
        block_indices_begins=np.array([0, -(-count // BLOCK_SIZE)], np.int32),
        max_context_len=count,
        sampled_rows=np.arange(count, dtype=np.int64),
        qq_bias=np.zeros(0, np.uint8),
        qq_bias_begins=np.zeros(2, np.int32),
    )
    return np.array(runner.forward(inputs))


@pytest.mark.parametrize(
    ("types", "quantization", "tolerance"),
    [
        ({"": Type.Q4_1}, "weights_int4", 0.01),
        ({"": Type.Q4_1, "attn_k": Type.Q4_0}, "weights_int4", 0.01),
        # these products also round the activations to 8 bits, in groups of 32: measured 0.027 at most
        ({"": Type.Q4_0}, "weights_int4", 0.05),
        ({"": Type.Q8_0}, "weights_int8", 0.05),
        ({"ffn": Type.Q4_1, "attn": Type.Q8_0, "token_embd": Type.Q8_0, "output.": Type.Q8_0}, "fp4_mlp_only", 0.05),
    ],
)
def test_carried_blocks(tmp_path: Path, types: dict[str, Any], quantization: str, tolerance: float) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path, types, constant_blocks=True)
    carried, plain = (logits(path, kind, tmp_path / kind) for kind in (quantization, "no_quant"))
    assert np.sqrt(np.mean((carried - plain) ** 2) / np.mean(plain**2)) < tolerance
