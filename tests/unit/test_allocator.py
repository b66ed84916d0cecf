import subprocess
import sys

import pytest

MEASURE = """
import resource, sys
from models.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def step():
    return [bytearray(8 << 20) for _ in range(4)]  # written to, as activations are

step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
COUNT = """
import ctypes, os, sys
from threading import Barrier, Thread
from models.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

all_live = Barrier(6)
threads = [Thread(target=lambda: (bytearray(1 << 16), all_live.wait())) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
told = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, told)
libc.fflush(told)
"""
PAGES = 10 * 4 * (8 << 20) // 4096


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")


def told_by(script: str, setting: str) -> str:
    done = subprocess.run([sys.executable, "-c", script, setting], check=True, capture_output=True, text=True)
    return done.stdout


def page_faults(setting: str) -> int:
    return int(told_by(MEASURE, setting))


def arenas(setting: str) -> int:
    return told_by(COUNT, setting).count("<heap nr=")


def test_a_step_uses_the_memory_that_the_last_one_freed():
    assert page_faults("keep") < PAGES // 100 < PAGES // 2 < page_faults("leave")


def test_all_threads_but_the_first_share_an_arena():
    assert arenas("keep") == 2 < arenas("leave")
