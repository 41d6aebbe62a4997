"""Engines of `bench_lookahead.py`: one for each mode of lookahead decoding, and what it measured of its own steps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from answers import Asker
from served_model import Limits, Speculator, prepare

from briton.config.environment import load_environment
from briton.guidance.compiler import GuideCompiler
from briton.guidance.guide import Guide, GuideSpec
from briton.local.lookahead.costs import CostCurve
from briton.local.model_runner import ModelRunner
from briton.local.plan import Forward
from briton.model.engine_dir import load_manifest
from briton.process.executors import create_executor
from briton.text.tokenizer import Tokenizer


class Mode(NamedTuple):
    """A way to draft. `forced`: the engine is told that every step costs the same, and so drafts all that it can."""

    name: str
    speculator: Speculator | None
    forced: bool = False


NGRAM = Mode("n-gram", Speculator(8, 1, 1, dynamic=True, draft_tokens=15))  # as in examples/
WINDOW = Mode("window", Speculator(5, 4, 3, dynamic=False))
BOTH = Mode("both", Speculator(5, 4, 3, dynamic=True))
WINDOW_FORCED = Mode("window, forced", WINDOW.speculator, forced=True)
BOTH_FORCED = Mode("both, forced", BOTH.speculator, forced=True)
PLAIN = Mode("no speculator", None)


class LookaheadEngine(NamedTuple):
    """A started engine, whose end is the owner's."""

    asker: Asker
    costs: CostCurve | None  # what its steps cost, also where it was told otherwise; None without a speculator


def start_engine(mode: Mode, limits: Limits, guides: Mapping[str, Guide]) -> LookaheadEngine:
    """Build it if need be, load it, let it measure its steps. `guides` by schema."""
    served = prepare(replace(limits, speculator=mode.speculator), load_environment())
    measured: list[CostCurve] = []
    measure = ModelRunner.measure_costs

    def watched(runner: ModelRunner, forward: Forward) -> CostCurve:
        measured.append(measure(runner, forward))
        return CostCurve.flat() if mode.forced else measured[-1]

    with patch.object(ModelRunner, "measure_costs", watched):
        executor = create_executor(served.config, served.engine_dir)
    return LookaheadEngine(Asker(executor, guides), measured[0] if measured else None)


def compile_guides(schemas: Iterable[str], engine_dir: Path) -> dict[str, Guide]:
    """A guide for each schema, good for every engine of this model."""
    return asyncio.run(_compile(dict.fromkeys(schemas), engine_dir))


async def _compile(schemas: Iterable[str], engine_dir: Path) -> dict[str, Guide]:
    tokenizer, manifest = Tokenizer.load(engine_dir), load_manifest(engine_dir)
    compiler = GuideCompiler(
        tokenizer.vocabulary_bytes(manifest.model.vocab_size),
        vocab_size=manifest.model.vocab_size,
        stop_token_ids=manifest.stop_token_ids,
        encode=tokenizer.encode,
        tokenizer_hash=tokenizer.hash,
    )
    try:
        return {schema: await compiler.compile(GuideSpec("json_schema", schema)) for schema in schemas}
    finally:
        compiler.close()
