import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import TrainingError
from models.packing import Continuation, deal, pack, pack_groups, packed_length, padded_length

LENGTHS = st.lists(st.integers(1, 500), max_size=80)


@given(LENGTHS)
def test_every_sample_once(lengths):
    packed = pack(lengths, max_tokens=512)
    assert sorted(index for batch in packed for index in batch) == list(range(len(lengths)))


@given(LENGTHS)
def test_nobody_is_over_budget_and_no_two_micro_batches_would_fit_into_one(lengths):
    totals = sorted(sum(lengths[index] for index in batch) for batch in pack(lengths, max_tokens=512))
    assert all(0 < total <= 512 for total in totals)
    assert len(totals) < 2 or totals[0] + totals[1] > 512


@given(LENGTHS)
def test_the_longest_come_first(lengths):
    for batch in pack(lengths, max_tokens=512):
        found = [lengths[index] for index in batch]
        assert found == sorted(found, reverse=True)


@given(LENGTHS, st.randoms())
def test_shapes_do_not_depend_on_the_order_of_the_input(lengths, random):
    shuffled = random.sample(lengths, len(lengths))
    shapes = [[lengths[index] for index in batch] for batch in pack(lengths, max_tokens=512)]
    assert shapes == [[shuffled[index] for index in batch] for batch in pack(shuffled, max_tokens=512)]


def test_by_hand():
    # 20 + 20 + 10 + 10 = 60; the third 10 does not fit into 64 any more.
    assert pack([10, 20, 10, 20, 10], max_tokens=64) == [(1, 3, 0, 2), (4,)]
    # 40 + 30 is too much; the 20 goes where there is room first, not where there is most.
    assert pack([40, 30, 20], max_tokens=64) == [(0, 2), (1,)]


def test_a_sample_over_the_budget_is_refused():
    with pytest.raises(TrainingError, match="513 tokens"):
        pack([3, 513], max_tokens=512)


def test_padded_length():
    assert [padded_length(length) for length in (1, 16, 17)] == [16, 16, 32]
    assert [packed_length(length) for length in (1, 64, 65)] == [64, 64, 128]


@given(LENGTHS, st.integers(1, 5))
def test_dealing_gives_each_sample_to_one_rank_in_nearly_equal_shares(lengths, num_ranks):
    hands = deal(lengths, num_ranks=num_ranks)
    assert sorted(index for hand in hands for index in hand) == list(range(len(lengths)))
    assert max(map(len, hands)) - min(map(len, hands)) <= 1
    loads = [sum(lengths[index] for index in hand) for hand in hands]
    assert max(loads) - min(loads) <= max(lengths, default=0)


CONTINUATIONS = st.lists(
    st.builds(Continuation, group=st.integers(0, 6), prompt_length=st.just(50), length=st.integers(1, 200)),
    max_size=40,
)


def cost(samples, batch):
    """Every distinct prompt once, and the continuations."""
    chosen = [samples[index] for index in batch]
    return 50 * len({sample.group for sample in chosen}) + sum(sample.length for sample in chosen)


@given(CONTINUATIONS)
def test_every_continuation_once_and_within_the_budget(samples):
    packed = pack_groups(samples, max_tokens=512)
    assert sorted(index for batch in packed for index in batch) == list(range(len(samples)))
    assert all(cost(samples, batch) <= 512 for batch in packed)


@given(CONTINUATIONS)
def test_a_group_that_fits_stays_together(samples):
    packed = pack_groups(samples, max_tokens=512)
    for group in {sample.group for sample in samples}:
        members = {index for index, sample in enumerate(samples) if sample.group == group}
        if cost(samples, members) <= 512:
            assert any(members <= set(batch) for batch in packed)


def test_groups_by_hand():
    # A group costs 50 + 2 x 30 = 110 tokens, so two fit into 256 and the third begins a new micro-batch.
    samples = [Continuation(group, 50, 30) for group in "abcabc"]
    assert pack_groups(samples, max_tokens=256) == [(0, 3, 1, 4), (2, 5)]


def test_a_continuation_over_the_budget_is_refused():
    with pytest.raises(TrainingError, match=r"50 \+ 500 tokens"):
        pack_groups([Continuation("a", 50, 500)], max_tokens=512)
