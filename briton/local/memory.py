"""What memory is for: how large the KV cache becomes (what the config says, else what a full batch can use, within a
share of the memory there is), and how many copies of the weights there may be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from briton.errors import ConfigError
from briton.local.cgroups import CGROUPS, PROC, cgroups_of
from briton.local.settings import BLOCK_SIZE, LocalSettings

# Of the available memory, for copies of the weights that make a step a tenth faster: small models on big machines.
GRAPH_COPIES_SHARE = 1 / 32


def num_kv_blocks(settings: LocalSettings, max_seq_len: int, block_bytes: int, later_bytes: int = 0) -> int:
    """Blocks to allocate, in memory of which `later_bytes` are promised to others. Raises ConfigError when they do not
    fit, or hold less than one step's minimum."""
    available = max(0, available_memory_bytes() - later_bytes)
    if settings.kv_cache_tokens is not None:
        blocks, field = settings.kv_cache_tokens // BLOCK_SIZE, "briton.local.kv_cache_tokens"
    elif settings.kv_cache_memory_bytes is not None:
        blocks, field = settings.kv_cache_memory_bytes // block_bytes, "briton.local.kv_cache_memory_bytes"
    else:
        full_batch = settings.max_batch_size * -(-max_seq_len // BLOCK_SIZE)
        blocks, field = (
            min(full_batch, int(available * settings.kv_cache_memory_fraction) // block_bytes),
            "trt_llm.build.max_batch_size",
        )
    if blocks < 2:
        raise ConfigError(
            f"{field} leaves room for {max(blocks, 0)} KV cache blocks of {BLOCK_SIZE} tokens ({block_bytes:,} "
            f"bytes each); at least 2 are needed",
            field,
        )
    if blocks * block_bytes > available:
        raise ConfigError(
            f"{field} asks for {blocks * block_bytes / 2**30:.1f} GiB of KV cache; {available / 2**30:.1f} GiB "
            f"of memory are available",
            field,
        )
    return blocks


def num_graph_copies(weights_bytes: int) -> int:
    """How many further copies of the weights all together stay within their share of the available memory."""
    return int(available_memory_bytes() * GRAPH_COPIES_SHARE) // weights_bytes


def available_memory_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """What the kernel says can be had without swapping, cut to what is left under the limits of this process's
    cgroups."""
    fields = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    return min([available, *_left_in_cgroups(proc, cgroups)])


def _left_in_cgroups(proc: Path, cgroups: Path) -> Iterator[int]:
    """Bytes left in each cgroup that limits memory.

    Cached file pages count as left, as they do in MemAvailable: a container that has just downloaded a model is full
    of them.
    """
    for version, directory in cgroups_of("memory", proc, cgroups):
        if version == 2:
            limit_file, used_file, prefix = "memory.max", "memory.current", ""
        else:
            limit_file, used_file, prefix = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        try:
            limit = (directory / limit_file).read_text().strip()
            used = int((directory / used_file).read_text())
            stat = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
        except OSError:
            continue
        if limit != "max":
            cached = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("inactive", "active"))
            yield max(0, int(limit) - used + cached)
