"""What the C library does with memory that was freed, in processes of zpipe's own.

glibc hands the end of its heap back to the system as soon as a few MiB of it are free, and buffers of that size come and go with
every large activation: each then costs a system call and a page fault for every 4 KiB, hundreds of microseconds a MiB.
"""

from __future__ import annotations

import ctypes
import os
import sys

#: From malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

#: So much freed memory at the end of a heap is kept.
KEPT_BYTES = 64 * 2**20

#: From here on a buffer is a mapping of its own, which goes back at once: as far as glibc would raise that by itself.
MAPPED_FROM_BYTES = 32 * 2**20

#: Where the user has said what malloc is to do, that holds.
_SAID = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")


def keep_freed_memory() -> None:
    """Keeps what was freed for the next buffer of its size. Does nothing without glibc.

    Not for a user's process, whose memory is not ours to keep.
    """
    said = any(name in os.environ for name in _SAID) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if said or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
