"""A REMOTE_URL may be signed: no command prints its query, and no file in the cache keeps it.

Regression: `config explain` printed the whole URL, as text and JSON, for both executors, and in its errors.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from briton import cli
from tests.conftest import TinyLlama
from tests.engine_builder.loopback import Reply, Request, serve
from tests.engine_builder.test_remote_url import archive
from tests.processes import free_port

SECRET = "c2lnbmVkLWJ5LXVz"
QUERY = f"X-Amz-Credential=me&X-Amz-Signature={SECRET}#{SECRET}"


class Signed:
    """An archive behind a signed URL, and everything that commands left and said."""

    def __init__(self, directory: Path, environment: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
        self._environment, self._capfd = environment, capfd
        self.config = directory / "config.yaml"
        self.model_config = directory / "upload" / "tiny-llama" / "config.json"
        self.cache = directory / "cache"
        self.status = 200
        self.body = b""
        self.url = ""
        self.shown = ""

    def answer(self, request: Request) -> Reply:
        """The archive, for those who know the signature."""
        is_signed = SECRET in request.path
        return Reply(self.status if is_signed else 403, self.body if self.status == 200 else b"", {"ETag": '"1"'})

    def write_config(self, repository: object = None) -> None:
        """A config that names the signed URL."""
        repository = repository or {"source": "REMOTE_URL", "repo": self.url}
        raw = {"trt_llm": {"build": {"checkpoint_repository": repository}}, "briton": {"logging": {"level": "debug"}}}
        self.config.write_text(yaml.safe_dump(raw), encoding="utf-8")

    def plan(self, *arguments: str | Path) -> int:
        """Run a command that only reads, here."""
        with pytest.raises(SystemExit) as caught:
            cli.main(["--debug", *map(str, arguments)])
        captured = self._capfd.readouterr()
        self._look_at(captured.out + captured.err)
        assert isinstance(caught.value.code, int)
        return caught.value.code

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command in a process of its own, with all that it can say turned on."""
        done = subprocess.run(
            [sys.executable, "-m", "briton", "--debug", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=60,
            env=self._environment,
        )
        self._look_at(done.stdout + done.stderr)
        return done

    def _look_at(self, shown: str) -> None:
        self.shown = shown
        assert SECRET not in shown
        assert "X-Amz" not in shown

    def look_into_the_cache(self) -> int:
        """How many files the cache has; none of them has the secret in its name or content."""
        files = [path for path in self.cache.rglob("*") if path.is_file()]
        for file in files:
            assert SECRET not in str(file)
            assert SECRET.encode() not in file.read_bytes(), file
        return len(files)


@pytest.fixture
def signed(
    tiny_llama: TinyLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Signed]:
    """The archive of a tiny Llama, and a config that names it."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("BRITON_DEBUG", "1")
    made = Signed(tmp_path, dict(os.environ), capfd)
    upload = tiny_llama(tmp_path / "upload")
    made.body = archive({f"tiny/{file.name}": file.read_bytes() for file in sorted(upload.iterdir())})
    with serve(made.answer) as (base, _):
        made.url = f"{base}/files/tiny.tar.gz?{QUERY}"
        made.write_config()
        yield made


def test_no_command_shows_what_a_url_is_signed_with(signed: Signed) -> None:
    config, public = signed.config, signed.url.partition("?")[0]
    assert signed.plan("config", "check", config) == 0
    assert f"REMOTE_URL {public}" in signed.shown
    for executor in ("local", "trtllm"):
        assert signed.plan("config", "explain", config, "--executor", executor) == 2
        assert f"the shapes of {public} are not known" in signed.shown
        for form in ([], ["--json"]):
            options = ["--executor", executor, *form, "--model-config", signed.model_config]
            for command in (("config", "explain", config), ("build", "--dry-run", "--config", config)):
                assert signed.plan(*command, *options) == 0
                assert public in signed.shown

    ports = ("--port", str(free_port()), "--grpc-port", str(free_port()))
    signed.status = 403
    for name, *more in (("build",), ("serve", *ports), ("engine",)):
        assert signed.run(name, "--config", config, *more).returncode == 1
        assert f"checkpoint_repository.repo {public}: " in signed.shown
    signed.status, whole = 200, signed.body
    signed.body = whole[:3000]
    assert signed.run("build", "--config", config).returncode == 1
    assert "is damaged or cut short" in signed.shown
    signed.body = whole

    built = signed.run("build", "--config", config)
    assert built.returncode == 0
    assert public in (Path(built.stdout.strip()) / "engine.json").read_text()
    assert signed.plan("config", "explain", config, "--executor", "local") == 0  # with the fetched shapes
    assert signed.look_into_the_cache() > 5


@pytest.mark.parametrize("source", ["HF", "PYPI", "LOCAL", "S3", "GCS", "AZURE", "REMOTE", None])
def test_a_signed_url_at_another_source_is_not_shown_either(signed: Signed, source: str | None) -> None:
    """Whoever pastes a URL and forgets to change `source` reads an error, which others read too."""
    signed.write_config(signed.url if source is None else {"source": source, "repo": signed.url})
    assert signed.plan("config", "check", signed.config) == 2


@pytest.mark.parametrize("url", ["https://me:{}@host/a.tar.gz", "https://host/a b.tar.gz?{}", "ftp://host/a?sig={}"])
def test_a_url_that_is_refused_is_not_shown_either(signed: Signed, url: str) -> None:
    signed.write_config({"source": "REMOTE_URL", "repo": url.format(SECRET)})
    assert signed.plan("config", "check", signed.config) == 2


def test_a_shared_access_signature_is_no_part_of_an_azure_path(signed: Signed) -> None:
    signed.write_config({"source": "AZURE", "repo": f"azure://account/container/model?sig={SECRET}"})
    assert signed.plan("config", "check", signed.config) == 2
    assert "runtime_secret_name" in signed.shown
