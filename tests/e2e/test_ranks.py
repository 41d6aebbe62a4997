"""`briton serve` with two ranks: it serves as one rank does, and whatever happens to a rank, nobody waits in vain."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import yaml

from briton.process.probes import engine_is_serving
from briton.ranks.mpiexec import find_mpiexec
from briton.v1 import engine_pb2 as pb
from briton.v1 import engine_pb2_grpc as pb_grpc
from tests.conftest import TinyLlama
from tests.e2e.serving import Serving
from tests.processes import free_port, is_running, wait_until

pytestmark = pytest.mark.slow

FAULTS = Path(__file__).parent / "rank_faults"
NUM_REQUESTS = 3
DETECTION_S = 3.0
ENDLESS_S = (
    6.0  # how long a rank may compute by itself follows the longest that one ever took (`failure_rules.PATIENCE`)
)
KV_TOKENS = 32_768
KV_BYTES_A_TOKEN = 2 * 4 * 64 * 4 * 2  # layers, key/value heads, head size, bytes; keys and values


@pytest.fixture(scope="module")
def config(tiny_llama: TinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks of a tiny Llama with a long context, in float32."""
    folder = tmp_path_factory.mktemp("ranks")
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64}
    checkpoint = tiny_llama(folder, dtype="f32", max_position_embeddings=8192, **heads)
    content = {
        "model_name": "tiny",
        "trt_llm": {
            "build": {
                "checkpoint_repository": {"source": "LOCAL", "repo": str(checkpoint)},
                "tensor_parallel_count": 2,
                "max_batch_size": 8,
            }
        },
        "briton": {"cache_dir": str(folder / "cache"), "local": {"precision": "f32", "kv_cache_tokens": KV_TOKENS}},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What breaks next in rank 1 is written there."""
    return tmp_path_factory.mktemp("order") / "fault"


@pytest.fixture(scope="module")
def ranks(config: Path, order: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Served, and obedient to `order`."""
    with pytest.MonkeyPatch.context() as patch:
        obey(patch, order)
        serving = Serving(config, tmp_path_factory.mktemp("serving"))
    try:
        serving.wait_until_ready()
        yield serving
    finally:
        serving.end()


def obey(patch: pytest.MonkeyPatch, order: Path) -> None:
    """Let the ranks of what is started now do as the file says."""
    patch.setenv("PYTHONPATH", os.pathsep.join([str(FAULTS), *filter(None, [os.environ.get("PYTHONPATH")])]))
    patch.setenv("BRITON_TEST_FAULT", str(order))


def pids(serving: Serving) -> dict[int, int]:
    """Of both ranks."""

    def told() -> dict[int, int]:
        try:
            stats = serving.stats()
        except grpc.RpcError:  # it is being started again
            return {}
        return {rank.rank: rank.pid for rank in stats.ranks if rank.pss_bytes > rank.base_pss_bytes > 0}

    wait_until(lambda: len(told()) == 2, timeout_s=60)
    return told()


def generate(channel: grpc.Channel, prompt: list[int], max_tokens: int) -> list[int]:
    """Greedy tokens, past any end token."""
    request = pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=prompt),
        sampling=pb.SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True),
    )
    responses = pb_grpc.EngineStub(channel).Generate(request, timeout=60)
    return [token for response in responses for output in response.outputs for token in output.token_ids]


def test_each_rank_holds_half_of_weights_and_cache(ranks: Serving) -> None:
    """Measured as the growth of its proportional set size while the cache fills."""
    pids(ranks)
    before = ranks.stats()
    files = [rank.weights_bytes for rank in before.ranks]
    assert 0.4 < files[1] / sum(files) < 0.6
    assert all(rank.kv_cache_bytes >= KV_TOKENS * KV_BYTES_A_TOKEN / 2 for rank in before.ranks)
    generator = np.random.default_rng(0)
    prompts = generator.integers(3, 500, (7, 4000)).tolist()
    with ranks.channel() as channel:
        for prompt in prompts:
            generate(channel, prompt, 1)
    written = sum(map(len, prompts)) * KV_BYTES_A_TOKEN

    def grown() -> list[float]:
        now = ranks.stats()
        return [(b.pss_bytes - a.pss_bytes) / written for a, b in zip(before.ranks, now.ranks, strict=True)]

    wait_until(lambda: all(0.45 < share < 0.75 for share in grown()), timeout_s=15)


FaultMaker = Callable[[dict[int, int], Path], None]


def signalled(rank: int, signum: signal.Signals) -> FaultMaker:
    return lambda pids, order: os.kill(pids[rank], signum)


def ordered(fault: str) -> FaultMaker:
    def make(pids: dict[int, int], order: Path) -> None:
        (order.parent / "new").write_text(fault)
        (order.parent / "new").rename(order)

    return make


CASES: dict[str, tuple[FaultMaker, str]] = {
    "killed": (signalled(1, signal.SIGKILL), "rank 1 on .* is gone"),
    "stopped": (signalled(1, signal.SIGSTOP), "rank 1 on .* has not been heard of"),
    "raises": (ordered("raise"), "rank 1 on .*: .*layer 1 is broken"),
    "stuck": (ordered("lost"), "a collective never completed"),
    "endless": (ordered("compute"), "rank 1 on .* has computed for"),
    "out of memory": (ordered("memory"), "rank 1 on .*: .*(Unable to allocate|alloc)"),
}


@pytest.mark.parametrize(("fault", "message"), CASES.values(), ids=CASES)
def test_what_happens_to_a_rank_ends_the_job_and_starts_it_again(
    ranks: Serving, order: Path, fault: FaultMaker, message: str
) -> None:
    """Every open request ends with UNAVAILABLE and the reason, all ranks go, and the same requests then succeed."""
    before = pids(ranks)
    with ranks.channel() as channel:
        expected = generate(channel, [5, 6, 7], 8)
    ends: list[tuple[float, grpc.RpcError | None]] = []

    def request(number: int) -> None:
        try:
            with ranks.channel() as channel:
                generate(channel, [number, 6, 7], 8000)
            ends.append((time.monotonic(), None))
        except grpc.RpcError as error:
            ends.append((time.monotonic(), error))

    threads = [threading.Thread(target=request, args=(number,)) for number in range(3, 3 + NUM_REQUESTS)]
    for thread in threads:
        thread.start()
    wait_until(lambda: ranks.stats().num_running == NUM_REQUESTS)
    started = time.monotonic()
    fault(before, order)
    for thread in threads:
        thread.join()
    for at, error in ends:
        assert error is not None, "the request was answered"
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert at - started < (ENDLESS_S if "has computed" in message else DETECTION_S)
        assert re.search(message, str(error.details())), error.details()
    assert not engine_is_serving(f"127.0.0.1:{ranks.grpc_port}")
    wait_until(lambda: not any(is_running(pid) for pid in before.values()), timeout_s=5)
    wait_until(lambda: engine_is_serving(f"127.0.0.1:{ranks.grpc_port}"), timeout_s=60)
    with ranks.channel() as channel:
        assert generate(channel, [5, 6, 7], 8) == expected
    assert set(pids(ranks).values()).isdisjoint(before.values())


def test_rank_0_stopped(ranks: Serving) -> None:
    """It can tell nobody anything: the job ends it, and with it its connections."""
    before = pids(ranks)
    ends: list[tuple[float, grpc.StatusCode]] = []

    def request() -> None:
        with ranks.channel() as channel, pytest.raises(grpc.RpcError) as caught:
            generate(channel, [3, 6, 7], 8000)
        ends.append((time.monotonic(), caught.value.code()))

    thread = threading.Thread(target=request)
    thread.start()
    wait_until(lambda: ranks.stats().num_running == 1)
    started = time.monotonic()
    os.kill(before[0], signal.SIGSTOP)
    thread.join()
    ((ended, code),) = ends
    assert code is grpc.StatusCode.UNAVAILABLE
    assert ended - started < DETECTION_S
    wait_until(lambda: not any(is_running(pid) for pid in before.values()), timeout_s=5)


def test_a_rank_that_cannot_load_says_why(config: Path, tmp_path: Path) -> None:
    order = tmp_path / "fault"
    order.write_text("load")
    with pytest.MonkeyPatch.context() as patch:
        obey(patch, order)
        serving = Serving(config, tmp_path)
    try:
        assert serving.process.wait(timeout=60) == 1
        assert re.search("briton: error: the engine did not start: .*rank 1 on .*no room for layer 1", serving.log)
    finally:
        serving.end()


@pytest.mark.parametrize("size", [1, 3])
def test_another_number_of_ranks_is_refused(config: Path, size: int) -> None:
    program = (sys.executable, "-m", "briton", "engine", "--config", str(config), "--port", "0")
    command = find_mpiexec().command(program, size)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode != 0, done.stderr
    assert f"briton: error: {size} ranks were started; the config asks for 2" in done.stderr


def test_mpiexec_called_by_somebody_else(config: Path, tmp_path: Path) -> None:
    """As under Slurm or the MPI operator: the ranks find each other, serve, drain on rank 0's SIGTERM, and die
    together."""
    port = free_port()
    program = (sys.executable, "-m", "briton", "engine", "--config", str(config), "--port", str(port))
    command = find_mpiexec().command(program, 2)

    def start() -> subprocess.Popen[bytes]:
        with (tmp_path / "log").open("a") as log:
            job = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(lambda: engine_is_serving(f"127.0.0.1:{port}"), timeout_s=60)
        return job

    def pids() -> list[int]:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stats = pb_grpc.EngineStub(channel).GetStats(pb.GetStatsRequest(), timeout=5)
        return [rank.pid for rank in stats.ranks]

    job = start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert len(generate(channel, [5, 6, 7], 8)) == 8
        wait_until(lambda: len(pids()) == 2)
        os.kill(pids()[0], signal.SIGTERM)
        assert job.wait(timeout=30) == 0
        job = start()
        wait_until(lambda: len(pids()) == 2)
        ranks = pids()
        os.kill(ranks[1], signal.SIGKILL)
        wait_until(lambda: not any(is_running(pid) for pid in ranks), timeout_s=5)
        assert job.wait(timeout=30) != 0
    finally:
        job.kill()
        job.wait()


def test_drained_at_the_end(config: Path, tmp_path: Path) -> None:
    """SIGTERM in mid-request: the answer is finished, everybody leaves, exit code 0."""
    serving = Serving(config, tmp_path)
    try:
        serving.wait_until_ready()
        ranks = pids(serving)
        with serving.channel() as channel:
            answer: list[int] = []
            thread = threading.Thread(target=lambda: answer.extend(generate(channel, [5, 6, 7], 1000)))
            thread.start()
            wait_until(lambda: serving.stats().num_running == 1)
            assert serving.stop() == 0
            thread.join()
        assert len(answer) == 1000
        assert not any(is_running(pid) for pid in ranks.values())
        assert serving.log.rstrip().endswith("drained")
    finally:
        serving.end()
