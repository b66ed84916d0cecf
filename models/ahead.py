"""Work that is done in another thread shortly before it is wanted.

While an engine computes, the next pictures are decoded and resized: Pillow and torch let other threads run.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

# Pictures of the size of a page are tens of megabytes each.
NUM_AHEAD = 8

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(
    make: Callable[[Item], Made],
    items: Iterable[Item],
    *,
    num_ahead: int = NUM_AHEAD,
    num_threads: int = 1,
) -> Iterator[tuple[Item, Made]]:
    """Every item with what ``make`` made of it, in order; up to ``num_ahead`` are made before that.

    Items are taken in the caller's thread. ``make`` runs in other threads, in one of them one item after the
    other; what it raises is raised where its item would have come.
    """
    waiting: deque[tuple[Item, Future[Made]]] = deque()
    pool = ThreadPoolExecutor(max_workers=num_threads, thread_name_prefix="ahead")
    try:
        for item in items:
            waiting.append((item, pool.submit(make, item)))
            if len(waiting) > num_ahead:
                first, made = waiting.popleft()
                yield first, made.result()
        while waiting:
            first, made = waiting.popleft()
            yield first, made.result()
    finally:
        pool.shutdown(cancel_futures=True)
