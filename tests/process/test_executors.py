"""What of a config reaches the local executor."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from briton.config.config import Config
from briton.config.loader import load_config
from briton.config.lookahead import LookaheadConfig
from briton.local import loader
from briton.local.settings import LocalSettings
from briton.process.executors import create_executor, follow_executor
from briton.ranks.rank_context import RankContext
from briton.trtllm.machine import Machine

SettingsOf = Callable[..., LocalSettings]


@pytest.fixture
def settings_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SettingsOf:
    """The settings that a config with these sizes and fields of a speculator comes to; without sizes it has none."""

    def settings(sizes: tuple[int, int, int] | None = None, **fields: Any) -> LocalSettings:
        build: dict[str, Any] = {"checkpoint_repository": {"source": "LOCAL", "repo": "."}, "max_batch_size": 8}
        if sizes is not None:
            names = ("lookahead_windows_size", "lookahead_ngram_size", "lookahead_verification_set_size")
            mode = {"speculative_decoding_mode": "LOOKAHEAD_DECODING"}
            build["speculator"] = {**mode, **dict(zip(names, sizes, strict=True)), **fields}
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump({"trt_llm": {"build": build}}))
        seen: list[LocalSettings] = []
        monkeypatch.setattr(loader, "load_local_executor", lambda directory, settings, *others: seen.append(settings))
        create_executor(load_config(file), tmp_path)
        return seen[0]

    return settings


def test_no_speculator(settings_of: SettingsOf) -> None:
    settings = settings_of()
    assert (settings.lookahead, settings.enable_b10_lookahead, settings.max_draft_tokens) == (None, False, 0)


@pytest.mark.parametrize(
    ("sizes", "fields", "num_draft_tokens"),
    [
        ((7, 5, 5), {}, 47),
        ((3, 8, 3), {"enable_b10_lookahead": True}, 41),
        ((1, 32, 1), {"enable_b10_lookahead": True}, 61),
        ((8, 1, 1), {"enable_b10_lookahead": True, "num_draft_tokens": 8}, 8),
    ],
)
def test_a_speculator(
    settings_of: SettingsOf, sizes: tuple[int, int, int], fields: dict[str, Any], num_draft_tokens: int
) -> None:
    settings = settings_of(sizes, **fields)
    assert settings.lookahead == LookaheadConfig(*sizes)
    assert settings.enable_b10_lookahead is fields.get("enable_b10_lookahead", False)
    assert settings.max_draft_tokens == num_draft_tokens


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 32, 1)])
def test_a_speculator_that_drafts_nothing_is_none(settings_of: SettingsOf, sizes: tuple[int, int, int]) -> None:
    settings = settings_of(sizes, num_draft_tokens=64, enable_b10_lookahead=None)
    assert (settings.lookahead, settings.enable_b10_lookahead, settings.max_draft_tokens) == (None, False, 0)


@pytest.fixture
def trtllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Config, list[Any]]:
    """A config that TensorRT-LLM would run here, and what its loader is called with: it is imported then, and not
    before."""
    seen: list[Any] = []
    stand_in = SimpleNamespace(
        create_trtllm_executor=lambda *arguments: seen.append(arguments),
        follow_trtllm_executor=lambda *arguments: seen.append(arguments),
    )
    monkeypatch.setitem(sys.modules, "briton.trtllm.loader", stand_in)
    monkeypatch.setattr("briton.process.executor_choice.this_machine", lambda: Machine("1.2.1", ("NVIDIA L4",)))
    file = tmp_path / "config.yaml"
    build = {"checkpoint_repository": {"source": "LOCAL", "repo": "."}, "pipeline_parallel_count": 2}
    file.write_text(yaml.safe_dump({"trt_llm": {"build": build}}))
    return load_config(file), seen


def test_a_config_for_tensorrt_llm(trtllm: tuple[Config, list[Any]], tmp_path: Path) -> None:
    config, seen = trtllm
    create_executor(config, tmp_path)
    assert seen == [(config, tmp_path, tuple)]


def test_ranks_of_tensorrt_llm(trtllm: tuple[Config, list[Any]], tmp_path: Path) -> None:
    """They have no communicator of ours."""
    config, seen = trtllm
    member: Any = SimpleNamespace(all_stats=object(), serve=object())
    create_executor(config, tmp_path, RankContext(None, member))
    follow_executor(config, tmp_path, RankContext(None, member))
    assert seen == [(config, tmp_path, member.all_stats), (config, tmp_path, member.serve)]
