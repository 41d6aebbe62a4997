"""The stand-in of the library's builder refuses what the table does not have, as the library would."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.engine_builder.trtllm.stand_in import StandIn


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("from tensorrt_llm.llmapi import BuildConfig; BuildConfig(max_batch=1)", "max_batch Extra inputs"),
        (
            "from tensorrt_llm.plugin import PluginConfig; PluginConfig(gemm_plugin='fp4')",
            "gemm_plugin Input should be",
        ),
        ("from tensorrt_llm.llmapi import PluginConfig", "cannot import name 'PluginConfig'"),
        ("import tensorrt_llm.no_such_module", "No module named 'tensorrt_llm.no_such_module'"),
        ("from tensorrt_llm.llmapi import QuantAlgo; QuantAlgo.FP9", "FP9"),
        ("from tensorrt_llm._tensorrt_engine import LLM; LLM()", "missing a required argument: 'model'"),
        ("from tensorrt_llm._tensorrt_engine import LLM; LLM('.', tp=2)", "tp Extra inputs"),
        ("from tensorrt_llm._tensorrt_engine import LLM; LLM('.', build_config={})", "an instance of BuildConfig"),
        ("from tensorrt_llm.llmapi import CalibConfig; CalibConfig('cuda')", "too many positional arguments"),
        ("from tensorrt_llm.llmapi import CalibConfig; CalibConfig().size = 1", "CalibConfig has no field size"),
    ],
)
def test_it_is_strict(stand_in: StandIn, program: str, message: str) -> None:
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 1
    assert message in " ".join(run.stderr.split())
