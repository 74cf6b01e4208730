"""Keep freed memory for the next step instead of returning it to the system.

A training step on CPU frees and allocates the same hundreds of megabytes again and again. glibc returns large
blocks to the system at once, so that every new tensor is paged in again, page by page, each zeroed by the
kernel: up to ten times the cost of the arithmetic on it, especially on virtual machines.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
KEPT = 1 << 30
GROWTH = 64 << 20
LARGEST_MAPPING = 32 << 20
"""The largest threshold that older releases of glibc accept."""


def keep_freed_memory() -> bool:
    """Tell glibc to keep up to a gigabyte of freed memory. Returns whether it understood."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    mapped = mallopt(M_MMAP_THRESHOLD, KEPT) or mallopt(M_MMAP_THRESHOLD, LARGEST_MAPPING)
    return bool(mapped and mallopt(M_TRIM_THRESHOLD, KEPT) and mallopt(M_TOP_PAD, GROWTH))
