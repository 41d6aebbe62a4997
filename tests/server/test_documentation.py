"""The tables of fields and metrics in docs/, against a gateway."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from briton_server.guides import UNENFORCED
from briton_server.protocol.chat import ChatCompletionRequest
from tests.fake_executor import FakeExecutor
from tests.server.running import RunningGateway
from tools.docs.openai_reference import IGNORED_IN_CHAT, REFUSED

DOCS = Path(__file__).parents[2] / "docs"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
COMPLETION: dict[str, Any] = {"prompt": "Hi", "max_tokens": 4}
TOOL = {"type": "function", "function": {"name": "f"}}
# What REFUSED says, as requests: the path, the field, and a value that is refused.
REFUSALS = [
    ("/v1/chat/completions", "tools", [TOOL]),
    ("/v1/chat/completions", "tool_choice", "required"),
    ("/v1/chat/completions", "functions", [{"name": "f"}]),
    ("/v1/completions", "suffix", "end"),
    ("/v1/completions", "best_of", 2),
    ("/v1/chat/completions", "modalities", ["text", "audio"]),
    ("/v1/chat/completions", "nvext", {"guided_json": {"type": "object"}}),
    ("/v1/chat/completions", "text", {"format": {"type": "json_object"}}),
    *(("/v1/chat/completions", name, "root ::= x") for name in UNENFORCED),
]


def _body(path: str) -> dict[str, Any]:
    return CHAT if "chat" in path else COMPLETION


def test_every_refused_field_is_tried() -> None:
    assert sorted(field for _, field, _ in REFUSALS) == sorted(REFUSED)


@pytest.mark.parametrize(("path", "field", "value"), REFUSALS)
async def test_refused_fields_are_refused_by_name(gateway: RunningGateway, path: str, field: str, value: Any) -> None:
    response = await gateway.post(path, {**_body(path), field: value})
    assert response.status_code == 400
    assert response.json()["error"]["param"].partition(".")[0] == field


async def test_ignored_fields_change_nothing(gateway: RunningGateway) -> None:
    plain = (await gateway.post("/v1/chat/completions", CHAT)).json()
    for name in IGNORED_IN_CHAT:
        response = await gateway.post("/v1/chat/completions", {**CHAT, name: "anything"})
        assert response.status_code == 200, (name, response.text)
        assert response.json()["choices"] == plain["choices"]


def test_no_field_is_both_enforced_and_ignored() -> None:
    """`user` was listed as both."""
    assert not set(IGNORED_IN_CHAT) & set(ChatCompletionRequest.model_fields)


async def test_every_metric_is_documented(gateway: RunningGateway, executor: FakeExecutor) -> None:
    """And none that is not there: the table's names are those of a scrape after a request."""
    assert (await gateway.post("/v1/completions", COMPLETION)).status_code == 200
    scrape = (await gateway.http.get("/metrics")).text
    scraped = {
        (name if kind != "counter" or name.endswith("_total") else f"{name}_total", kind)
        for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", scrape, re.MULTILINE)
        if not name.endswith("_created")
    }
    page = (DOCS / "operations.md").read_text()
    assert scraped == set(re.findall(r"^\| `(briton_\w+)` \| (\w+) \|", page, re.MULTILINE))


async def test_every_path_is_documented(gateway: RunningGateway) -> None:
    page = (DOCS / "openai-api.md").read_text()
    for path in (await gateway.http.get("/openapi.json")).json()["paths"]:
        assert f"`{path.replace('{model}', 'NAME')}`" in page, path
