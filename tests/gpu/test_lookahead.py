"""Lookahead on the real library: several tokens a step, and an answer that a request without it gets, too."""

from __future__ import annotations

from briton.config.lookahead import LookaheadConfig
from briton.process.executors import create_executor
from briton.text.tokenizer import Tokenizer
from tests.gpu.conftest import MakeEngine
from tests.gpu.lookahead import speculator
from tests.request_runner import RequestRunner

SIZES, OFF = LookaheadConfig(7, 7, 7), LookaheadConfig(1, 1, 0)


def test_several_tokens_a_step(make_engine: MakeEngine) -> None:
    config, directory = make_engine({**speculator(SIZES), "trt_llm.build.max_batch_size": 8})
    executor, tokenizer = create_executor(config, directory), Tokenizer.load(directory)
    try:
        assert executor.info.lookahead == SIZES
        assert executor.info.max_draft_tokens == 83
        runner = RequestRunner(executor)
        prompt = tokenizer.encode("one two three four five six seven eight nine ten " * 8)
        plain = runner.run(prompt, max_tokens=64, lookahead=OFF)
        drafted = runner.run(prompt, max_tokens=64)
        chunks = [chunk for chunk in drafted.chunks if chunk.token_ids]
        assert len(chunks) < 64, "no step brought more than one token"
        assert drafted.tokens()[:16] == plain.tokens()[:16]  # later, 16 bits may tip a near tie
    finally:
        executor.shutdown()
