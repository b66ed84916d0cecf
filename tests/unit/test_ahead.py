"""Work in another thread, a little before it is wanted."""

import threading

import pytest

from models.ahead import ahead


def test_items_come_in_order_with_what_was_made_of_them():
    assert list(ahead(str, range(20), num_ahead=3)) == [(number, str(number)) for number in range(20)]
    assert list(ahead(str, [])) == []


def test_no_more_is_taken_than_asked_for():
    taken = []
    items = (taken.append(number) or number for number in range(100))
    made = ahead(str, items, num_ahead=4)
    assert next(made) == (0, "0")
    assert taken == [0, 1, 2, 3, 4]


def test_work_goes_on_while_the_caller_is_busy():
    done = threading.Event()
    made = ahead(lambda number: number and done.set(), range(3), num_ahead=2)
    next(made)
    # Nothing is asked of the iterator here.
    assert done.wait(timeout=60)


def test_an_error_comes_in_the_place_of_its_item():
    made = ahead(lambda number: 1 // number, [1, 0, 1])
    assert next(made) == (1, 1)
    with pytest.raises(ZeroDivisionError):
        next(made)


def test_whoever_stops_early_leaves_no_thread():
    made = ahead(str, range(100))
    next(made)
    made.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_several_threads_work_together_and_keep_the_order():
    together = threading.Barrier(3)
    made = ahead(lambda number: together.wait(timeout=60) and number, range(6), num_threads=3)
    assert [item for item, _ in made] == list(range(6))
