"""SmolLM2-135M with drafts and without: identical in float32; in bfloat16, different at ties of the model alone."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from briton.config.environment import Environment
from briton.config.lookahead import LookaheadConfig
from briton.engine.types import GenerationRequest, ModelInfo, SamplingParams
from briton.guidance.grammar import GrammarCompiler
from briton.guidance.guide import Guide
from briton.guidance.limits import GuideLimits
from briton.guidance.pattern import choice_pattern
from briton.guidance.vocabulary import Vocabulary
from briton.local.executor import LocalExecutor
from briton.local.lookahead.costs import CostCurve
from briton.local.model_runner import ModelRunner
from briton.local.plan import ScheduledSequence, step_inputs
from briton.local.sequence import RequestState, SequenceState
from briton.local.settings import BLOCK_SIZE, LocalSettings, Precision
from briton.model.engine_dir import load_manifest
from briton.text.tokenizer import Tokenizer
from briton_engine_builder import build_engine
from tests.engine_builder.engines import config_for
from tests.local.varied_prompts import varied_prompts
from tests.request_runner import RequestRunner

pytestmark = pytest.mark.slow

BATCH = 16
WINDOW, DYNAMIC, OFF = LookaheadConfig(3, 3, 2), LookaheadConfig(4, 1, 1), LookaheadConfig(1, 1, 0)


@dataclass(frozen=True)
class SmolLM2:
    """Its weights, compiled once for executors of all modes."""

    directory: Path
    runner: ModelRunner
    tokenizer: Tokenizer

    def start(self, lookahead: LookaheadConfig, dynamic: bool) -> RequestRunner:
        """An executor to which a step costs the same whatever is in it, so that it drafts whenever it can."""
        manifest = load_manifest(self.directory)
        info = ModelInfo(
            model_name="smollm2",
            executor="local",
            architecture=manifest.model.architecture,
            vocab_size=manifest.model.vocab_size,
            max_seq_len=512,
            max_batch_size=BATCH,
            max_num_tokens=512,
            max_queue_size=1000,
            kv_cache_tokens=self.runner.num_blocks * BLOCK_SIZE,
            kv_block_size=BLOCK_SIZE,
            stop_token_ids=tuple(manifest.stop_token_ids),
            lookahead=lookahead,
            enable_b10_lookahead=dynamic,
            max_draft_tokens=lookahead.max_draft_tokens,
        )
        costs = CostCurve.flat()
        return RequestRunner(LocalExecutor(info, self.runner.forward, policy="guaranteed_no_evict", costs=costs))

    def prompts(self, count: int) -> list[list[int]]:
        return [self.tokenizer.encode(text) for text in varied_prompts(count)]


def load(checkpoint: Path, folder: Path, precision: Precision, quantization: str) -> SmolLM2:
    environment = Environment(cache_dir=folder / "cache")
    config = config_for(checkpoint, folder, quantization, precision=precision)
    directory = build_engine(config, environment, progress=False)
    settings = LocalSettings(
        max_batch_size=BATCH, max_num_tokens=512, max_queue_size=8, threads=2, precision=precision, kv_cache_tokens=8192
    )
    runner = ModelRunner(directory, load_manifest(directory), settings, drafts=True)
    return SmolLM2(directory, runner, Tokenizer.load(directory))


@pytest.fixture(scope="module")
def f32(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> SmolLM2:
    """Weights, activations and cache."""
    model = load(smollm2_gguf, tmp_path_factory.mktemp("f32"), "f32", "no_quant")
    assert load_manifest(model.directory).weights_dtype == "f32"
    return model


@pytest.mark.parametrize(
    ("lookahead", "dynamic", "num_prompts"),
    [(DYNAMIC, True, 200), (WINDOW, False, 48), (WINDOW, True, 48)],
    ids=["ngram", "window", "both"],
)
def test_greedy_output_is_identical(f32: SmolLM2, lookahead: LookaheadConfig, dynamic: bool, num_prompts: int) -> None:
    runner = f32.start(lookahead, dynamic)
    prompts = f32.prompts(num_prompts)
    plain = [runner.submit(prompt, max_tokens=24, lookahead=OFF) for prompt in prompts]
    runner.finish(*plain)
    drafted = [runner.submit(prompt, max_tokens=24) for prompt in prompts]
    runner.finish(*drafted)
    stats = runner.executor.stats()
    runner.executor.shutdown()
    different = [i for i in range(num_prompts) if plain[i].tokens() != drafted[i].tokens()]
    assert different == []
    assert stats.num_accepted_tokens > num_prompts, "hardly a draft came true: little was tested"


PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "city": {"type": "string", "maxLength": 40},
        "occupation": {"type": "string", "maxLength": 40},
        "is_member": {"type": "boolean"},
    },
    "required": ["name", "age", "city", "occupation", "is_member"],
    "additionalProperties": False,
}
TEXTS = [
    "Margaret Oyelaran, a 42 year old structural engineer who lives in Rotterdam, has been a member since 2011.",
    "Applicant: Tomasz Nowak (37), veterinary surgeon. Residence: Gdansk. Not a member yet.",
    "Lucy Farnham turned 29 last week. The pastry chef from Leeds joined the club in May.",
    "My name is Samir Haddad, I teach music in Lyon, I am 61 and no longer a member.",
]


def guides(model: SmolLM2) -> dict[str, Guide]:
    manifest = load_manifest(model.directory)
    size = manifest.model.vocab_size
    vocabulary = Vocabulary(
        model.tokenizer.vocabulary_bytes(size),
        vocab_size=size,
        stop_token_ids=manifest.stop_token_ids,
        encode=model.tokenizer.encode,
    )
    limits = GuideLimits()
    grammars = GrammarCompiler(vocabulary, limits)
    regex = r"Name: [A-Z][a-z]+ [A-Z][a-z]+\nAge: [0-9]{2}\nCity: [A-Z][a-z]+\nMember: (yes|no)"
    choice = choice_pattern(
        ["The person is a member of the club.", "The person is not a member of the club.", "Nothing is known."], limits
    )
    return {
        "schema": grammars.compile(PERSON),
        "regex": grammars.compile_regex(regex, "guided_regex"),
        "choice": grammars.compile_regex(choice, "guided_choice"),
    }


@pytest.mark.parametrize(("lookahead", "dynamic"), [(LookaheadConfig(7, 1, 1), True), (WINDOW, True)])
def test_guided_output_is_identical_and_takes_fewer_steps(
    f32: SmolLM2, lookahead: LookaheadConfig, dynamic: bool
) -> None:
    runner = f32.start(lookahead, dynamic)
    asked = "<|im_start|>user\n{}\nWho is this?<|im_end|>\n<|im_start|>assistant\n"
    requests: list[dict[str, Any]] = [
        {"prompt": f32.tokenizer.encode(asked.format(text)), "guide": guide, "max_tokens": 80} | sampling
        for guide in guides(f32).values()
        for text in TEXTS
        for sampling in ({}, {"temperature": 0.7, "seed": 3})
    ]
    plain = [runner.submit(**request, lookahead=OFF) for request in requests]
    runner.finish(*plain)
    drafted = [runner.submit(**request) for request in requests]
    runner.finish(*drafted)
    runner.executor.shutdown()
    assert [result.tokens() for result in drafted] == [result.tokens() for result in plain]
    written = [f32.tokenizer.decode(result.tokens()) for result in drafted[: 2 * len(TEXTS)]]
    assert all(set(json.loads(text)) == set(PERSON["required"]) for text in written)
    done = [result.final.speculation for result in drafted if result.final.speculation]
    num_tokens = sum(len(result.tokens()) for result in drafted)
    assert num_tokens > 2 * sum(speculation.num_steps for speculation in done)


def test_in_bfloat16_what_differs_is_a_tie(smollm2_gguf: Path, tmp_path: Path) -> None:
    """Where two outputs part, the plain model's two logits are as near as its rounding makes them uncertain.

    A step's number of tokens changes the order of its sums, so its roundings. A bfloat16 has 8 bits: it is off by 2^-9
    of itself at most. Weights of 8 bits meet activations rounded as coarsely. On the way to the logits, 2 products
    in each of L layers are added to what the layers before gave: 4L + 1 roundings, which add up as their root if they
    are independent. Two logits of two computations may so differ by 2 sqrt(4L + 1) 2^-9 of the larger: 4.3 % here.
    Most are far nearer than this bound: half of them one unit in the last place, 2^-7.
    """
    if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU computes no bfloat16")
    model = load(smollm2_gguf, tmp_path, "bf16", "weights_int8")
    num_layers = load_manifest(model.directory).model.num_hidden_layers
    bound = 2 * math.sqrt(4 * num_layers + 1) * 2**-9
    runner = model.start(DYNAMIC, True)
    prompts = model.prompts(96)
    plain = [runner.submit(prompt, max_tokens=24, lookahead=OFF) for prompt in prompts]
    runner.finish(*plain)
    drafted = [runner.submit(prompt, max_tokens=24) for prompt in prompts]
    runner.finish(*drafted)
    assert runner.executor.stats().num_accepted_tokens > len(prompts)
    runner.executor.shutdown()
    gaps = []
    for prompt, one, other in zip(prompts, plain, drafted, strict=True):
        at = _first_difference(one.tokens(), other.tokens())
        if at is not None:
            logits = _next_logits(model.runner, [*prompt, *one.tokens()[:at]])
            a, b = logits[one.tokens()[at]], logits[other.tokens()[at]]
            gaps.append(abs(a - b) / max(abs(a), abs(b)))
    assert len(gaps) < len(prompts) * 2 / 3
    assert all(gap <= bound for gap in gaps), sorted(gaps)
    assert np.median([0.0, *gaps]) <= 2**-7, sorted(gaps)


def _first_difference(one: tuple[int, ...], other: tuple[int, ...]) -> int | None:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)


def _next_logits(runner: ModelRunner, token_ids: list[int]) -> np.ndarray:
    """By plain steps: all tokens but one, then that one."""
    sequence: SequenceState = RequestState.create(GenerationRequest(0, tuple(token_ids), SamplingParams())).sequences[0]
    sequence.block_table = list(range(-(-len(token_ids) // BLOCK_SIZE)))
    for num_new in (len(token_ids) - 1, 1):
        if num_new:
            logits = runner.forward(step_inputs([ScheduledSequence(sequence, num_new)]))
            sequence.num_computed_tokens += num_new
    return np.array(logits[0])
