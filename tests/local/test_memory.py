"""How the KV cache is sized, and what is refused."""

from __future__ import annotations

import pytest

from briton.errors import ConfigError
from briton.local import memory
from briton.local.memory import available_memory_bytes, num_kv_blocks
from briton.local.settings import LocalSettings

LIMITS = {"max_batch_size": 4, "max_num_tokens": 512, "max_queue_size": 8}


@pytest.fixture(autouse=True)
def one_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 2**30)


def test_a_full_batch_when_it_fits() -> None:
    assert num_kv_blocks(LocalSettings(**LIMITS), 1000, 1024) == 4 * 32


def test_a_share_of_memory_when_it_does_not() -> None:
    assert num_kv_blocks(LocalSettings(**LIMITS), 10**6, 2**20) == 2**8
    assert num_kv_blocks(LocalSettings(**LIMITS, kv_cache_memory_fraction=0.5), 10**6, 2**20) == 2**9


def test_the_config_decides() -> None:
    assert num_kv_blocks(LocalSettings(**LIMITS, kv_cache_tokens=1000), 100, 1024) == 31
    assert num_kv_blocks(LocalSettings(**LIMITS, kv_cache_memory_bytes=10_000), 100, 1024) == 9


def test_too_much_and_too_little_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"asks for 2\.0 GiB .* 1\.0 GiB of memory") as caught:
        num_kv_blocks(LocalSettings(**LIMITS, kv_cache_tokens=64 * 1024), 100, 2**20)
    assert caught.value.field == "briton.local.kv_cache_tokens"
    with pytest.raises(ConfigError, match="at least 2 are needed") as caught:
        num_kv_blocks(LocalSettings(**LIMITS, kv_cache_memory_bytes=1000), 100, 2**20)
    assert caught.value.field == "briton.local.kv_cache_memory_bytes"


def test_the_kernel_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 2**24 < available_memory_bytes() < 2**50
