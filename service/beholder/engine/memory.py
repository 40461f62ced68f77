"""How this process's memory is managed while a model computes on the CPU."""

import ctypes
from typing import Final

_TRIM_THRESHOLD: Final = -1  # of glibc's malloc.h
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8
_LARGEST_BLOCK: Final = 32 * 2**20  # the most that glibc takes
_KEPT: Final = 2**30


def keep_freed_memory() -> None:
    """Let what a forward frees serve the next one: up to a gigabyte is not given back to the kernel.

    glibc gives every large block back, and the kernel zeroes its pages anew when the next forward takes them: thousands
    of page faults for a batch. Elsewhere than on glibc nothing happens.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, _LARGEST_BLOCK)
        set_option(_TRIM_THRESHOLD, _KEPT)
        set_option(_ARENA_MAX, 1)  # threads' own arenas are given back whatever the threshold
