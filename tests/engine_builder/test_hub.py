"""source: HF against a hub on loopback, through the real huggingface_hub."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from briton.config.environment import Environment
from briton.errors import BuildError
from briton.model.engine_dir import load_manifest
from briton_engine_builder import build_engine, find_cached_engine
from briton_engine_builder.sources.hub import fetch_from_hub
from briton_engine_builder.sources.model_files import needed_files
from tests.conftest import TinyLlama
from tests.engine_builder.engines import config_for
from tests.engine_builder.loopback import Reply, Request, serve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "someone/tiny"


class Hub:
    """One repository, and the few routes that huggingface_hub calls."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.token: str | None = None  # what it asks for
        self.gated = False
        self.cut_at: int | None = None  # the next download of weights breaks off after so many bytes
        self.requests: list[Request] = []

    def answer(self, request: Request) -> Reply:
        """The repository's description, its tree, or a file."""
        path = request.path.partition("?")[0]
        if REPO not in path:
            return Reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if self.token is not None and request.headers.get("authorization") != f"Bearer {self.token}":
            return Reply(401, b"{}", {"X-Error-Code": "GatedRepo" if self.gated else "RepoNotFound"})
        if path.startswith(f"/api/models/{REPO}"):
            rest = path.removeprefix(f"/api/models/{REPO}").strip("/").split("/")
            if rest != [""] and rest[1] not in (COMMIT, "main"):
                return Reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            siblings = [{"rfilename": name} for name in self.files]
            tree = [{"type": "file", "path": n, "size": len(d), "oid": _etag(d)} for n, d in self.files.items()]
            body = tree if rest[0] == "tree" else {"id": REPO, "sha": COMMIT, "siblings": siblings}
            return Reply(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return self._file(request, path.rpartition("/")[2])

    def _file(self, request: Request, name: str) -> Reply:
        if name not in self.files:
            return Reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        data = self.files[name]
        headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if request.method == "HEAD":
            return Reply(200, data, headers)
        begin = int(request.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        cut_at, self.cut_at = (self.cut_at, None) if name.endswith(".safetensors") else (None, self.cut_at)
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        return Reply(206 if begin else 200, data[begin:], headers, cut_at)

    def fetched(self, name: str) -> list[Request]:
        """The GET requests for one file."""
        return [r for r in self.requests if r.method == "GET" and r.path.endswith(f"/{name}") and "/resolve/" in r.path]


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What HF_ENDPOINT does when huggingface_hub is imported."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    copy = importlib.import_module("huggingface_hub.file_download")  # of releases before 1.0
    for module in (huggingface_hub.constants, copy):
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub(tiny_llama: TinyLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a tiny Llama on it, and an empty cache of huggingface_hub's."""
    made = Hub()
    made.files = {file.name: file.read_bytes() for file in sorted(tiny_llama(tmp_path / "upload").iterdir())}
    made.files |= {"README.md": b"#", "pytorch_model.bin": b"x" * 1000, "consolidated.safetensors": b"y" * 1000}
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with serve(made.answer) as (url, made.requests):
        use_endpoint(monkeypatch, url)
        yield made


def test_a_repository_becomes_an_engine_that_starts_offline(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, environment = config_for(REPO, tmp_path, source="HF"), Environment(cache_dir=tmp_path / "cache")
    assert find_cached_engine(config, environment) is None
    directory = build_engine(config, environment)
    manifest = load_manifest(directory)
    assert manifest.source == {"source": "HF", "repo": REPO, "revision": COMMIT}
    assert manifest.stop_token_ids == (0, 2)
    assert len(hub.fetched("model.safetensors")) == 1
    for name in ("README.md", "pytorch_model.bin", "consolidated.safetensors"):
        assert hub.fetched(name) == []
    hub.requests.clear()
    assert find_cached_engine(config, environment) == directory
    assert build_engine(config, environment) == directory
    assert hub.requests == []
    # another width: the hub is asked which commit it is, no weights are fetched
    build_engine(config_for(REPO, tmp_path, "fp8", source="HF"), environment)
    assert hub.fetched("model.safetensors") == []
    # and without the hub, what was fetched is there
    use_endpoint(monkeypatch, "http://127.0.0.1:9")
    build_engine(config_for(REPO, tmp_path, "weights_int4", source="HF"), environment)


def test_a_broken_download_goes_on_where_it_broke(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)  # what is kept of a broken download
    size = len(hub.files["model.safetensors"])
    hub.cut_at = size // 2
    fetched = fetch_from_hub(REPO, None, token=None, progress=False)
    assert (fetched.path / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    first, second = hub.fetched("model.safetensors")
    assert "range" not in first.headers
    assert second.headers["range"] == f"bytes={size // 2 >> 16 << 16}-"


def test_the_token_is_the_environments(hub: Hub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    config = config_for(REPO, tmp_path, source="HF")
    with pytest.raises(
        BuildError, match="someone/tiny does not exist on the Hugging Face hub, or needs a token"
    ) as caught:
        build_engine(config, Environment(cache_dir=tmp_path / "cache"))
    assert "\n" not in str(caught.value)
    wrong = Environment(cache_dir=tmp_path / "cache", hf_token="hf_wrong")
    with pytest.raises(BuildError, match="needs a token") as caught:
        build_engine(config, wrong)
    assert "hf_wrong" not in str(caught.value)
    secrets = {"hf_access_token": "hf_secret"}
    build_engine(config, Environment(cache_dir=tmp_path / "cache", hf_token="hf_wrong", secrets=secrets))


def test_gated_repositories(hub: Hub) -> None:
    hub.token, hub.gated = "hf_secret", True
    with pytest.raises(BuildError, match="someone/tiny is gated: accept its terms"):
        fetch_from_hub(REPO, None, token=None, progress=False)


def test_repositories_and_revisions_that_are_not_there(hub: Hub) -> None:
    with pytest.raises(BuildError, match="someone/else does not exist on the Hugging Face hub"):
        fetch_from_hub("someone/else", None, token=None, progress=False)
    with pytest.raises(BuildError, match="someone/tiny has no revision v9"):
        fetch_from_hub(REPO, "v9", token=None, progress=False)
    assert fetch_from_hub(REPO, "main", token=None, progress=False).identity == f"HF {REPO} {COMMIT}"


def test_a_hub_that_cannot_be_reached(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    use_endpoint(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(BuildError, match="cannot fetch someone/tiny from the Hugging Face hub: ") as caught:
        fetch_from_hub(REPO, None, token=None, progress=False)
    assert "\n" not in str(caught.value)


def test_a_repository_with_one_gguf(hub: Hub) -> None:
    hub.files = {"README.md": b"#", "model-q4.gguf": b"GGUF..."}
    assert fetch_from_hub(REPO, None, token=None, progress=False).path.name == "model-q4.gguf"


def test_needed_files() -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    others = ["config.json", "tokenizer.json", "original/consolidated.00.pth", "consolidated.safetensors"]
    index = "model.safetensors.index.json"
    assert needed_files("a/b", [*shards, index, *others]) == [index, *shards, "config.json", "tokenizer.json"]
    assert needed_files("a/b", ["weights.safetensors", "config.json"]) == ["weights.safetensors", "config.json"]
    with pytest.raises(BuildError, match=r"a/b has 2 \.gguf files and no safetensors"):
        needed_files("a/b", ["q4.gguf", "q8.gguf", "config.json"])
    with pytest.raises(BuildError, match=r"a/b has \.safetensors weights and no config\.json"):
        needed_files("a/b", ["model.safetensors"])
    with pytest.raises(BuildError, match=r"a/b has neither \.safetensors nor \.gguf weights"):
        needed_files("a/b", ["pytorch_model.bin", "config.json"])
