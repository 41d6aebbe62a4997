"""Generate: a proto request in, responses out. Text in and out is here, and nowhere below."""

from __future__ import annotations

import asyncio
from dataclasses import fields, replace

from briton.engine.admission import Demand
from briton.engine.engine import Admission, Engine
from briton.engine.request_stream import RequestStream
from briton.engine.types import ModelInfo, SamplingParams, TokenLogprob
from briton.engine.validation import check_sampling
from briton.errors import InvalidRequest, ModelNotFound, Unsupported
from briton.guidance.pattern import CHOICE_FIELD, REGEX_FIELD
from briton.guidance.schema import SCHEMA_FIELD
from briton.rpc.responses import ResponseBuilder
from briton.rpc.wire import guide_from_proto, lookahead_from_proto, sampling_from_proto
from briton.text.sequence_text import SequenceText
from briton.text.tokenizer import LONG_TEXT, Tokenizer
from briton.v1 import engine_pb2 as pb
from briton.v1.current_request import MAX_REQUEST_ID_LENGTH
from briton.v1.lengths import check_prediction_length, check_prompt_length
from briton.v1.limits import MAX_CALLER_LENGTH

CHARACTERS_PER_TOKEN = 4  # of text that is not tokenized yet
MAX_CACHE_SALT_LENGTH = 256
_SAMPLING_FIELDS = frozenset(field.name for field in fields(SamplingParams))
_GUIDE_FIELDS = {SCHEMA_FIELD: "guide.json_schema", REGEX_FIELD: "guide.regex", CHOICE_FIELD: "guide.choice.choices"}


class GenerateHandler:
    """What Generate does, over an engine. Without a tokenizer it takes and gives token ids only."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer | None) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        table = tokenizer.table if tokenizer is not None else None
        # A text too long even for the longest tokens is not tokenized: 16 MiB of it would take seconds and 400 MB.
        longest = max(map(len, table.bytes_of)) if table is not None else None
        self._max_text_length = longest * engine.info.max_seq_len if longest is not None else None

    async def start(
        self, request: pb.GenerateRequest, timeout_s: float | None
    ) -> tuple[RequestStream, ResponseBuilder]:
        """Check and submit a request: its chunks, and what makes responses of them.

        Raises a BritonError before anything runs, with the field as the proto spells it.
        """
        info = self._engine.info
        lora = _adapter(request.model, info)
        _at_most("request_id", len(request.request_id), MAX_REQUEST_ID_LENGTH)
        _at_most("cache_salt", len(request.cache_salt), MAX_CACHE_SALT_LENGTH)
        _at_most("caller", len(request.caller), MAX_CALLER_LENGTH)
        with self._engine.admit(self._demand(request, timeout_s), priority=request.priority) as admission:
            return await self._start(request, admission, lora)

    async def _start(
        self, request: pb.GenerateRequest, admission: Admission, lora: str | None
    ) -> tuple[RequestStream, ResponseBuilder]:
        info = self._engine.info
        prompt = await self._prompt(request)
        prediction = await self._prediction(request)
        sampling = sampling_from_proto(request.sampling, info, len(prompt))
        stream = request.stream if request.HasField("stream") else True
        try:
            check_sampling(sampling, info)
            texts = self._texts(request, prompt, sampling.n)
            chunks = await self._engine.submit(
                prompt,
                sampling,
                admission=admission,
                guide=guide_from_proto(request.guide),
                cache_salt=request.cache_salt,
                stream=stream or bool(request.stop),  # whoever looks for stop strings must see tokens as they come
                lookahead=lookahead_from_proto(request.lookahead) if request.HasField("lookahead") else None,
                prediction_token_ids=prediction,
                lora=lora,
                has_limit=request.sampling.HasField("max_tokens"),
            )
        except (InvalidRequest, Unsupported) as error:
            raise replace(error, field=_wire_field(error.field)) from None
        builder = ResponseBuilder(
            len(prompt),
            sampling.n,
            texts=texts,
            return_text=request.return_text,
            stream=stream,
            speculates=info.lookahead is not None,
        )
        return chunks, builder

    def _demand(self, request: pb.GenerateRequest, timeout_s: float | None) -> Demand:
        """What a request asks for, before any work is done for it: a text's tokens are guessed."""
        sampling = request.sampling
        num_tokens = len(request.token_ids.ids) or len(request.text) // CHARACTERS_PER_TOKEN
        num_tokens += len(request.prediction_text) // CHARACTERS_PER_TOKEN
        num_sequences = min(max(1, sampling.n), self._engine.info.max_batch_size)
        caller = request.caller or request.cache_salt
        return Demand(num_tokens, num_sequences, sampling.max_tokens or None, timeout_s, caller)

    async def _prompt(self, request: pb.GenerateRequest) -> tuple[int, ...]:
        """The prompt's token ids, of a length that can run."""
        max_seq_len = self._engine.info.max_seq_len
        kind = request.WhichOneof("prompt")
        if kind is None:
            raise InvalidRequest("prompt is missing: set token_ids or text", "prompt")
        if kind == "token_ids":
            check_prompt_length(len(request.token_ids.ids), max_seq_len)  # before a million of them become objects
            return tuple(request.token_ids.ids)
        token_ids = await self._encode(self._need_tokenizer("text"), request.text, "prompt")
        check_prompt_length(len(token_ids), max_seq_len)
        return tuple(token_ids)

    async def _prediction(self, request: pb.GenerateRequest) -> tuple[int, ...]:
        """The token ids that the output may repeat."""
        if request.WhichOneof("prediction") == "prediction_text":
            tokenizer = self._need_tokenizer("prediction_text")
            return tuple(await self._encode(tokenizer, request.prediction_text, "prediction"))
        check_prediction_length(len(request.prediction_token_ids.ids), self._engine.info.max_seq_len)
        return tuple(request.prediction_token_ids.ids)

    async def _encode(self, tokenizer: Tokenizer, text: str, field: str) -> list[int]:
        if self._max_text_length is not None and len(text) > self._max_text_length:
            raise InvalidRequest(
                f"{field} has {len(text)} characters; the maximum sequence length of {self._engine.info.max_seq_len} "
                f"tokens holds at most {self._max_text_length}",
                field,
                "context_length_exceeded",
            )
        if len(text) <= LONG_TEXT:
            return tokenizer.encode(text, field=field)
        return await asyncio.to_thread(tokenizer.encode, text, field=field)

    def _texts(self, request: pb.GenerateRequest, prompt: tuple[int, ...], n: int) -> list[SequenceText[TokenLogprob]]:
        """One text for each sequence, where text is wanted or looked at."""
        if not request.return_text and not request.stop:
            return []
        tokenizer = self._need_tokenizer("return_text" if request.return_text else "stop")
        continued = () if request.standalone_text else prompt
        return [SequenceText(tokenizer, stop=request.stop, prompt_token_ids=continued) for _ in range(n)]

    def _need_tokenizer(self, field: str) -> Tokenizer:
        if self._tokenizer is None:
            raise Unsupported("this engine has no tokenizer: send token_ids and read token_ids", field)
        return self._tokenizer


def _adapter(model: str, info: ModelInfo) -> str | None:
    """The adapter that a request's model names; None for the model itself, which may go unnamed."""
    if model in ("", info.model_name):
        return None
    if model in info.lora_adapters:
        return model
    served = ", ".join(map(repr, (info.model_name, *info.lora_adapters)))
    raise ModelNotFound(f"the model {model!r} is not served here; {served} {'are' if info.lora_adapters else 'is'}")


def _wire_field(field: str | None) -> str | None:
    """A field as a gRPC caller spells it."""
    if field is not None and field.partition("[")[0] in _SAMPLING_FIELDS:
        return f"sampling.{field}"
    return _GUIDE_FIELDS.get(field, field) if field is not None else None


def _at_most(field: str, length: int, limit: int) -> None:
    if length > limit:
        raise InvalidRequest(f"{field} has {length} characters; the limit is {limit}", field)
