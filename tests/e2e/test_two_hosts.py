"""One engine with a rank on each of two hosts: the same answers as on one, and no hang when a host is cut off."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from briton.config.environment import load_environment
from briton.config.loader import load_config
from briton.process.executors import create_executor
from briton_engine_builder import build_engine
from tests.conftest import TinyLlama
from tests.e2e.generate_call import PROMPT
from tests.e2e.network_host import NetworkHost, ssh_command, two_hosts, what_is_missing
from tests.processes import wait_until
from tests.request_runner import RequestRunner

pytestmark = pytest.mark.slow

PORT = 50051  # of a host that is ours alone
MAX_TOKENS = 64
ENDLESS = 8000  # tokens: more than come before the cut
REFUSED_S = 3.0  # from the cut to the end of the request
GONE_S = 15.0  # from the cut to the end of the last process
END_TIMEOUT_S = 20.0  # a drain


class Cluster:
    """Two hosts, and an engine that is built for one rank on each."""

    def __init__(self, directory: Path, tiny_llama: TinyLlama, first: NetworkHost, second: NetworkHost) -> None:
        self.first, self.second = first, second
        self._log = directory / "engine.log"
        self._cache_dir = directory / "cache"
        self._checkpoint = tiny_llama(directory, dtype="f32", max_position_embeddings=8192)
        self._hostfile = directory / "hostfile"
        self._hostfile.write_text(f"{first.name}\n{second.name}\n")
        # UCX takes processes of one kernel for processes of one host, which these are and are not
        arguments = ("-launcher-exec", str(ssh_command(directory)), "-genv", "UCX_TLS", "tcp,self")
        self._config = self._write_config(directory / "two", 2, arguments)
        self._alone = self._write_config(directory / "one", 1)

    @cached_property
    def expected(self) -> list[int]:
        """What one rank answers."""
        config = load_config(self._alone)
        engine_dir = build_engine(config, load_environment(), progress=False)
        runner = RequestRunner(create_executor(config, engine_dir))
        try:
            return list(runner.run(PROMPT, max_tokens=MAX_TOKENS).tokens())
        finally:
            runner.executor.shutdown()

    @contextlib.contextmanager
    def running(self, command: str) -> Iterator[subprocess.Popen[bytes]]:
        """`briton engine` or `briton serve` with the hostfile, on the first host; drained in the end."""
        line = [sys.executable, "-m", "briton", command, "--config", str(self._config)]
        line += ["--hostfile", str(self._hostfile)]
        self._log.write_bytes(b"")
        with self._log.open("ab") as log:
            process = subprocess.Popen(self.first.command(*line), stdout=log, stderr=log)
        try:
            yield process
        finally:
            if process.poll() is None:
                for child in psutil.Process(process.pid).children():  # nsenter passes no signal on
                    child.terminate()
            process.wait(timeout=END_TIMEOUT_S)

    def processes(self) -> list[str]:
        """What runs on both hosts."""
        return [*self.first.processes(), *self.second.processes()]

    def call(self, max_tokens: int) -> Iterator[dict[str, Any]]:
        """Send a request, once the engine serves: its responses as they come, and at last how it ended."""
        program = (sys.executable, "-m", "tests.e2e.generate_call", str(PORT), str(max_tokens))
        with subprocess.Popen(self.first.command(*program), stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            yield from map(json.loads, process.stdout)

    def answer(self) -> list[int]:
        """The tokens of a request that is answered."""
        *responses, end = self.call(MAX_TOKENS)
        assert end["code"] == "OK", end
        return [token_id for response in responses for token_id in response["token_ids"]]

    @property
    def log(self) -> str:
        """What the engine has said."""
        return self._log.read_text()

    def _write_config(self, directory: Path, size: int, arguments: tuple[str, ...] = ()) -> Path:
        directory.mkdir()
        build = {
            "checkpoint_repository": {"source": "LOCAL", "repo": str(self._checkpoint)},
            "quantization_type": "no_quant",
            "tensor_parallel_count": size,
        }
        briton = {
            "cache_dir": str(self._cache_dir),
            "grpc_port": PORT,
            "local": {"precision": "f32", "threads": 1},
            "mpi": {"arguments": list(arguments)},
        }
        path = directory / "config.yaml"
        path.write_text(yaml.safe_dump({"trt_llm": {"build": build}, "briton": briton}))
        return path


@pytest.fixture(scope="module")
def cluster(tiny_llama: TinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := what_is_missing():
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("two-hosts")
    with two_hosts(directory) as hosts:
        yield Cluster(directory, tiny_llama, *hosts)


def test_the_same_answer_as_on_one(cluster: Cluster) -> None:
    with cluster.running("engine") as engine:
        assert cluster.answer() == cluster.expected, cluster.log
    assert engine.returncode == 0, cluster.log
    assert f"rank 1 on {cluster.second.name} has joined" in cluster.log
    wait_until(lambda: cluster.processes() == [])


def test_a_host_that_is_cut_off_in_mid_request(cluster: Cluster) -> None:
    """The request ends, with the reason; nothing is left on either host; and it was the cable, nothing else."""
    with cluster.running("engine") as engine:
        cut_at, details = cut_off_in_mid_request(cluster)
        wait_until(lambda: cluster.processes() == [], cut_at + GONE_S - time.monotonic())
        assert engine.wait(timeout=1.0) == 1
        assert f"briton: error: {details}" in cluster.log
    cluster.second.connect()
    with cluster.running("engine"):
        assert cluster.answer() == cluster.expected


def test_the_supervisor_waits_for_a_host_that_is_cut_off(cluster: Cluster) -> None:
    """It starts the job again and again, and serves as soon as the host is back."""
    with cluster.running("serve"):
        cut_off_in_mid_request(cluster)
        wait_until(lambda: "had not started" in cluster.log, GONE_S)  # a first attempt, in vain
        cluster.second.connect()
        assert cluster.answer() == cluster.expected
    wait_until(lambda: cluster.processes() == [])


def cut_off_in_mid_request(cluster: Cluster) -> tuple[float, str]:
    """Cut the second host off while a request runs, and see it end; gives the time of the cut, and the reason."""
    call = cluster.call(ENDLESS)
    next(call)
    cut_at = time.monotonic()
    cluster.second.cut_off()
    *_, end = call
    assert time.monotonic() - cut_at < REFUSED_S, end
    assert end["code"] == "UNAVAILABLE"
    assert f"rank 1 on {cluster.second.name} has not been heard of" in end["details"]
    return cut_at, end["details"]
