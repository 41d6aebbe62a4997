"""One HTTP request's calls of the engine, and the texts that grow from them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

from briton.errors import InvalidRequest, Unsupported
from briton.text.sequence_text import PlacedLogprob, SequenceText
from briton.v1 import engine_pb2
from briton_server.engine_client import EngineClient, GenerateCall
from briton_server.engine_errors import EngineFault, with_request_field
from briton_server.gateway import Gateway

_FINISH_REASONS = {engine_pb2.FINISH_REASON_STOP: "stop", engine_pb2.FINISH_REASON_LENGTH: "length"}


class Delta(NamedTuple):
    """What one step adds to a choice."""

    text: str
    logprobs: Sequence[PlacedLogprob[engine_pb2.TokenLogprob]]  # of the tokens whose text begins in `text`
    finish_reason: str | None  # "stop" or "length", on the last


_NOTHING = Delta("", (), None)

Step = list[tuple[int, Delta]]  # (choice, what it got); choice = prompt * n + sequence


class Generation:
    """Calls for one or several prompts, `n` sequences each. `usage` is complete once `steps` has ended."""

    def __init__(
        self,
        gateway: Gateway,
        requests: Sequence[engine_pb2.GenerateRequest],
        *,
        n: int,
        stop: Sequence[str],
        logprobs: bool,
        fields: Mapping[str, str],
        continues_prompt: bool = False,
    ) -> None:
        """`continues_prompt`: the texts go on where the prompts end (completions), and are none of their own (chat).
        `fields` are the engine's names of fields -> the HTTP request's, for errors."""
        self._gateway = gateway
        self._requests = requests
        self._n = n
        self._fields = fields
        tokenizer = gateway.prompts.tokenizer
        self._texts: list[SequenceText[engine_pb2.TokenLogprob]] = [
            SequenceText(
                tokenizer,
                stop=stop,
                logprobs=logprobs,
                prompt_token_ids=request.token_ids.ids if continues_prompt else (),
            )
            for request in requests
            for _ in range(n)
        ]
        self._unfinished = len(self._texts)
        self._usages: list[engine_pb2.Usage] = []
        self._streams = requests[0].stream
        self._last = [0.0] * len(self._texts)  # when a choice last got tokens, monotonic; 0: not yet
        self.tokenizer = tokenizer

    @property
    def num_choices(self) -> int:
        """Prompts times n."""
        return len(self._texts)

    @property
    def _is_complete(self) -> bool:
        return self._unfinished == 0 and len(self._usages) == len(self._requests)

    async def steps(self) -> AsyncGenerator[Step, None]:
        """What each response of the engine gave. Closing the generator cancels the calls.

        Ends when every call has: after the finish reason of its last choice comes its usage. Raises what the engine's
        status stands for, and EngineFault when a call ends too early.
        """
        engine, timeout = self._gateway.engine, self._gateway.settings.request_timeout_s
        calls = [engine.generate(request, timeout=timeout) for request in self._requests]
        source = _merged(engine, calls) if len(calls) > 1 else _single(engine, calls[0])
        try:
            async with aclosing(source):
                async for prompt, response in source:
                    yield self._take(prompt, response)
            if not self._is_complete:
                raise EngineFault("the engine ended the call before the answer was complete")
        except (InvalidRequest, Unsupported) as error:
            raise with_request_field(error, self._fields) from error
        finally:
            for call in calls:
                call.cancel()
            self._record()

    def _take(self, prompt: int, response: engine_pb2.GenerateResponse) -> Step:
        """Push a response's tokens to their sequences; runs once for each token of each stream."""
        step: Step = []
        for output in response.outputs:
            choice = prompt * self._n + output.index
            if self._streams and output.token_ids:
                self._observe_gap(choice)
            step.append((choice, self._push(choice, output)))
        if response.HasField("usage"):
            self._usages.append(response.usage)
        return step

    def _observe_gap(self, choice: int) -> None:
        """Between two steps of one sequence: other sequences, and other prompts, have their own."""
        now = time.monotonic()
        if self._last[choice]:
            self._gateway.metrics.inter_token_s.observe(now - self._last[choice])
        self._last[choice] = now

    def _push(self, choice: int, output: engine_pb2.SequenceOutput) -> Delta:
        """What the engine's output adds to a choice: it looks for the same stop strings, and so ends where the text
        does."""
        text = self._texts[choice]
        if text.ended:
            return _NOTHING
        finish_reason = _FINISH_REASONS.get(output.finish_reason)
        delta = text.push(
            output.token_ids,
            output.logprobs,
            ends=finish_reason is not None,
            has_stop_token=output.HasField("stop_token_id"),
        )
        if delta.stopped:
            finish_reason = "stop"
        if finish_reason is not None:
            self._unfinished -= 1
        return Delta(delta.text, delta.logprobs, finish_reason)

    def usage(self) -> dict[str, Any]:
        """`usage` of the answer."""
        prompt_tokens = sum(len(request.token_ids.ids) for request in self._requests)
        completion_tokens = sum(text.num_tokens for text in self._texts)
        engine = self._engine_usage()
        usage: dict[str, Any] = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": engine.cached_tokens},
        }
        if engine.HasField("speculation"):
            accepted, drafted = engine.speculation.num_accepted_tokens, engine.speculation.num_draft_tokens
            usage["completion_tokens_details"] = {
                "accepted_prediction_tokens": accepted,
                "rejected_prediction_tokens": drafted - accepted,
            }
            usage["tokens_per_step"] = round(engine.completion_tokens / max(1, engine.speculation.num_steps), 3)
        usage["timings"] = {name: round(getattr(engine, name), 6) for name in ("queue_s", "prefill_s", "decode_s")}
        return usage

    def server_timing(self) -> dict[str, str]:
        """The Server-Timing header (https://www.w3.org/TR/server-timing)."""
        engine = self._engine_usage()
        parts = (("queue", engine.queue_s), ("prefill", engine.prefill_s), ("decode", engine.decode_s))
        return {"server-timing": ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in parts)}

    def _engine_usage(self) -> engine_pb2.Usage:
        """Of all prompts: tokens added up; they run at the same time, so of times the longest."""
        return engine_pb2.Usage(
            completion_tokens=sum(usage.completion_tokens for usage in self._usages),
            cached_tokens=sum(usage.cached_tokens for usage in self._usages),
            queue_s=max(usage.queue_s for usage in self._usages),
            prefill_s=max(usage.prefill_s for usage in self._usages),
            decode_s=max(usage.decode_s for usage in self._usages),
            speculation=_total([usage.speculation for usage in self._usages if usage.HasField("speculation")]),
        )

    def _record(self) -> None:
        metrics = self._gateway.metrics
        if self._is_complete:
            usage = self.usage()
            metrics.prompt_tokens.inc(usage["prompt_tokens"])
            metrics.completion_tokens.inc(usage["completion_tokens"])
        for engine in self._usages:
            metrics.cached_tokens.inc(engine.cached_tokens)
            metrics.queue_s.observe(engine.queue_s)
            metrics.prefill_s.observe(engine.prefill_s)
            metrics.first_token_s.observe(engine.queue_s + engine.prefill_s)


def _total(parts: Sequence[engine_pb2.Speculation]) -> engine_pb2.Speculation | None:
    """None of none: the engine does not speculate."""
    if not parts:
        return None
    return engine_pb2.Speculation(
        num_steps=sum(part.num_steps for part in parts),
        num_draft_tokens=sum(part.num_draft_tokens for part in parts),
        num_accepted_tokens=sum(part.num_accepted_tokens for part in parts),
    )


async def _single(
    engine: EngineClient, call: GenerateCall
) -> AsyncGenerator[tuple[int, engine_pb2.GenerateResponse], None]:
    async with aclosing(engine.responses(call)) as responses:
        async for response in responses:
            yield 0, response


async def _merged(
    engine: EngineClient, calls: Sequence[GenerateCall]
) -> AsyncGenerator[tuple[int, engine_pb2.GenerateResponse], None]:
    """The responses of all calls, each with its call's index, as they come."""
    queue: asyncio.Queue[tuple[int, engine_pb2.GenerateResponse | Exception | None]] = asyncio.Queue(len(calls))

    async def pump(index: int, call: GenerateCall) -> None:
        try:
            async for response in engine.responses(call):
                await queue.put((index, response))
            await queue.put((index, None))
        except Exception as error:
            await queue.put((index, error))

    tasks = [asyncio.create_task(pump(index, call)) for index, call in enumerate(calls)]
    num_open = len(calls)
    try:
        while num_open:
            index, item = await queue.get()
            if item is None:
                num_open -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield index, item
    finally:
        for task in tasks:
            task.cancel()
