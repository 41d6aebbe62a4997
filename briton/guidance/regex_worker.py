"""The process that compiles regexes: reads patterns from a pipe, answers with arrays, and may be killed at any time.

`RegexProcess` starts it: `python -m briton.guidance.regex_worker FD MEMORY_BYTES CPU_S`.
It imports nothing of the engine.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path


def main() -> int:
    """Serve one connection until it is closed. First message: the vocabulary; then one pattern each."""
    fd, memory_bytes, cpu_s = (float(argument) for argument in sys.argv[1:4])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when this ends
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's thread pools would count as address space

    from briton.guidance.regex_index import RegexError, RegexIndexer

    connection = Connection(int(fd))
    try:
        indexer = RegexIndexer(*connection.recv())
        _limit(resource.RLIMIT_AS, _address_space() + int(memory_bytes))
        connection.send(None)  # ready
        while True:
            pattern: str = connection.recv()
            # A second line of defence: it holds when the parent is gone, too.
            usage = resource.getrusage(resource.RUSAGE_SELF)
            _limit(resource.RLIMIT_CPU, math.ceil(usage.ru_utime + usage.ru_stime + cpu_s) + 1)
            try:
                connection.send(indexer.compile(pattern))
            except RegexError as error:
                connection.send(str(error))
            except MemoryError:
                os._exit(1)  # memory is gone: the parent starts another
    except EOFError:
        return 0


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
