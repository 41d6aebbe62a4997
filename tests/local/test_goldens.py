"""The local executor in float32 against transformers in float32: greedy tokens equal, logits equal within rounding.

Each golden model is built by the engine builder from a checkpoint, and run twice: through the ModelRunner, which must
give the same logits however the tokens of a sequence are spread over calls, and through the whole executor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from briton.config.config import Config
from briton.config.environment import Environment
from briton.config.loader import load_config
from briton.engine.executor import Executor
from briton.engine.types import GenerationRequest, SamplingParams, TokenLogprob
from briton.local.model_runner import ModelRunner
from briton.local.plan import StepInputs
from briton.local.settings import BLOCK_SIZE, LocalSettings
from briton.model.engine_dir import load_manifest
from briton.process.executors import create_executor
from briton_engine_builder import build_engine
from tests.goldens.golden import DIRECTORY, Golden, Row, load
from tests.goldens.llama_variants import VARIANTS, checksum, prompts, write_checkpoint

ABSOLUTE, RELATIVE = 1e-3, 1e-4
SMOLLM2 = pytest.param("smollm2", marks=pytest.mark.slow)


@dataclass(frozen=True)
class GoldenEngine:
    """A golden and the engine built from the checkpoint it was made on."""

    golden: Golden
    config_path: Path
    directory: Path

    def config(self, **build: object) -> Config:
        """The engine's config with other limits; `build` replaces fields of trt_llm.build."""
        raw = yaml.safe_load(self.config_path.read_text(encoding="utf-8"))
        raw["trt_llm"]["build"].update(build)
        path = self.config_path.with_name("changed.yaml")
        path.write_text(yaml.safe_dump(raw), encoding="utf-8")
        return load_config(path)


def _build(name: str, checkpoint: Path, folder: Path, environment: Environment) -> GoldenEngine:
    config = {
        "model_name": name,
        "trt_llm": {
            "build": {
                "checkpoint_repository": {"source": "LOCAL", "repo": str(checkpoint)},
                "max_seq_len": 512,
                "max_batch_size": 8,
                "max_num_tokens": 512,
            }
        },
        "briton": {
            "executor": "local",
            "cache_dir": str(folder / "cache"),
            "local": {"precision": "f32", "threads": 2, "kv_cache_tokens": 2048},
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return GoldenEngine(load(name), path, build_engine(load_config(path), environment, progress=False))


@pytest.fixture(scope="module", params=[*VARIANTS, SMOLLM2])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GoldenEngine:
    """Each golden model in turn, built in float32."""
    name: str = request.param
    folder = tmp_path_factory.mktemp(name)
    if name == "smollm2":
        checkpoint: Path = request.getfixturevalue("smollm2_gguf")
    else:
        checkpoint = folder / "checkpoint"
        write_checkpoint(VARIANTS[name], checkpoint)
    return _build(name, checkpoint, folder, Environment(cache_dir=folder / "cache"))


@pytest.fixture(scope="module")
def runner(engine: GoldenEngine) -> ModelRunner:
    """The compiled model alone."""
    settings = LocalSettings(
        max_batch_size=8, max_num_tokens=2048, max_queue_size=8, threads=2, precision="f32", kv_cache_tokens=2048
    )
    return ModelRunner(engine.directory, load_manifest(engine.directory), settings)


@dataclass
class Calls:
    """Feeds golden sequences (prompt and output) to a runner, in pieces, with block tables in a random order."""

    runner: ModelRunner
    golden: Golden
    computed: dict[int, int] = field(default_factory=dict)  # sequence -> tokens in the cache
    tables: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        blocks = np.random.default_rng(0).permutation(self.runner.num_blocks).tolist()
        for sequence in range(len(self.golden.prompts)):
            count = -(-len(self.tokens(sequence)) // BLOCK_SIZE)
            self.tables[sequence], blocks = blocks[:count], blocks[count:]

    def tokens(self, sequence: int) -> tuple[int, ...]:
        """Prompt and output."""
        return self.golden.prompts[sequence] + self.golden.outputs[sequence]

    def step(self, plan: dict[int, int]) -> dict[tuple[int, int], NDArray[np.float32]]:
        """One call with the next `plan[sequence]` tokens of each sequence; logits by (sequence, position)."""
        past = [self.computed.get(s, 0) for s in plan]
        counts = list(plan.values())
        tables = [self.tables[s][: -(-(p + n) // BLOCK_SIZE)] for s, p, n in zip(plan, past, counts, strict=True)]
        fed = [(s, p) for (s, n), start in zip(plan.items(), past, strict=True) for p in range(start, start + n)]
        inputs = StepInputs(
            token_ids=np.array([self.tokens(s)[p] for s, p in fed], np.int64),
            position_ids=np.array([p for _, p in fed], np.int64),
            past_lens=np.array(past, np.int32),
            subsequence_begins=np.cumsum([0, *counts]).astype(np.int32),
            block_indices=np.concatenate(tables).astype(np.int32),
            block_indices_begins=np.cumsum([0, *map(len, tables)]).astype(np.int32),
            max_context_len=max(p + n for p, n in zip(past, counts, strict=True)),
            sampled_rows=np.arange(len(fed), dtype=np.int64),
            qq_bias=np.zeros(0, np.uint8),
            qq_bias_begins=np.zeros(len(plan) + 1, np.int32),
        )
        logits = self.runner.forward(inputs).copy()
        assert logits.shape[0] == len(fed)
        self.computed.update({s: p + n for s, p, n in zip(plan, past, counts, strict=True)})
        return dict(zip(fed, logits, strict=True))

    def check(self, logits: dict[tuple[int, int], NDArray[np.float32]]) -> int:
        """Compare with the golden's rows, and the best token of every output position; how many rows there were."""
        for (sequence, position), row in logits.items():
            following = position + 1
            if len(self.golden.prompts[sequence]) <= following < len(self.tokens(sequence)):
                assert int(row.argmax()) == self.tokens(sequence)[following], f"sequence {sequence} at {following}"
        rows = [row for row in self.golden.rows if (row.sequence, row.position) in logits]
        for expected in rows:
            _assert_close(logits[expected.sequence, expected.position][expected.token_ids], expected.logits)
        return len(rows)


def _assert_close(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(actual, expected, rtol=RELATIVE, atol=ABSOLUTE)


def test_variants_are_those_the_goldens_were_made_of() -> None:
    expected = json.loads((DIRECTORY / "checksums.json").read_text(encoding="utf-8"))
    assert {name: checksum(variant) for name, variant in VARIANTS.items()} == expected
    for name, variant in VARIANTS.items():
        assert load(name).prompts == prompts(variant)


def test_one_call_for_each_sequence(runner: ModelRunner, engine: GoldenEngine) -> None:
    calls = Calls(runner, engine.golden)
    compared = sum(calls.check(calls.step({s: len(calls.tokens(s))})) for s in calls.tables)
    assert compared == len(engine.golden.rows)


@pytest.mark.parametrize("chunk", [7, 32, 33])
def test_chunked_prefill(runner: ModelRunner, engine: GoldenEngine, chunk: int) -> None:
    calls = Calls(runner, engine.golden)
    sequence = len(engine.golden.prompts) - 1  # the longest
    length = len(calls.tokens(sequence))
    compared = sum(calls.check(calls.step({sequence: min(chunk, length - start)})) for start in range(0, length, chunk))
    assert compared == len(engine.golden.rows_of(sequence))


def test_prefill_then_decode(runner: ModelRunner, engine: GoldenEngine) -> None:
    """Sequences of different lengths in one batch: all prompts in one call, then one token of each in a call."""
    calls = Calls(runner, engine.golden)
    compared = calls.check(calls.step({s: len(prompt) for s, prompt in enumerate(engine.golden.prompts)}))
    for _ in engine.golden.outputs[0]:
        compared += calls.check(calls.step(dict.fromkeys(calls.tables, 1)))
    assert compared == len(engine.golden.rows)


def test_prompts_and_decode_mixed(runner: ModelRunner, engine: GoldenEngine) -> None:
    """Each sequence starts while those before it are decoded, in pieces of its own size, as under load."""
    calls = Calls(runner, engine.golden)
    compared = 0
    for step in range(200):
        plan = {}
        for sequence in calls.tables:
            done, prompt = calls.computed.get(sequence, 0), len(engine.golden.prompts[sequence])
            if step < 2 * sequence or done == len(calls.tokens(sequence)):
                continue
            plan[sequence] = min(40 + sequence, prompt - done) if done < prompt else 1
        if not plan:
            break
        compared += calls.check(calls.step(dict(reversed(plan.items()))))
    assert compared == len(engine.golden.rows)


@pytest.fixture(params=[512, 65], ids=["whole_prompts", "chunked"])
def executor(engine: GoldenEngine, request: pytest.FixtureRequest) -> Iterator[Executor]:
    """The whole local executor on the golden's engine, with a budget of that many tokens a step."""
    made = create_executor(engine.config(max_num_tokens=request.param), engine.directory)
    yield made
    made.shutdown()


def test_executor(executor: Executor, engine: GoldenEngine) -> None:
    """All prompts at once: the greedy tokens, and log-probabilities where the golden has a row."""
    golden = engine.golden
    sampling = SamplingParams(max_tokens=len(golden.outputs[0]), temperature=0.0, ignore_eos=True, logprobs=20)
    for i, prompt in enumerate(golden.prompts):
        executor.submit(GenerationRequest(i, prompt, sampling))
    tokens: list[list[int]] = [[] for _ in golden.prompts]
    logprobs: list[list[TokenLogprob]] = [[] for _ in golden.prompts]
    open_requests = set(range(len(golden.prompts)))
    while open_requests:
        chunks = executor.await_chunks(timeout=30)
        assert chunks, f"no progress; still open: {open_requests}"
        for chunk in chunks:
            assert chunk.error is None
            tokens[chunk.request_id] += chunk.token_ids
            logprobs[chunk.request_id] += chunk.logprobs
            if chunk.is_final:
                open_requests.remove(chunk.request_id)
    assert [tuple(t) for t in tokens] == list(golden.outputs)
    for row in golden.rows:
        output_position = row.position + 1 - len(golden.prompts[row.sequence])
        _check_logprobs(logprobs[row.sequence][output_position], row)


def _check_logprobs(actual: TokenLogprob, row: Row) -> None:
    expected = dict(zip(row.token_ids.tolist(), (row.logits - row.logsumexp).tolist(), strict=True))
    assert len(actual.top) == 20
    assert actual.token_id == actual.top[0][0]
    assert actual.logprob == pytest.approx(expected[actual.token_id], rel=RELATIVE, abs=ABSOLUTE)
    ids = [token_id for token_id, _ in actual.top]
    _assert_close(np.array([p for _, p in actual.top], np.float32), np.array([expected[i] for i in ids], np.float32))
    best = sorted(expected.values(), reverse=True)[:20]
    _assert_close(np.array([p for _, p in actual.top], np.float32), np.array(best, np.float32))
