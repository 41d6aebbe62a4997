"""One served model for all tests that leave it as they found it, and a way to start others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from tests.e2e.serving import EXAMPLE, Serving

Start = Callable[..., Serving]


@pytest.fixture(scope="package")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """The example, served. For tests that do not end its processes."""
    serving = Serving(EXAMPLE, tmp_path_factory.mktemp("serving"))
    try:
        serving.wait_until_ready()
        serving.await_graphs()
        yield serving
        assert serving.stop() == 0, serving.log
    finally:
        serving.end()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a `briton serve` of the test's own, by default of the example, and waits until it is ready."""
    started: list[Serving] = []

    def start(config: Path = EXAMPLE) -> Serving:
        directory = tmp_path / f"serving{len(started)}"
        directory.mkdir()
        serving = Serving(config, directory)
        started.append(serving)
        serving.wait_until_ready()
        return serving

    yield start
    for serving in started:
        serving.end()


@pytest.fixture
def client(serving: Serving) -> Iterator[openai.OpenAI]:
    """The official client, strict, without retries."""
    with strict_client(serving) as client:
        yield client


def strict_client(serving: Serving) -> openai.OpenAI:
    """An official client that validates every response and never retries."""
    return openai.OpenAI(base_url=serving.url, api_key="none", max_retries=0, _strict_response_validation=True)
