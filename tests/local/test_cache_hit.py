"""The same request twice, alone: the second time its prompt is found in the cache, and the answer is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.local.test_lookahead_smollm2 import OFF, load

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("quantization", ["no_quant", "weights_int8"])
def test_a_cache_hit_answers_as_a_miss_did(smollm2_gguf: Path, tmp_path: Path, quantization: str) -> None:
    """In bf16, with bf16 and with int8 weights, greedy and seeded: fewer tokens were computed by other kernels."""
    model = load(smollm2_gguf, tmp_path, "bf16", quantization)
    runner = model.start(OFF, dynamic=False)
    differing, found = [], 0
    for i, parts in enumerate(zip(*[iter(model.prompts(60))] * 6, strict=True)):
        prompt = [token for part in parts for token in part]  # some 40 to 120 tokens
        for sampling in ({"temperature": 0.0}, {"temperature": 1.0, "seed": i}):
            salt = f"{i} {sampling}"
            first = runner.run(prompt, max_tokens=24, cache_salt=salt, **sampling)
            second = runner.run(prompt, max_tokens=24, cache_salt=salt, **sampling)
            found += second.final.cached_tokens
            if first.tokens() != second.tokens():
                differing.append(salt)
    runner.executor.shutdown()
    assert found > 0
    assert differing == []
