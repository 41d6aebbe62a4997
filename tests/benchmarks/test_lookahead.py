"""What `bench_lookahead.py` counts and how it divides, on a fake executor with a clock of its own; its prompts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import yaml

from briton.config.lookahead import LookaheadConfig
from briton.engine.types import GenerationRequest, TokenChunk
from tests.fake_engine import write_tokenizer
from tests.fake_executor import SPECULATING_INFO, FakeExecutor

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
KINDS = ("chat", "code", "edit", "extract", "quote")
OFF = LookaheadConfig(1, 1, 0)
RESULTS = {f"{kind}_b1" for kind in (*KINDS, "guided_json")} | {"mixed_b16", "tokens_per_step", "identical"}


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The benchmark's modules, which are scripts beside each other and no package."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = set(sys.modules)
    names = ("answers", "comparison", "lookup_peers", "bench_lookahead", "prompt_set")
    yield SimpleNamespace(**{name: __import__(name) for name in names})
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(BENCHMARKS)):
            del sys.modules[name]


class Clock:
    """Instead of the machine's."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class TimedExecutor(FakeExecutor):
    """A step takes `step` on the clock, and three tokens come of it where a request speculates, else one."""

    def __init__(self, clock: Clock, step: float = 1.0, **keywords: Any) -> None:
        super().__init__(SPECULATING_INFO, tokens_per_step=3, **keywords)
        self.clock, self.step = clock, step
        self.num_open: list[int] = []  # at each step

    def await_chunks(self, timeout: float) -> list[TokenChunk]:
        self.num_open.append(len(self.open_requests()))
        self.clock.now += self.step * (3 if self._is_off() else 1)
        return super().await_chunks(timeout)

    def _is_off(self) -> bool:
        return self.submitted[-1].lookahead == OFF


@pytest.fixture
def clock(modules: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What the benchmark reads the time from."""
    clock = Clock()
    monkeypatch.setattr(modules.answers, "time", clock)
    return clock


def _prompts(modules: SimpleNamespace, count: int, max_tokens: int = 12) -> list[Any]:
    return [modules.prompt_set.Prompt("chat", f"p{i}", tuple(b"prompt %d" % i), max_tokens) for i in range(count)]


def _document(kind: str) -> Any:
    return yaml.safe_load((BENCHMARKS / "prompts" / f"{kind}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_different_prompts_of_each_kind(kind: str) -> None:
    prompts = _document(kind)["prompts"]
    assert len(prompts) == len({p["name"] for p in prompts}) == len({p["message"] for p in prompts}) == 20


def test_what_is_extracted_has_a_closed_schema_that_its_example_keeps() -> None:
    document = _document("extract")
    for schema in document["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["required"] == list(schema["properties"])
        assert schema["additionalProperties"] is False
    for prompt in document["prompts"]:
        schema = document["schemas"][prompt["schema"]]
        jsonschema.validate(json.loads(document["examples"][prompt["example"]]["answer"]), schema)
        assert ", ".join(schema["properties"]) in prompt["message"]


def test_edits_and_quotes_have_their_text_in_the_prompt() -> None:
    for prompt in _document("edit")["prompts"]:
        _, fenced, _ = prompt["message"].split("```")
        assert 15 <= len(fenced.splitlines()) <= 60
    for prompt in _document("quote")["prompts"]:
        assert 100 <= len(max(prompt["message"].split("\n"), key=len).split()) <= 300


def test_prompts_go_through_the_chat_template_with_their_example(modules: SimpleNamespace, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    prompts = modules.prompt_set.load_prompts(tmp_path)
    assert {kind: len(of) for kind, of in prompts.items()} == dict.fromkeys(KINDS, 20)
    document = _document("extract")
    first, entry = prompts["extract"][0], document["prompts"][0]
    text = bytes(token_id for token_id in first.token_ids if token_id < 256).decode()
    example = document["examples"][entry["example"]]
    positions = [text.index(part) for part in (example["question"], example["answer"], entry["message"])]
    assert positions == sorted(positions)
    assert json.loads(first.schema) == document["schemas"][entry["schema"]]
    assert first.max_tokens == document["max_tokens"]
    edit, entry = prompts["edit"][3], _document("edit")["prompts"][3]
    assert (edit.max_tokens, edit.schema) == (entry["max_tokens"], None)


def test_so_many_requests_at_a_time_and_times_from_the_first_token(modules: SimpleNamespace, clock: Clock) -> None:
    executor = TimedExecutor(clock)
    asker = modules.answers.Asker(executor, {})
    run = asker.ask(_prompts(modules, 5), concurrency=2)
    assert [answer.prompt.name for answer in run.answers] == [f"p{i}" for i in range(5)]
    assert max(executor.num_open) == 2
    assert sum(executor.num_open) >= 5 * 4  # 12 tokens, 3 a step
    assert run.wall_s == clock.now
    assert run.output_rate == 5 * 12 / clock.now
    for answer in run.answers:
        assert (answer.num_first, answer.decode_tokens, answer.decode_s) == (3, 9, 3.0)
        assert answer.speculation.num_steps == 4
    again = asker.ask(_prompts(modules, 2), lookahead=OFF, max_tokens=5)
    assert [len(answer.token_ids) for answer in again.answers] == [5, 5]
    salts = [request.cache_salt for request in executor.submitted]
    assert len(set(salts[:5])) == len(set(salts[5:])) == 1
    assert salts[0] != salts[5]
    assert {request.lookahead for request in executor.submitted[5:]} == {OFF}
    assert {request.sampling.ignore_eos for request in executor.submitted} == {False}


def test_a_schema_is_a_guide_only_where_asked_for(modules: SimpleNamespace, clock: Clock) -> None:
    executor = TimedExecutor(clock)
    (prompt,) = _prompts(modules, 1)
    guide = SimpleNamespace(copy=lambda: None)
    asker = modules.answers.Asker(executor, {"{}": guide})
    for guided in (False, True):
        asker.ask([replace(prompt, schema="{}")], guided=guided)
    assert [request.guide for request in executor.submitted] == [None, guide]


def test_ratios_are_of_tokens_and_the_seconds_of_their_side(modules: SimpleNamespace, clock: Clock) -> None:
    plain = TimedExecutor(clock, step=1.5)
    comparison = modules.comparison.Comparison()
    asker = modules.answers.Asker(TimedExecutor(clock), {})
    of = modules.comparison.sides(asker, modules.answers.Asker(plain, {}))
    for number in range(2):
        modules.comparison.compare_alone(comparison, of, _prompts(modules, 4), number, False)
    assert comparison.decode_ratio() == pytest.approx(3.0)
    assert comparison.decode_ratio("plain") == pytest.approx(1.5)
    assert comparison.off_ratio() == pytest.approx(0.5)
    assert comparison.end_to_end_ratio() == pytest.approx(3.0)
    assert comparison.tokens_per_step == pytest.approx(3.0)
    assert comparison.num_draft_tokens >= comparison.num_accepted_tokens == 2 * 4 * 8
    assert comparison.different == []
    modules.comparison.compare_batch(batch := modules.comparison.Comparison(), of[:2], _prompts(modules, 4), 0, 4, 2)
    assert batch.end_to_end_ratio() == pytest.approx(3.0)
    assert len(batch.answers) == 8


def test_every_side_goes_first_in_its_turn(modules: SimpleNamespace, clock: Clock) -> None:
    executor = TimedExecutor(clock)
    of = modules.comparison.sides(modules.answers.Asker(executor, {}))
    modules.comparison.compare_alone(modules.comparison.Comparison(), of, _prompts(modules, 3), 1, False)
    assert [request.lookahead for request in executor.submitted] == [OFF, None, None, OFF, OFF, None]


def _diverging(request: GenerationRequest, _: int) -> list[int]:
    return list(b"same then " + (b"this" if request.lookahead == OFF else b"that"))


def test_where_answers_part_the_two_tokens_are_compared(modules: SimpleNamespace, clock: Clock) -> None:
    executor = TimedExecutor(clock, script=_diverging)
    asker = modules.answers.Asker(executor, {})
    comparison = modules.comparison.Comparison()
    modules.comparison.compare_alone(
        comparison, modules.comparison.sides(asker), _prompts(modules, 1, max_tokens=40), 0, False
    )
    ((ours, other),) = comparison.different
    executor.script = None
    gap = asker.gap(ours, other)
    asked = executor.submitted[-2:]
    assert {request.prompt_token_ids for request in asked} == {tuple(b"prompt 0same then th")}
    assert [dict(request.sampling.logit_bias) for request in asked] == [{ord("a"): 100.0}, {ord("i"): 100.0}]
    assert gap >= 0


@pytest.mark.parametrize(
    ("script", "tokens_per_step", "identical"), [(None, 3, True), (_diverging, 3, False), (None, 1, False)]
)
def test_identical_is_that_all_answers_are_and_that_drafts_were_accepted(
    modules: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, script: Any, tokens_per_step: int, identical: bool
) -> None:
    bench = modules.bench_lookahead
    executor = FakeExecutor(SPECULATING_INFO, script=script, tokens_per_step=tokens_per_step)
    engine = SimpleNamespace(asker=modules.answers.Asker(executor, {}), costs=None)
    limits: list[Any] = []

    def start_engine(mode: str, asked: Any, guides: object) -> SimpleNamespace:
        limits.append(asked)
        return engine

    monkeypatch.setattr(bench, "start_engine", start_engine)
    prompts = {kind: _prompts(modules, 3, max_tokens=40) for kind in KINDS}
    assert bench.check_identity(bench.Limits(threads=1), {}, prompts, True) is identical
    assert (limits[0].precision, limits[0].quantization) == ("f32", "no_quant")


def test_a_quick_run_ends_in_the_names_that_others_rely_on(
    modules: SimpleNamespace,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench = modules.bench_lookahead
    prompts = {kind: _prompts(modules, 6) for kind in KINDS}
    served = SimpleNamespace(engine_dir=None, gguf=None)
    monkeypatch.setattr(bench, "prepare", lambda *_: served)
    monkeypatch.setattr(bench, "load_prompts", lambda _: prompts)
    monkeypatch.setattr(bench, "compile_guides", lambda *_: {})
    monkeypatch.setattr(bench.signal, "signal", lambda *_: None)
    monkeypatch.setattr(
        bench,
        "start_engine",
        lambda *_: SimpleNamespace(asker=modules.answers.Asker(TimedExecutor(clock), {}), costs=None),
    )
    monkeypatch.setattr(sys, "argv", ["bench_lookahead.py", "--quick"])
    bench.main()
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(document) == RESULTS
    assert document.pop("identical") is True
    assert document == pytest.approx(dict.fromkeys(document, 3.0))


def test_a_peer_is_compared_with_itself(
    modules: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Peer:
        """Decodes as many tokens a second as it may draft, and one."""

        version = "1.0"

        def __init__(self, name: str) -> None:
            self.name = name
            self.asked: list[int] = []

        def ask(self, prompts: Any, max_tokens: list[int], draft_tokens: int, max_ngram: int) -> dict[str, Any]:
            assert len(prompts) == 1 or self.name == "genai_lookup"
            self.asked.append(draft_tokens)
            tokens = sum(max_tokens)
            seconds = (tokens - 1) / (1 + draft_tokens)
            return {
                "wall_s": 2 + seconds,
                "first_tokens_s": 2,
                "output_tokens": tokens,
                "decode_tokens": tokens - 1,
                "num_steps": 5,
            }

        def close(self) -> None:
            self.asked.append(-1)

    peers = {name: Peer(name) for name in modules.lookup_peers.SETTINGS}
    monkeypatch.setattr(modules.lookup_peers, "start_peer", lambda name, _: peers[name])
    limits = modules.bench_lookahead.Limits(threads=1)
    ratios = modules.lookup_peers.compare_peers(limits, Path("x"), {kind: _prompts(modules, 2) for kind in KINDS})
    assert ratios["genai_lookup, 5 drafts"]["edit_b1"] == 6.0
    assert ratios["llamacpp_lookup, 10 drafts"] == {f"{kind}_b1": 11.0 for kind in KINDS}
    assert 1 < ratios["genai_lookup, 15 drafts"]["mixed_b16"] < 16
    assert all(peer.asked[-1] == -1 for peer in peers.values())
    assert "genai_lookup 1.0" in capsys.readouterr().out
