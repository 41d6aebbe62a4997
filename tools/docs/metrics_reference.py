"""The table of metrics in docs/operations.md, from the metrics themselves."""

from __future__ import annotations

from briton.v1 import engine_pb2
from briton_server.metrics import Metrics
from tools.docs.sections import table

_TOTAL = "_total"


def sections() -> dict[str, str]:
    """Every metric of /metrics, those that the engine counts included."""
    metrics = Metrics()
    metrics.engine.stats = engine_pb2.Stats()
    rows = []
    for family in metrics.registry.collect():
        name = family.name + (_TOTAL if family.type == "counter" else "")
        rows.append((f"`{name}`", family.type, _labels(metrics, family.name), family.documentation))
    return {"metrics": table(("metric", "type", "labels", "what it is"), rows)}


def _labels(metrics: Metrics, name: str) -> str:
    """A metric without samples does not tell its labels: the registry's collector does."""
    collector = metrics.registry._names_to_collectors.get(name)
    return ", ".join(f"`{label}`" for label in getattr(collector, "_labelnames", ()))
