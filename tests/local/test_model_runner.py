"""Drafts and padding in the compiled model, in float32: every row is what its own path alone would have given.

Each node of a draft is compared with the sequence that ends in it, computed alone, without mask or padding.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from briton.config.environment import Environment
from briton.engine.types import GenerationRequest, SamplingParams
from briton.local import model_runner
from briton.local.draft import ROOT, Draft
from briton.local.model_runner import ModelRunner
from briton.local.plan import ScheduledSequence, StepInputs, step_inputs
from briton.local.probe import one_sequence
from briton.local.sequence import RequestState, SequenceState
from briton.local.settings import BLOCK_SIZE, LocalSettings
from briton.local.step_graphs import LATER_NICENESS, GraphCompiler, StepGraph
from briton.model.engine_dir import load_manifest
from briton_engine_builder import build_engine
from tests.conftest import TinyLlama
from tests.engine_builder.engines import config_for
from tests.processes import wait_until

TOLERANCE = 1e-4
NUM_TOKENS = 400  # of the vocabulary are used
SETTINGS = LocalSettings(
    max_batch_size=8, max_num_tokens=512, max_queue_size=8, threads=2, precision="f32", kv_cache_tokens=2048
)
Logits = NDArray[np.float32]


@pytest.fixture(scope="module")
def engine(tiny_llama: TinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine directory."""
    folder = tmp_path_factory.mktemp("engine")
    return build(tiny_llama(folder), folder)


@pytest.fixture(scope="module", params=[(1, 4, 8, 16), ()], ids=["fixed", "dynamic"])
def runner(engine: Path, request: pytest.FixtureRequest) -> ModelRunner:
    """With graphs of their own for few tokens, and without."""
    return load(engine, request.param)


@pytest.fixture
def steps(runner: ModelRunner) -> Steps:
    """In a cache full of what was there before."""
    return Steps(runner)


def test_as_many_threads_as_there_is_time_for(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the whole machine were started in a container with a quota."""
    asked: list[int] = []

    def asking(core: Any, model: Any, properties: Mapping[str, Any]) -> GraphCompiler:
        asked.append(properties["INFERENCE_NUM_THREADS"])
        return GraphCompiler(core, model, properties)

    monkeypatch.setattr(model_runner, "GraphCompiler", asking)
    monkeypatch.setattr(model_runner, "available_cpus", lambda: 3)
    for threads in (None, 2):
        ModelRunner(engine, load_manifest(engine), replace(SETTINGS, threads=threads), fixed_sizes=())
    assert asked == [3, 2]


def build(checkpoint: Path, folder: Path) -> Path:
    """An engine directory."""
    return build_engine(config_for(checkpoint, folder), Environment(cache_dir=folder / "cache"), progress=False)


def load(engine: Path, fixed_sizes: Sequence[int]) -> ModelRunner:
    """A runner whose cache is full of rubbish."""
    runner = ModelRunner(engine, load_manifest(engine), SETTINGS, fixed_sizes=fixed_sizes)
    steps = Steps(runner)
    for seed in range(3):
        steps.sequence(text(512, seed), 512, room=0)
    return runner


@dataclass
class Steps:
    """Sequences with blocks of their own in a runner's cache, and some to compute others in, for comparison."""

    runner: ModelRunner
    tolerance: float = TOLERANCE
    request_ids: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        # the last block is never handed out: a test may take it
        self.blocks = iter(np.random.default_rng(1).permutation(self.runner.num_blocks - 1).tolist())
        self.alone = self.sequence(range(96), room=0)

    def sequence(self, token_ids: Sequence[int], num_computed: int = 0, room: int = 64) -> SequenceState:
        """A new sequence whose first tokens are computed, with blocks for `room` more than it has."""
        request = GenerationRequest(next(self.request_ids), tuple(token_ids), SamplingParams(max_tokens=1))
        (sequence,) = RequestState.create(request).sequences
        num_blocks = -(-(len(token_ids) + room) // BLOCK_SIZE)
        sequence.block_table = [next(self.blocks) for _ in range(num_blocks)]
        if num_computed:
            self.step(ScheduledSequence(sequence, num_computed))
        return sequence

    def step(self, *plan: ScheduledSequence) -> list[Logits]:
        """Logits of each entry of the plan; its own tokens are computed then."""
        logits: Logits = np.array(self.runner.forward(step_inputs(list(plan))))
        ends = np.cumsum([entry.num_rows if entry.samples else 0 for entry in plan])
        assert len(logits) == ends[-1]
        for entry in plan:
            entry.sequence.num_computed_tokens += entry.num_new_tokens
        return np.split(logits, ends[:-1])

    def after(self, token_ids: Sequence[int]) -> Logits:
        """Logits [vocab] of these tokens alone."""
        self.alone.token_ids, self.alone.num_computed_tokens = list(token_ids), 0
        alone: Logits = self.step(ScheduledSequence(self.alone, len(token_ids)))[0][0]
        return alone

    def check(self, sequence: SequenceState, draft: Draft | None, logits: Logits) -> None:
        """Compare each row with its path, computed alone: nearly all within TOLERANCE, none outside `tolerance`."""
        rows = [ROOT] if draft is None else [ROOT, *draft.rows]
        differences = []
        for node, row in zip(rows, logits, strict=True):
            path = sequence.token_ids + ([] if draft is None else path_to(draft, node))
            differences.append(float(np.abs(row - self.after(path)).max()))
        assert max(differences) <= self.tolerance, dict(zip(rows, differences, strict=True))
        assert np.median(differences) <= TOLERANCE


def path_to(draft: Draft, node: int) -> list[int]:
    """SequenceState from the root's child to `node`."""
    path: list[int] = []
    while node != ROOT:
        path.insert(0, draft.token_ids[node])
        node = draft.parents[node]
    return path


def with_window(branches: Sequence[Sequence[int]], columns: int, levels: int) -> Draft:
    """Branches, and a lookahead window: its first level is a chain, each node below follows the one above it."""
    trie = Draft.trie(branches)
    size = len(trie)
    window = [size + node for node in range(columns * levels)]
    parents = [ROOT, *window[: columns - 1], *window[:-columns]]
    token_ids = [(37 * node + 5) % NUM_TOKENS for node in range(columns * levels)]
    return Draft(trie.token_ids + tuple(token_ids), trie.parents + tuple(parents), size, tuple(window[-columns:]))


def text(length: int, seed: int = 0) -> list[int]:
    """Random tokens."""
    return [int(token) for token in np.random.default_rng((length, seed)).integers(0, NUM_TOKENS, length)]


BRANCHES = ((11, 12, 13), (11, 22), (31, 32))
CHAIN = Draft.chain((7, 8, 9, 10, 11))
TREE = Draft.trie(BRANCHES)
WINDOW = with_window(BRANCHES, columns=5, levels=3)


@pytest.mark.parametrize("draft", [CHAIN, TREE, with_window(BRANCHES, 2, 2), WINDOW], ids=len)
@pytest.mark.parametrize(("length", "num_new"), [(1, 1), (30, 1), (65, 1), (40, 9)])
def test_each_node_is_its_path_alone(steps: Steps, draft: Draft, length: int, num_new: int) -> None:
    sequence = steps.sequence(text(length), length - num_new)
    (logits,) = steps.step(ScheduledSequence(sequence, num_new, draft))
    steps.check(sequence, draft, logits)


def test_a_tree_beside_plain_sequences_and_a_part_of_a_prompt(steps: Steps) -> None:
    drafts = [None, TREE, None, CHAIN, WINDOW, None]
    sequences = [steps.sequence(text(20 + 7 * i), 19 + 7 * i, room=32) for i in range(len(drafts))]
    prompt = steps.sequence(text(50), 10, room=0)
    plan = [ScheduledSequence(sequence, 1, draft) for sequence, draft in zip(sequences, drafts, strict=True)]
    plan.insert(3, ScheduledSequence(prompt, 33))
    logits = steps.step(*plan)
    assert len(logits.pop(3)) == 0  # the prompt has 7 tokens to go
    for sequence, draft, rows in zip(sequences, drafts, logits, strict=True):
        steps.check(sequence, draft, rows)
    (rows,) = steps.step(ScheduledSequence(prompt, 7))
    steps.check(prompt, None, rows)


def test_what_a_draft_leaves_in_the_cache_does_not_matter(steps: Steps) -> None:
    sequence = steps.sequence(text(31), 30)
    steps.step(ScheduledSequence(sequence, 1, WINDOW))
    sequence.token_ids += [99, 98]
    (logits,) = steps.step(ScheduledSequence(sequence, 2, TREE))
    steps.check(sequence, TREE, logits)


@pytest.mark.parametrize("num_sequences", [2, 7, 9, 12, 16])
def test_padding_changes_nothing_for_others(steps: Steps, num_sequences: int) -> None:
    """The cache's last block is in use too, and the second step reads what the first wrote beside its padding."""
    sequences = [steps.sequence(text(33 + i), 32 + i, room=2) for i in range(num_sequences)]
    sequences[0].block_table[1] = steps.runner.num_blocks - 1
    for token_id in (41, 42):
        logits = steps.step(*(ScheduledSequence(sequence, 1) for sequence in sequences))
        for sequence, rows in zip(sequences, logits, strict=True):
            steps.check(sequence, None, rows)
            sequence.token_ids.append(token_id)


@pytest.mark.parametrize("length", [1, 3, 8, 13, 16, 17])
def test_short_prompts(steps: Steps, length: int) -> None:
    sequence = steps.sequence(text(40 + length), 40)
    (rows,) = steps.step(ScheduledSequence(sequence, length))
    steps.check(sequence, None, rows)


def test_only_the_rows_that_are_wanted(steps: Steps) -> None:
    sequence = steps.sequence(text(20))
    assert len(steps.step(ScheduledSequence(sequence, 5))[0]) == 0
    (rows,) = steps.step(ScheduledSequence(sequence, 15))
    steps.check(sequence, None, rows)


def test_costs_of_real_steps(runner: ModelRunner) -> None:
    curve = runner.measure_costs(runner.forward)
    assert curve.sizes[:2] == (1, 4)  # the others when the machine is not too busy
    assert curve.fixed_sizes in ((1, 4, 8, 16), ())
    assert all(point.seconds > 0 for point in curve.points)


@pytest.mark.parametrize("fixed_sizes", [(1, 4, 8, 16), ()])
def test_the_smallest_limits(engine: Path, fixed_sizes: Sequence[int]) -> None:
    """Two blocks, eight positions: what warms up and measures stays within."""
    settings = replace(SETTINGS, kv_cache_tokens=2 * BLOCK_SIZE, max_seq_len=8, max_num_tokens=3)
    runner = ModelRunner(engine, load_manifest(engine), settings, fixed_sizes=fixed_sizes)
    runner.warm_up(8, runner.forward)
    assert runner.measure_costs(runner.forward).sizes == (1,)


def later(engine: Path, sizes: Sequence[int] = (1, 4, 8, 16)) -> ModelRunner:
    """A runner without graphs of its own for few tokens yet."""
    return ModelRunner(engine, load_manifest(engine), SETTINGS, fixed_sizes=sizes, fixed_later=True)


def test_graphs_that_come_later_change_no_answer(engine: Path) -> None:
    """Tokens of running sequences, step by step while graphs are compiled and taken, are those of the graph of any
    size."""
    prompts = [text(20 + 7 * i) for i in range(4)]

    def decode(runner: ModelRunner, watch: Callable[[int], object]) -> list[list[int]]:
        steps = Steps(runner)
        sequences = [steps.sequence(prompt, len(prompt) - 1, room=250) for prompt in prompts]
        for number in range(100):
            watch(number)
            for batch in (sequences, sequences[:1]):  # in the graph of 4, and in that of 1
                logits = steps.step(*(ScheduledSequence(sequence, 1) for sequence in batch))
                for sequence, rows in zip(batch, logits, strict=True):
                    sequence.token_ids.append(int(rows[0].argmax()))
        return [sequence.token_ids for sequence in sequences]

    runner = later(engine)
    runner.compile_later()
    seen: list[tuple[int, ...]] = []

    def watch(number: int) -> None:
        seen.append(runner.ready_sizes)
        if number == 50:  # steps without a pause leave little to what is compiled beside them
            assert runner.await_graphs(60)

    answers = decode(runner, watch)
    assert (seen[0], seen[-1]) == ((), (1, 4, 8, 16))
    assert decode(later(engine), lambda number: None) == answers


def test_graphs_that_come_later_write_to_no_block_of_a_sequence(engine: Path) -> None:
    runner = later(engine, (1, 16))
    steps = Steps(runner)
    sequence = steps.sequence(text(80), 79)
    before = {name: tensor.data[: runner.num_blocks].copy() for name, tensor in runner._kv_cache.items()}
    runner.compile_later()
    assert runner.await_graphs(60)
    assert runner.ready_sizes == (1, 16)
    for name, tensor in runner._kv_cache.items():
        np.testing.assert_array_equal(tensor.data[: runner.num_blocks], before[name])
    (rows,) = steps.step(ScheduledSequence(sequence, 1))
    steps.check(sequence, None, rows)


def test_a_graph_that_fails_is_not_used(
    engine: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compute = StepGraph.compute

    def broken(graph: StepGraph, inputs: StepInputs) -> Logits:
        return compute(graph, inputs) * (np.nan if graph.num_tokens == 8 else 1)

    runner = later(engine, (4, 8, 16))
    monkeypatch.setattr(StepGraph, "compute", broken)
    runner.compile_later()
    assert runner.await_graphs(60)
    assert runner.ready_sizes == (4,)
    assert "logits of steps of 8 tokens are not finite numbers" in caplog.text
    assert np.isfinite(runner.forward(one_sequence(8))).all()


def test_no_graph_is_begun_after_the_last_step(engine: Path) -> None:
    runner = later(engine)
    runner.compile_later()
    runner.stop_compiling()
    assert runner.await_graphs(60)
    assert len(runner.ready_sizes) <= 1


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux alone")
def test_graphs_that_come_later_compute_at_normal_priority(engine: Path) -> None:
    """A thread's priority is inherited by those it starts, and cannot be raised again: the plugin's threads must not
    be started by the one that compiles at low priority."""
    runner = later(engine, (1, 4))
    runner.compile_later()
    seen: set[int] = set()
    while not runner.await_graphs(0.001):
        seen |= priorities()
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert seen == {own, min(19, own + LATER_NICENESS)}
    wait_until(lambda: priorities() == {own})  # the thread itself ends a moment later


def priorities() -> set[int]:
    """The nice values of this process's threads."""
    values = set()
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            values.add(os.getpriority(os.PRIO_PROCESS, int(thread)))
    return values


@pytest.mark.slow
def test_smollm2(smollm2_gguf: Path, tmp_path: Path) -> None:
    """Its weights have 4 bits, so activations are rounded to 8: now and then, 1e-5 of rounding becomes one step of
    those, 0.05 in the logits. A wrong mask makes it 2 to 12."""
    steps = Steps(load(build(smollm2_gguf, tmp_path), (1, 8, 16)), tolerance=0.2)
    test_a_tree_beside_plain_sequences_and_a_part_of_a_prompt(steps)
    steps = Steps(steps.runner, tolerance=0.2)
    test_padding_changes_nothing_for_others(steps, 12)
    for draft in (CHAIN, TREE, WINDOW):
        test_each_node_is_its_path_alone(Steps(steps.runner, tolerance=0.2), draft, 40, 9)
