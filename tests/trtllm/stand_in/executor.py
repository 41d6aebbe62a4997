"""The stand-in's Executor: one thread that runs the loop of executorImpl.cpp, step for step."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from tests.trtllm.stand_in.checks import assertion, path
from tests.trtllm.stand_in.engine_config import EngineConfig
from tests.trtllm.stand_in.model import Decoder, Row, logits_of
from tests.trtllm.stand_in.sequence import BLOCK, Group, Sequence

_STREAM = 0xBEEF  # where a CUDA stream would be


@dataclass
class World:
    """The ranks of one launch, and the end that rank 0 tells the others."""

    size: int = 1
    ended: threading.Event = field(default_factory=threading.Event)


@dataclass
class Faults:
    """What a test makes go wrong, or slow."""

    raises: dict[str, Exception] = field(default_factory=dict)  # by method
    enqueue_delay_s: float = 0.0  # between accepting a request and returning its id
    step_s: float = 0.0
    hangs: threading.Event = field(default_factory=threading.Event)  # set: no step is made, and shutdown waits for ever
    error_after: int | None = None  # tokens of a sequence, after which the whole step fails once
    error_message: str = "CUDA error: an illegal memory access was encountered"


class StandInExecutor:
    """`Executor`; `api`, `world`, `rank` and `faults` are set by the class that `stand_in_library` makes of it."""

    api: Any
    world: World
    rank: int
    faults: Faults

    def __init__(self, model_path: Any, model_type: Any, executor_config: Any) -> None:
        path(model_path)
        api = self.api
        if not isinstance(model_type, api.ModelType) or not isinstance(executor_config, api.ExecutorConfig):
            raise TypeError("__init__(): incompatible function arguments")
        self._raise_if_told("__init__")
        self._config = executor_config
        self._engine = EngineConfig.load(Path(model_path))
        self._check_config()
        self._is_leader = self.rank == 0
        self._shutdown_called = False
        self._lock = threading.Condition()
        self._queue: list[Group] = []  # by priority
        self._active: list[Sequence] = []
        self._cancelled: set[int] = set()
        self._responses: list[Any] = []
        self._new_responses: list[Any] = []
        self._stats: deque[Any] = deque(maxlen=executor_config.iter_stats_max_iterations)
        self._terminate = False
        self._prefixes: set[tuple[Any, tuple[int, ...]]] = set()
        self._adapters: dict[int, bytes] = {}  # by task
        self._last_id = 0
        self._iter = 0
        self.callback_threads: set[int] = set()
        self._random = np.random.Generator(np.random.PCG64(7))
        self._thread: threading.Thread | None = None
        if self._is_leader:
            self._thread = threading.Thread(target=self._run, name="executionLoop", daemon=True)
            self._thread.start()

    # The API.

    def enqueue_request(self, request: Any) -> int:
        """Queue it; its id. A response may be out before this returns."""
        if not isinstance(request, self.api.Request):
            raise TypeError("enqueue_request(): incompatible function arguments")
        self._check_usable("Shutdown called, cannot enqueue requests")
        self._raise_if_told("enqueue_request")
        name = request.logits_post_processor_name
        assertion(name in (None, self.api.Request.BATCHED_POST_PROCESSOR_NAME), "logits post processor not found")
        size = request.sampling_config.num_return_sequences or 1
        with self._lock:
            limit = self._config.max_queue_size or 0
            if limit > 0 and sum(group.size for group in self._queue) + size > limit:
                raise RuntimeError(
                    f"[TensorRT-LLM][ERROR] Maximum queue size of {limit} has been reached, please try again later "
                    "(executorImpl.cpp:1)\n1  0x7f stack trace"
                )
            library_id = self._last_id + 1
            self._last_id += size
            self._queue.append(Group(request, library_id, size))
            self._queue.sort(key=lambda group: -group.request.priority)  # stable
            self._lock.notify_all()
        time.sleep(self.faults.enqueue_delay_s)
        return library_id

    def enqueue_requests(self, requests: list[Any]) -> list[int]:
        """One after the other."""
        return [self.enqueue_request(request) for request in requests]

    def await_responses(self, *args: Any, timeout: Any = None) -> list[Any]:
        """Of all requests; waiting for the responses of single ones is not stood in for."""
        assert not args, "await_responses(id) is not used"
        if timeout is not None and not isinstance(timeout, timedelta | float):
            raise TypeError("await_responses(): incompatible function arguments")
        self._check_usable("Shutdown called")
        self._raise_if_told("await_responses")
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        with self._lock:
            self._lock.wait_for(lambda: self._responses or self._terminate, seconds)
            responses, self._responses = self._responses, []
            return responses

    def get_num_responses_ready(self, id: int | None = None) -> int:
        """Of all requests, or of one."""
        self._check_usable("Shutdown called")
        with self._lock:
            return sum(id is None or response.request_id == id for response in self._responses)

    def cancel_request(self, id: int) -> None:
        """Idempotent. A queued request is cancelled once it is active."""
        if type(id) is not int:
            raise TypeError("cancel_request(): incompatible function arguments")
        self._check_usable("Shutdown called")
        self._raise_if_told("cancel_request")
        with self._lock:
            self._cancelled.add(id)

    def get_latest_iteration_stats(self) -> list[Any]:
        """Each of them once."""
        self._check_usable("Shutdown called")
        self._raise_if_told("get_latest_iteration_stats")
        with self._lock:
            stats = list(self._stats)
            self._stats.clear()
            return stats

    def get_latest_request_stats(self) -> list[Any]:
        """None are kept."""
        self._check_usable("Shutdown called")
        return []

    def can_enqueue_requests(self) -> bool:
        """On rank 0, until shutdown."""
        return self._is_leader and not self._shutdown_called

    def get_kv_cache_event_manager(self) -> None:
        """There is none."""

    def shutdown(self) -> None:
        """On rank 0, bring all queued and active requests to their ends, then end all ranks; on others, wait for
        that."""
        if self._shutdown_called:
            return
        self._shutdown_called = True
        self._raise_if_told("shutdown")
        if self._thread is None:
            self.world.ended.wait()
            return
        with self._lock:
            self._lock.notify_all()
        self._thread.join()
        self.world.ended.set()

    def __enter__(self) -> StandInExecutor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()

    # The loop.

    def _run(self) -> None:
        while not self._terminate or self._active:
            while self.faults.hangs.is_set():
                time.sleep(0.005)
            if self._active:
                self._finish_timed_out()
                self._finish_cancelled()
                self._populate_responses()
                if not self._active:
                    self._add_stats(0.0)
                self._publish()
            self._fetch()
            if self._active:
                self._forward()

    def _publish(self) -> None:
        with self._lock:
            self._responses += self._new_responses
            self._new_responses = []
            self._lock.notify_all()

    def _finish_timed_out(self) -> None:
        for sequence in self._active:
            allotted = sequence.request.allotted_time_ms
            if allotted is None or sequence.is_finished:
                continue
            if time.monotonic() - sequence.group.arrived > allotted.total_seconds():
                sequence.finish("TIMED_OUT")
                sequence.clear_output()

    def _finish_cancelled(self) -> None:
        with self._lock:
            for sequence in self._active:
                if sequence.group.library_id in self._cancelled:
                    sequence.finish("CANCELLED")
                    sequence.clear_output()
            self._cancelled -= {sequence.group.library_id for sequence in self._active}

    def _populate_responses(self) -> None:
        for sequence in list(self._active):
            unsent = sequence.output[sequence.num_sent :]
            if not sequence.is_finished and not (sequence.request.streaming and unsent):
                continue
            group = sequence.group
            if sequence.is_finished:
                group.finished.add(sequence.index)
                self._active.remove(sequence)
            self._new_responses.append(
                self.api.Response(
                    request_id=group.library_id,
                    client_id=group.request.client_id,
                    error_msg="",
                    result=self._result(sequence, unsent),
                )
            )
            sequence.num_sent = max(sequence.num_sent, len(sequence.output))

    def _result(self, sequence: Sequence, unsent: list[int]) -> Any:
        api, request = self.api, sequence.request
        include_input = not request.streaming and not request.output_config.exclude_input_from_output
        logits = None
        if request.output_config.return_generation_logits and sequence.logits:
            rows = np.stack(sequence.logits[sequence.num_sent :])
            if request.streaming:
                logits = rows[:, None]
            else:  # as long as it could have become
                logits = np.zeros((1, sequence.max_new_tokens, rows.shape[1]), np.float32)
                logits[0, : len(rows)] = rows
        return api.Result(
            is_final=len(sequence.group.finished) == sequence.group.size,
            is_sequence_final=sequence.is_finished,
            sequence_index=sequence.index,
            output_token_ids=[[*sequence.prompt, *unsent] if include_input else unsent],
            finish_reasons=[api.FinishReason[sequence.reason]],
            generation_logits=logits,
            decoding_iter=sequence.num_steps,
            request_perf_metrics=sequence.metrics(api) if request.output_config.return_perf_metrics else None,
        )

    def _fetch(self) -> None:
        """Move requests from the queue to the active ones; wait while there is nothing to do at all."""
        with self._lock:
            self._lock.wait_for(lambda: self._queue or self._active or self._shutdown_called)
            room = (self._config.max_batch_size or self._engine.max_batch_size) - len(self._active)
            fetched: list[Group] = []
            while self._queue and self._queue[0].size <= room:
                fetched.append(self._queue.pop(0))
                room -= fetched[-1].size
            self._terminate = self._shutdown_called and not self._queue  # it waits at the queue's end
        for group in fetched:
            try:
                self._active += self._start(group)
            except RuntimeError as error:
                message = f"Encountered an error when fetching new request: {error}"
                self._new_responses.append(self._error(group.library_id, group.request, message))
        self._publish()

    def _start(self, group: Group) -> list[Sequence]:
        """The sequences of a request. RuntimeError for what the engine cannot do."""
        request, engine = group.request, self._engine
        prompt = request.input_token_ids
        assertion(len(prompt) <= engine.max_seq_len - 1, f"Prompt length ({len(prompt)}) exceeds maximum input length")
        if request.output_config.return_generation_logits:
            assertion(self._config.gather_generation_logits, "gather_generation_logits must be enabled")
        if request.embedding_bias is not None:
            assertion(len(request.embedding_bias) == engine.vocab_size_padded, "embedding bias of another width")
        if self._masks(request):
            assertion(self._sizes(request) == (1, 1, 0), "logits post processor with lookahead decoding")
        if request.lora_config is not None and engine.lora_modules:  # without the plugin, it is as if there were none
            self._take_adapter(request.lora_config)
        room = engine.max_seq_len - len(prompt) - engine.max_draft_len
        return [
            Sequence(
                group,
                group.library_id + index,
                index,
                min(request.max_tokens, room),
                Decoder(request, index, engine.vocab_size, self._is_lookahead),
            )
            for index in range(group.size)
        ]

    def _take_adapter(self, lora: Any) -> None:
        """PeftCacheManager::addRequestPeft, and what loraUtils.cpp checks."""
        engine = self._engine
        if lora.weights is None:
            found = lora.task_id in self._adapters
            assertion(found, f"LoRA task {lora.task_id} not found in cache. Please send LoRA weights with request")
            return
        cache = self._config.peft_cache_config
        assertion(cache is not None and cache.num_device_module_layer > 0, "no room in the LoRA cache")
        assertion(lora.weights.dtype == np.dtype("V2"), "Expected lora weights to be the same data type as base model")
        for module, layer, rank in lora.config.tolist():
            assertion(0 <= layer < engine.num_layers, "Expected layerId to be in the range [0, numModelLayers)")
            assertion(module in engine.lora_modules, f"lora module {module} not enabled for this model")
            assertion(0 < rank <= engine.max_lora_rank, f"Invalid low_rank ({rank})")
        self._adapters[lora.task_id] = lora.weights.tobytes()

    def _adapter(self, sequence: Sequence) -> bytes:
        lora = sequence.request.lora_config
        return b"" if lora is None else self._adapters.get(lora.task_id, b"")

    def _forward(self) -> None:
        """One step of the sequences that have blocks, or get them."""
        started = time.monotonic()
        time.sleep(self.faults.step_s)
        try:
            scheduled = self._schedule()
            rows = [self._compute(sequence) for sequence in scheduled]
            self._post_process(scheduled, rows)
            for sequence, row in zip(scheduled, rows, strict=True):
                if not sequence.in_context:
                    self._decode(sequence, row)
        except Exception as error:
            self._fail_step(f"Encountered an error in forwardAsync function: {error}")
        self._iter += 1
        self._add_stats((time.monotonic() - started) * 1000)

    def _schedule(self) -> list[Sequence]:
        free = self._num_blocks - sum(sequence.num_blocks for sequence in self._active)
        scheduled = []
        for sequence in self._active:
            if sequence.num_blocks == 0:
                if sequence.blocks_needed > free:
                    continue  # no eviction: it waits until its longest fits
                free -= sequence.blocks_needed
                sequence.num_blocks = sequence.blocks_needed
                sequence.scheduled_at = time.monotonic()
                sequence.reused_blocks = self._reusable(sequence)
                sequence.num_computed = min(sequence.reused_blocks * BLOCK, len(sequence.prompt) - 1)
            scheduled.append(sequence)
        return scheduled

    def _reusable(self, sequence: Sequence) -> int:
        """Blocks of the prompt that were computed before; a whole prompt counts its last block as reused in part."""
        prompt, salt = sequence.prompt, (sequence.request.cache_salt_id, self._adapter(sequence))
        count = 0
        while (count + 1) * BLOCK <= len(prompt) and (salt, tuple(prompt[: (count + 1) * BLOCK])) in self._prefixes:
            count += 1
        return count

    def _compute(self, sequence: Sequence) -> Row:
        """Logits of the last token, or of the last one in a chunk of context."""
        if sequence.in_context:
            chunk = self._config.max_num_tokens if self._config.enable_chunked_context else None
            end = min(len(sequence.prompt), sequence.num_computed + (chunk or len(sequence.prompt)))
            sequence.num_computed = end
            if not sequence.in_context:
                salt = (sequence.request.cache_salt_id, self._adapter(sequence))
                for block_end in range(BLOCK, len(sequence.prompt) + 1, BLOCK):
                    self._prefixes.add((salt, tuple(sequence.prompt[:block_end])))
            context = sequence.prompt[:end]
        else:
            context = sequence.prompt + sequence.output
        return self._logits(sequence, context)

    def _logits(self, sequence: Sequence, context: list[int]) -> Row:
        engine = self._engine
        return logits_of(context, engine.vocab_size, engine.vocab_size_padded, self._adapter(sequence))

    def _post_process(self, scheduled: list[Sequence], rows: list[Row]) -> None:
        config = self._config.logits_post_processor_config
        masked = [i for i, sequence in enumerate(scheduled) if self._masks(sequence.request)]
        if not masked:
            return
        assertion(config is not None and config.processor_batched is not None, "Batched logits post processor")
        self.callback_threads.add(threading.get_ident())
        config.processor_batched(
            [scheduled[i].own_id for i in masked],
            [rows[i][None, None, :] for i in masked],  # views: edited in place
            [[scheduled[i].prompt + scheduled[i].output] for i in masked],
            _STREAM,
            [scheduled[i].request.client_id for i in masked],
        )

    def _decode(self, sequence: Sequence, row: Row) -> None:
        """Sample, and with lookahead accept up to N - 1 tokens more, which are those that would have come."""
        faults = self.faults
        sequence.first_token_at = sequence.first_token_at or time.monotonic()
        sequence.num_steps += 1
        accepted = 0
        _, n, g = self._sizes(sequence.request)
        if self._is_lookahead and n > 1 and sequence.output:
            sequence.num_draft_tokens += g * (n - 1)
            accepted = int(self._random.integers(0, n)) if g else 0
        for i in range(1 + accepted):
            if i:
                context = sequence.prompt + sequence.output
                row = self._logits(sequence, context)
                sequence.num_accepted_tokens += 1
            if faults.error_after is not None and len(sequence.output) >= faults.error_after:
                faults.error_after = None
                raise RuntimeError(faults.error_message)
            sequence.append(sequence.decoder.next_token(row, sequence.prompt, sequence.output), row)
            if sequence.is_finished:
                return

    def _fail_step(self, message: str) -> None:
        """terminateActiveRequests: an error for every sequence, each under its own id."""
        for sequence in self._active:
            self._new_responses.append(self._error(sequence.own_id, sequence.request, message))
        self._active.clear()
        self._publish()

    def _error(self, library_id: int, request: Any, message: str) -> Any:
        return self.api.Response(request_id=library_id, client_id=request.client_id, error_msg=message)

    def _add_stats(self, latency_ms: float) -> None:
        api = self.api
        used = sum(sequence.num_blocks for sequence in self._active)
        with self._lock:
            self._stats.append(
                api.IterationStats(
                    iter=self._iter,
                    iter_latency_ms=latency_ms,
                    num_active_requests=len(self._active),
                    num_queued_requests=len(self._queue),
                    kv_cache_stats=api.KvCacheStats(
                        max_num_blocks=self._num_blocks, used_num_blocks=used, tokens_per_block=BLOCK
                    ),
                    inflight_batching_stats=api.InflightBatchingStats(num_paused_requests=0),
                )
            )

    # What the config says.

    @property
    def _num_blocks(self) -> int:
        return (self._config.kv_cache_config.max_tokens or 1 << 16) // BLOCK

    @property
    def _is_lookahead(self) -> bool:
        decoding = self._config.decoding_config
        return decoding is not None and decoding.decoding_mode.name == "Lookahead"

    def _masks(self, request: Any) -> bool:
        return request.logits_post_processor_name is not None

    def _sizes(self, request: Any) -> tuple[int, int, int]:
        if not self._is_lookahead:
            return 1, 1, 0
        config = request.lookahead_config or self._config.decoding_config.lookahead_decoding_config
        return config.max_window_size, config.max_ngram_size, config.max_verification_set_size

    def _check_config(self) -> None:
        config, engine = self._config, self._engine
        assertion(
            self.world.size == engine.world_size,
            "With communicationMode kLEADER, MPI worldSize is expected to be equal to tp*pp*cp when participantIds "
            "are not specified",
        )
        assertion((config.max_batch_size or 1) <= engine.max_batch_size, "maxBatchSize exceeds the engine's")
        parallel = config.parallel_config
        assertion(parallel is None or parallel.communication_mode is self.api.CommunicationMode.LEADER, "LEADER")
        processor = config.logits_post_processor_config
        assertion(processor is None or not processor.replicate, "a guide's state on every rank")
        assertion(self._is_lookahead == (engine.max_draft_len > 0), "the engine's speculative decoding mode")

    def _check_usable(self, message: str) -> None:
        assertion(not self._shutdown_called, message)
        assertion(self._is_leader, "only the leader may be asked")

    def _raise_if_told(self, method: str) -> None:
        if method in self.faults.raises:
            raise self.faults.raises[method]
