"""What processes of this study agree on: exit codes, how many cores one may use, and how libraries are loaded."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

FAILED, UNUSABLE, DIVERGED, STOPPED = 1, 2, 3, 130
"""Exit codes."""


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def loading() -> Iterator[None]:
    """Import large libraries in here: a fifth faster without garbage collection, which finds nothing among modules."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
