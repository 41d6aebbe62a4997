"""How threads share the cores with the model."""

from __future__ import annotations

import logging
import os

logger = logging.getLogger(__name__)


def never_preempt() -> None:
    """Let the calling thread, and those it starts, wait for a core when they wake, rather than take one (SCHED_BATCH).

    The model's threads wait for each other at every layer, so whoever takes the core of one stops them all. A wait is
    a few milliseconds at most; the share of the cores stays what it was. Does nothing where the kernel has no such
    policy or forbids it.
    """
    if not hasattr(os, "SCHED_BATCH"):
        return
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError as error:
        logger.debug("the scheduling policy stays as it is: %s", error)
