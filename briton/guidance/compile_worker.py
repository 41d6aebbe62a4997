"""The process that compiles first: reads schemas and regexes from a pipe, answers, and may be killed at any time.

Neither library can be interrupted, nor bounded in memory: a schema of two dozen patterns, or the tables of a regex of
16 bytes, are enough to ask for gigabytes. `CompileProcess` starts it:

    python -m briton.guidance.compile_worker FD MEMORY_BYTES CPU_S
"""

from __future__ import annotations

import math
import os
import resource
import signal
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

OUT_OF_MEMORY = 3  # exit code

if TYPE_CHECKING:
    from briton.guidance.compile_answer import Answer


def main() -> int:
    """Serve one connection until it is closed. First comes (kind, setup), pickled; then texts, each after a line that
    says what it is, and answered as `compile_answer` says."""
    fd, memory_bytes, cpu_s = (float(argument) for argument in sys.argv[1:4])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when this ends
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's thread pools would count as address space
    connection = Connection(int(fd))
    try:
        kind, setup = connection.recv()
        from briton.guidance.compile_answer import encode_answer  # numpy, which is not to see more than one thread

        compilers = _table_compilers(setup) if kind == "tables" else _grammar_compilers(setup)
        _limit(resource.RLIMIT_AS, _address_space() + int(memory_bytes))
        connection.send_bytes(b"")  # ready
        while True:
            what, _, text = connection.recv_bytes().decode("utf-8", "surrogatepass").partition("\n")
            # A second line of defence: it holds when the parent is gone, too.
            usage = resource.getrusage(resource.RUSAGE_SELF)
            _limit(resource.RLIMIT_CPU, math.ceil(usage.ru_utime + usage.ru_stime + cpu_s) + 1)
            try:
                connection.send_bytes(encode_answer(*compilers[what](text)))
            except MemoryError:
                os._exit(OUT_OF_MEMORY)
    except EOFError:
        return 0


def _table_compilers(setup: dict[str, Any]) -> dict[str, Callable[[str], Answer]]:
    """Regexes to AutomatonArrays."""
    from briton.guidance.compile_answer import DONE, INVALID
    from briton.guidance.regex_index import RegexError, RegexIndexer

    indexer = RegexIndexer(setup["token_bytes"], setup["stop_token_ids"], setup["limits"].max_guide_bytes)

    def compile_text(pattern: str) -> Answer:
        try:
            return DONE, indexer.compile(pattern)
        except RegexError as error:
            return INVALID, str(error)

    return {"regex": compile_text}


def _grammar_compilers(setup: dict[str, Any]) -> dict[str, Callable[[str], Answer]]:
    """Texts of schemas to the checked schemas, which compile; regexes to nothing, if they compile."""
    from briton.errors import InvalidRequest, Unsupported
    from briton.guidance.compile_answer import DONE, INVALID, UNSUPPORTED
    from briton.guidance.grammar import GrammarCompiler
    from briton.guidance.pattern import REGEX_FIELD
    from briton.guidance.vocabulary import Vocabulary

    vocabulary = Vocabulary(
        setup["token_bytes"],
        vocab_size=len(setup["token_bytes"]),
        stop_token_ids=setup["stop_token_ids"],
        encode=lambda text: [],  # longest matches will do: nothing is generated here
    )
    grammars = GrammarCompiler(vocabulary, setup["limits"])

    def answer(check: Callable[[str], dict[str, Any]], text: str) -> Answer:
        try:
            return DONE, check(text)
        except InvalidRequest as error:
            return INVALID, error.message
        except Unsupported as error:
            return UNSUPPORTED, error.message

    def check_regex(text: str) -> dict[str, Any]:
        grammars.compile_regex(text, REGEX_FIELD)
        return {}

    return {"schema": partial(answer, grammars.check_schema), "regex": partial(answer, check_regex)}


def _limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, hard))


def _address_space() -> int:
    """Bytes mapped now; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
