"""From request fields to the engine's requests: what chat completions and completions do alike."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar
from uuid import uuid4

from starlette.requests import Request

from briton.v1 import engine_pb2
from briton.v1.lengths import check_prediction_length, check_prompt_length
from briton.v1.limits import MAX_CALLER_LENGTH
from briton_server.body import parse_request, read_body
from briton_server.gateway import Gateway, gateway_of
from briton_server.generation import Generation
from briton_server.guides import GUIDE_FIELDS, guide_of
from briton_server.middleware import request_id_of
from briton_server.prompts import PREDICTION_FIELD
from briton_server.protocol.generation import GenerationFields
from briton_server.sampling import sampling_params

FieldsT = TypeVar("FieldsT", bound=GenerationFields)
T = TypeVar("T")


async def receive(
    request: Request,
    kind: type[FieldsT],
    check: Callable[[FieldsT], None],
    prepare: Callable[[Gateway, FieldsT, str, str], T],
) -> tuple[FieldsT, str, T]:
    """The request's fields, the model they name, and what `prepare` makes of them (gateway, fields, model, request id):
    in a thread when the body is long.

    `check` refuses what is wrong with several fields together. Raises Unavailable while the engine does not serve,
    QueueFull where its queue was full just now, InvalidRequest, Unsupported and ModelNotFound.
    """
    gateway = gateway_of(request)
    gateway.readiness.require()
    content = await read_body(request, gateway.settings.max_body_bytes)
    gateway.engine.check_room()
    request_id = request_id_of(request.scope)

    def work() -> tuple[FieldsT, str, T]:
        fields = parse_request(content, kind)
        check(fields)
        model = gateway.check_model(fields.model)
        return fields, model, prepare(gateway, fields, model, request_id)

    return await gateway.preparation.run(len(content), work)


def new_generation(
    gateway: Gateway,
    fields: GenerationFields,
    prompts: Sequence[Sequence[int]],
    *,
    request_id: str,
    model: str,
    prompt_field: str,
    max_tokens: int | None,
    logprobs: int | None,
    prediction: Sequence[int] = (),
    continues_prompt: bool = False,
) -> Generation:
    """The calls that answer a request; nothing is sent yet. Raises InvalidRequest and Unsupported."""
    info = gateway.readiness.require()
    gateway.unknown_fields.note(fields.model_extra or ())
    check_prediction_length(len(prediction), info.max_seq_len, PREDICTION_FIELD)
    for token_ids in prompts:
        check_prompt_length(len(token_ids), info.max_seq_len, prompt_field)
    guide, guide_field = guide_of(fields, gateway.settings.max_schema_bytes)
    sampling = sampling_params(fields, gateway.prompts.tokenizer, max_tokens=max_tokens, logprobs=logprobs)
    stop = fields.stop or ()
    sizes = fields.lookahead_decoding_config
    lookahead = None if sizes is None else engine_pb2.LookaheadConfig(**sizes.model_dump())
    requests = [
        engine_pb2.GenerateRequest(
            # A client may use an id twice at once, the engine takes it once.
            request_id=f"{request_id}/{uuid4().hex[:12]}",
            # The gateway has a name of its own for the model itself; adapters have the engine's.
            model="" if model == gateway.settings.model_name else model,
            token_ids=engine_pb2.TokenIds(ids=token_ids),
            sampling=sampling,
            guide=guide,
            priority=fields.priority or 0,
            cache_salt=fields.cache_salt or "",
            caller=_caller(fields.user),
            # The engine ends a sequence at a stop string; its text is made here, of the tokens up to there.
            stop=stop,
            standalone_text=not continues_prompt,
            stream=bool(fields.stream),
            lookahead=lookahead,
            prediction_token_ids=engine_pb2.TokenIds(ids=prediction) if prediction else None,
        )
        for token_ids in prompts
    ]
    return Generation(
        gateway,
        requests,
        n=fields.n or 1,
        stop=stop,
        logprobs=logprobs is not None,
        continues_prompt=continues_prompt,
        fields={
            "prompt": prompt_field,
            "prediction": PREDICTION_FIELD,
            "lookahead": "lookahead_decoding_config",
            **dict.fromkeys(GUIDE_FIELDS, guide_field),
        },
    )


def _caller(user: str | None) -> str:
    """A user as the engine tells callers apart; what is longer than it takes, by its hash."""
    if user is None or len(user) <= MAX_CALLER_LENGTH:
        return user or ""
    return hashlib.sha256(user.encode(errors="surrogatepass")).hexdigest()
