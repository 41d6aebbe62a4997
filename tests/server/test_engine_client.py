"""The channel to the engine."""

from __future__ import annotations

import pytest

from tests.fake_executor import FakeExecutor
from tests.server.conftest import Serve


async def test_a_proxy_of_the_environment_is_not_for_the_engine(
    serve: Serve, executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC sends every call through it by itself, those to the loopback included."""
    for name in ("no_grpc_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:1")
    async with serve(executor) as running:
        assert (await running.http.get("/health")).status_code == 200
