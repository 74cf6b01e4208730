"""The time of day, in one place so that tests can freeze it."""

import time


def now() -> float:
    """Seconds since 1970."""
    return time.time()
