from hypothesis import given
from hypothesis import strategies as st

from models.shuffling import endless_shuffle, start_of_batch

SIZES = st.integers(1, 30)


@given(SIZES, st.integers(0, 1000))
def test_an_epoch_holds_every_item_once(num_items, seed):
    for epoch in range(3):
        order = endless_shuffle(num_items, start=epoch * num_items, count=num_items, seed=seed)
        assert sorted(order) == list(range(num_items))


@given(SIZES, st.integers(0, 50), st.integers(1, 40), st.integers(0, 40))
def test_a_resumed_stream_goes_on_where_it_stopped(num_items, start, first, second):
    whole = endless_shuffle(num_items, start=start, count=first + second, seed=3)
    parts = endless_shuffle(num_items, start=start, count=first, seed=3)
    parts += endless_shuffle(num_items, start=start + first, count=second, seed=3)
    assert whole == parts


def test_epochs_and_seeds_have_their_own_order():
    first = endless_shuffle(50, start=0, count=50, seed=0)
    assert first != endless_shuffle(50, start=50, count=50, seed=0)
    assert first != endless_shuffle(50, start=0, count=50, seed=1)


@given(SIZES, st.data())
def test_no_batch_holds_an_item_twice_and_an_epoch_few_it_leaves_out(num_items, data):
    size = data.draw(st.integers(1, num_items))
    per_epoch = num_items // size
    for epoch in range(3):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        starts = [start_of_batch(step, num_items=num_items, size=size) for step in steps]
        batches = [endless_shuffle(num_items, start=start, count=size, seed=1) for start in starts]
        assert all(len(set(batch)) == size for batch in batches)
        seen = [item for batch in batches for item in batch]
        assert len(set(seen)) == len(seen) > num_items - size
