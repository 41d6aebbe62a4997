"""The environment: tokens, secrets, directories."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from briton.config.environment import HUB_CREDENTIALS, INDEX_CREDENTIALS, child_variables, load_environment
from briton.errors import ConfigError


@pytest.mark.parametrize(
    ("variables", "token"),
    [
        ({}, None),
        ({"HF_TOKEN": "a", "HUGGING_FACE_HUB_TOKEN": "b", "HF_ACCESS_TOKEN": "c"}, "a"),
        ({"HUGGING_FACE_HUB_TOKEN": "b", "HF_ACCESS_TOKEN": "c"}, "b"),
        ({"HF_TOKEN": " ", "HF_ACCESS_TOKEN": "c\n"}, "c"),
    ],
)
def test_hf_token(variables: dict[str, str], token: str | None, tmp_path: Path) -> None:
    environment = load_environment(variables)
    assert environment.hf_token == token
    assert replace(environment, secrets_dir=tmp_path).hf_token_for("hf_access_token") == token


def test_secrets_come_before_the_token(tmp_path: Path) -> None:
    (tmp_path / "mounted").write_text("from file\n")
    (tmp_path / "both").write_text("from file")
    (tmp_path / "empty").write_text("\n")
    variables = {"HF_TOKEN": "general", "TRUSS_SECRET_both": "from variable"}
    environment = replace(load_environment(variables), secrets_dir=tmp_path)
    assert environment.hf_token_for("mounted") == "from file"
    assert environment.hf_token_for("both") == "from variable"
    assert environment.hf_token_for("empty") == "general"
    assert environment.hf_token_for("absent") == "general"
    # of other stores the hub's token is no secret
    assert [environment.secret(name) for name in ("mounted", "both", "empty", "absent")] == [
        "from file",
        "from variable",
        None,
        None,
    ]


def test_a_secret_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "directory").mkdir()
    environment = replace(load_environment({}), secrets_dir=tmp_path)
    for name in ("binary", "directory"):
        with pytest.raises(ConfigError, match=name):
            environment.hf_token_for(name)


def test_no_secrets_mount(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for missing in (tmp_path / "none", file):
        assert replace(load_environment({}), secrets_dir=missing).hf_token_for("x") is None


def test_secrets_are_not_shown() -> None:
    variables = {"HF_TOKEN": "hunter2", "TRUSS_SECRET_x": "hunter3", "AZURE_STORAGE_CONNECTION_STRING": "hunter4"}
    environment = load_environment(variables)
    assert environment.azure_connection_string == "hunter4"
    assert "hunter" not in repr(environment)


@pytest.mark.parametrize(
    ("variables", "cache_dir"),
    [
        ({"BRITON_CACHE_DIR": "/c", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/c"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/briton"),
        ({"HOME": "/h"}, "/h/.cache/briton"),
    ],
)
def test_cache_dir(variables: dict[str, str], cache_dir: str) -> None:
    assert load_environment(variables).cache_dir == Path(cache_dir)


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "mine")
    assert load_environment().hf_token == "mine"


def test_no_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(ConfigError, match="set BRITON_CACHE_DIR"):
        load_environment({})


def test_debug() -> None:
    assert load_environment({"BRITON_DEBUG": "1"}).debug
    assert not load_environment({"BRITON_DEBUG": "0"}).debug
    assert not load_environment({}).debug


@pytest.mark.parametrize(
    ("variables", "rank", "size"),
    [
        ({}, None, None),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, 1, 2),  # MPICH, and Slurm's pmi2
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, 0, 1),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "PMIX_RANK": "3"}, 3, 4),
        ({"PMIX_RANK": "5"}, 5, None),
        ({"PMI_RANK": "", "PMIX_RANK": "-1", "PMI_SIZE": "two"}, None, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None, None),  # sbatch's script is nobody's rank
    ],
)
def test_a_rank_of_mpi(variables: dict[str, str], rank: int | None, size: int | None) -> None:
    environment = load_environment(variables)
    assert (environment.mpi_rank, environment.mpi_size) == (rank, size)


def test_the_jobs_hub_is_not_shown() -> None:
    """Its token lets anybody in."""
    assert load_environment({}).job is None
    environment = load_environment({"BRITON_JOB": "hunter4@1@host"})
    assert environment.job == "hunter4@1@host"
    assert "hunter4" not in repr(environment)


def test_what_a_child_gets_is_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "mine")
    variables = child_variables(HUB_CREDENTIALS)
    assert variables["HF_TOKEN"] == "mine"
    variables["HF_TOKEN"] = "another"
    assert load_environment().hf_token == "mine"


def test_a_child_gets_the_credentials_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"HF_TOKEN": "a", "PIP_INDEX_URL": "b", "AWS_PROFILE": "c", "TRUSS_SECRET_d": "d", "BRITON_CACHE_DIR": "e"}
    for name in {name for name in os.environ if name.startswith(("HF_", "PIP_", "AWS_", "HUGGING"))}:
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    def got(*credentials: str) -> set[str]:
        return given.keys() & child_variables(credentials).keys()

    assert got() == {"BRITON_CACHE_DIR"}
    assert got(*HUB_CREDENTIALS) == {"BRITON_CACHE_DIR", "HF_TOKEN"}
    assert got(*INDEX_CREDENTIALS) == {"BRITON_CACHE_DIR", "PIP_INDEX_URL"}


@pytest.mark.parametrize("name", ["HYDRA_HOST_FILE", "SLURM_JOB_ID"])
def test_hosts_that_mpiexec_finds_by_itself(name: str) -> None:
    assert load_environment({"HOME": "/home", name: "7"}).has_mpi_hosts
    assert not load_environment({"HOME": "/home", name: " "}).has_mpi_hosts
