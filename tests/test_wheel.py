"""The wheel, installed outside the checkout: the command, a gateway before an engine, and the client's part alone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import httpx
import pytest
import yaml

from briton import __version__
from tests.fake_engine import run_fake_engine, write_tokenizer
from tests.fake_executor import FakeExecutor
from tests.processes import free_port

pytestmark = pytest.mark.slow  # builds it, and asks the package index

ROOT = Path(__file__).parents[1]
CONFIG = {
    "model_name": "fake",
    "trt_llm": {"build": {"base_model": "decoder", "checkpoint_repository": {"source": "LOCAL", "repo": "/nowhere"}}},
}
CLIENT = """
import importlib.util, sys
import grpc
from briton.v1 import engine_pb2, engine_pb2_grpc
with grpc.insecure_channel(sys.argv[1]) as channel:
    request = engine_pb2.GenerateRequest(token_ids=engine_pb2.TokenIds(ids=[1, 2]))
    request.sampling.max_tokens = 3
    answers = list(engine_pb2_grpc.EngineStub(channel).Generate(request, timeout=30))
print(sum(len(output.token_ids) for answer in answers for output in answer.outputs))
print([name for name in ("openvino", "numpy", "pydantic", "fastapi") if importlib.util.find_spec(name)])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from this checkout, as pip builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    run(folder, sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", ".", str(ROOT))
    (built,) = folder.glob("briton-*.whl")
    return built


def run(folder: Path, *command: str) -> str:
    """Run in a folder outside the checkout; what it prints."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment(folder: Path, wheel: Path) -> Path:
    """A new environment with the wheel, and nothing that it requires; its interpreter."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", str(python))
    run(folder, *pip, "install", "--quiet", "--no-deps", str(wheel))
    return python


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, which finds the requirements, and them alone, where these tests have them."""
    folder = tmp_path_factory.mktemp("installed")
    python = environment(folder, wheel)
    (site,) = (folder / "lib").glob("python*/site-packages")
    # A path alone: what is installed in place there, as this checkout is, is not found through it.
    (site / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    assert str(folder) in run(folder, str(python), "-c", "import briton, briton_server; print(briton_server.__file__)")
    return python


def test_what_is_in_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    folders = {name.partition("/")[0] for name in names}
    assert folders == {"briton", "briton_server", "briton_engine_builder", f"briton-{__version__}.dist-info"}
    for name in ("briton/py.typed", "briton/model/known_models.json", "briton/v1/engine_pb2_grpc.pyi"):
        assert name in names
    assert any(name.endswith("LICENSE") for name in names)
    metadata = zipfile.ZipFile(wheel).read(f"briton-{__version__}.dist-info/METADATA").decode()
    assert "Description-Content-Type: text/markdown" in metadata
    for extra in ("client", "gateway", "engine", "builder", "mpi", "s3", "gcs", "azure"):
        assert f"Provides-Extra: {extra}\n" in metadata


def test_the_command(installed: Path, tmp_path: Path) -> None:
    briton = str(installed.with_name("briton"))
    assert run(tmp_path, briton, "--version") == f"briton {__version__}\n"
    config = ROOT / "examples" / "smollm2-135m-instruct" / "config.yaml"
    assert "smollm2" in run(tmp_path, briton, "config", "check", str(config)).lower()


async def test_a_gateway_answers(installed: Path, tmp_path: Path) -> None:
    """The wheel's gateway before the tests' engine."""
    tokenizer, config, port = write_tokenizer(tmp_path / "tokenizer"), tmp_path / "config.yaml", free_port()
    config.write_text(yaml.safe_dump(CONFIG))
    async with run_fake_engine(FakeExecutor()) as engine:
        options = ("--config", str(config), "--engine", engine.address, "--tokenizer", str(tokenizer))
        command = (str(installed), "-m", "briton", "gateway", *options, "--port", str(port))
        gateway = await asyncio.create_subprocess_exec(*command, cwd=tmp_path)
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                await until_ready(client)
                body = {"prompt": "hi", "max_tokens": 4}
                answer = await client.post("/v1/completions", json=body)
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] == 4
            gateway.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(gateway.wait(), 30) == 0
        finally:
            if gateway.returncode is None:
                gateway.kill()


async def until_ready(client: httpx.AsyncClient) -> None:
    """Wait until a gateway says that it is ready."""
    for _ in range(1200):
        try:
            if (await client.get("/ready")).status_code == 200:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.05)
    raise AssertionError("the gateway was never ready")


async def test_the_client_alone(wheel: Path, tmp_path: Path) -> None:
    """What the documentation says: no dependencies, then the part's."""
    python = environment(tmp_path, wheel)
    needed = run(tmp_path, str(python), "-m", "briton.process.requirements", "client").splitlines()
    run(tmp_path, sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *needed)
    async with run_fake_engine(FakeExecutor()) as engine:
        told = await asyncio.to_thread(run, tmp_path, str(python), "-c", CLIENT, engine.address)
    assert told.splitlines() == ["3", "[]"]
