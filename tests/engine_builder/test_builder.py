"""The way from a config to an engine directory: the cache, its lock, refusals, and disks that are full."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from briton.config.environment import Environment
from briton.errors import BuildError, ConfigError, Unsupported
from briton.model.engine_dir import load_manifest, rank_file
from briton_engine_builder import build_engine, find_cached_engine
from briton_engine_builder.cache import EngineCache
from tests.conftest import TinyLlama
from tests.engine_builder.engines import config_for

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(cache_dir=tmp_path / "cache")


def engines(environment: Environment) -> list[str]:
    """Everything in the cache but locks."""
    return kept(environment.cache_dir / "engines")


def kept(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.suffix != ".lock"]


def test_the_second_build_is_the_first(tiny_llama: TinyLlama, tmp_path: Path, environment: Environment) -> None:
    config = config_for(tiny_llama(tmp_path), tmp_path)
    assert find_cached_engine(config, environment) is None
    directory = build_engine(config, environment)
    before = (directory / rank_file(0)).stat().st_mtime_ns
    assert find_cached_engine(config, environment) == directory
    assert build_engine(config, environment) == directory
    assert (directory / rank_file(0)).stat().st_mtime_ns == before
    assert directory.parent == environment.cache_dir / "engines"


def test_what_the_engine_depends_on_gives_another(
    tiny_llama: TinyLlama, tmp_path: Path, environment: Environment
) -> None:
    checkpoint = tiny_llama(tmp_path)
    bf16 = build_engine(config_for(checkpoint, tmp_path), environment, progress=False)
    int8 = build_engine(config_for(checkpoint, tmp_path, "weights_int8"), environment, progress=False)
    f32 = build_engine(config_for(checkpoint, tmp_path, precision="f32"), environment, progress=False)
    # limits and names are the server's matter, not the weights'
    same = build_engine(config_for(checkpoint, tmp_path, max_seq_len=128, max_batch_size=2), environment)
    assert same == bf16
    tiny_llama(tmp_path, seed=1)
    changed = build_engine(config_for(checkpoint, tmp_path), environment, progress=False)
    assert len({bf16, int8, f32, changed}) == 4


def test_a_damaged_engine_is_built_again(
    tiny_llama: TinyLlama, tmp_path: Path, environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_for(tiny_llama(tmp_path), tmp_path)
    directory = build_engine(config, environment, progress=False)
    os.truncate(directory / rank_file(0), 100)
    assert find_cached_engine(config, environment) is None
    assert "the cached engine is not used" in caplog.text
    assert build_engine(config, environment, progress=False) == directory
    load_manifest(directory)


def test_the_configs_own_cache_directory_comes_first(
    tiny_llama: TinyLlama, tmp_path: Path, environment: Environment
) -> None:
    config = config_for(tiny_llama(tmp_path), tmp_path)
    other = tmp_path / "other"
    config = type(config)(config.trt_llm, config.briton.model_copy(update={"cache_dir": other}), config.path)
    assert build_engine(config, environment, progress=False).is_relative_to(other)


def test_progress_is_logged_where_there_is_no_terminal(
    tiny_llama: TinyLlama, tmp_path: Path, environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    build_engine(config_for(tiny_llama(tmp_path), tmp_path), environment)
    assert "Building the engine: 100 %" in caplog.text
    caplog.clear()
    build_engine(config_for(tiny_llama(tmp_path), tmp_path, "fp8"), environment, progress=False)
    assert "Building the engine: 100 %" not in caplog.text


def test_max_seq_len_beyond_the_model(tiny_llama: TinyLlama, tmp_path: Path, environment: Environment) -> None:
    checkpoint = tiny_llama(tmp_path)
    too_long = config_for(checkpoint, tmp_path, max_seq_len=1025)
    with pytest.raises(ConfigError, match=r"max_seq_len is 1025; .* is 1024"):
        build_engine(too_long, environment)
    assert engines(environment) == []
    build_engine(config_for(checkpoint, tmp_path, max_seq_len=1024), environment, progress=False)
    with pytest.raises(ConfigError, match="max_seq_len is 1025"):  # also when the engine is there
        find_cached_engine(too_long, environment)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence_parallel_count": 2}, "no pipeline or sequence parallelism"),
        ({"source": "BASETEN_TRAINING", "repo": "job", "revision": "run"}, "checkpoints from BASETEN_TRAINING"),
        ({"source": "S3", "repo": "bucket/path", "revision": "v2"}, "checkpoints from S3 have no revisions"),
        ({"base_model": "encoder"}, "base_model is encoder"),
    ],
)
def test_what_the_local_executor_has_not_got(
    tmp_path: Path, environment: Environment, options: dict[str, Any], message: str
) -> None:
    config = config_for(options.pop("repo", "somewhere"), tmp_path, **options)
    for call in (build_engine, find_cached_engine):
        with pytest.raises(Unsupported, match=message):
            call(config, environment)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), r"has neither config\.json nor a \.gguf file"),
        (lambda path: path.write_text("x"), r"is neither a directory nor a \.gguf file"),
        (lambda path: [path.mkdir(), (path / "a.gguf").touch(), (path / "b.gguf").touch()], r"has 2 \.gguf files"),
    ],
)
def test_local_paths_that_are_no_checkpoint(tmp_path: Path, environment: Environment, make: Any, message: str) -> None:
    make(tmp_path / "model")
    with pytest.raises(BuildError, match=f"checkpoint_repository.repo .*/model {message}"):
        build_engine(config_for(tmp_path / "model", tmp_path), environment)


def test_no_disk_space_says_how_much_is_missing(
    tiny_llama: TinyLlama, tmp_path: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(tiny_llama(tmp_path), tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(BuildError, match=r"not enough disk space in .*: 0\.07 GB needed, 0\.00 GB free"):
        build_engine(config, environment)
    assert engines(environment) == []


def test_a_disk_that_fills_up_while_writing(
    tiny_llama: TinyLlama, tmp_path: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(tiny_llama(tmp_path), tmp_path)
    written: list[int] = []
    pwrite = os.pwrite

    def fail_later(descriptor: int, data: Any, position: int) -> int:
        written.append(position)
        if len(written) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", fail_later)
    with pytest.raises(BuildError, match=r"cannot write .*rank0\.safetensors: No space left on device"):
        build_engine(config, environment)
    assert engines(environment) == []
    monkeypatch.undo()
    build_engine(config, environment)


def test_writes_may_be_partial(
    tiny_llama: TinyLlama, tmp_path: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """POSIX lets pwrite write less than it was given."""
    config = config_for(tiny_llama(tmp_path), tmp_path)
    whole = build_engine(config, environment, progress=False)
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: pwrite(descriptor, data[:1000], at))
    other = build_engine(config, Environment(cache_dir=tmp_path / "other"), progress=False)
    assert (other / rank_file(0)).read_bytes() == (whole / rank_file(0)).read_bytes()


def test_a_cache_that_cannot_be_written(tiny_llama: TinyLlama, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(BuildError, match="cannot write to the cache directory"):
        build_engine(config_for(tiny_llama(tmp_path), tmp_path), Environment(cache_dir=tmp_path / "cache"))


def test_files_that_cannot_be_read(
    tiny_llama: TinyLlama, tmp_path: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny_llama(tmp_path)
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors").symlink_to("model.safetensors")  # a loop: as unreadable for root as for anybody
    with pytest.raises(BuildError, match=r"cannot build an engine from LOCAL .*tiny-llama: .*symbolic links"):
        build_engine(config_for(checkpoint, tmp_path), environment)


def test_two_builders_build_once(
    tiny_llama: TinyLlama, tmp_path: Path, environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = config_for(tiny_llama(tmp_path), tmp_path)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(build_engine(config, environment))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    assert caplog.text.count("built the engine in") == 1


def test_what_a_killed_builder_left_is_swept(tmp_path: Path) -> None:
    """The lock of a dead process is free; that of a living one keeps its directory."""
    cache = EngineCache(tmp_path)
    hold = (
        "import sys, time; from pathlib import Path; from briton_engine_builder.cache import EngineCache\n"
        "cache = EngineCache(Path(sys.argv[1]))\n"
        "with cache.lock('alive'), cache.new_directory('alive'):\n    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True) as builder:
        try:
            assert builder.stdout is not None
            assert builder.stdout.readline() == "held\n"
            (cache.directory / ".dead.building").mkdir()
            (cache.directory / ".mine.building" / "rest").mkdir(parents=True)
            with cache.lock("mine"), cache.new_directory("mine") as directory:
                assert sorted(kept(cache.directory)) == [".alive.building", ".mine.building"]
                assert not any(directory.iterdir())
        finally:
            builder.kill()
    with cache.lock("mine"), cache.new_directory("mine"):
        assert not (cache.directory / ".alive.building").exists()


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)

    def build() -> None:
        with cache.lock("x"), cache.new_directory("x") as directory:
            (directory / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build()
    assert cache.find("x") is None
    assert kept(cache.directory) == []
