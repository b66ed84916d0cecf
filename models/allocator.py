"""How C's allocator treats memory that was freed.

Left alone, glibc gives the large pieces back to the system as soon as a step has freed them. The next step
gets them anew, zeroed, page by page: on a CPU up to a quarter of the time of a pass of a small model.
"""

import ctypes

# Parameters of glibc's mallopt(3). It takes C integers, and no mmap threshold above 32 MiB.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
MAX_KEPT_BYTES = 2**31 - 1
_MAX_MMAP_THRESHOLD = 1 << 25


def keep_freed_memory() -> bool:
    """Let each thread's arena keep up to 2 GiB that was freed, in pieces of up to 32 MiB, for the next step.

    False where the C library has no such setting (musl) or refuses it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(
        mallopt(_M_TRIM_THRESHOLD, MAX_KEPT_BYTES) and mallopt(_M_MMAP_THRESHOLD, _MAX_MMAP_THRESHOLD)
    )
