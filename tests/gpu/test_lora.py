"""LoRA adapters on the real library: one that changes nothing answers as the model does, one of noise does not."""

from __future__ import annotations

from pathlib import Path

from briton.model.engine_dir import load_manifest
from briton.model.shapes import ModelShapes
from briton.process.executors import create_executor
from briton.text.tokenizer import Tokenizer
from tests.gpu.conftest import MakeEngine
from tests.peft_adapter import write_peft
from tests.request_runner import RequestRunner

MODULES = ("q_proj", "v_proj", "up_proj", "down_proj")


def test_adapters(make_engine: MakeEngine, tmp_path: Path) -> None:
    model = load_manifest(make_engine()[1]).model
    assert isinstance(model, ModelShapes)
    adapters = {
        name: {"source": "LOCAL", "repo": str(write_peft(tmp_path / name, model, modules=MODULES, scale=scale))}
        for name, scale in (("nothing", 0.0), ("noise", 1.0))
    }
    config, directory = make_engine({"trt_llm.build.lora_adapters": adapters})
    executor, tokenizer = create_executor(config, directory), Tokenizer.load(directory)
    try:
        runner, prompt = RequestRunner(executor), tokenizer.encode("The capital of France is")
        answers = {name: runner.run(prompt, lora=name, max_tokens=16).tokens() for name in (None, *adapters)}
        assert answers["nothing"] == answers[None]
        assert answers["noise"] != answers[None]
    finally:
        executor.shutdown()
