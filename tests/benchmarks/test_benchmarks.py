"""The parts of the benchmarks that could measure the wrong thing without anybody noticing."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import gguf
import numpy as np
import pytest

from tests.engine_builder.tiny_gguf import write_tiny_gguf

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = ("requantize", "stream_client", "peer_process", "workload")


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The benchmarks' modules, which are scripts beside each other and no package."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield {name: __import__(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name)


def test_requantized_file_has_the_same_weights_and_metadata(benchmarks: dict[str, ModuleType], tmp_path: Path) -> None:
    source, target = tmp_path / "source.gguf", tmp_path / "target.gguf"
    write_tiny_gguf(source, {"": gguf.GGMLQuantizationType.Q4_1})
    benchmarks["requantize"].requantize(source, target)
    before, after = gguf.GGUFReader(source), gguf.GGUFReader(target)
    kept = {name: field.contents() for name, field in before.fields.items() if not name.startswith("GGUF.")}
    assert {name: after.fields[name].contents() for name in kept} | {"general.file_type": 0} == {
        **kept,
        "general.file_type": 0,
    }
    assert [t.name for t in after.tensors] == [t.name for t in before.tensors]
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert new.shape.tolist() == old.shape.tolist()
        expected = gguf.quants.dequantize(old.data, old.tensor_type)
        actual = gguf.quants.dequantize(new.data, new.tensor_type)
        if len(old.shape) > 1:
            assert new.tensor_type is gguf.GGMLQuantizationType.Q8_0
            np.testing.assert_allclose(actual, expected, atol=float(np.abs(expected).max()) / 127)
        else:
            np.testing.assert_array_equal(actual, expected)


def _event(**fields: object) -> bytes:
    return b"data: " + json.dumps({"choices": [], **fields}).encode() + b"\n\n"


def _answer(events: list[bytes]) -> bytes:
    """A chunked HTTP answer, each event a chunk of its own as the gateway sends it."""
    chunks = b"".join(f"{len(event):x}\r\n".encode() + event + b"\r\n" for event in events)
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


EVENTS = [
    _event(choices=[{"delta": {"role": "assistant", "content": ""}}]),
    *(_event(choices=[{"delta": {"content": text}}]) for text in ("a", "b", 'data: "\n\n')),
    _event(choices=[{"delta": {}, "finish_reason": "length"}]),
    _event(usage={"prompt_tokens": 5, "completion_tokens": 3}),
    b"data: [DONE]\n\n",
]


async def _serve_once(answer: bytes, pieces: int) -> tuple[asyncio.Server, int]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        assert json.loads(await reader.readexactly(length))["stream"] is True
        size = -(-len(answer) // pieces)
        for start in range(0, len(answer), size):
            writer.write(answer[start : start + size])
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def _chat(benchmarks: dict[str, ModuleType], answer: bytes, pieces: int) -> object:
    server, port = await _serve_once(answer, pieces)
    async with server:
        return await asyncio.to_thread(benchmarks["stream_client"].chat, "127.0.0.1", port, [{"messages": []}])


@pytest.mark.parametrize("pieces", [1, 7, 23])
async def test_stream_client_counts_texts_wherever_the_bytes_are_cut(
    benchmarks: dict[str, ModuleType], pieces: int
) -> None:
    answers = await _chat(benchmarks, _answer(EVENTS), pieces)
    (stream,) = answers.streams  # type: ignore[attr-defined]
    assert (stream.prompt_tokens, stream.output_tokens) == (5, 3)
    assert len(stream.token_times) == 3  # the event with the role has no text
    assert list(stream.token_times) == sorted(stream.token_times)
    assert len(stream.inter_token_times) == 2
    if pieces > 1:
        assert stream.token_times[-1] > stream.time_to_first_token


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (_answer(EVENTS[:3]), "broke off"),
        (_answer(EVENTS[:-1]), "broke off"),
        (_answer([*EVENTS[:2], b'data: {"error": {"message": "engine died"}}\n\n']), "engine died"),
        (b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n", "429"),
    ],
)
async def test_stream_client_refuses_what_is_not_a_whole_answer(
    benchmarks: dict[str, ModuleType], answer: bytes, message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        await _chat(benchmarks, answer, 1)


def test_a_peer_is_driven_line_by_line(
    benchmarks: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    peers = tmp_path / "peers"
    peers.mkdir()
    (peers / "echo.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(BENCHMARKS / 'peers')!r})\n"
        "from line_protocol import serve\n"
        "def run(prompts, max_tokens):\n"
        "    print('noise of a library')\n"
        "    n = len(prompts) * max_tokens\n"
        "    return {'wall_s': 2.0, 'first_tokens_s': 1.0, 'output_tokens': n, 'decode_tokens': n - len(prompts)}\n"
        "serve(lambda: ('1.0', run))\n"
    )
    module = benchmarks["peer_process"]
    monkeypatch.setattr(module, "PEERS_PYTHON", Path(sys.executable))
    monkeypatch.setattr(module, "__file__", str(tmp_path / "peer_process.py"))
    peer = module.PeerProcess("echo", [])
    try:
        assert peer.version == "1.0"
        workload = benchmarks["workload"].Workload("w", num_requests=3, prompt_tokens=4, output_tokens=5)
        measured = peer.run(workload, 1)
    finally:
        peer.close()
    assert (measured.output_rate, measured.decode_rate) == (7.5, 12.0)
    assert workload.prompts(1) == workload.prompts(1) != workload.prompts(2)


def test_a_missing_peer_is_told_on_standard_error(
    benchmarks: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = benchmarks["peer_process"]
    monkeypatch.setattr(module, "PEERS_PYTHON", Path("/nowhere/python"))
    assert module.start_peer("genai", []) is None
    assert "make peers" in capsys.readouterr().err
