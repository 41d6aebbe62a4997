"""Our own section: strict, and unknown keys are errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from briton.config.briton_section import BritonSection
from briton.config.enums import EXECUTORS

from .conftest import LoadChanged, Refusal


def test_defaults(load_changed: LoadChanged) -> None:
    assert load_changed().briton.model_dump() == {
        "executor": "auto",
        "host": "127.0.0.1",
        "grpc_host": "127.0.0.1",
        "http_port": 8000,
        "grpc_port": 50051,
        "max_queue_size": 256,
        "max_priority": 20,
        "priority_aging_s": 10.0,
        "max_connections": 4096,
        "max_body_bytes": 4 * 1024**2,
        "keepalive_s": 15.0,
        "request_timeout_s": 600,
        "stall_timeout_s": 2.0,
        "give_up_timeout_s": 5.0,
        "start_timeout_s": None,
        "drain_timeout_s": 30.0,
        "cache_dir": None,
        "local": {
            "threads": None,
            "precision": "auto",
            "kv_cache_dtype": None,
            "kv_cache_tokens": None,
            "kv_cache_memory_bytes": None,
            "target_inter_token_s": 0.08,
        },
        "guided_decoding": {
            "max_schema_bytes": 262144,
            "max_depth": 32,
            "compile_timeout_s": 5.0,
            "compile_memory_bytes": 2 * 1024**3,
            "whitespace_pattern": r"[\x20\x0A]{1,4}",
        },
        "mpi": {"mpiexec": None, "hostfile": None, "arguments": ()},
        "logging": {"level": "info", "format": "text"},
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("executor", "gpu"),
        ("host", ""),
        ("grpc_host", ""),
        ("http_port", -1),
        ("http_port", 65536),
        ("http_port", "8000"),
        ("http_port", True),
        ("grpc_port", 8000),
        ("max_queue_size", 0),
        ("request_timeout_s", 0),
        ("request_timeout_s", float("nan")),
        ("start_timeout_s", 0),
        ("drain_timeout_s", -1),
        ("drain_timeout_s", float("inf")),
        ("cache_dir", 3),
        ("local.threads", 0),
        ("local.precision", "fp16"),
        ("local.kv_cache_dtype", "int8"),
        ("local.kv_cache_tokens", 0),
        ("local.kv_cache_memory_bytes", "2GiB"),
        ("guided_decoding.max_schema_bytes", 0),
        ("guided_decoding.max_depth", 1.5),
        ("guided_decoding.compile_timeout_s", 0),
        ("guided_decoding.whitespace_pattern", "["),
        ("mpi.mpiexec", ""),
        ("mpi.hostfile", 3),
        ("mpi.arguments", "-launcher ssh"),
        ("logging.level", "trace"),
        ("logging.format", "xml"),
        ("logging", []),
    ],
)
def test_bad_values(refusal: Refusal, field: str, value: object) -> None:
    assert refusal({f"briton.{field}": value}).field == f"briton.{field}"


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("http_prot", "http_port"),
        ("local.thread", "threads"),
        ("mpi.host_file", "hostfile"),
        ("logging.levels", "level"),
    ],
)
def test_unknown_keys_are_errors(refusal: Refusal, key: str, suggestion: str) -> None:
    error = refusal({f"briton.{key}": 1})
    assert error.field == f"briton.{key}"
    assert error.message.endswith(f"unknown key: did you mean {suggestion}?")


def test_unknown_keys_name_the_known_ones(refusal: Refusal) -> None:
    assert refusal({"briton.logging.zzz": 1}).message.endswith("unknown key; known are level, format")


def test_one_cache_size(refusal: Refusal) -> None:
    error = refusal({"briton.local": {"kv_cache_tokens": 64, "kv_cache_memory_bytes": 1024}})
    assert error.field == "briton.local.kv_cache_memory_bytes"


@pytest.mark.parametrize(
    ("field", "value"),
    [("request_timeout_s", None), ("request_timeout_s", 5), ("drain_timeout_s", 0), ("http_port", 0)],
)
def test_good_values(load_changed: LoadChanged, field: str, value: object) -> None:
    assert getattr(load_changed({f"briton.{field}": value}).briton, field) == value


def test_free_ports_may_both_be_zero(load_changed: LoadChanged) -> None:
    load_changed({"briton.http_port": 0, "briton.grpc_port": 0})


def test_cache_dir_is_relative_to_the_file(load_changed: LoadChanged, tmp_path: Path) -> None:
    assert load_changed({"briton.cache_dir": "cache"}).briton.cache_dir == tmp_path / "cache"
    assert load_changed({"briton.cache_dir": "/var/cache"}).briton.cache_dir == Path("/var/cache")


def test_how_ranks_are_started(load_changed: LoadChanged) -> None:
    mpi = {"mpiexec": "/opt/mpiexec", "hostfile": "hosts", "arguments": ["-launcher", "ssh"]}
    section = load_changed({"briton.mpi": mpi}).briton.mpi
    assert (section.mpiexec, section.hostfile, section.arguments) == (
        "/opt/mpiexec",
        Path("hosts"),
        ("-launcher", "ssh"),
    )


def test_how_long_an_engine_may_start(load_changed: LoadChanged) -> None:
    """Hundreds of GB from network storage take longer than ten minutes."""
    config = load_changed()
    assert config.start_timeout_s("trtllm") > config.start_timeout_s("local") > 0
    described = BritonSection.model_fields["start_timeout_s"].description or ""
    assert all(f"{config.start_timeout_s(executor):g} for " in described for executor in EXECUTORS)
    config = load_changed({"briton.start_timeout_s": 7200})
    assert config.start_timeout_s("trtllm") == config.start_timeout_s("local") == 7200
