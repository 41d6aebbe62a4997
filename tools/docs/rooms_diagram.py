"""docs/images/rooms.svg: who may import whom, from the contract in pyproject.toml that `make lint-imports` holds."""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from tools.docs.svg import MUTED, Drawing

_ROW, _WIDTH, _LEFT = 54, 860, 20
_SAYS = {
    "briton.cli": "the commands: parses and calls",
    "briton_engine_builder": "checkpoint to engine directory",
    "briton_server": "the gateway",
    "briton.process": "supervisor, children, factory of executors",
    "briton.rpc": "the gRPC service",
    "briton.local": "the executor on OpenVINO",
    "briton.trtllm": "the executor on TensorRT-LLM",
    "briton.ranks": "ranks of an engine as one job",
    "briton.model": "engine directory, shapes, sharding",
    "briton.engine": "requests, chunks, the Executor protocol",
    "briton.guidance": "schema, regex, choice to a token mask",
    "briton.config": "config.yaml and environment",
    "briton.text": "tokenizer, templates, detokenizer",
    "briton.v1": "generated from the proto",
    "briton.errors": "one tree of errors, one table of statuses",
}


def svg(root: Path) -> str:
    """The layers, from the top."""
    layers = _layers(root)
    drawing = Drawing(900, 60 + _ROW * len(layers), "Who may import whom")
    drawing.text(_LEFT, 28, "Each room may import those below it, and none above or beside it.", color=MUTED)
    for i, layer in enumerate(layers):
        width = (_WIDTH - 12 * (len(layer) - 1)) / len(layer)
        for j, name in enumerate(layer):
            x, y = _LEFT + j * (width + 12), 44 + i * _ROW
            drawing.box(x, y, width, 44, "#e3f0fb" if name.startswith("briton.") else "#f5f0e6")
            drawing.text(x + width / 2, y + 19, name, bold=True, at="middle")
            drawing.text(x + width / 2, y + 36, _SAYS[name], size=11, color=MUTED, at="middle")
    return drawing.svg()


def _layers(root: Path) -> list[list[str]]:
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers: list[str] = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[name.strip() for name in layer.split("|")] for layer in layers]
