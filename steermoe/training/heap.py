"""Memory that a step has freed is kept for the next one.

glibc gives large blocks, and the end of its heap, back to the system as soon as they are free; the next step asks for
them again, and the system hands out zeroed pages, one fault each. Other allocators keep them (jemalloc and tcmalloc,
which PyTorch's guide to performance advises for CPUs); glibc does so if it is told.
"""

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT = {MMAP_THRESHOLD: 2**30, TRIM_THRESHOLD: 2**31 - 1}  # bytes of a block, and at the end of the heap
ADAPTED = {MMAP_THRESHOLD: 2**25, TRIM_THRESHOLD: 2**26}  # to where glibc's grow by themselves


def keep_freed_memory(settings: dict[int, int] = KEPT) -> bool:
    """Let this process keep what it frees; False where its C library is another one."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # macOS, musl, Windows
        return False
    return all([mallopt(name, value) for name, value in settings.items()])
