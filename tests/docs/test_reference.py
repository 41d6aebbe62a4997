"""What the documentation takes from the code: complete, and true of real configs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from briton.config.loader import load_config
from briton.errors import ConfigError
from tests.docs.blocks import ROOT
from tools.docs import __main__ as tool
from tools.docs import config_reference

SCHEMA: dict[str, Any] = json.loads((ROOT / "docs" / "config.schema.json").read_text())
CONFIGS = sorted([*(ROOT / "examples").glob("*/config.yaml"), *(ROOT / "tests" / "config" / "data").rglob("*.yaml")])
CONFIG = {"trt_llm": {"build": {"checkpoint_repository": {"source": "LOCAL", "repo": "weights"}}}}


def _errors(document: Any) -> list[str]:
    return [error.message for error in Draft202012Validator(SCHEMA).iter_errors(document)]


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: f"{file.parent.name}-{file.name}")
def test_the_schema_takes_what_briton_takes(file: Path) -> None:
    try:
        load_config(file)
    except ConfigError:
        pytest.skip("a config that Briton refuses, too")
    assert _errors(yaml.safe_load(file.read_text())) == []


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"trt_llm": {"build": {}, "inference_stack": "v3"}},
        {**CONFIG, "briton": {"http_prot": 1}},
        {**CONFIG, "briton": {"http_port": 65_536}},
        {**CONFIG, "briton": {"logging": {"level": "loud"}}},
        {"trt_llm": {"build": {**CONFIG["trt_llm"]["build"], "max_batch_size": 0}}},
    ],
)
def test_the_schema_refuses_what_briton_refuses(document: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError):
        load_config(file)
    assert _errors(document)


def test_every_key_says_what_it_is() -> None:
    rows = [line for section in config_reference.sections().values() for line in section.splitlines()]
    keys = [row for row in rows if row.startswith("| `")]
    assert len(keys) > 80
    assert [row for row in keys if re.search(r"\|\s*\|$", row)] == []


def test_the_check_notices_a_page_that_is_not_current(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "generated", lambda: iter([(Path("docs/index.md"), "something else")]))
    monkeypatch.setattr("sys.argv", ["tools.docs", "--check"])
    before = (ROOT / "docs" / "index.md").read_text()
    assert tool.main() == 1
    assert "not current: docs/index.md; run `make reference`" in capsys.readouterr().err
    assert (ROOT / "docs" / "index.md").read_text() == before
