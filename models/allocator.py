"""How C's allocator treats memory that was freed.

Left alone, glibc gives the large pieces back to the system as soon as a step has freed them. The next step
gets them anew, zeroed, page by page: on a CPU up to a quarter of the time of a pass of a small model.
"""

import ctypes

# Parameters of glibc's mallopt(3). It takes C integers, and no mmap threshold above 32 MiB.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
MAX_KEPT_BYTES = 2**31 - 1
_MAX_MMAP_THRESHOLD = 1 << 25
_MAX_ARENAS = 2  # that of the first thread, and one for all others


def keep_freed_memory() -> bool:
    """Let each arena keep up to 2 GiB that was freed, in pieces of up to 32 MiB, for the next step.

    All threads but the first share an arena: left alone they have up to eight per core, and a new thread does
    not find what the one before it has freed. False where the C library has no such setting (musl) or refuses
    it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = {
        _M_TRIM_THRESHOLD: MAX_KEPT_BYTES,
        _M_MMAP_THRESHOLD: _MAX_MMAP_THRESHOLD,
        _M_ARENA_MAX: _MAX_ARENAS,
    }
    return all([mallopt(parameter, value) for parameter, value in wanted.items()])
