"""What the gateway measures: once for each prompt, each sequence by itself, in buckets as wide as a request may be."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from briton.v1 import engine_pb2 as pb
from briton_server.metrics import Metrics
from tests.server.running import RunningGateway, run_gateway, settings_of
from tests.server.scripted_engine import ScriptedEngine, run_scripted_engine

NUM_STEPS, STEP_S = 6, 0.05


async def two_sequences(request: pb.GenerateRequest, context: Any) -> None:
    """A token a step for each of the n sequences, the second in responses of its own."""
    n = request.sampling.n or 1
    for step in range(NUM_STEPS):
        if step:
            await asyncio.sleep(STEP_S)
        for index in range(n):
            await context.write(pb.GenerateResponse(outputs=[pb.SequenceOutput(index=index, token_ids=[65])]))
    ends = [pb.SequenceOutput(index=index, finish_reason=pb.FINISH_REASON_LENGTH) for index in range(n)]
    usage = pb.Usage(prompt_tokens=1, completion_tokens=n * NUM_STEPS, queue_s=0.25, prefill_s=0.5, decode_s=1)
    await context.write(pb.GenerateResponse(outputs=ends, usage=usage))


async def samples(running: RunningGateway) -> dict[str, float]:
    """The gateway's samples without labels, by name."""
    text = (await running.http.get("/metrics")).text
    families = text_string_to_metric_families(text)
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("num_prompts", "n"), [(1, 1), (3, 1), (1, 3), (2, 2)])
async def test_several_prompts_and_sequences(tokenizer_dir: Path, stream: bool, num_prompts: int, n: int) -> None:
    """Gaps lay between the responses of different prompts once, of about 0 s, and there was one first token for all."""
    body = {"prompt": ["a"] * num_prompts, "n": n, "stream": stream}
    async with (
        run_scripted_engine(ScriptedEngine(two_sequences)) as address,
        run_gateway(settings_of(tokenizer_dir, address)) as running,
    ):
        await running.post("/v1/completions", body)
        told = await samples(running)
    assert told["briton_time_to_first_token_seconds_count"] == num_prompts
    assert told["briton_time_to_first_token_seconds_sum"] == num_prompts * 0.75, "queue and prefill, streamed or not"
    assert told["briton_queue_seconds_count"] == told["briton_prefill_seconds_count"] == num_prompts
    assert told["briton_completion_tokens_total"] == num_prompts * n * NUM_STEPS
    num_gaps = num_prompts * n * (NUM_STEPS - 1) if stream else 0
    assert told["briton_inter_token_seconds_count"] == num_gaps
    if stream:  # half a step of grace for a late reader at both ends
        assert told["briton_inter_token_seconds_sum"] > num_prompts * n * (NUM_STEPS - 2) * STEP_S


@pytest.mark.parametrize("timeout_s", [0.02, 45.0, 600.0, 7200.0])
def test_buckets_reach_the_request_timeout(timeout_s: float) -> None:
    families = text_string_to_metric_families(Metrics(timeout_s).exposition(None).decode())
    edges = {
        family.name: [float(s.labels["le"]) for s in family.samples if s.name.endswith("_bucket")]
        for family in families
        if family.type == "histogram"
    }
    assert len(edges) == 5
    for name, given in edges.items():
        assert given == sorted(set(given)), name
        assert given[-2:] == [timeout_s, float("inf")], name


def test_without_a_timeout_buckets_reach_an_hour() -> None:
    assert 'briton_time_to_first_token_seconds_bucket{le="3600.0"}' in Metrics().exposition(None).decode()
