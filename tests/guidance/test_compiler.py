"""Compiling: bounded, isolated, cached, and off the event loop."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from briton.errors import InvalidRequest, Unavailable, Unsupported
from briton.guidance.automaton import AutomatonGuide
from briton.guidance.compiler import GuideCompiler
from briton.guidance.grammar_guide import GrammarGuide
from briton.guidance.guide import GuideSpec
from briton.guidance.limits import GuideLimits
from tests.guidance.conftest import MakeCompiler, new_compiler
from tests.guidance.vocabularies import TestVocabulary

EXPLODING = "((a{100}){100}){100}"  # 1 s and 160 MB, until the library's own limit


@pytest.fixture
def make_compiler(byte_level: TestVocabulary) -> Iterator[MakeCompiler]:
    made: list[GuideCompiler] = []

    def make(limits: GuideLimits | None = None, **overrides: Any) -> GuideCompiler:
        made.append(new_compiler(byte_level, limits, **overrides))
        return made[-1]

    yield make
    for compiler in made:
        compiler.close()


@pytest.mark.timing
async def test_an_exploding_regex_is_stopped_and_the_next_one_compiles(
    make_compiler: MakeCompiler, byte_level: TestVocabulary
) -> None:
    compiler = make_compiler(GuideLimits(compile_timeout_s=0.2))
    await compiler.compile(GuideSpec("json_schema", "{}"))  # the child is warm: only the compile is timed
    begin = time.monotonic()
    ticks = 0
    failing = asyncio.ensure_future(compiler.compile(GuideSpec("regex", EXPLODING)))
    while not failing.done():
        await asyncio.sleep(0.01)
        ticks += 1
    with pytest.raises(InvalidRequest) as caught:
        await failing
    assert caught.value.message == "guided_regex: compiling took longer than 0.2 s: simplify it"
    assert caught.value.field == "guided_regex"
    assert time.monotonic() - begin < 5
    assert ticks > 5  # the event loop went on
    with pytest.raises(InvalidRequest):  # remembered: no second explosion
        await asyncio.wait_for(compiler.compile(GuideSpec("regex", EXPLODING)), 0.2)
    guide = await compiler.compile(GuideSpec("regex", "ab?"))
    assert guide.advance(byte_level.tokens_of("ab"))


@pytest.mark.timing
async def test_what_is_bounded_compiles_while_something_explodes(make_compiler: MakeCompiler) -> None:
    compiler = make_compiler(GuideLimits(compile_timeout_s=10.0))
    await compiler.compile(GuideSpec("json_schema", "{}"))
    failing = asyncio.ensure_future(compiler.compile(GuideSpec("json_schema", intersection(22))))
    await asyncio.sleep(0.05)
    for spec in (GuideSpec("json_object"), GuideSpec("choice", choices=("yes", "no")), GuideSpec("regex", "[0-9]{4}")):
        await asyncio.wait_for(compiler.compile(spec), 1.0)
    assert not failing.done()
    compiler.close()  # ends it, without waiting for its time
    with pytest.raises(Unavailable):
        await asyncio.wait_for(failing, 1.0)


async def test_a_regex_that_needs_too_much_memory_is_stopped(make_compiler: MakeCompiler) -> None:
    compiler = make_compiler(GuideLimits(compile_timeout_s=30.0, compile_memory_bytes=48 << 20))
    with pytest.raises(InvalidRequest) as caught:
        await compiler.compile(GuideSpec("regex", EXPLODING))
    assert caught.value.message == "guided_regex: compiling needs more than 48 MiB: simplify it"
    await compiler.compile(GuideSpec("regex", "ab?"))


async def test_a_regex_past_the_librarys_own_limit_is_refused(byte_level_compiler: GuideCompiler) -> None:
    with pytest.raises(InvalidRequest, match=r"guided_regex: too complex for the lexer: .*: simplify it"):
        await byte_level_compiler.compile(GuideSpec("regex", EXPLODING))


async def test_states_that_explode_in_tables_do_not_in_a_grammar(
    byte_level_compiler: GuideCompiler, byte_level: TestVocabulary
) -> None:
    guide = await byte_level_compiler.compile(GuideSpec("regex", "(a|b)*a(a|b){16}"))
    assert guide.advance(byte_level.tokens_of("abba" * 5))


async def _tables_of(compiler: GuideCompiler, spec: GuideSpec) -> AutomatonGuide:
    for _ in range(500):
        guide = await compiler.compile(spec)
        if isinstance(guide, AutomatonGuide):
            return guide
        await asyncio.sleep(0.02)
    raise AssertionError("no tables came")


@pytest.mark.parametrize(
    "spec", [GuideSpec("regex", "[0-9]{2}|x+y"), GuideSpec("choice", choices=("12", "xy", "xxxy"))]
)
async def test_tables_come_behind_the_first_request(
    make_compiler: MakeCompiler, byte_level: TestVocabulary, spec: GuideSpec
) -> None:
    compiler = make_compiler(mask_tables=True)
    first = await compiler.compile(spec)
    assert isinstance(first, GrammarGuide)
    tables = await _tables_of(compiler, spec)
    for text in ("12", "xxxy"):
        assert byte_level.allowed(first) == byte_level.allowed(tables)
        for guide in (first.copy(), tables.copy()):
            assert guide.advance(byte_level.tokens_of(text))
            assert guide.is_terminated()


async def test_without_tables_the_first_guide_stays(
    make_compiler: MakeCompiler, byte_level: TestVocabulary, caplog: pytest.LogCaptureFixture
) -> None:
    """What passes a limit of tables, such as their masks' size, is served all the same."""
    compiler = make_compiler(GuideLimits(max_guide_bytes=1000), mask_tables=True)
    with caplog.at_level("INFO"):
        for _ in range(500):
            guide = await compiler.compile(GuideSpec("regex", r"\w+@\w+\.com"))
            if "goes without tables" in caplog.text:
                break
            await asyncio.sleep(0.02)
    assert "its masks need more than" in caplog.text
    assert isinstance(guide, GrammarGuide)
    assert guide.advance(byte_level.tokens_of("a@b.com"))


@pytest.mark.timing
async def test_a_new_guide_does_not_wait_behind_another_callers(make_compiler: MakeCompiler) -> None:
    """Two words behind 40 lists of 256 choices came after 19.9 s."""
    compiler = make_compiler()
    flood = [GuideSpec("choice", choices=tuple(f"request {i} label {j}" for j in range(256))) for i in range(40)]
    await compiler.compile(GuideSpec("choice", choices=("a", "b")))
    flooding = [asyncio.ensure_future(compiler.compile(spec, caller="many")) for spec in flood]
    await asyncio.sleep(0)
    begin = time.monotonic()
    await compiler.compile(GuideSpec("choice", choices=("yes", "no")), caller="one")
    waited, num_done = time.monotonic() - begin, sum(task.done() for task in flooding)
    assert num_done < 10
    assert waited < 0.5
    await asyncio.gather(*flooding)


async def test_who_shares_a_flight_brings_his_share(make_compiler: MakeCompiler) -> None:
    """A guide that a flooding caller asked for first is not made at the end of his queue."""
    compiler = make_compiler()
    flood = [GuideSpec("choice", choices=tuple(f"{i} {j}" for j in range(256))) for i in range(20)]
    flooding = [asyncio.ensure_future(compiler.compile(spec, caller="many")) for spec in flood]
    await asyncio.sleep(0)
    assert await compiler.compile(flood[-1], caller="one")
    assert sum(task.done() for task in flooding) < 10
    await asyncio.gather(*flooding)


@pytest.mark.parametrize("pattern", ["[a", "a)|(b", "*", r"\1", "(?=a)b", r"\p{Nonsense}", "a{2,1}"])
async def test_a_bad_regex_is_the_callers_error(byte_level_compiler: GuideCompiler, pattern: str) -> None:
    with pytest.raises(InvalidRequest, match="guided_regex: not a regular expression in Rust's syntax"):
        await byte_level_compiler.compile(GuideSpec("regex", pattern))


async def test_a_regex_that_matches_nothing_is_refused(byte_level_compiler: GuideCompiler) -> None:
    with pytest.raises(InvalidRequest, match="guided_regex: no string matches it"):
        await byte_level_compiler.compile(GuideSpec("regex", "[a&&b]"))


async def test_bounds_of_texts_and_lists(byte_level_compiler: GuideCompiler) -> None:
    for spec, message in (
        (GuideSpec("regex", "a" * 5000), "guided_regex has 5000 bytes; the limit is 4096"),
        (GuideSpec("choice", choices=()), "guided_choice must have at least 1 entry"),
        (GuideSpec("choice", choices=("a", "")), "guided_choice[1] must not be empty"),
        (GuideSpec("choice", choices=("a",) * 100_000), "guided_choice has 100000 entries; the limit is 1024"),
        (GuideSpec("choice", choices=("a" * 70_000,)), "guided_choice has 70000 bytes in all; the limit is 65536"),
        (
            GuideSpec("json_schema", " " * 300_000),
            "response_format.json_schema.schema has 300000 bytes; the limit is 262144",
        ),
    ):
        with pytest.raises(InvalidRequest) as caught:
            await byte_level_compiler.compile(spec)
        assert caught.value.message == message


async def test_a_long_list_of_choices_compiles(byte_level_compiler: GuideCompiler, byte_level: TestVocabulary) -> None:
    choices = tuple(f"label {i:04d} of the catalogue" for i in range(1024))
    guide = await byte_level_compiler.compile(GuideSpec("choice", choices=choices))
    assert guide.advance(byte_level.tokens_of(choices[777]))
    assert guide.is_terminated()


async def test_requests_at_once_share_one_compile(
    make_compiler: MakeCompiler, byte_level: TestVocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = make_compiler()
    compiles = []
    make = compiler._grammars.compile

    def counted(schema: Any) -> Any:
        compiles.append(schema)
        return make(schema)

    monkeypatch.setattr(compiler._grammars, "compile", counted)
    spec = GuideSpec("json_schema", '{"type": "array", "items": {"type": "integer"}}')
    guides = await asyncio.gather(*(compiler.compile(spec) for _ in range(8)))
    assert len(compiles) == 1
    # Each is its own: no request moves another's, or the cached one.
    assert guides[0].advance(byte_level.tokens_of("[1"))
    assert not guides[1].advance(byte_level.tokens_of("1"))
    assert (await compiler.compile(spec)).advance(byte_level.tokens_of("["))
    assert len(compiles) == 1
    await compiler.compile(GuideSpec("json_schema", spec.text + " "))
    assert len(compiles) == 2


async def test_a_guide_that_has_worn_out_is_compiled_again(
    make_compiler: MakeCompiler, byte_level: TestVocabulary
) -> None:
    compiler = make_compiler()
    spec = GuideSpec("json_object")
    await compiler.compile(spec)
    (cached,) = compiler._cache._values.values()
    assert isinstance(cached, GrammarGuide)
    cached._matcher.consume_token(byte_level.tokens_of("]")[0])
    assert not cached.is_healthy()
    assert (await compiler.compile(spec)).advance(byte_level.tokens_of("{}"))


def intersection(count: int) -> str:
    """Patterns that hold at once: llguidance needs 17 s and 1 GB for 22 of them, and 5 GB for 28."""
    return json.dumps({"type": "string", "allOf": [{"pattern": f"a.{{{i}}}b"} for i in range(2, 2 + count)]})


async def test_an_exploding_schema_is_stopped_and_the_next_one_compiles(make_compiler: MakeCompiler) -> None:
    compiler = make_compiler(GuideLimits(compile_timeout_s=0.5))
    await compiler.compile(GuideSpec("json_schema", "{}"))
    with pytest.raises(InvalidRequest) as caught:
        await compiler.compile(GuideSpec("json_schema", intersection(22)))
    assert caught.value.message == ("response_format.json_schema.schema: compiling took longer than 0.5 s: simplify it")
    await compiler.compile(GuideSpec("json_schema", '{"type": "null"}'))


async def test_a_schema_that_needs_too_much_memory_is_stopped(make_compiler: MakeCompiler) -> None:
    """In this process, it would end it: Rust aborts when memory is refused."""
    compiler = make_compiler(GuideLimits(compile_timeout_s=30.0, compile_memory_bytes=64 << 20))
    with pytest.raises(InvalidRequest) as caught:
        await compiler.compile(GuideSpec("json_schema", intersection(28)))
    assert caught.value.message == ("response_format.json_schema.schema: compiling needs more than 64 MiB: simplify it")
    await compiler.compile(GuideSpec("json_schema", '{"type": "null"}'))


async def test_large_schemas_compile_within_their_time(byte_level_compiler: GuideCompiler) -> None:
    properties = {f"p{i}": {"type": "string", "maxLength": 64} for i in range(2000)}
    wide = {"type": "object", "properties": properties, "required": list(properties)}
    many = {"enum": [f"value {i}" for i in range(15_000)]}
    for schema in (wide, many):
        await byte_level_compiler.compile(GuideSpec("json_schema", json.dumps(schema)))


async def test_a_schema_too_wide_for_the_parser_is_refused_before_the_first_token(
    byte_level_compiler: GuideCompiler,
) -> None:
    """With 2,000 optional properties the grammar compiles, but fails behind the first quote."""
    wide = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(2000)}}
    with pytest.raises(
        Unsupported, match=r"schema is too wide or too complex for the parser: Parser Error: Current row"
    ):
        await byte_level_compiler.compile(GuideSpec("json_schema", json.dumps(wide)))


async def test_a_model_without_a_stop_token_has_no_guides(make_compiler: MakeCompiler) -> None:
    with pytest.raises(Unsupported, match="needs a stop token"):
        await make_compiler(stop_token_ids=()).compile(GuideSpec("json_object"))


async def test_close_ends_the_children_and_can_be_repeated(make_compiler: MakeCompiler) -> None:
    compiler = make_compiler(mask_tables=True)
    await compiler.compile(GuideSpec("regex", "a"))
    await compiler.compile(GuideSpec("json_schema", "{}"))
    await _tables_of(compiler, GuideSpec("regex", "a"))
    tables = compiler._tables
    assert tables is not None
    children = [child.pid for child in (compiler._child, tables._child) if child.pid is not None]
    assert len(children) == 2
    assert all(_is_running(pid) for pid in children)
    compiler.close()
    assert not any(_is_running(pid) for pid in children)
    compiler.close()
    with pytest.raises(Unavailable):
        compiler._child.compile("regex", "a", "guided_regex")


async def test_it_works_beside_a_grpc_server(make_compiler: MakeCompiler, byte_level: TestVocabulary) -> None:
    """gRPC's threads do not survive a fork: the child must be a new interpreter."""
    server = grpc.aio.server()
    server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        guide = await make_compiler().compile(GuideSpec("json_schema", '{"const": 1}'))
        assert guide.advance(byte_level.tokens_of("1"))
    finally:
        await server.stop(None)


def test_the_child_imports_nothing_of_the_engine() -> None:
    code = (
        "import sys, briton.guidance.compile_worker, briton.guidance.regex_index;"
        "print([m for m in ('grpc', 'openvino', 'transformers', 'llguidance', 'pydantic') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "[]"


def test_the_child_has_no_secrets(byte_level: TestVocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it runs is not trusted to behave."""
    monkeypatch.setenv("TRUSS_SECRET_s3", "hush")
    monkeypatch.setenv("HF_TOKEN", "hush")
    compiler = new_compiler(byte_level)
    try:
        compiler._child.compile("regex", "a", "guided_regex")
        variables = Path(f"/proc/{compiler._child.pid}/environ").read_bytes()
    finally:
        compiler.close()
    assert b"PATH=" in variables
    assert b"hush" not in variables


def test_the_child_ends_with_its_parent() -> None:
    """A parent that is killed closes its end of the pipe; nothing is left behind."""
    code = (
        "import asyncio, os, time\n"
        "from tests.guidance import vocabularies\n"
        "from tests.guidance.conftest import new_compiler\n"
        "from briton.guidance.guide import GuideSpec\n"
        "c = new_compiler(vocabularies.byte_level())\n"
        "asyncio.run(c.compile(GuideSpec('json_schema', '{}')))\n"
        "print(c._child.pid, flush=True)\n"
        "os._exit(0)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    pid = int(found.stdout)
    for _ in range(100):
        if not _is_running(pid):
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} is still there")


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
