"""A long body keeps no stream waiting: its work is done in a thread, bounded before it is done, and done once."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable
from typing import Any

import pydantic_core
import pytest
from pydantic import ValidationError

from briton.errors import InvalidRequest
from briton.text.chat_template import ChatTemplate
from briton.text.control_tokens import ControlTokens
from briton.text.tokenizer import Tokenizer
from briton_server import body, generation_request, preparation
from briton_server.protocol.chat import ChatCompletionRequest
from briton_server.protocol.completions import CompletionRequest
from briton_server.protocol.fields import RequestModel
from briton_server.routers import chat, completions
from tests.server.running import MODEL, RunningGateway

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


class Threads:
    """Which threads ran the functions that were given to `watch`, by name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.of: dict[str, set[int]] = {}

    def watch(self, owner: Any, name: str) -> None:
        """Note the thread of each call from now on."""
        function: Callable[..., Any] = getattr(owner, name)
        threads = self.of.setdefault(name, set())

        def noted(*args: Any, **kwargs: Any) -> Any:
            threads.add(threading.get_ident())
            return function(*args, **kwargs)

        self._monkeypatch.setattr(owner, name, noted)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    threads = Threads(monkeypatch)
    for router in (chat, completions):
        threads.watch(router, "new_generation")
    threads.watch(generation_request, "parse_request")
    threads.watch(ChatTemplate, "render")
    threads.watch(ControlTokens, "encode")
    threads.watch(Tokenizer, "encode")
    return threads


LONG = preparation.LONG_BODY
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "one text": (CHAT, {"messages": [{"role": "user", "content": "x"}], "user": "x" * LONG}),
    "many messages": (CHAT, {"messages": HI * 150, "user": "x" * LONG}),
    "a prompt": (TEXT, {"prompt": "x", "user": "x" * LONG}),
    "many prompts": (TEXT, {"prompt": ["x" * 100] * 120}),
    "token ids": (TEXT, {"prompt": [[7] * 40] * 120, "echo": True}),
}


@pytest.mark.parametrize(("path", "fields"), BODIES.values(), ids=BODIES.keys())
async def test_a_long_body_is_worked_on_in_a_thread(
    gateway: RunningGateway, threads: Threads, path: str, fields: dict[str, Any]
) -> None:
    """All of it in one: parsing, validating, rendering and encoding."""
    content = json.dumps({"model": MODEL, "max_tokens": 1, **fields}).encode()
    assert len(content) > LONG
    response = await gateway.post(path, content)
    assert response.status_code == 200, response.text
    used = {name: ids for name, ids in threads.of.items() if ids}
    assert {"parse_request"} < set(used)
    assert threading.get_ident() not in set().union(*used.values()), used
    assert len(set().union(*used.values())) == 1, used


@pytest.mark.parametrize(("path", "fields"), [(CHAT, {"messages": HI}), (TEXT, {"prompt": "hi"})])
async def test_a_short_one_changes_no_threads(
    gateway: RunningGateway, threads: Threads, path: str, fields: dict[str, Any]
) -> None:
    assert (await gateway.post(path, {"model": MODEL, "max_tokens": 1, **fields})).status_code == 200
    assert set().union(*threads.of.values()) == {threading.get_ident()}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "x" * 9000}] * 3}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 9000}] * 3}]}),
        (TEXT, {"prompt": "x" * 27_000}),
    ],
)
async def test_what_can_never_fit_is_refused_before_it_is_rendered_or_encoded(
    gateway: RunningGateway, threads: Threads, path: str, fields: dict[str, Any]
) -> None:
    """The longest token has 13 characters, the context 2048 tokens."""
    response = await gateway.post(path, {"model": MODEL, **fields})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "27000 characters" in error["message"]
    assert str(13 * 2048) in error["message"]
    assert not threads.of["render"] | threads.of["encode"]


NUM_ITEMS = 20_000
WORST: dict[str, tuple[type[RequestModel], dict[str, Any]]] = {
    "messages": (ChatCompletionRequest, {"messages": [{"role": "user"}] * NUM_ITEMS}),
    "messages of no role": (ChatCompletionRequest, {"messages": [{}] * NUM_ITEMS}),
    "tool calls": (ChatCompletionRequest, {"messages": [{**HI[0], "tool_calls": [1] * NUM_ITEMS}]}),
    "biases": (ChatCompletionRequest, {"messages": HI, "logit_bias": {f"x{i}": "y" for i in range(NUM_ITEMS)}}),
    "stops": (ChatCompletionRequest, {"messages": HI, "stop": [1] * NUM_ITEMS}),
    "stop tokens": (ChatCompletionRequest, {"messages": HI, "stop_token_ids": ["x"] * NUM_ITEMS}),
    "bad words": (ChatCompletionRequest, {"messages": HI, "bad_words": [1] * NUM_ITEMS}),
    "choices": (ChatCompletionRequest, {"messages": HI, "guided_choice": [1] * NUM_ITEMS}),
    "prompts": (CompletionRequest, {"prompt": [1.5] * NUM_ITEMS}),
    "token ids": (CompletionRequest, {"prompt": [[-1] * NUM_ITEMS]}),
}


@pytest.mark.parametrize(("model", "fields"), WORST.values(), ids=WORST.keys())
def test_a_body_that_is_wrong_everywhere_has_few_errors(model: type[RequestModel], fields: dict[str, Any]) -> None:
    """pydantic made one for each of two million tool calls that were none: 20 s in which no thread could run."""
    with pytest.raises(ValidationError) as raised:
        model.model_validate(fields)
    assert raised.value.error_count() <= 20


@pytest.mark.parametrize("content", [b'{"messages": []}', b"{"], ids=["good", "broken"])
def test_no_garbage_is_looked_for_while_json_is_parsed(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    parse, enabled = pydantic_core.from_json, []

    def from_json(data: bytes) -> Any:
        enabled.append(gc.isenabled())
        return parse(data)

    monkeypatch.setattr(pydantic_core, "from_json", from_json)
    with pytest.raises(InvalidRequest):
        body.parse_request(content, ChatCompletionRequest)
    assert enabled == [False]
    assert gc.isenabled()
