"""Budgets in processor time: a machine that others use as well then changes a figure little."""

from __future__ import annotations

import time
from collections.abc import Callable


def cpu_seconds(limit_s: float) -> Callable[[int], float]:
    """Return a budget that is spent after so many seconds of this process's processor time from now on."""
    begin = time.process_time()
    return lambda _: (time.process_time() - begin) / limit_s
