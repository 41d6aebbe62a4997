"""docs/images/architecture.svg: the processes of `briton serve`, and what passes between them."""

from __future__ import annotations

from typing import NamedTuple

from tools.docs.svg import MUTED, Drawing

_PROCESS, _PART, _OUTSIDE = "#e3f0fb", "#ffffff", "#f5f0e6"


class _Box(NamedTuple):
    x: int
    y: int
    width: int
    height: int


def svg() -> str:
    """The diagram."""
    drawing = Drawing(960, 400, "The processes of briton serve")
    _box(drawing, _Box(20, 110, 130, 60), "OpenAI client", ["any language"], _OUTSIDE)
    _box(drawing, _Box(20, 250, 130, 60), "cluster client", ["gRPC stubs"], _OUTSIDE)

    drawing.box(195, 20, 745, 360, "#fafbfc", dashed=True)
    drawing.text(210, 44, "briton serve: the supervisor", bold=True)
    drawing.text(425, 44, "builds the engine if need be, starts, restarts and drains its children", color=MUTED)

    _box(
        drawing,
        _Box(215, 65, 205, 165),
        "gateway process",
        ["OpenAI's HTTP API, SSE", "chat template, tokenizer", "limits, errors, metrics", "one event loop (uvloop)"],
        _PROCESS,
    )
    drawing.box(490, 65, 430, 245, _PROCESS)
    drawing.text(505, 90, "engine process, rank 0", bold=True)
    _box(
        drawing,
        _Box(505, 105, 185, 190),
        "event loop",
        [
            "gRPC service",
            "validation",
            "one stream a request",
            "guides compiled in a",
            "limited child process",
            "watchdog",
        ],
        _PART,
    )
    _box(
        drawing,
        _Box(745, 105, 160, 190),
        "executor",
        [
            "local: OpenVINO on CPU",
            "trtllm: TensorRT-LLM",
            "in-flight batching",
            "paged KV cache",
            "sampling, masks",
            "lookahead",
        ],
        _PART,
    )
    _box(drawing, _Box(490, 325, 430, 42), "ranks 1 to N-1", ["the other parts of the model, a process each"], _PROCESS)

    drawing.line(150, 140, 213, 140, arrow=True)
    drawing.text(156, 132, "HTTP", size=11, color=MUTED)
    drawing.line(420, 150, 503, 150, arrow=True)
    drawing.text(428, 142, "gRPC", size=11, color=MUTED)
    drawing.line(150, 280, 503, 280, arrow=True)
    drawing.text(156, 272, "gRPC", size=11, color=MUTED)
    drawing.line(690, 170, 743, 170, arrow=True)
    drawing.text(694, 162, "submit", size=11, color=MUTED)
    drawing.line(743, 220, 692, 220, arrow=True)
    drawing.text(694, 240, "chunks", size=11, color=MUTED)
    drawing.line(825, 295, 825, 323, arrow=True)
    drawing.text(832, 316, "MPI", size=11, color=MUTED)
    return drawing.svg()


def _box(drawing: Drawing, box: _Box, title: str, lines: list[str], fill: str) -> None:
    drawing.box(*box, fill)
    drawing.text(box.x + 12, box.y + 24, title, bold=True)
    if box.height < 50:
        drawing.text(box.x + 130, box.y + 25, lines[0], color=MUTED)
        return
    for i, line in enumerate(lines):
        drawing.text(box.x + 12, box.y + 46 + 20 * i, line, size=12, color=MUTED)
