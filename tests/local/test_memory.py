"""How the KV cache is sized, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from briton.errors import ConfigError
from briton.local import memory
from briton.local.memory import available_memory_bytes, num_graph_copies, num_kv_blocks
from briton.local.settings import LocalSettings

LIMITS: dict[str, Any] = {"max_batch_size": 4, "max_num_tokens": 512, "max_queue_size": 8}


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


def test_copies_of_small_models_alone() -> None:
    assert [num_graph_copies(mib * 2**20) for mib in (1, 10, 11, 16, 17, 32, 33)] == [32, 3, 2, 2, 1, 1, 0]


def test_the_kernel_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 2**24 < available_memory_bytes() < 2**50


def tree(root: Path, files: dict[str, str]) -> tuple[Path, Path]:
    """A /proc that says 4 MiB are available, and a /sys/fs/cgroup."""
    for name, text in {"proc/meminfo": "MemTotal: 9999 kB\nMemAvailable: 4096 kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root / "proc", root / "cgroup"


STAT = "anon 5\ninactive_file 300\nactive_file 200\n"
STAT_V1 = "cache 1\ninactive_file 1\nactive_file 1\ntotal_inactive_file 300\ntotal_active_file 200\n"


def test_no_cgroups() -> None:
    assert list(memory._left_in_cgroups(Path("/nowhere"), Path("/nowhere"))) == []


def test_the_limit_of_a_parent_counts_and_cached_pages_are_left(tmp_path: Path) -> None:
    """Only the mount's own limit was read, and a page cache full of freshly written weights counted as used."""
    places = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/briton.slice/briton.rpc.service\n",
            "cgroup/briton.slice/memory.max": "10000\n",
            "cgroup/briton.slice/memory.current": "9000\n",
            "cgroup/briton.slice/memory.stat": STAT,
            "cgroup/briton.slice/briton.rpc.service/memory.max": "max\n",
            "cgroup/briton.slice/briton.rpc.service/memory.current": "9000\n",
            "cgroup/briton.slice/briton.rpc.service/memory.stat": STAT,
        },
    )
    assert available_memory_bytes(*places) == 10000 - 9000 + 500


def test_cgroup_version_1_in_a_container(tmp_path: Path) -> None:
    """Version 1 was not read at all. Inside a container its path is the host's, and only the container's part is
    mounted."""
    limits = {
        "proc/self/cgroup": "5:cpu:/\n4:cpuset,memory:/docker/0a1b\n0::/\n",
        "cgroup/memory/memory.usage_in_bytes": "9000\n",
        "cgroup/memory/memory.stat": STAT_V1,
    }
    places = tree(tmp_path, limits | {"cgroup/memory/memory.limit_in_bytes": "10000\n"})
    assert available_memory_bytes(*places) == 1500
    tree(tmp_path, limits | {"cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"})  # means: none
    assert available_memory_bytes(*places) == 4096 * 1024


def test_a_cgroup_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    files = {"memory.max": "10000", "memory.current": "20000", "memory.stat": "anon 20000"}
    places = tree(tmp_path, {"proc/self/cgroup": "0::/\n"} | {f"cgroup/{name}": text for name, text in files.items()})
    assert available_memory_bytes(*places) == 0
