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
PAGES = 10 * 4 * (8 << 20) // 4096


def page_faults(setting: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, setting], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's setting")
def test_a_step_uses_the_memory_that_the_last_one_freed():
    assert page_faults("keep") < PAGES // 100 < PAGES // 2 < page_faults("leave")
