"""Fixtures: a byte tokenizer, a fake executor, and the whole path on top of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest
from openai import AsyncOpenAI

from briton.engine.types import ModelInfo
from briton.guidance.compiler import GuideCompiler
from briton.text.tokenizer import Tokenizer
from tests.fake_engine import run_fake_engine, write_tokenizer
from tests.fake_executor import FAKE_INFO, FakeExecutor, Script
from tests.server.running import RunningGateway, run_gateway, settings_of


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token id i below 256 is the byte i."""
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_dir)


class Serve(Protocol):
    """Runs the whole path on an executor, with guided decoding or without; `changes` are to the gateway's settings."""

    def __call__(
        self, executor: FakeExecutor, *, guided: bool = False, **changes: Any
    ) -> AbstractAsyncContextManager[RunningGateway]: ...


@pytest.fixture(scope="session")
def serve(tokenizer_dir: Path, tokenizer: Tokenizer) -> Serve:
    @asynccontextmanager
    async def served(executor: FakeExecutor, *, guided: bool = False, **changes: Any) -> AsyncIterator[RunningGateway]:
        executor.info = replace(executor.info, tokenizer_hash=tokenizer.hash)
        compiler = _compiler(tokenizer, executor.info) if guided else None
        try:
            async with (
                run_fake_engine(executor, tokenizer=tokenizer, compiler=compiler) as engine,
                run_gateway(settings_of(tokenizer_dir, engine.address, **changes)) as running,
            ):
                yield running
        finally:
            if compiler is not None:
                compiler.close()

    return served


def _compiler(tokenizer: Tokenizer, info: ModelInfo) -> GuideCompiler:
    return GuideCompiler(
        tokenizer.vocabulary_bytes(info.vocab_size),
        vocab_size=info.vocab_size,
        stop_token_ids=info.stop_token_ids,
        encode=tokenizer.encode,
        tokenizer_hash=tokenizer.hash,
    )


def says(*texts: str) -> Script:
    """A script: sequence i of a request says texts[i], the last text where there are not so many."""
    return lambda request, index: list(texts[min(index, len(texts) - 1)].encode())


@pytest.fixture
def executor() -> FakeExecutor:
    """Says "Hello, wörld 🌍!" to everybody, a byte a step."""
    return FakeExecutor(FAKE_INFO, script=says("Hello, wörld 🌍!"))


@pytest.fixture
async def gateway(serve: Serve, executor: FakeExecutor) -> AsyncIterator[RunningGateway]:
    async with serve(executor) as running:
        yield running


@pytest.fixture
async def client(gateway: RunningGateway) -> AsyncIterator[AsyncOpenAI]:
    async with gateway.openai() as client:
        yield client
