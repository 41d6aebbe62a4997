"""Every name of tensorrt_llm that our code uses is in the table of its API."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import briton.trtllm
from briton.trtllm import open_request, perf_metrics, stats
from briton.trtllm.library_objects import EXECUTOR
from tests.trtllm.stand_in.api import MODULE, TABLE

SOURCES = sorted(Path(briton.trtllm.__file__).parent.glob("*.py"))
OPTIONS = {p["name"] for name in ("Request", "SamplingConfig", "ExecutorConfig") for p in TABLE["classes"][name]}
# The protocol in which we read something -> its class in the table.
PROTOCOLS: dict[type, str] = {
    open_request.LibraryResponse: "Response",
    open_request.LibraryResult: "Result",
    perf_metrics.PerfMetrics: "RequestPerfMetrics",
    perf_metrics.TimingMetrics: "TimingMetrics",
    perf_metrics.KvCacheMetrics: "KvCacheMetrics",
    perf_metrics.SpeculativeDecodingMetrics: "SpeculativeDecodingMetrics",
    stats.IterationStats: "IterationStats",
    stats.KvCacheStats: "KvCacheStats",
    stats.InflightBatchingStats: "InflightBatchingStats",
}


def _nodes(kind: type[Any]) -> Iterator[Any]:
    for source in SOURCES:
        yield from (node for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))) if isinstance(node, kind))


def _is_module(node: ast.expr) -> bool:
    """`trtllm`, or an attribute of that name."""
    return getattr(node, "id", getattr(node, "attr", None)) == "trtllm"


def _used() -> set[tuple[str, str | None]]:
    """(class, member of it or None) for each `trtllm.X` and `trtllm.X.Y`."""
    used: set[tuple[str, str | None]] = set()
    for node in _nodes(ast.Attribute):
        if _is_module(node.value):
            used.add((node.attr, None))
        elif isinstance(node.value, ast.Attribute) and _is_module(node.value.value):
            used.add((node.value.attr, node.attr))
        elif isinstance(node.value, ast.Name) and node.value.id == "reasons":
            used.add(("FinishReason", node.attr))
    return used


def test_classes_and_members() -> None:
    used = _used()
    assert len(used) > 10
    for name, member in used:
        if member is None:
            assert name in {*TABLE["classes"], *TABLE["enums"], *TABLE["methods"], *TABLE["static_methods"]}, name
        else:
            constants = [path.partition(".")[2] for path in TABLE["constants"] if path.startswith(f"{name}.")]
            members = {*TABLE["enums"].get(name, ()), *TABLE["static_methods"].get(name, ()), *constants}
            assert member in members, f"{name}.{member}"


def test_arguments() -> None:
    seen = 0
    for call in _nodes(ast.Call):
        function = call.func
        if isinstance(function, ast.Attribute) and _is_module(function.value) and function.attr in TABLE["classes"]:
            parameters = [p["name"] for p in TABLE["classes"][function.attr]]
            for keyword in call.keywords:
                assert keyword.arg is None or keyword.arg in parameters, f"{function.attr}({keyword.arg}=)"
                seen += 1
    assert seen > 5


def test_options() -> None:
    """Arguments that are gathered in a dict before the call."""
    keys = [
        node.slice.value
        for node in _nodes(ast.Subscript)
        if isinstance(node.value, ast.Name) and node.value.id == "options" and isinstance(node.slice, ast.Constant)
    ]
    for node in _nodes(ast.AnnAssign):
        if isinstance(node.target, ast.Name) and node.target.id == "options" and isinstance(node.value, ast.Dict):
            keys += [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
    assert len(keys) > 15
    assert set(keys) <= OPTIONS


@pytest.mark.parametrize(("protocol", "name"), PROTOCOLS.items())
def test_what_is_read(protocol: type, name: str) -> None:
    methods = {f"{method}()" for method in vars(protocol) if not method.startswith("_")}
    assert {*protocol.__annotations__, *methods} <= {*TABLE["attributes"][name]}


def test_methods_of_the_executor() -> None:
    called = {
        node.attr
        for node in _nodes(ast.Attribute)
        if getattr(node.value, "id", getattr(node.value, "attr", None)) in ("engine", "_engine")
    }
    assert {"enqueue_request", "await_responses", "cancel_request", "shutdown"} <= called
    assert called <= set(TABLE["methods"]["Executor"])


def test_the_module_is_imported_in_one_place() -> None:
    assert EXECUTOR == MODULE
    importing = "import_module(EXECUTOR)"
    assert [source.name for source in SOURCES if importing in source.read_text(encoding="utf-8")] == ["library.py"]
    assert not any(f'"{MODULE}' in source.read_text(encoding="utf-8") for source in SOURCES)
    for node in (*_nodes(ast.Import), *_nodes(ast.ImportFrom)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        assert not {"torch", "tensorrt_llm", "mpi4py"} & {module.partition(".")[0] for module in modules}
