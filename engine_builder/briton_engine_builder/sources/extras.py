"""Libraries that only some sources need, and that are installed on their own."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from briton.errors import BuildError


@contextmanager
def importing(source: str, *requirements: str) -> Iterator[None]:
    """Around the imports of an optional library: BuildError with pip's command where it is missing."""
    try:
        yield
    except ImportError as error:
        raise BuildError(
            f"checkpoints from {source} need a library that is not installed ({error.name}): "
            f"{shlex.join([sys.executable, '-m', 'pip', 'install', *requirements])}"
        ) from error
