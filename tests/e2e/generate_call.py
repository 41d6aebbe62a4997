"""One Generate call to an engine on this host, as a program: `python -m tests.e2e.generate_call PORT MAX_TOKENS`.

Prints, as JSON lines, {"token_ids": [...]} for each response, and at last {"code": ..., "details": ...}.
"""

from __future__ import annotations

import json
import sys
import time

import grpc

from briton.process.probes import engine_is_serving
from briton.v1 import engine_pb2, engine_pb2_grpc

PROMPT = (5, 17, 301, 42, 9, 77)
START_TIMEOUT_S = 60.0


def main(port: int, max_tokens: int) -> None:
    """Wait until the engine serves, and ask it."""
    address = f"127.0.0.1:{port}"
    deadline = time.monotonic() + START_TIMEOUT_S
    while not engine_is_serving(address) and time.monotonic() < deadline:
        time.sleep(0.1)
    request = engine_pb2.GenerateRequest(
        token_ids=engine_pb2.TokenIds(ids=PROMPT),
        sampling=engine_pb2.SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True),
    )
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = engine_pb2_grpc.EngineStub(channel).Generate(request, timeout=START_TIMEOUT_S)
        try:
            for response in call:
                _print(token_ids=[token_id for output in response.outputs for token_id in output.token_ids])
            _print(code="OK", details="")
        except grpc.RpcError as error:
            _print(code=error.code().name, details=error.details())


def _print(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
