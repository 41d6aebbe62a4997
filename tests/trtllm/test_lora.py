"""LoRA adapters in the running executor: loaded once at its start, then named by their task."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from briton.errors import BuildError, ConfigError, InvalidRequest
from briton.trtllm.host_tensor import BFLOAT16, host_tensor
from briton.trtllm.lora import DESCRIPTION, WEIGHTS, adapter_directory
from tests.request_runner import RequestRunner
from tests.trtllm.engines import start
from tests.trtllm.stand_in.executor import Faults
from tests.trtllm.stand_in.library import stand_in_library

PROMPT = tuple(range(1, 60))


def write_adapter(engine: Path, name: str, *, seed: int, rank: int = 4, dtype: Any = BFLOAT16) -> None:
    """Rows for the queries of both layers."""
    directory = adapter_directory(engine, name)
    directory.mkdir(parents=True)
    bits = np.random.default_rng(seed).integers(0, 2**15, (1, 2, rank * 16), np.uint16)
    np.save(directory / WEIGHTS, bits.view(dtype))
    np.save(directory / DESCRIPTION, np.asarray([[[1, 0, rank], [1, 1, rank]]], np.int32))


def adapters(*names: str) -> dict[str, Any]:
    return {name: {"source": "HF", "repo": f"acme/{name}"} for name in names}


def two(directory: Path, **options: Any) -> Any:
    write_adapter(directory, "legal", seed=1)
    write_adapter(directory, "poems", seed=2)
    return start(
        directory,
        stand_in_library(faults=options.pop("faults", None)),
        build={"lora_adapters": ("legal", "poems")},
        lora_adapters=adapters("legal", "poems"),
        **options,
    )


def test_each_adapter_has_its_own_answers(tmp_path: Path) -> None:
    executor = two(tmp_path)
    assert executor.info.lora_adapters == ("legal", "poems")
    runner = RequestRunner(executor)
    names = (None, "legal", "poems")
    answers = {name: runner.run(PROMPT, lora=name, max_tokens=8, temperature=0.0).tokens() for name in names}
    assert len(set(answers.values())) == 3
    # the same at once, and again: the prefix that each has left in the cache is its own
    results = {name: runner.submit(PROMPT, lora=name, max_tokens=8, temperature=0.0) for name in names}
    runner.finish(*results.values())
    assert {name: result.tokens() for name, result in results.items()} == answers
    with pytest.raises(InvalidRequest, match="there is no LoRA adapter 'prose'"):
        runner.submit(PROMPT, lora="prose")
    executor.shutdown()


def test_the_task_alone_is_sent(tmp_path: Path) -> None:
    executor = two(tmp_path)
    sent = list[Any]()
    enqueue = executor._engine.enqueue_request

    def send(request: Any) -> Any:
        sent.append(request)
        return enqueue(request)

    executor._engine.enqueue_request = send
    runner = RequestRunner(executor)
    for name in ("poems", None):
        runner.run(PROMPT, lora=name, max_tokens=2)
    assert (sent[0].lora_config.task_id, sent[0].lora_config.weights, sent[1].lora_config) == (2, None, None)
    executor.shutdown()


def test_an_engine_built_for_other_adapters(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"built for LoRA adapters \(none\); the config has legal"):
        start(tmp_path, lora_adapters=adapters("legal"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 128}, "cannot load the LoRA adapter legal: .*Invalid low_rank"),
        ({"dtype": np.float16}, "cannot load the LoRA adapter legal: .*same data type as base model"),
        (None, "cannot be read"),
    ],
)
def test_adapters_that_do_not_load(tmp_path: Path, options: dict[str, Any] | None, message: str) -> None:
    if options is not None:
        write_adapter(tmp_path, "legal", seed=1, **options)
    with pytest.raises(BuildError, match=message):
        start(tmp_path, build={"lora_adapters": ("legal",)}, lora_adapters=adapters("legal"))


def test_a_library_that_fails_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="cannot generate: no GPU"):
        two(tmp_path, faults=Faults(raises={"enqueue_request": RuntimeError("no GPU")}))


def test_tensors_of_bfloat16() -> None:
    """torch is not here: what it is asked."""

    class Tensor:
        def __init__(self, array: Any) -> None:
            self.array = array
            self.viewed: str | None = None

        def view(self, dtype: str) -> Tensor:
            self.viewed = dtype
            return self

    torch = SimpleNamespace(from_numpy=Tensor, bfloat16="bfloat16")
    bits = np.arange(4, dtype=np.uint16)
    tensor = host_tensor(torch, bits.view(BFLOAT16))
    assert (tensor.array.tolist(), tensor.array.dtype, tensor.viewed) == ([0, 1, 2, 3], np.int16, "bfloat16")
    assert host_tensor(torch, bits.astype(np.int32)).viewed is None
