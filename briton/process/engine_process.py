"""The engine process: its life from the first health answer to the exit code. The parts are wired together here."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import anyio

from briton.config.config import Config
from briton.engine.engine import SHUTDOWN_S, Engine
from briton.engine.executor import Executor
from briton.engine.watchdog import StallLimits
from briton.errors import BuildError, EngineDead, Unsupported
from briton.guidance.compiler import GuideCompiler
from briton.guidance.limits import GuideLimits
from briton.process.cpu import never_preempt
from briton.process.executors import create_executor
from briton.rpc.server import EngineServer
from briton.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from briton.ranks.rank_context import RankContext

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

LAST_RESPONSES_S = 2.0  # what open calls get to send what they have, when the engine has stopped
AT_ONCE_S = 0.5  # what anything gets after a second signal


def run_engine(
    config: Config, engine_dir: Path, *, host: str, port: int, rank_context: RankContext | None = None
) -> int:
    """Serve an engine directory until SIGTERM or SIGINT: 0 after a drain, 1 when the executor has died.

    The port answers at once, NOT_SERVING until the model is loaded. A second signal cuts the drain short. With a
    `rank_context` this is rank 0 of several, and dies with any of them. Raises BritonError when the port cannot be had
    or the engine cannot be loaded.
    """
    uvloop = importlib.util.find_spec("uvloop") is not None
    run = functools.partial(_run, config, engine_dir, host, port, rank_context)
    return anyio.run(run, backend_options={"use_uvloop": uvloop})


async def _run(config: Config, engine_dir: Path, host: str, port: int, rank_context: RankContext | None) -> int:
    signals = _Signals()
    server = EngineServer(host, port)
    await server.start()
    job = _Job(rank_context)
    loading = asyncio.ensure_future(job.before_abort(asyncio.to_thread(_load, config, engine_dir, rank_context)))
    try:
        if not await signals.before(loading):
            await server.stop(0)
            job.leave()
            _leave(0)  # nothing can stop the thread that loads
        executor, tokenizer, compiler = loading.result()
    except EngineDead as error:
        await server.stop(0)
        logger.error("the engine ends: %s", error)
        _leave(1)  # the thread that loads may wait for a rank that is gone
    except BaseException:
        await server.stop(0)
        raise
    never_preempt()  # from here on; the model's threads run already
    engine = Engine(
        executor,
        compiler=compiler,
        request_timeout_s=config.briton.request_timeout_s,
        stall=StallLimits(least_s=config.briton.stall_timeout_s, give_up_s=config.briton.give_up_timeout_s),
    )
    engine.start()
    job.watch(engine)
    server.attach(engine, tokenizer)
    info = engine.info
    logger.info(
        "serving %s on %s:%d: %s executor, %s weights, %s KV cache of %d tokens, at most %d a sequence",
        *(info.model_name, host, server.port, info.executor),
        *(info.weights_dtype, info.kv_cache_dtype, info.kv_cache_tokens, info.max_seq_len),
    )
    death = asyncio.ensure_future(engine.wait_dead())
    if await signals.before(death):
        await server.stop(LAST_RESPONSES_S)
        if compiler is not None:
            compiler.close()
        logger.error("the engine ends: %s", death.result())
        _leave(1)  # a dead executor's threads may never return
    await _drain(engine, server, signals, config.briton.drain_timeout_s)
    if compiler is not None:
        compiler.close()
    if engine.hung:
        _leave(1)  # its threads may never return
    return 0


async def _drain(engine: Engine, server: EngineServer, signals: _Signals, timeout_s: float) -> None:
    """Not healthy at once; open requests finish, or are cut when the time is up or a second signal comes.

    The executor then gets SHUTDOWN_S to end its threads, or AT_ONCE_S from a second signal on, whenever it comes.
    """
    logger.info("draining: %d open requests, at most %g s", engine.num_open, timeout_s)
    drained = asyncio.ensure_future(engine.drain(timeout_s))
    patient = await signals.before(drained)
    if not (patient and drained.result()):
        logger.warning("the drain was cut short: %d requests end early", engine.num_open)
    stopping = asyncio.ensure_future(engine.stop(SHUTDOWN_S if patient else AT_ONCE_S))
    if patient and not await signals.before(stopping):
        patient = False
        engine.give_up("a second signal ended the engine before its executor had ended")
    await stopping
    await server.stop(LAST_RESPONSES_S if patient else AT_ONCE_S)
    if not engine.hung:
        logger.info("drained")


def _load(
    config: Config, engine_dir: Path, rank_context: RankContext | None
) -> tuple[Executor, Tokenizer, GuideCompiler | None]:
    """Everything that takes long. Raises BritonError."""
    with ThreadPoolExecutor(1, "briton-load") as pool:
        loading = pool.submit(Tokenizer.load, engine_dir)  # while the model is compiled
        executor = create_executor(config, engine_dir, rank_context)
    try:
        tokenizer = loading.result()
    except BaseException:
        executor.shutdown()  # which else goes on to compile graphs
        raise
    gc.collect()
    gc.freeze()  # what was loaded stays: no later collection walks through it
    return executor, tokenizer, _compiler(config, executor, tokenizer)


def _compiler(config: Config, executor: Executor, tokenizer: Tokenizer) -> GuideCompiler | None:
    info, section = executor.info, config.briton.guided_decoding
    try:
        vocabulary = tokenizer.vocabulary_bytes(info.vocab_size)
    except (BuildError, Unsupported) as error:
        logger.warning("no guided decoding: %s", error)
        return None
    return GuideCompiler(
        vocabulary,
        vocab_size=info.vocab_size,
        stop_token_ids=info.stop_token_ids,
        encode=tokenizer.encode,
        tokenizer_hash=tokenizer.hash,
        limits=GuideLimits(**section.model_dump()),
        mask_tables=info.executor == "trtllm",
    )


class _Job:
    """The other ranks of this engine, where there are any, seen from rank 0's loop."""

    def __init__(self, rank_context: RankContext | None) -> None:
        self._member = None if rank_context is None else rank_context.member
        self._aborted: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        if self._member is not None:
            loop = asyncio.get_running_loop()
            self._member.on_abort = lambda reason: _call_soon(loop, self._abort, reason)
            self._member.on_drain = lambda: os.kill(os.getpid(), signal.SIGTERM)

    async def before_abort(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The work's result; raises EngineDead as soon as the job has failed."""
        task = asyncio.ensure_future(work)
        either: set[asyncio.Future[Any]] = {task, self._aborted}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self._aborted.done() and not task.done():
            raise EngineDead(self._aborted.result())
        return task.result()

    def watch(self, engine: Engine) -> None:
        """From now on the engine dies with the job."""
        if self._member is not None:
            self._aborted.add_done_callback(lambda aborted: engine.give_up(aborted.result()))
            self._member.serve()

    def leave(self) -> None:
        """Before an end that is no failure."""
        if self._member is not None:
            self._member.leave()

    def _abort(self, reason: str) -> None:
        if not self._aborted.done():
            self._aborted.set_result(reason)


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[[str], None], reason: str) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended, and the process is about to
        loop.call_soon_threadsafe(function, reason)


class _Signals:
    """SIGTERM and SIGINT of this process, one after the other."""

    def __init__(self) -> None:
        self._arrived = asyncio.Semaphore(0)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._arrived.release)

    async def before(self, work: asyncio.Future[Any]) -> bool:
        """Wait for the work to be done or for the next signal; True when the work is done."""
        arrival = asyncio.ensure_future(self._arrived.acquire())
        await asyncio.wait({work, arrival}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return False
        if arrival.done():
            self._arrived.release()  # a signal at the same moment counts for the next question
        arrival.cancel()
        return True


def _leave(code: int) -> NoReturn:
    """End the process without waiting for its threads."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
