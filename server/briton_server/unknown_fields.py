"""Request fields that have no effect here: told to the operator's log, once a name."""

from __future__ import annotations

import logging
from collections.abc import Iterable

MAX_NAMES = 100  # a client may send names without end
MAX_NAME_LENGTH = 64

logger = logging.getLogger(__name__)


class UnknownFields:
    """The names that were logged so far, by one gateway."""

    def __init__(self) -> None:
        self._known = {"extra_body"}  # read, and no field
        self._limit = MAX_NAMES + len(self._known)

    def note(self, names: Iterable[str]) -> None:
        """Log the names that are new; after `MAX_NAMES` of them none."""
        for name in (name[:MAX_NAME_LENGTH] for name in names):
            if name in self._known or len(self._known) >= self._limit:
                continue
            self._known.add(name)
            logger.warning("the request field %r is not known here and has no effect", name)
            if len(self._known) == self._limit:
                logger.warning("%d unknown request fields were logged: no more will be", MAX_NAMES)
