"""Guides on the real library: every answer is what the schema, pattern or choice allows; neighbours are not touched."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator

import jsonschema
import pytest

from briton.engine.executor import Executor
from briton.engine.types import FinishReason
from briton.guidance.automaton import AutomatonGuide
from briton.guidance.compiler import GuideCompiler
from briton.guidance.guide import Guide, GuideSpec
from briton.process.executors import create_executor
from briton.text.tokenizer import Tokenizer
from tests.gpu.conftest import MakeEngine
from tests.request_runner import RequestRunner

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "continent": {"enum": ["Africa", "America", "Asia", "Europe", "Oceania"]},
        "is_capital": {"type": "boolean"},
    },
    "required": ["name", "continent", "is_capital"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def served(make_engine: MakeEngine) -> Iterator[tuple[Executor, Tokenizer, GuideCompiler]]:
    config, directory = make_engine()
    executor, tokenizer = create_executor(config, directory), Tokenizer.load(directory)
    compiler = GuideCompiler(
        tokenizer.vocabulary_bytes(executor.info.vocab_size),
        vocab_size=executor.info.vocab_size,
        stop_token_ids=executor.info.stop_token_ids,
        encode=tokenizer.encode,
        tokenizer_hash=tokenizer.hash,
        mask_tables=True,
    )
    yield executor, tokenizer, compiler
    compiler.close()
    executor.shutdown()


async def _with_tables(compiler: GuideCompiler, spec: GuideSpec) -> Guide:
    """The guide whose masks stay on the device: it comes behind the first request's."""
    for _ in range(600):
        guide = await compiler.compile(spec)
        if isinstance(guide, AutomatonGuide):
            return guide
        await asyncio.sleep(0.1)
    raise AssertionError("no tables came")


@pytest.mark.parametrize("tables", [False, True])
async def test_guided_answers_in_one_batch(served: tuple[Executor, Tokenizer, GuideCompiler], tables: bool) -> None:
    executor, tokenizer, compiler = served
    specs = [
        GuideSpec("json_schema", json.dumps(SCHEMA)),
        GuideSpec("regex", r"[0-9]{4}-[0-9]{2}-[0-9]{2}"),
        GuideSpec("choice", choices=("yes", "no")),
    ] * 4
    runner, prompt = RequestRunner(executor), tokenizer.encode("Describe the city of Paris:")
    free = runner.run(prompt, max_tokens=32).tokens()
    guides = [
        await (_with_tables(compiler, spec) if tables and spec.kind != "json_schema" else compiler.compile(spec))
        for spec in specs
    ]
    guided = [runner.submit(prompt, guide=guide, max_tokens=200) for guide in guides]
    beside = runner.submit(prompt, max_tokens=32)
    runner.finish()
    for spec, result in zip(specs, guided, strict=True):
        assert result.reason() is FinishReason.STOP
        stop = result.final.stop_token_id
        text = tokenizer.decode([token for token in result.tokens() if token != stop])
        if spec.kind == "json_schema":
            jsonschema.validate(json.loads(text), SCHEMA)
        elif spec.kind == "regex":
            assert re.fullmatch(spec.text, text)
        else:
            assert text in ("yes", "no")
    assert len(beside.tokens()) == len(free)


async def test_a_guide_and_a_long_prompt(served: tuple[Executor, Tokenizer, GuideCompiler]) -> None:
    """A prompt of several chunks: the processor is called again for each."""
    executor, tokenizer, compiler = served
    prompt = (tokenizer.encode("The city of Paris is a capital. ") * 200)[:900]
    guide = await compiler.compile(GuideSpec("choice", choices=("yes", "no")))
    result = RequestRunner(executor).run(prompt, guide=guide, max_tokens=20)
    text = tokenizer.decode([token for token in result.tokens() if token != result.final.stop_token_id])
    assert text in ("yes", "no")
