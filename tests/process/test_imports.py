"""What a command imports before it serves: a start is half a second of that, or two."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import importlib, json, sys
for module in json.loads(sys.argv[1]):
    importlib.import_module(module)
print(json.dumps(sorted(sys.modules)))
"""
COMMANDS = {  # what `briton.cli` imports for each, and what has no business there
    "serve": (
        ["briton.process.executor_choice", "briton.process.logs", "briton.process.serve", "briton_engine_builder"],
        {"numpy", "gguf", "huggingface_hub", "jinja2", "rich", "tokenizers", "openvino", "fastapi", "briton.engine"},
    ),
    "engine": (
        ["briton.process.engine_command", "briton.process.engine_process", "briton.local.loader"],
        {"briton_engine_builder", "gguf", "huggingface_hub", "transformers", "jinja2", "rich", "fastapi", "uvicorn"},
    ),
    "gateway": (
        ["briton.process.cpu", "briton.rpc.ports", "briton_server.main"],
        {"openvino", "numpy", "llguidance", "briton_engine_builder", "briton.local", "briton.engine", "rich"},
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_imports_what_it_needs(name: str) -> None:
    """`briton serve` of an engine that was built loaded all that builds one."""
    modules, without = COMMANDS[name]
    command = [sys.executable, "-c", PROGRAM, json.dumps(["briton.cli", "briton.config.loader", *modules])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert not without & set(json.loads(done.stdout))
