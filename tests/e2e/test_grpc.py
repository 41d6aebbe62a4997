"""The engine's gRPC service, as a client in a cluster uses it."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from briton.v1 import engine_pb2 as pb
from briton.v1 import engine_pb2_grpc
from tests.e2e.serving import MODEL, Serving

pytestmark = pytest.mark.slow

PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def channel(serving: Serving) -> Iterator[grpc.Channel]:
    """A channel to the served engine."""
    with serving.channel() as channel:
        yield channel


def generate(channel: grpc.Channel, **fields: object) -> tuple[list[int], str, pb.GenerateResponse]:
    """Token ids, text and last response of a greedy call of at most 32 tokens."""
    sampling = pb.SamplingParams(temperature=0, max_tokens=32)
    request = pb.GenerateRequest(sampling=sampling, **fields)  # type: ignore[arg-type]
    responses = list(engine_pb2_grpc.EngineStub(channel).Generate(request, timeout=60))
    outputs = [output for response in responses for output in response.outputs]
    assert [output.finish_reason for output in outputs if output.finish_reason] == [pb.FINISH_REASON_STOP]
    token_ids = [token_id for output in outputs for token_id in output.token_ids]
    return token_ids, "".join(output.text for output in outputs), responses[-1]


def test_reflection_and_model_info(channel: grpc.Channel) -> None:
    services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"briton.v1.Engine", "grpc.health.v1.Health"} <= set(services)
    info = engine_pb2_grpc.EngineStub(channel).GetModelInfo(pb.GetModelInfoRequest(), timeout=5)
    assert info.model_name == MODEL
    assert info.max_seq_len == 8192
    assert info.weights_dtype == "int8"


def test_text_and_token_ids_give_the_same(channel: grpc.Channel, serving: Serving) -> None:
    token_ids, text, last = generate(channel, text=PROMPT, return_text=True)
    assert "Paris" in text
    assert last.usage.completion_tokens == len(token_ids)
    info = engine_pb2_grpc.EngineStub(channel).GetModelInfo(pb.GetModelInfoRequest(), timeout=5)
    assert token_ids[-1] in info.stop_token_ids
    # <|im_start|> 1, <|im_end|> 2, and the words of the prompt, as SmolLM2's tokenizer has them
    prompt_ids = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
    by_ids, no_text, _ = generate(channel, token_ids=pb.TokenIds(ids=prompt_ids))
    assert by_ids == token_ids
    assert no_text == ""


def test_a_guide_and_a_stop_string(channel: grpc.Channel) -> None:
    _, text, _ = generate(channel, text=PROMPT, return_text=True, guide=pb.Guide(regex="(yes|no)!"))
    assert text in ("yes!", "no!")
    _, text, _ = generate(channel, text=PROMPT, return_text=True, stop=["Paris"])
    assert text
    assert "P" not in text


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("sampling.max_tokens", pb.GenerateRequest(text=PROMPT, sampling=pb.SamplingParams(max_tokens=0))),
        ("sampling.temperature", pb.GenerateRequest(text=PROMPT, sampling=pb.SamplingParams(temperature=-1))),
        ("sampling.temperature", pb.GenerateRequest(text=PROMPT, sampling=pb.SamplingParams(temperature=float("nan")))),
        ("sampling.top_p", pb.GenerateRequest(text=PROMPT, sampling=pb.SamplingParams(top_p=2))),
        ("prompt", pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1_000_000]))),
        ("prompt", pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1] * 1_000_000))),
        ("prompt", pb.GenerateRequest()),
    ],
)
def test_bad_input_names_its_field(channel: grpc.Channel, field: str, request_: pb.GenerateRequest) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(engine_pb2_grpc.EngineStub(channel).Generate(request_, timeout=30))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field.rpartition(".")[2] in (caught.value.details() or "")


def test_the_same_request_id_twice(channel: grpc.Channel) -> None:
    stub = engine_pb2_grpc.EngineStub(channel)
    request = pb.GenerateRequest(
        text=PROMPT, request_id="twin", sampling=pb.SamplingParams(max_tokens=500, ignore_eos=True)
    )
    first = stub.Generate(request, timeout=60)
    next(iter(first))
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(request, timeout=30))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "twin" in (caught.value.details() or "")
    first.cancel()


def test_a_deadline_ends_the_call(channel: grpc.Channel, serving: Serving) -> None:
    request = pb.GenerateRequest(text=PROMPT, sampling=pb.SamplingParams(max_tokens=4000, ignore_eos=True))
    with pytest.raises(grpc.RpcError) as caught:
        list(engine_pb2_grpc.EngineStub(channel).Generate(request, timeout=0.5))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
