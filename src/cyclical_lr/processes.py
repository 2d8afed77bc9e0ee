"""What processes of this study agree on: exit codes, and how many cores one may use."""

import os

FAILED, UNUSABLE, DIVERGED, STOPPED = 1, 2, 3, 130
"""Exit codes."""


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
