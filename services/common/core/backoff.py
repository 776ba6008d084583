"""How long to wait before the next try.

Method: exponential backoff with full jitter (Brooker, "Exponential Backoff And Jitter", AWS, 2015).
"""

from __future__ import annotations


def backoff_ms(failures: int, *, base_ms: int, max_ms: int, jitter: float = 1.0) -> int:
    """Return the delay in milliseconds before the try that follows `failures` failed ones.

    `jitter` is a number in [0, 1] that the caller draws; 1 gives the full delay. With `failures` < 1 the
    delay is 0.
    """
    if failures < 1:
        return 0
    # The exponent is capped so that an agent which retries for months does not build a huge integer.
    full = min(max_ms, base_ms * 2 ** min(failures - 1, 40))
    return int(full * jitter)
