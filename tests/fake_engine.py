"""A gRPC engine over the fake executor, in this process and on a free port, and a tokenizer whose ids are bytes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from briton.engine.engine import Compiler, Engine
from briton.engine.watchdog import StallLimits
from briton.rpc.server import EngineServer
from briton.text.tokenizer import Tokenizer
from briton.v1 import engine_pb2_grpc as pb_grpc
from tests.fake_executor import FakeExecutor

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 256, 257, 258
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(directory: Path) -> Path:
    """Write the files of a byte tokenizer: token id i below 256 is the byte i, and three control tokens follow."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    backend = tokenizers.Tokenizer(models.BPE(vocab={letters[byte]: byte for byte in range(256)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL_TOKENS])
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": CHAT_TEMPLATE}))
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return directory


@dataclass
class RunningEngine:
    """What `run_fake_engine` gives."""

    address: str  # host:port
    engine: Engine
    server: EngineServer
    channel: grpc.aio.Channel
    stub: pb_grpc.EngineAsyncStub


@asynccontextmanager
async def run_fake_engine(
    executor: FakeExecutor,
    *,
    tokenizer: Tokenizer | None = None,
    compiler: Compiler | None = None,
    request_timeout_s: float | None = None,
    stall: StallLimits | None = None,
    port: int = 0,
) -> AsyncIterator[RunningEngine]:
    """A served engine on 127.0.0.1, with a channel to it; everything ends with the block."""
    engine = Engine(executor, compiler=compiler, request_timeout_s=request_timeout_s, stall=stall)
    server = EngineServer("127.0.0.1", port)
    await server.start()
    engine.start()
    server.attach(engine, tokenizer)
    address = f"127.0.0.1:{server.port}"
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield RunningEngine(address, engine, server, channel, pb_grpc.EngineStub(channel))
    finally:
        await engine.stop()
        await server.stop(0)
