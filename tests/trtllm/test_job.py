"""`briton engine` with several ranks of TensorRT-LLM, which is a stand-in: how they start, serve and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from briton.v1 import engine_pb2 as pb
from briton.v1 import engine_pb2_grpc as pb_grpc
from tests.fake_engine import write_tokenizer
from tests.processes import free_port, is_running, wait_until
from tests.trtllm.engines import config_of, write_engine
from tests.trtllm.job_program import MODULE

ROOT = Path(__file__).parents[2]
PROMPT = pb.TokenIds(ids=[1, 2, 3])


class Job:
    """A running job of two ranks, one for each stage of a pipeline: a number of ranks that tensor parallelism does
    not tell."""

    def __init__(self, directory: Path) -> None:
        engine_dir = directory / "engine"
        write_tokenizer(engine_dir)
        write_engine(engine_dir, pipeline_parallel_size=2)
        config = config_of(directory, pipeline_parallel_count=2)
        port = free_port()
        self.log = directory / "log"
        command = [sys.executable, "-m", MODULE, "engine", "--config", str(config.path)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--engine-dir", str(engine_dir), "--port", str(port)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT))},
            )
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=(("grpc.max_reconnect_backoff_ms", 100),))
        self.stub = pb_grpc.EngineStub(self.channel)
        wait_until(self._is_serving, timeout_s=60)

    def _is_serving(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            answer = health_pb2_grpc.HealthStub(self.channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def ranks(self) -> dict[int, int]:
        """Process ids of the ranks, as the engine tells them."""
        return {rank.rank: rank.pid for rank in self.stub.GetStats(pb.GetStatsRequest()).ranks}

    def tokens(self, max_tokens: int) -> list[int]:
        """What a request gets."""
        sampling = pb.SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        request = pb.GenerateRequest(model="tiny", token_ids=PROMPT, sampling=sampling)
        return [t for response in self.stub.Generate(request) for o in response.outputs for t in o.token_ids]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    job = Job(tmp_path)
    yield job
    job.process.kill()
    job.process.wait()


def test_ranks_serve_and_end_together(job: Job) -> None:
    info = job.stub.GetModelInfo(pb.GetModelInfoRequest())
    assert (info.executor, info.tensor_parallel_size) == ("trtllm", 1)
    assert len(job.tokens(5)) == 5
    wait_until(lambda: len(job.ranks()) == 2)
    pids = job.ranks()
    assert all(is_running(pid) for pid in pids.values())
    job.process.send_signal(signal.SIGTERM)
    assert job.process.wait(30) == 0, job.log.read_text()
    assert not any(is_running(pid) for pid in pids.values())


def test_a_rank_that_dies_ends_the_job(job: Job) -> None:
    wait_until(lambda: len(job.ranks()) == 2)
    pids = job.ranks()
    os.kill(pids[1], signal.SIGKILL)
    assert job.process.wait(30) == 1
    assert "rank 1 on" in job.log.read_text()
    assert not is_running(pids[0])
