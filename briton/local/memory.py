"""How large the KV cache becomes: what the config says, else what a full batch can use, within a share of the memory
there is."""

from __future__ import annotations

from pathlib import Path

from briton.errors import ConfigError
from briton.local.settings import BLOCK_SIZE, LocalSettings


def num_kv_blocks(settings: LocalSettings, max_seq_len: int, block_bytes: int) -> int:
    """Blocks to allocate. Raises ConfigError when they do not fit in memory, or hold less than one step's minimum."""
    available = available_memory_bytes()
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


def available_memory_bytes() -> int:
    """What the kernel says can be had without swapping, cut to what is left of a cgroup's limit."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except OSError:
        return available
    return available if limit == "max" else min(available, int(limit) - used)
