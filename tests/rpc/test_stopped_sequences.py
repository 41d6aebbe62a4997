"""A sequence that a stop string has ended is not computed any further, whatever its siblings do."""

from __future__ import annotations

from pathlib import Path

from briton.engine.types import GenerationRequest
from briton.text.tokenizer import Tokenizer
from briton.v1 import engine_pb2 as pb
from tests.fake_engine import run_fake_engine, write_tokenizer
from tests.fake_executor import FakeExecutor


def script(request: GenerationRequest, index: int) -> list[int]:
    """Full stops every 8 tokens; the last sequence's comes after 200."""
    return list(b"abcdefg." * 40) if index < 7 else list(b"x" * 200 + b"." * 100)


async def test_a_stop_string_ends_its_sequence_alone(tmp_path: Path) -> None:
    """n = 8 with a stop string: 724 tokens were answered, and 2,400 computed."""
    executor = FakeExecutor(step_s=0.002, script=script)
    async with run_fake_engine(executor, tokenizer=Tokenizer.load(write_tokenizer(tmp_path))) as running:
        request = pb.GenerateRequest(
            text="hi", stop=["."], sampling=pb.SamplingParams(n=8, max_tokens=300), return_text=True
        )
        texts = [""] * 8
        usage = None
        async for response in running.stub.Generate(request):
            for output in response.outputs:
                texts[output.index] += output.text
            if response.HasField("usage"):
                usage = response.usage
        assert texts == ["abcdefg"] * 7 + ["x" * 200]
        assert usage is not None
        assert usage.completion_tokens == 7 * 8 + 201
        computed = executor.stats().num_output_tokens
        assert computed <= usage.completion_tokens + 8 * 10, f"{computed} tokens were computed"
        assert executor.open_requests() == []
