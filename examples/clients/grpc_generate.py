"""The engine's own interface: text in and out over gRPC, with a deadline, and a call that is cancelled.

The stubs are in the package (`briton.v1`); other languages compile proto/briton/v1/engine.proto.
"""

import grpc

from briton.v1 import engine_pb2, engine_pb2_grpc

with grpc.insecure_channel("127.0.0.1:50051") as channel:
    engine = engine_pb2_grpc.EngineStub(channel)
    info = engine.GetModelInfo(engine_pb2.GetModelInfoRequest(), timeout=5)
    print(f"{info.model_name} on {info.executor}: up to {info.max_seq_len} tokens")

    def request(text: str, max_tokens: int) -> engine_pb2.GenerateRequest:
        """Greedy, as text: the engine tokenizes it as it stands, without a chat template."""
        sampling = engine_pb2.SamplingParams(max_tokens=max_tokens, temperature=0)
        return engine_pb2.GenerateRequest(text=text, return_text=True, sampling=sampling)

    # The call's deadline is the request's: beyond it the engine ends the request, and the call DEADLINE_EXCEEDED.
    try:
        for response in engine.Generate(request("The capital of France is", 16), timeout=30):
            print("".join(output.text for output in response.outputs), end="", flush=True)
            if response.HasField("usage"):
                print(f"\n{response.usage.completion_tokens} tokens in {response.usage.decode_s:.2f} s")
    except grpc.RpcError as error:
        raise SystemExit(f"{error.code().name}: {error.details()}") from None

    # Cancelling the call cancels the request, and frees what it holds.
    call = engine.Generate(request("Once upon a time", 500))
    first = next(call)
    call.cancel()
    print(f"cancelled after {first.outputs[0].text!r}")
