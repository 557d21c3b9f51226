import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldflows.training.sampler import BatchLimits, FrameCost, epoch_batches, ordered_batches

costs_strategy = st.lists(
    st.builds(FrameCost, st.integers(1, 40), st.integers(0, 900), st.sampled_from([("a",), ("a", "b"), ("b",)])),
    min_size=1,
    max_size=40,
)
limits_strategy = st.builds(
    BatchLimits, st.integers(1, 6), st.none() | st.integers(1, 60), st.none() | st.integers(1, 1500)
)


@settings(deadline=None)
@given(costs_strategy, limits_strategy, st.integers(0, 5), st.integers(0, 5))
def test_every_frame_once_within_the_limits(costs, limits, seed, epoch):
    for batches in (epoch_batches(costs, limits, seed, epoch), ordered_batches(costs, limits)):
        assert sorted(i for batch in batches for i in batch) == list(range(len(costs)))
        for batch in batches:
            assert len({costs[i].labels for i in batch}) == 1
            atoms, edges = sum(costs[i].atoms for i in batch), sum(costs[i].edges for i in batch)
            assert len(batch) == 1 or limits.admits(len(batch), atoms, edges)


def test_order_depends_on_seed_and_epoch_alone():
    costs = [FrameCost(2, 10)] * 30
    limits = BatchLimits(4)
    first = epoch_batches(costs, limits, seed=1, epoch=2)
    assert epoch_batches(costs, limits, seed=1, epoch=2) == first
    assert epoch_batches(costs, limits, seed=1, epoch=3) != first
    assert epoch_batches(costs, limits, seed=2, epoch=2) != first
    assert [len(batch) for batch in first].count(4) == 7


def test_edges_balance_the_cost():
    costs = [FrameCost(10, 1000 if i % 5 == 0 else 100) for i in range(50)]
    batches = epoch_batches(costs, BatchLimits(50, edges=1500), seed=0, epoch=0)
    assert max(sum(costs[i].edges for i in batch) for batch in batches) <= 1500
    assert len(batches) < 20


@pytest.mark.parametrize("limits", [BatchLimits(1), BatchLimits(5, atoms=1), BatchLimits(5, edges=1)])
def test_a_frame_beyond_the_limits_goes_alone(limits):
    assert epoch_batches([FrameCost(4, 50)] * 3, limits, 0, 0) in ([[i], [j], [k]] for i, j, k in _permutations())


def _permutations():
    from itertools import permutations

    return permutations(range(3))
