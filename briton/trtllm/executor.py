"""The Executor over TensorRT-LLM's own, on rank 0. Not yet run on a GPU."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from briton.engine.types import (
    ExecutorStats,
    FinishReason,
    GenerationRequest,
    ModelInfo,
    RankStats,
    StepProgress,
    TokenChunk,
)
from briton.engine.validation import check_request
from briton.errors import QUEUE_SIZE, EngineDead, QueueFull, Unsupported
from briton.trtllm.constraint import Constraint
from briton.trtllm.library import Library, first_line
from briton.trtllm.logits import LogitsProcessor
from briton.trtllm.open_request import LibraryResponse, OpenRequest
from briton.trtllm.request import RequestLimits, check_supported, stop_ids, translate
from briton.trtllm.stats import StatsBook

logger = logging.getLogger(__name__)

SHUTDOWN_S = 30.0  # for the library to end its own threads, and the other ranks
_LOOK_S = 0.1  # how often a waiting pump looks for chunks that do not come from the library
_STATS_S = 0.25  # how often the pump takes over iteration statistics, of which the library keeps a thousand
_QUEUE_FULL = "Maximum queue size of"  # how the library's message begins


class TrtllmExecutor:
    """An `Executor`. The library's thread runs the model, and calls `processor`; the caller of `await_chunks` is the
    pump. The state's lock is never held while the library is called."""

    def __init__(
        self,
        engine: Any,
        library: Library,
        info: ModelInfo,
        limits: RequestLimits,
        processor: LogitsProcessor,
        rank_stats: Callable[[], tuple[RankStats, ...]] = tuple,
    ) -> None:
        """`engine` is the library's Executor, started; `processor` is the one that its config names."""
        self.info = info
        self._engine = engine
        self._library = library
        self._limits = limits
        self._processor = processor
        self._rank_stats = rank_stats
        self._lock = threading.Lock()
        self._open: dict[int, OpenRequest] = {}  # by our id
        self._outbox: list[TokenChunk] = []  # chunks that no response brings
        self._book = StatsBook()
        self.cost = self._book.cost
        self._dead: EngineDead | None = None
        self._closing = False
        self._closed = threading.Event()
        self._stats_lock = threading.Lock()  # iterations are booked in their order
        self._stats_due = 0.0
        self._stats_told = False  # that there are none

    def submit(self, request: GenerationRequest) -> None:
        """See `Executor.submit`."""
        request = check_request(request, self.info)
        check_supported(request, self.info, self._limits)
        stops = stop_ids(request, self.info)
        constraint = Constraint(request, stops) if Constraint.is_needed(request, stops) else None
        try:
            message = translate(self._library, request, self.info, self._limits, stops, constraint is not None)
        except (RuntimeError, TypeError, ValueError) as error:
            raise Unsupported(f"TensorRT-LLM refuses the request: {first_line(error)}") from error
        entry = OpenRequest(request, self.info, self._library, stops, constraint)
        with self._lock:
            if self._dead is not None:
                raise self._dead
            self._open[request.request_id] = entry  # a response may come before enqueue_request returns
            self._book.num_requests += 1
            if constraint is not None:
                self._processor.add(request.request_id, constraint)
        try:
            library_id = self._engine.enqueue_request(message)
        except Exception as error:
            self._take_back(request.request_id)
            raise self._refusal(error) from error
        with self._lock:
            entry.library_id = library_id
            unwanted = entry.cancel_wanted or entry.is_finished  # by cancel or shutdown, which did not know the id
        if unwanted:
            self._cancel(library_id)

    def cancel(self, request_id: int, index: int | None = None) -> None:
        """See `Executor.cancel`. The library ends whole requests only, and lets one that waits start before it cancels
        it: such a one ends here at once."""
        with self._lock:
            entry = self._open.get(request_id)
            if entry is None or (index is not None and entry.request.sampling.n > 1):
                return
            entry.cancel_wanted = True
            library_id = entry.library_id
            if not entry.has_responded:
                self._end(entry, FinishReason.CANCELLED)
        if library_id is not None:
            self._cancel(library_id)

    def await_chunks(self, timeout: float) -> list[TokenChunk]:
        """See `Executor.await_chunks`."""
        deadline = time.monotonic() + timeout
        while True:
            with self._lock:
                if self._outbox:
                    chunks, self._outbox = self._outbox, []
                    return chunks
                if self._dead is not None:
                    raise self._dead
            left = deadline - time.monotonic()
            if left <= 0:
                return []
            self._pump(min(left, _LOOK_S))

    def stats(self) -> ExecutorStats:
        """See `Executor.stats`. The latest that is known, where the library does not answer."""
        self._take_iterations()
        with self._lock:
            return replace(self._book.snapshot(self._processor.seconds), ranks=self._rank_stats())

    def progress(self) -> StepProgress:
        """See `Executor.progress`. What a step should take is what the library's took on average."""
        self._take_iterations()
        with self._lock:
            return self._book.progress()

    def shutdown(self) -> None:
        """See `Executor.shutdown`. Returns after SHUTDOWN_S even if the library does not."""
        with self._lock:
            first, self._closing = not self._closing, True
            library_ids = [e.library_id for e in self._open.values() if e.library_id is not None]
            for entry in list(self._open.values()):
                self._end(entry, FinishReason.CANCELLED)
            self._dead = self._dead or EngineDead("the executor is shut down")
        if not first:
            self._closed.wait(SHUTDOWN_S)
            return
        for library_id in library_ids:  # else it would first bring them to their ends
            self._cancel(library_id)
        threading.Thread(target=self._shut_down_engine, name="briton-trtllm-shutdown", daemon=True).start()
        if not self._closed.wait(SHUTDOWN_S):
            logger.error("TensorRT-LLM has not shut down within %.0f s: its threads are left behind", SHUTDOWN_S)

    def _shut_down_engine(self) -> None:
        try:
            self._engine.shutdown()
        except Exception:
            logger.exception("TensorRT-LLM failed to shut down")
        finally:
            self._closed.set()

    # From the library to the outbox.

    def _pump(self, timeout: float) -> None:
        """Wait for responses once, and deal with what came."""
        try:
            responses = self._engine.await_responses(timeout=timedelta(seconds=timeout))
        except Exception as error:
            self._die(error)
            return
        now = time.monotonic()
        if now >= self._stats_due:
            self._stats_due = now + _STATS_S
            self._take_iterations()
        unwanted = [library_id for response in responses if (library_id := self._take(response)) is not None]
        with self._lock:
            for request_id in self._processor.take_failed():
                entry = self._open.get(request_id)
                if entry is not None and entry.library_id is not None:
                    unwanted.append(entry.library_id)
        for library_id in unwanted:
            self._cancel(library_id)

    def _take(self, response: LibraryResponse) -> int | None:
        """Put a response's chunk into the outbox; the library's id of a request that ended here and not yet there."""
        request_id = response.client_id
        with self._lock:
            entry = None if request_id is None else self._open.get(request_id)
        if request_id is None or entry is None:
            logger.debug("a response for request %s, which is not open", request_id)
            return None
        before = entry.num_output_tokens
        try:
            chunk = entry.take(response)  # log probabilities take their time: nobody waits for the lock meanwhile
        except Exception as error:
            logger.exception("a response of request %d could not be read", request_id)
            chunk = entry.end(FinishReason.ERROR, error)
        with self._lock:
            if self._open.get(request_id) is not entry:
                return None  # shut down meanwhile
            self._book.add_output_tokens(entry.num_output_tokens - before)
            if chunk is not None:
                self._outbox.append(chunk)
            if chunk is None or not chunk.is_final:
                return None
            self._close(entry)
        is_over = not response.has_error() and response.result.is_final
        return None if is_over else entry.library_id  # an error may be of one sequence: the others go on

    def _end(self, entry: OpenRequest, reason: FinishReason, error: Exception | None = None) -> None:
        """End a request before the library does. The lock is held."""
        self._outbox.append(entry.end(reason, error))
        self._close(entry)

    def _close(self, entry: OpenRequest) -> None:
        """It is no longer open. The lock is held."""
        request_id = entry.request.request_id
        del self._open[request_id]
        self._processor.drop(request_id)
        self._book.add_ended(entry)

    def _take_back(self, request_id: int) -> None:
        """A request that was not accepted."""
        with self._lock:
            entry = self._open.pop(request_id, None)
            self._book.num_requests -= 1
            if entry is None:  # cancelled or shut down meanwhile: its chunk may not be seen
                self._outbox = [chunk for chunk in self._outbox if chunk.request_id != request_id]
        self._processor.drop(request_id)

    def _die(self, error: Exception) -> None:
        """The library can do no more: every open request ends."""
        with self._lock:
            if self._dead is not None:
                return
            logger.error("TensorRT-LLM failed; every open request ends", exc_info=error)
            self._dead = EngineDead(f"TensorRT-LLM failed: {first_line(error)}")
            for entry in list(self._open.values()):
                self._end(entry, FinishReason.ERROR, self._dead)

    def _refusal(self, error: Exception) -> Exception:
        """What an exception of enqueue_request means."""
        message = first_line(error)
        if _QUEUE_FULL in message:
            return QueueFull(
                f"{self.info.max_queue_size} requests are waiting, which is the limit: try again later",
                code=QUEUE_SIZE,
            )
        with self._lock:
            if self._dead is not None:
                return self._dead
        if "hutdown" in message:
            return EngineDead("the executor is shut down")
        return RuntimeError(f"TensorRT-LLM: {message}")  # the request was fine: it could be made

    def _cancel(self, library_id: int) -> None:
        try:
            self._engine.cancel_request(library_id)
        except Exception as error:
            if not self._closing:
                logger.warning("TensorRT-LLM could not cancel request %d: %s", library_id, first_line(error))

    def _take_iterations(self) -> None:
        with self._stats_lock:
            try:
                iterations = self._engine.get_latest_iteration_stats()
            except Exception as error:
                if not self._closing and not self._stats_told:
                    self._stats_told = True
                    logger.warning("TensorRT-LLM gives no statistics: %s", first_line(error))
                return
            self._stats_told = False
            with self._lock:
                self._book.add_iterations(iterations)
