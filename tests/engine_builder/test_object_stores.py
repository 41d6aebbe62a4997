"""sources S3, GCS and AZURE: one contract, against servers of those protocols through each vendor's own library."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from briton.config.environment import load_environment
from briton.config.object_url import ObjectURL
from briton.errors import BuildError, ConfigError
from briton.model.engine_dir import load_manifest
from briton_engine_builder import build_engine, find_cached_engine
from briton_engine_builder.sources import azure, download, gcs, objects, s3
from briton_engine_builder.sources.fetch import Fetcher
from briton_engine_builder.sources.fetched import FetchedCheckpoint
from briton_engine_builder.sources.remote import Unreachable
from tests.conftest import TinyLlama
from tests.engine_builder.buckets import ACCOUNT, AzureBucket, Bucket, GCSBucket, S3Bucket, connection_string
from tests.engine_builder.engines import config_for
from tests.engine_builder.tiny_gguf import write_tiny_gguf

WEIGHTS = "model.safetensors"
RANGE = 1 << 14  # small, so that a tiny checkpoint has several


@pytest.fixture(params=[S3Bucket, GCSBucket, AzureBucket], ids=["S3", "GCS", "AZURE"])
def bucket(
    request: pytest.FixtureRequest, tiny_llama: TinyLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bucket]:
    """A store with a tiny Llama at llama/tiny, and files around it that nobody needs."""
    monkeypatch.setattr(gcs, "_RANGE", RANGE)
    monkeypatch.setattr(s3, "CHUNK", RANGE)
    monkeypatch.setattr(azure, "_RANGE", RANGE)
    monkeypatch.setattr(azure, "_RETRIES", {"retry_total": 0})
    monkeypatch.setattr(gcs, "_LISTING_S", 0.1)
    monkeypatch.setattr(download, "_PAUSE_S", 0.0)
    monkeypatch.setattr(download, "_TRIES", 2)
    made: Bucket = request.param()
    upload = tiny_llama(tmp_path / "upload")
    made.objects = {f"llama/tiny/{file.name}": file.read_bytes() for file in sorted(upload.iterdir())}
    made.objects |= {"llama/tiny/README.md": b"#", "llama/tiny/old/model.safetensors": b"x", "llama/tiny2/a.json": b""}
    with made.running(monkeypatch):
        yield made


def fetch(bucket: Bucket, tmp_path: Path, repo: str | None = None) -> FetchedCheckpoint:
    """What `briton build` fetches."""
    config = config_for(repo or bucket.repo(), tmp_path, source=bucket.source)
    return Fetcher(config, load_environment(), tmp_path / "cache").fetch(progress=False)


def failure(bucket: Bucket, tmp_path: Path, repo: str | None = None) -> str:
    """The one line that `briton build` prints."""
    with pytest.raises(BuildError) as caught:
        fetch(bucket, tmp_path, repo)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_path_becomes_an_engine_that_starts_offline(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRITON_CACHE_DIR", str(tmp_path / "cache"))
    config = config_for(bucket.repo(), tmp_path, source=bucket.source)
    assert find_cached_engine(config, load_environment()) is None
    directory = build_engine(config, load_environment(), progress=False)
    source = load_manifest(directory).source
    assert (source["source"], source["repo"]) == (bucket.source, bucket.repo())
    assert load_manifest(directory).model_name == "tiny"
    assert {key for key, _ in bucket.reads} == set(bucket.objects) - {
        "llama/tiny/README.md",
        "llama/tiny/old/model.safetensors",
        "llama/tiny2/a.json",
    }
    bucket.reads.clear()
    asked = len(bucket.authorizations)
    assert find_cached_engine(config, load_environment()) == directory
    assert len(bucket.authorizations) == asked
    # another width: the store is asked what there is, nothing is fetched again
    build_engine(config_for(bucket.repo(), tmp_path, "fp8", source=bucket.source), load_environment(), progress=False)
    assert bucket.reads == []


def test_what_is_fetched_is_what_is_there(bucket: Bucket, tmp_path: Path) -> None:
    fetched = fetch(bucket, tmp_path)
    for file in fetched.path.iterdir():
        assert file.read_bytes() == bucket.objects[f"llama/tiny/{file.name}"]
    assert (fetched.path / WEIGHTS).is_file()


def test_a_broken_download_goes_on_where_it_broke(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(bucket.objects[f"llama/tiny/{WEIGHTS}"])
    assert size > 4 * RANGE
    monkeypatch.setattr(objects, "_CONNECTIONS", 1)
    bucket.budget = 3 * RANGE
    assert "cannot fetch checkpoint_repository.repo" in failure(bucket, tmp_path)  # after the last try
    bucket.budget = None
    bucket.reads.clear()
    fetched = fetch(bucket, tmp_path)
    assert (fetched.path / WEIGHTS).read_bytes() == bucket.objects[f"llama/tiny/{WEIGHTS}"]
    assert bucket.begins(WEIGHTS)[0] == 3 * RANGE
    assert bucket.begins("config.json") == []  # was whole before the weights
    assert not [path for path in fetched.path.parent.iterdir() if path.name.endswith(".partial")]


def test_many_shards(bucket: Bucket, tmp_path: Path) -> None:
    """They come over several connections; the first that fails ends all, with its own error."""
    shards = {f"model-{n:05}-of-00009.safetensors": os.urandom(3 * RANGE + n) for n in range(1, 10)}
    index = {"model.safetensors.index.json": b"{}", "config.json": b"{}"}
    bucket.objects = {f"shards/{name}": data for name, data in {**shards, **index}.items()}
    bucket.budget = 20 * RANGE
    assert "another file" not in failure(bucket, tmp_path, bucket.repo("shards"))
    bucket.budget = None
    fetched = fetch(bucket, tmp_path, bucket.repo("shards"))
    assert {path.name: path.read_bytes() for path in fetched.path.iterdir()} == {**shards, **index}


def test_another_content_has_another_identity(bucket: Bucket, tmp_path: Path) -> None:
    first = fetch(bucket, tmp_path)
    assert fetch(bucket, tmp_path) == first
    key = f"llama/tiny/{WEIGHTS}"
    bucket.objects[key] = bucket.objects[key][:-2] + b"zz"  # of the same size
    second = fetch(bucket, tmp_path)
    assert second.identity != first.identity
    assert (second.path / WEIGHTS).read_bytes() == bucket.objects[key]
    assert (first.path / WEIGHTS).is_file()  # somebody may be reading it


def test_content_that_is_not_what_the_checksum_says(bucket: Bucket, tmp_path: Path) -> None:
    bucket.is_damaging = True
    message = failure(bucket, tmp_path)
    where = f"checkpoint_repository.repo {bucket.repo()}: llama/tiny/model.safetensors"
    assert message.startswith(f"{where} arrived damaged: its ")
    bucket.is_damaging = False
    assert (fetch(bucket, tmp_path).path / WEIGHTS).read_bytes() == bucket.objects[f"llama/tiny/{WEIGHTS}"]


def test_a_bucket_that_is_not_there(bucket: Bucket, tmp_path: Path) -> None:
    message = failure(bucket, tmp_path, bucket.other_bucket())
    assert message.startswith(f"checkpoint_repository.repo {bucket.other_bucket()}: ")
    assert message.endswith(("there is no bucket nowhere", "has no container nowhere"))


def test_no_permission(bucket: Bucket, tmp_path: Path) -> None:
    bucket.is_refused = True
    message = failure(bucket, tmp_path)
    assert f"checkpoint_repository.repo {bucket.repo()}: " in message
    assert "refuses access" in message
    assert "runtime_secret_name" in message


def test_nothing_at_the_path(bucket: Bucket, tmp_path: Path) -> None:
    repo = bucket.repo("llama/other")
    assert (
        failure(bucket, tmp_path, repo) == f"checkpoint_repository.repo {repo}: there is nothing at this path of models"
    )


def test_no_config(bucket: Bucket, tmp_path: Path) -> None:
    del bucket.objects["llama/tiny/config.json"]
    assert (
        failure(bucket, tmp_path)
        == f"checkpoint_repository.repo {bucket.repo()} has .safetensors weights and no config.json"
    )


def test_no_weights(bucket: Bucket, tmp_path: Path) -> None:
    del bucket.objects[f"llama/tiny/{WEIGHTS}"]
    assert failure(bucket, tmp_path).endswith("has neither .safetensors nor .gguf weights")


def test_ggufs(bucket: Bucket, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "made.gguf")
    content = (tmp_path / "made.gguf").read_bytes()
    bucket.objects |= {
        "ggufs/q4.gguf": content,
        "ggufs/q8.gguf": b"other",
        "ggufs/q4.gguf.txt": b"",
        "one/m.gguf": content,
    }
    assert "has 2 .gguf files" in failure(bucket, tmp_path, bucket.repo("ggufs"))
    for path in ("ggufs/q4.gguf", "one"):
        fetched = fetch(bucket, tmp_path, bucket.repo(path))
        assert fetched.path.suffix == ".gguf"
        assert fetched.path.read_bytes() == content


def test_a_full_disk(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    message = failure(bucket, tmp_path)
    assert message.startswith("not enough disk space in ")
    assert f"for checkpoint_repository.repo {bucket.repo()}: 0.00 GB needed, 0.00 GB free" in message
    assert bucket.reads == []


def test_a_store_that_cannot_be_reached(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = fetch(bucket, tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection_string("http://127.0.0.1:9"))
    assert fetch(bucket, tmp_path) == fetched  # with a warning
    with pytest.raises(
        Unreachable, match=f"cannot fetch checkpoint_repository.repo {bucket.repo('llama/tiny2')}: "
    ) as caught:
        fetch(bucket, tmp_path, bucket.repo("llama/tiny2"))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("bucket", [S3Bucket, AzureBucket], indirect=True, ids=["S3", "AZURE"])
def test_the_secret_that_the_config_names(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "S3": {"access_key_id": "named", "secret_access_key": "x", "region": "eu-north-1", "session_token": "t"},
        "AZURE": {"account_key": base64.b64encode(b"named").decode()},
    }
    monkeypatch.setenv("TRUSS_SECRET_store", json.dumps(secrets[bucket.source]))
    if isinstance(bucket, AzureBucket):  # an account's own address is not to be had here: a connection string is
        monkeypatch.setenv("TRUSS_SECRET_store", connection_string(bucket.url, key=b"named"))
        monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    config = config_for(bucket.repo(), tmp_path, source=bucket.source, secret="store")
    fetched = Fetcher(config, load_environment(), tmp_path / "cache").fetch(progress=False)
    assert (fetched.path / WEIGHTS).is_file()
    signed = {"S3": "Credential=named/", "AZURE": f"SharedKey {ACCOUNT}:"}
    assert all(signed[bucket.source] in authorization for authorization in bucket.authorizations)
    # one that is of no use
    for value in ("hf_token", '["a"]', '{"access_key_id": 1}'):
        monkeypatch.setenv("TRUSS_SECRET_store", value)
        with pytest.raises(ConfigError, match="runtime_secret_name: the secret store ") as caught:
            Fetcher(config, load_environment(), tmp_path / "cache").fetch(progress=False)
        assert value not in caught.value.message


def test_a_bucket_that_all_may_read(tiny_llama: TinyLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any credentials S3 is asked without a signature."""
    bucket = S3Bucket()
    upload = tiny_llama(tmp_path / "upload")
    bucket.objects = {f"llama/tiny/{file.name}": file.read_bytes() for file in upload.iterdir()}
    with bucket.running(monkeypatch):
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        bucket.is_refused = True
        assert "with no credentials, and none were found (AccessDenied)" in failure(bucket, tmp_path)
        bucket.is_refused = False
        bucket.allow_all()
        fetch(bucket, tmp_path)
        assert set(bucket.authorizations) == {""}


@pytest.mark.parametrize(
    ("source", "module", "requirement"),
    [
        ("S3", "boto3", "'boto3[crt]'"),
        ("GCS", "google.cloud", "google-cloud-storage"),
        ("AZURE", "azure.storage.blob", "azure-storage-blob azure-identity"),
    ],
)
def test_a_library_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, module: str, requirement: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    config = config_for("account/bucket/path" if source == "AZURE" else "bucket/path", tmp_path, source=source)
    with pytest.raises(BuildError) as caught:
        Fetcher(config, load_environment(), tmp_path).fetch(progress=False)
    assert caught.value.message.startswith(f"checkpoints from {source} need a library that is not installed")
    assert caught.value.message.endswith(f" -m pip install {requirement}")


def test_the_prefix_of_a_place() -> None:
    assert ObjectURL("s3", "", "bucket", "a/b").prefix == "a/b/"
    assert ObjectURL("s3", "", "bucket", "a/m.gguf").prefix == "a/m.gguf"
    assert ObjectURL("s3", "", "bucket", "").prefix == ""
