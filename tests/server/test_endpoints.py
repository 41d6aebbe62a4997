"""The endpoints around generation: models, health, version, metrics, request ids, the OpenAPI document."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, NotFoundError
from prometheus_client.parser import text_string_to_metric_families

import briton
from briton.v1.current_request import current_request
from briton_server import generation_request
from briton_server.app import create_app
from briton_server.preparation import LONG_BODY
from briton_server.settings import Settings
from tests.fake_executor import FAKE_INFO, FakeExecutor
from tests.server.conftest import Serve
from tests.server.running import MODEL, RunningGateway

ROOT = Path(__file__).parents[2]
WITH_USAGE = {"stream_options": {"include_usage": True}}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


async def test_models(client: AsyncOpenAI) -> None:
    """Names may hold slashes."""
    models = await client.models.list()
    assert [model.id for model in models.data] == [MODEL]
    model = await client.models.retrieve(MODEL)
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "briton")
    assert model.model_dump()["max_model_len"] == FAKE_INFO.max_seq_len
    with pytest.raises(NotFoundError) as raised:
        await client.models.retrieve("other")
    assert raised.value.code == "model_not_found"


async def test_health_and_version(gateway: RunningGateway) -> None:
    for path in ("/live", "/ready", "/health"):
        response = await gateway.http.get(path)
        assert (response.status_code, response.json()) == (200, {"status": "ok"})
    version = (await gateway.http.get("/version")).json()
    assert (version["version"], version["engine_version"]) == (briton.__version__, briton.__version__)
    assert version["executor"] == "fake"


async def test_ready_says_no_from_the_moment_of_draining(gateway: RunningGateway) -> None:
    gateway.gateway.readiness.drain()
    assert (await gateway.http.get("/ready")).status_code == 503
    assert (await gateway.http.get("/health")).status_code == 200, "the engine is well"
    refused = await gateway.post("/v1/chat/completions", CHAT)
    assert refused.status_code == 503
    assert "shutting down" in refused.json()["error"]["message"]
    assert "retry-after" in refused.headers


async def test_metrics_add_up(gateway: RunningGateway) -> None:
    body = {**CHAT, "messages": [{"role": "user", "content": "hi " * 30}]}  # of several blocks
    whole = (await gateway.post("/v1/chat/completions", body)).json()["usage"]
    text = (await gateway.post("/v1/chat/completions", {**body, "stream": True, **WITH_USAGE})).text
    again = json.loads(text.split("\n\n")[-3].removeprefix("data: "))["usage"]
    await gateway.post("/v1/chat/completions", {**CHAT, "n": 0})
    await gateway.http.get("/made/up/path")
    text = (await gateway.http.get("/metrics")).text
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }

    def value(name: str, **labels: str) -> float:
        return samples[name, tuple(sorted(labels.items()))]

    chat = "/v1/chat/completions"
    assert value("briton_http_requests_total", endpoint=chat, status="200") == 2
    assert value("briton_http_requests_total", endpoint=chat, status="400") == 1
    assert value("briton_http_requests_total", endpoint="unknown", status="404") == 1
    assert value("briton_completion_tokens_total") == 2 * whole["completion_tokens"]
    assert value("briton_prompt_tokens_total") == 2 * whole["prompt_tokens"]
    assert value("briton_time_to_first_token_seconds_count") == 2
    assert value("briton_queue_seconds_count") == 2
    assert value("briton_request_seconds_count") == 3
    assert value("briton_open_requests") == 0
    assert value("briton_cached_tokens_total") == again["prompt_tokens_details"]["cached_tokens"] > 0
    assert value("briton_engine_up") == 1
    assert value("briton_engine_requests_total") == 2
    assert value("briton_engine_output_tokens_total") == 2 * whole["completion_tokens"]


async def test_lora_adapters_are_models(serve: Serve) -> None:
    executor = FakeExecutor(replace(FAKE_INFO, lora_adapters=("legal",)))
    async with serve(executor) as gateway, gateway.openai() as client:
        assert [model.id for model in (await client.models.list()).data] == [MODEL, "legal"]
        assert (await client.models.retrieve("legal")).id == "legal"
        message: Any = {"messages": CHAT["messages"], "max_tokens": 1}
        assert (await client.chat.completions.create(model="legal", **message)).model == "legal"
        assert (await client.completions.create(model="legal", prompt="a", max_tokens=1)).model == "legal"
        assert (await client.chat.completions.create(model=MODEL, **message)).model == MODEL
        with pytest.raises(NotFoundError, match=r"'poems' does not exist: this server serves .*, 'legal'"):
            await client.chat.completions.create(model="poems", **message)
    assert [request.lora for request in executor.submitted] == ["legal", "legal", None]


async def test_request_ids_go_in_and_out(gateway: RunningGateway) -> None:
    for given, kept in (("my-id-1", True), ("", False), ("a b", False), ("x" * 129, False)):
        headers = {"x-request-id": given}
        for response in (
            await gateway.post("/v1/chat/completions", CHAT, **headers),
            await gateway.post("/v1/chat/completions", {**CHAT, "stream": True}, **headers),
            await gateway.post("/v1/chat/completions", b"{", **headers),
            await gateway.http.get("/live", headers=headers),
        ):
            returned = response.headers["x-request-id"]
            assert (returned == given) is kept
            assert returned


class Noted(logging.Handler):
    """What was logged by the gateway, and for which request."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("briton_server"):
            self.lines.append((record.getMessage(), current_request.get()))


async def test_every_log_line_of_a_request_knows_it(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On the event loop, in the thread of a long body, and where nobody caught an error."""
    noted, logger = Noted(), logging.getLogger("briton_server")
    caplog.set_level(logging.INFO, "briton_server")
    monkeypatch.setattr(logger, "handlers", [noted])
    headers = {"x-request-id": "mine"}
    await gateway.post("/v1/chat/completions", {**CHAT, "stream": True}, **headers)
    await gateway.post("/v1/chat/completions", {**CHAT, "unknown_field": "x" * LONG_BODY}, **headers)
    monkeypatch.setattr(generation_request, "parse_request", lambda content, kind: 1 / 0)
    assert (await gateway.post("/v1/chat/completions", CHAT, **headers)).status_code == 500
    told = [line for line, _ in noted.lines]
    assert len([line for line in told if line.startswith("/v1/chat/completions")]) == 3
    assert [line for line in told if "unknown_field" in line]
    assert [line for line in told if "failed" in line]
    assert {request for _, request in noted.lines} == {"mine"}, noted.lines


async def test_the_same_request_id_twice_at_once_is_no_error(gateway: RunningGateway) -> None:
    """A retry of a client's; the engine refuses an id that is open, so it gets ids of the gateway's own."""
    async with gateway.openai() as client:
        headers = {"x-request-id": "twice"}
        first = client.chat.completions.create(**CHAT, stream=True, extra_headers=headers)  # type: ignore[call-overload]
        second = client.chat.completions.create(**CHAT, extra_headers=headers)  # type: ignore[call-overload]
        stream, answer = await first, await second
        assert answer.choices
        assert [chunk async for chunk in stream]


def test_the_committed_document_is_the_applications() -> None:
    """`python -m briton_server.openapi_document` writes it."""
    app = create_app(Settings(model_name="", tokenizer_dir=Path(), engine_address=""))
    committed = json.loads((ROOT / "server" / "openapi.json").read_text())
    assert committed["info"] == {"title": "Briton", "version": briton.__version__}
    assert operations_of(committed) == operations_of(app.openapi())
    assert committed["components"]["schemas"] == app.openapi()["components"]["schemas"]


def operations_of(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """What the document says of each operation in our words: FastAPI's own may change with each release of it."""

    def schemas(described: dict[str, Any]) -> dict[str, Any]:
        return {media: content.get("schema", {}).get("$ref") for media, content in described.get("content", {}).items()}

    return {
        (path, method): {
            "id": operation["operationId"],
            "summary": operation["summary"],
            "parameters": [(given["name"], given["in"]) for given in operation.get("parameters", ())],
            "body": schemas(operation.get("requestBody", {})),
            "responses": {status: schemas(response) for status, response in operation["responses"].items()},
        }
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }


def test_operations_have_short_names_and_our_errors() -> None:
    """Clients are generated from them. FastAPI's own error, 422, is nowhere sent."""
    app = create_app(Settings(model_name="", tokenizer_dir=Path(), engine_address=""))
    operations = operations_of(app.openapi())
    assert {operation["id"] for operation in operations.values()} == {
        "create_chat_completion",
        "create_completion",
        "list_models",
        "retrieve_model",
        "live",
        "ready",
        "health",
        "metrics",
        "version",
    }
    for (path, _), operation in operations.items():
        error = {"application/json": "#/components/schemas/ErrorBody"}
        expected = {"200", "default"} if path.startswith("/v1/") else {"200"}
        assert set(operation["responses"]) == expected
        assert operation["responses"].get("default") == (error if "default" in expected else None)
    chat = operations["/v1/chat/completions", "post"]
    assert chat["body"] == {"application/json": "#/components/schemas/ChatCompletionRequest"}
    assert set(chat["responses"]["200"]) == {"application/json", "text/event-stream"}


async def test_the_document_and_its_page(gateway: RunningGateway) -> None:
    document = (await gateway.http.get("/openapi.json")).json()
    assert set(document["paths"]) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models",
        "/v1/models/{model}",
        "/health",
        "/live",
        "/ready",
        "/metrics",
        "/version",
    }
    schemas = document["components"]["schemas"]
    assert schemas["ChatCompletionRequest"]["properties"]["top_p"]["anyOf"][0] == {
        "maximum": 1,
        "minimum": 0,
        "type": "number",
    }
    body = document["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/CompletionRequest"}
    references = set(json.dumps(document).split('"#/components/schemas/')[1:])
    assert {reference.partition('"')[0] for reference in references} <= set(schemas)
    assert (await gateway.http.get("/docs")).status_code == 200
