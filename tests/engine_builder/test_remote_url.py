"""source: REMOTE_URL against an HTTP server on loopback."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from briton.config.environment import load_environment
from briton.errors import BuildError
from briton.model.engine_dir import load_manifest
from briton_engine_builder import build_engine, find_cached_engine
from briton_engine_builder.sources import download, http_file
from briton_engine_builder.sources.fetch import Fetcher
from briton_engine_builder.sources.fetched import FetchedCheckpoint
from briton_engine_builder.sources.remote import Unreachable
from briton_engine_builder.weights_file import SPARE_BYTES
from tests.conftest import TinyLlama
from tests.engine_builder.engines import config_for
from tests.engine_builder.loopback import Reply, Request, serve

PIECE = 1 << 12


class Site:
    """One URL, and how well its server keeps to HTTP."""

    def __init__(self) -> None:
        self.body = b""
        self.etag: str | None = '"1"'
        self.has_ranges = True
        self.says_length = True
        self.token: str | None = None  # what it asks for
        self.status = 200
        self.budget: int | None = None  # bytes that are sent before connections break
        self.headers: dict[str, str] = {}
        self.requests: list[Request] = []
        self.url = ""
        self.redirect = ""  # to the archive

    def answer(self, request: Request) -> Reply:
        """The archive, a part of it, or what is wrong."""
        path = request.path.partition("?")[0]
        if path == "/redirect/tiny.tar.gz":
            return Reply(302, b"", {"Location": self.redirect or f"{self.url}/files/tiny.tar.gz"})
        if path != "/files/tiny.tar.gz":
            return Reply(404, b"no\nsuch file")
        if self.status != 200:
            return Reply(self.status, b"something\nis wrong")
        if self.token is not None and request.headers.get("authorization") != f"Bearer {self.token}":
            return Reply(401, b"")
        headers = {"Accept-Ranges": "bytes", **({"ETag": self.etag} if self.etag else {}), **self.headers}
        begin = int(request.headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        is_same = self.etag is not None and request.headers.get("if-range") == self.etag
        if not (begin and self.has_ranges and is_same):
            begin = 0
        body = self.body[begin:]
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(self.body) - 1}/{len(self.body)}"
        if not self.says_length:
            headers |= {"Transfer-Encoding": "chunked"}
            body = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (body, b""))
        cut_at = None
        if self.budget is not None:
            cut_at = min(self.budget, len(body))
        return Reply(206 if begin else 200, body, headers, cut_at)

    def begins(self) -> list[str]:
        """The ranges that were asked for."""
        return [request.headers.get("range", "") for request in self.requests]


def archive(files: dict[str, bytes]) -> bytes:
    """A tar.gz of some files."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


@pytest.fixture
def site(tiny_llama: TinyLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server with a tiny Llama packed."""
    monkeypatch.setattr(download, "_PAUSE_S", 0.0)
    monkeypatch.setattr(http_file, "CHUNK", PIECE)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BRITON_CACHE_DIR", str(tmp_path / "cache"))
    made = Site()
    upload = tiny_llama(tmp_path / "upload")
    made.body = archive({f"tiny/{file.name}": file.read_bytes() for file in sorted(upload.iterdir())})
    with serve(made.answer) as (made.url, made.requests):
        yield made


def fetch(site: Site, tmp_path: Path, path: str = "/files/tiny.tar.gz", secret: str | None = None) -> FetchedCheckpoint:
    """What `briton build` fetches."""
    config = config_for(site.url + path, tmp_path, source="REMOTE_URL", secret=secret)
    return Fetcher(config, load_environment(), tmp_path / "cache").fetch(progress=False)


def failure(site: Site, tmp_path: Path, path: str = "/files/tiny.tar.gz") -> str:
    """The one line that `briton build` prints."""
    with pytest.raises(BuildError) as caught:
        fetch(site, tmp_path, path)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_an_archive_becomes_an_engine_that_starts_offline(site: Site, tmp_path: Path) -> None:
    url = f"{site.url}/files/tiny.tar.gz?signature=hush"
    config, environment = config_for(url, tmp_path, source="REMOTE_URL"), load_environment()
    assert config.served_model_name == "tiny"
    assert find_cached_engine(config, environment) is None
    directory = build_engine(config, environment, progress=False)
    manifest = load_manifest(directory)
    digest = hashlib.sha256(site.body).hexdigest()
    assert manifest.source == {"source": "REMOTE_URL", "repo": f"{site.url}/files/tiny.tar.gz", "revision": digest}
    assert manifest.model_name == "tiny"
    assert all("signature=hush" in request.path for request in site.requests)
    assert "hush" not in "".join(
        [str(directory), str(config.checkpoint), *(p.read_text() for p in (tmp_path / "cache").rglob("*.json"))]
    )
    site.requests.clear()
    assert find_cached_engine(config, environment) == directory
    assert site.requests == []


def test_it_is_fetched_again_when_it_has_changed(site: Site, tmp_path: Path) -> None:
    first = fetch(site, tmp_path)
    site.requests.clear()
    assert fetch(site, tmp_path) == first
    assert len(site.requests) == 1  # a look at the headers
    files = {f"tiny/{p.name}": p.read_bytes() for p in first.path.iterdir() if not p.name.startswith(".")}
    site.body, site.etag = archive({**files, "tiny/generation_config.json": b'{"eos_token_id": 1}'}), '"2"'
    second = fetch(site, tmp_path)
    assert second.identity != first.identity
    assert (second.path / "generation_config.json").read_bytes() == b'{"eos_token_id": 1}'
    assert (first.path / "config.json").is_file()


def test_a_server_that_tells_no_version(site: Site, tmp_path: Path) -> None:
    site.etag = None
    first = fetch(site, tmp_path)
    inode = os.stat(first.path).st_ino
    assert fetch(site, tmp_path) == first
    assert os.stat(first.path).st_ino == inode  # the same content is left where it is
    site.body = archive({"m/m.gguf": b"GGUF"})
    second = fetch(site, tmp_path)
    assert second.identity != first.identity
    assert second.path.name == "m.gguf"


def test_a_server_that_tells_no_length(site: Site, tmp_path: Path) -> None:
    site.says_length = False
    fetched = fetch(site, tmp_path)
    assert fetched.identity.endswith(hashlib.sha256(site.body).hexdigest())


def test_a_server_that_tells_no_length_and_does_not_end(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: it was written until the disk was full."""
    site.says_length = False
    monkeypatch.setattr(download, "_MAX_BYTES", 3 * PIECE)
    told = failure(site, tmp_path)
    assert told.endswith(f"/files/tiny.tar.gz has more than {3 * PIECE} bytes, and its server does not say how many")
    assert not list((tmp_path / "cache").rglob("archive.tar.gz*"))
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": SPARE_BYTES + PIECE - 1}))
        assert failure(site, tmp_path).startswith("not enough disk space in ")
    assert [path.stat().st_size for path in (tmp_path / "cache").rglob("archive.tar.gz*")] == [0]


def test_a_broken_download_goes_on_where_it_broke(site: Site, tmp_path: Path) -> None:
    site.budget = 10 * PIECE
    fetched = fetch(site, tmp_path)
    assert fetched.identity.endswith(hashlib.sha256(site.body).hexdigest())
    pieces = [f"bytes={begin}-" for begin in range(10 * PIECE, len(site.body), 10 * PIECE)]
    assert site.begins() == ["", "", *pieces]


def test_another_process_goes_on_where_one_gave_up(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_TRIES", 1)
    site.budget = 10 * PIECE
    assert failure(site, tmp_path).endswith(f"the connection ended after {10 * PIECE} of {len(site.body)} bytes")
    site.budget = None
    site.requests.clear()
    fetch(site, tmp_path)
    assert site.begins() == ["", f"bytes={10 * PIECE}-"]


def test_a_server_without_ranges(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_TRIES", 1)
    site.budget = 10 * PIECE
    failure(site, tmp_path)
    site.budget, site.has_ranges = None, False
    assert fetch(site, tmp_path).identity.endswith(hashlib.sha256(site.body).hexdigest())


def test_a_file_that_changes_while_it_is_fetched(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two halves of different files never meet."""
    monkeypatch.setattr(download, "_TRIES", 1)
    site.budget = 10 * PIECE
    failure(site, tmp_path)
    site.budget, site.etag = None, '"2"'
    site.body = archive({"m.gguf": os.urandom(len(site.body))})
    assert fetch(site, tmp_path).identity.endswith(hashlib.sha256(site.body).hexdigest())


@pytest.mark.parametrize("header", ["Content-MD5", "x-goog-hash"])
def test_content_that_is_not_what_the_checksum_says(site: Site, tmp_path: Path, header: str) -> None:
    right, wrong = (base64.b64encode(hashlib.md5(data).digest()).decode() for data in (site.body, b"other"))
    spelled = "{}" if header == "Content-MD5" else "crc32c=AAAAAA==, md5={}"
    site.headers = {header: spelled.format(wrong)}
    assert "/files/tiny.tar.gz arrived damaged: its MD5 is " in failure(site, tmp_path)
    site.headers = {header: spelled.format(right)}
    fetch(site, tmp_path)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "the server refuses access (401)"),
        (403, "the server refuses access (403)"),
        (404, "there is nothing at this URL (404)"),
        (410, "there is nothing at this URL (410)"),
        (416, "the server answers 416"),
        (418, "the server answers 418"),
        (503, "the server answers 503"),
    ],
)
def test_what_the_server_refuses(site: Site, tmp_path: Path, status: int, message: str) -> None:
    site.status = status
    told = failure(site, tmp_path, "/files/tiny.tar.gz?signature=hush")
    assert f"checkpoint_repository.repo {site.url}/files/tiny.tar.gz: " in told
    assert message in told
    assert "hush" not in told


def test_the_secret_is_a_token_for_this_server_only(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.token = "t0ken"
    monkeypatch.setenv("TRUSS_SECRET_hf_access_token", "t0ken")
    assert "refuses access (401)" in failure(site, tmp_path)  # the hub's token goes to the hub only
    monkeypatch.setenv("TRUSS_SECRET_site", "t0ken")
    fetch(site, tmp_path, secret="site")
    with pytest.raises(BuildError, match="refuses access"):
        fetch(site, tmp_path, "/redirect/tiny.tar.gz", secret="site")
    assert "authorization" not in site.requests[-1].headers


def test_redirects(site: Site, tmp_path: Path) -> None:
    assert (fetch(site, tmp_path, "/redirect/tiny.tar.gz").path / "config.json").is_file()


class PlainHTTPSConnection(http.client.HTTPConnection):
    """https:// without encryption, so that a server here needs no certificate."""

    def __init__(self, host: str, *, timeout: float, **of_ssl: Any) -> None:
        super().__init__(host, timeout=timeout)


def test_redirects_from_https_to_http(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: what was asked for encrypted was fetched in the clear."""
    monkeypatch.setattr(http.client, "HTTPSConnection", PlainHTTPSConnection)
    plain, site.url = site.url, site.url.replace("http://", "https://")
    assert (fetch(site, tmp_path, "/redirect/tiny.tar.gz").path / "config.json").is_file()  # https to https
    start, site.url = site.url, plain
    config = config_for(f"{start}/redirect/tiny.tar.gz", tmp_path, source="REMOTE_URL")
    site.requests.clear()
    with pytest.raises(BuildError, match=r"the server redirects from https to http$"):
        Fetcher(config, load_environment(), tmp_path / "other").fetch(progress=False)
    assert [request.path for request in site.requests] == ["/redirect/tiny.tar.gz"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("ftp://127.0.0.1/tiny.tar.gz?hush", "the server redirects from http to ftp"),
        ("file:///etc/passwd?hush", "the server answers 302"),
        ("http://127.0.0.1:hush/", "the server redirects to what is no URL"),
    ],
)
def test_redirects_to_elsewhere(site: Site, tmp_path: Path, target: str, message: str) -> None:
    site.redirect = target
    told = failure(site, tmp_path, "/redirect/tiny.tar.gz")
    assert told.endswith(message)
    assert "hush" not in told


def test_a_server_that_cannot_be_reached(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = fetch(site, tmp_path)
    site.status = 503
    assert fetch(site, tmp_path) == fetched  # with a warning
    config = config_for("http://127.0.0.1:9/a.tar.gz", tmp_path, source="REMOTE_URL")
    with pytest.raises(
        Unreachable, match=r"cannot fetch checkpoint_repository\.repo http://127\.0\.0\.1:9/a\.tar\.gz: Conn"
    ):
        Fetcher(config, load_environment(), tmp_path / "cache").fetch(progress=False)


def test_an_archive_that_cannot_be_used_is_not_kept(site: Site, tmp_path: Path) -> None:
    good, site.body = site.body, site.body[: len(site.body) // 2]
    assert "is damaged or cut short" in failure(site, tmp_path)
    assert not list((tmp_path / "cache").rglob("archive.tar.gz*"))
    site.body = good
    fetch(site, tmp_path)


def test_unpacked_files_that_were_deleted(site: Site, tmp_path: Path) -> None:
    fetched = fetch(site, tmp_path)
    (fetched.path / "config.json").unlink()
    assert (fetch(site, tmp_path).path / "config.json").is_file()
    record = json.loads((fetched.path / ".archive.json").read_text())
    assert record["sha256"] == hashlib.sha256(site.body).hexdigest()


def test_a_full_disk(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
        assert failure(site, tmp_path).startswith("not enough disk space in ")
        assert len(site.requests) == 1
        patched.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": len(site.body)}))
        assert "model.safetensors of checkpoint_repository.repo" in failure(site, tmp_path)  # no room to unpack it
    site.requests.clear()
    fetch(site, tmp_path)
    assert len(site.requests) == 1  # the archive was kept
