"""What an answer must be, in every spelling: enforced, or refused by name. Dropped in silence: never."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from briton_server.guides import UNENFORCED
from briton_server.unknown_fields import MAX_NAME_LENGTH, MAX_NAMES, UnknownFields
from tests.fake_executor import FakeExecutor
from tests.server.conftest import Serve, says
from tests.server.running import RunningGateway

HI = [{"role": "user", "content": "hi"}]
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
OBJECT = '{"a":1}'

ENFORCED: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {"type": "json_object"}}, OBJECT),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, OBJECT),  # llama.cpp, Together, Fireworks
    ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, OBJECT),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}}, OBJECT),
    ({"structured_outputs": {"json": SCHEMA}}, OBJECT),  # vLLM
    ({"structured_outputs": {"json": '{"enum": ["x"]}', "disable_fallback": True}}, '"x"'),
    ({"structured_outputs": {"json_object": True, "regex": None}}, OBJECT),
    ({"structured_outputs": {"regex": "[0-9]{2}"}}, "42"),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes"),
    ({"guided_json": SCHEMA}, OBJECT),
    ({"guided_json": '{"enum": ["x"]}'}, '"x"'),
    ({"guided_regex": "[0-9]{2}"}, "42"),
    ({"guided_choice": ["yes", "no"]}, "yes"),
    ({"guided_json_object": True}, OBJECT),
    ({"extra_body": {"guided_choice": ["maybe"]}}, "maybe"),
    ({"regex": "[0-9]{2}"}, "42"),  # SGLang
    ({"json_schema": SCHEMA}, OBJECT),  # llama.cpp
    ({"json_schema": '{"enum": ["x"]}'}, '"x"'),  # SGLang
]


async def test_every_spelling_is_enforced(serve: Serve) -> None:
    """A script that the guide forbids shows when the guide got lost on the way."""
    executor = FakeExecutor()
    async with serve(executor, guided=True) as running:
        for fields, said in ENFORCED:
            executor.script = says(said)
            response = await running.post("/v1/chat/completions", {"messages": HI, **fields})
            assert response.status_code == 200, (fields, response.text)
            assert response.json()["choices"][0]["message"]["content"] == said
            executor.script = says("~" * 20)
            response = await running.post("/v1/completions", {"prompt": "hi", "max_tokens": 20, **fields})
            assert not response.json()["choices"][0]["text"].startswith("~"), fields


BOTH = ("only one of", "can constrain a request")
# fields -> the field named, and what the message says
REFUSED: list[tuple[dict[str, Any], str, tuple[str, ...]]] = [
    *(({name: "root ::= x"}, name, ("use ",)) for name in UNENFORCED),
    ({"guided_decoding": {"json": SCHEMA}}, "guided_decoding", ("use guided_json",)),
    ({"nvext": {"guided_json": SCHEMA}}, "nvext.guided_json", ("beside nvext",)),  # Dynamo
    ({"nvext": {"ignore_eos": True, "guided_choice": ["a"]}}, "nvext.guided_choice", ("beside nvext",)),
    ({"extra_body": {"nvext": {"guided_regex": "a"}}}, "nvext.guided_regex", ("beside nvext",)),
    ({"text": {"format": {"type": "json_schema", "schema": SCHEMA}}}, "text.format", ("use response_format",)),
    ({"guided_json_object": 1}, "guided_json_object", ("boolean",)),
    ({"guided_json_object": True, "guided_regex": "a"}, "guided_json_object", BOTH),
    ({"grammar": {"type": "json", "value": SCHEMA}}, "grammar", ("use a regular expression or a JSON schema",)),  # TGI
    ({"structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar", ("use a regular expression",)),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", ("use ",)),
    ({"structured_outputs": {"json": SCHEMA, "whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern", ()),
    (
        {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
        "structured_outputs.disable_any_whitespace",
        (),
    ),
    (
        {"structured_outputs": {"json": SCHEMA, "disable_additional_properties": True}},
        "structured_outputs.disable_additional_properties",
        ("additionalProperties: false",),
    ),
    ({"structured_outputs": {}}, "structured_outputs", ("one of json, regex, choice and json_object",)),
    ({"structured_outputs": {"json_object": False}}, "structured_outputs", ("required",)),
    ({"structured_outputs": {"choices": ["a"]}}, "structured_outputs.choices", ("not known",)),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", ("JSON",)),
    ({"structured_outputs": {"json": {"not": {}}}}, "structured_outputs.json", ("'not'",)),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", ()),
    ({"structured_outputs": {"choice": [""]}}, "structured_outputs.choice[0]", ("empty",)),
    ({"regex": "("}, "regex", ()),
    ({"json_schema": {"name": "n", "schema": SCHEMA}}, "json_schema", ("'name'",)),
    ({"response_format": {"type": "json_object", "value": SCHEMA}}, "response_format.value", ("not known",)),  # TGI
    ({"response_format": {"type": "json_object", "schema": {"not": {}}}}, "response_format.schema", ("'not'",)),
    (
        {"response_format": {"type": "json_object", "json_schema": {"name": "n", "schema": SCHEMA}}},
        "response_format.json_schema",
        ("type json_schema only, not with json_object",),
    ),
    (
        {"response_format": {"type": "text", "json_schema": {"name": "n", "schema": SCHEMA}}},
        "response_format.json_schema",
        ("not with text",),
    ),
    ({"response_format": {"type": "text", "schema": SCHEMA}}, "response_format.schema", ("type json_object",)),
    (
        {"response_format": {"type": "json_schema", "schema": SCHEMA, "json_schema": {"schema": SCHEMA}}},
        "response_format.schema",
        ("in place of",),
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "stirct": True}}},
        "response_format.json_schema.stirct",
        ("not known",),
    ),
    ({"response_format": {"type": "structural_tag", "structures": []}}, "response_format.type", ("'json_schema'",)),
    ({"response_format": {"type": "regex", "pattern": "a"}}, "response_format.type", ("'regex'",)),
    ({"response_format": {"type": "json_object"}, "guided_json": SCHEMA}, "guided_json", BOTH),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice", BOTH),
    ({"structured_outputs": {"regex": "a"}, "guided_regex": "a"}, "guided_regex", BOTH),
    ({"regex": "a", "json_schema": SCHEMA}, "regex", BOTH),
]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_what_is_not_enforced_is_refused_by_name(serve: Serve, path: str) -> None:
    executor = FakeExecutor()
    async with serve(executor, guided=True) as running:
        for fields, param, told in REFUSED:
            prompt = {"messages": HI} if "chat" in path else {"prompt": "hi"}
            response = await running.post(path, {**prompt, **fields})
            assert response.status_code == 400, (fields, response.text)
            error = response.json()["error"]
            assert (error["param"], error["type"]) == (param, "invalid_request_error"), (fields, error)
            assert param.partition("[")[0] in error["message"], (fields, error)
            assert all(part in error["message"] for part in told), (fields, error)
    assert executor.submitted == []


async def test_what_constrains_nothing_is_no_constraint(gateway: RunningGateway) -> None:
    """Clients send empty grammars, and `text`."""
    nothing: list[object] = ["", None, [], {}]
    fields = dict(zip(UNENFORCED, nothing * len(UNENFORCED), strict=False))
    parts = {
        "nvext": {"ignore_eos": True, "guided_json": None, "guided_decoding_backend": "xgrammar"},
        "text": {"verbosity": "low", "format": {"type": "text"}},
        "guided_json_object": False,
    }
    body = {"messages": HI, **fields, **parts, "response_format": {"type": "text"}, "modalities": ["text"]}
    assert (await gateway.post("/v1/chat/completions", body)).status_code == 200


async def test_other_modalities_are_refused(gateway: RunningGateway) -> None:
    response = await gateway.post("/v1/chat/completions", {"messages": HI, "modalities": ["text", "audio"]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "modalities")


async def test_an_unknown_field_is_logged_once(gateway: RunningGateway, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        body = {"messages": HI, "max_token": 5, "seed": 1, "extra_body": {"beam_width": 2}}
        assert (await gateway.post("/v1/chat/completions", body)).status_code == 200
    assert (await gateway.post("/v1/completions", {"prompt": "a", "max_token": 5})).status_code == 200
    told = [record.message for record in caplog.records if "has no effect" in record.message]
    assert len(told) == 2
    assert "'max_token'" in told[0] + told[1]
    assert "'beam_width'" in told[0] + told[1]


async def test_unknown_fields_with_names_of_ours_change_nothing(gateway: RunningGateway) -> None:
    names = ("model_extra", "model_dump", "model_fields", "__class__", "__dict__", "", "extra_body", "max_tokens ")
    body = {"messages": HI, **dict.fromkeys(names, 1)}
    response = await gateway.post("/v1/chat/completions", body)
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == "Hello, wörld 🌍!"


def test_unknown_fields_without_end_are_not_logged_without_end(caplog: pytest.LogCaptureFixture) -> None:
    unknown = UnknownFields()
    for number in range(3 * MAX_NAMES):
        unknown.note([f"{number}" + "x" * 10_000])
    assert len(caplog.records) == MAX_NAMES + 1
    assert "no more" in caplog.records[-1].message
    assert all(len(record.message) < MAX_NAME_LENGTH + 100 for record in caplog.records)
    assert logging.getLevelName(caplog.records[0].levelno) == "WARNING"
