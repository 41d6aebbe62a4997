"""docs/images/benchmarks.svg and the tables of docs/benchmarks.md, from the tables of benchmarks/LOG.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tools.docs.sections import table
from tools.docs.svg import INK, MUTED, Drawing

_LLAMA_CPP, _GENAI, _LOOKAHEAD = "#3b7dd8", "#8fb8ea", "#4c9f70"
_LABEL, _SCALE, _BAR = 230, 105, 15  # pixels: width of labels, of a ratio of 1, height of a bar


class Ratio(NamedTuple):
    """Tokens a second of one over another's, on one kind of work."""

    work: str
    ratio: float


class Figures(NamedTuple):
    """What is shown of the log."""

    genai: list[Ratio]
    llama_cpp: list[Ratio]
    lookahead: list[Ratio]
    serving: list[list[str]]  # clients, output tokens/s, in-process, ratio, first token, between tokens


def svg(root: Path) -> str:
    """Two panels: the executor beside its peers, lookahead decoding with over without."""
    figures = read_log(root / "benchmarks" / "LOG.md")
    height = 56 + 44 * len(figures.llama_cpp) + 78 + 24 * len(figures.lookahead) + 16
    drawing = Drawing(900, height, "Measured ratios of tokens a second")
    y = _heading(drawing, 28, "Tokens a second, ours over theirs: SmolLM2-135M, int8, 2 cores of an AMD EPYC, bf16")
    drawing.bar(_LABEL, y - 10, 12, 10, _LLAMA_CPP)
    drawing.text(_LABEL + 18, y, "over llama.cpp", size=12, color=MUTED)
    drawing.bar(_LABEL + 130, y - 10, 12, 10, _GENAI)
    drawing.text(_LABEL + 148, y, "over openvino-genai", size=12, color=MUTED)
    top = y + 14
    for llama_cpp, genai in zip(figures.llama_cpp, figures.genai, strict=True):
        drawing.text(_LABEL - 10, y + 38, llama_cpp.work, size=12, at="end")
        _bar(drawing, y + 18, llama_cpp.ratio, _LLAMA_CPP)
        _bar(drawing, y + 18 + _BAR + 1, genai.ratio, _GENAI)
        y += 44
    drawing.line(_LABEL + _SCALE, top, _LABEL + _SCALE, y + 12, dashed=True)
    y = _heading(drawing, y + 50, "Lookahead decoding, with over without: same machine and model, greedy, n-gram mode")
    top = y - 6
    for work, ratio in figures.lookahead:
        drawing.text(_LABEL - 10, y + 13, work, size=12, at="end")
        _bar(drawing, y, ratio, _LOOKAHEAD)
        y += 24
    drawing.line(_LABEL + _SCALE, top, _LABEL + _SCALE, y, dashed=True)
    return drawing.svg()


def sections(root: Path) -> dict[str, str]:
    """The same numbers as tables."""
    figures = read_log(root / "benchmarks" / "LOG.md")
    peers = [
        (genai.work, f"{llama_cpp.ratio:.2f}", f"{genai.ratio:.2f}")
        for genai, llama_cpp in zip(figures.genai, figures.llama_cpp, strict=True)
    ]
    serving = ("clients", "output tokens/s", "in-process", "ratio", "first token p50 / p99", "between tokens p50 / p99")
    return {
        "peers": table(("work", "over llama.cpp", "over openvino-genai"), peers),
        "serving": table(serving, figures.serving),
        "lookahead": table(("kind of prompt", "with over without"), [(w, f"{r:.2f}") for w, r in figures.lookahead]),
    }


def read_log(log: Path) -> Figures:
    """The newest figures of each kind. Raises ValueError for a log without them."""
    text = log.read_text(encoding="utf-8")
    step = _rows(text, "| to openvino-genai, to llama.cpp |")
    works = step[0][1:]
    pairs = [[float(number) for number in cell.split(", ")] for cell in step[1][1:]]
    lookahead = _rows(text, "| | target | n-gram |")
    column = lookahead[0].index("n-gram")
    return Figures(
        genai=[Ratio(_work(work), pair[0]) for work, pair in zip(works, pairs, strict=True)],
        llama_cpp=[Ratio(_work(work), pair[1]) for work, pair in zip(works, pairs, strict=True)],
        lookahead=[Ratio(row[0].removesuffix(", 1 request"), float(row[column])) for row in lookahead[1:]],
        serving=_rows(text, "| clients | output tokens/s |")[1:],
    )


def _rows(text: str, beginning: str) -> list[list[str]]:
    """The first table whose header begins so: header and rows, as cells."""
    start = text.find(f"\n{beginning}")
    if start < 0:
        raise ValueError(f"the log has no table that begins with {beginning!r}")
    lines = text[start + 1 :].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [rows[0], *rows[2:]]


def _work(header: str) -> str:
    """The log's column headers, in full."""
    if match := re.fullmatch(r"decode, (\d+)", header):
        return f"decode, {match[1]} request{'s' if match[1] != '1' else ''}"
    return (
        f"{header} tokens"
        if header.startswith("prefill")
        else header.replace(" x (", " requests, ").replace(")", " tokens")
    )


def _heading(drawing: Drawing, y: int, text: str) -> int:
    drawing.text(20, y, text, bold=True)
    return y + 28


def _bar(drawing: Drawing, y: float, ratio: float, fill: str) -> None:
    drawing.bar(_LABEL, y, ratio * _SCALE, _BAR, fill)
    end = max(ratio, 1.0 if ratio > 0.7 else ratio) * _SCALE  # no number on the line at 1
    drawing.text(_LABEL + end + 6, y + 12, f"{ratio:.2f}", size=12, color=INK)
