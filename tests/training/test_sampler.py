import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldflows.training.sampler import (
    BatchLimits,
    FrameCost,
    divide,
    epoch_batches,
    micro_batches,
    ordered_batches,
)

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


@settings(deadline=None)
@given(costs_strategy, limits_strategy, st.integers(0, 5), st.integers(0, 5))
def test_mixed_batches_hold_every_frame_once_within_the_limits(costs, limits, seed, epoch):
    batches = epoch_batches(costs, limits, seed, epoch, mixed=True)
    assert sorted(i for batch in batches for i in batch) == list(range(len(costs)))
    for batch in batches:
        atoms, edges = sum(costs[i].atoms for i in batch), sum(costs[i].edges for i in batch)
        assert len(batch) == 1 or limits.admits(len(batch), atoms, edges)


def test_mixed_batches_spread_a_rare_label_evenly():
    """Four of forty frames have it: with batches of ten each has one, wherever the epoch begins."""
    costs = [FrameCost(2, 10, ("rare",) if i % 10 == 3 else ("common",)) for i in range(40)]
    for epoch in range(6):
        batches = epoch_batches(costs, BatchLimits(10), seed=1, epoch=epoch, mixed=True)
        rare = sorted(sum(costs[i].labels == ("rare",) for i in batch) for batch in batches)
        assert sum(rare) == 4
        assert rare[0] >= 0
        assert rare[-1] <= 2
    first = epoch_batches(costs, BatchLimits(10), 1, 0, mixed=True)
    assert first == epoch_batches(costs, BatchLimits(10), 1, 0, mixed=True)
    assert first != epoch_batches(costs, BatchLimits(10), 1, 1, mixed=True)


@settings(deadline=None)
@given(costs_strategy, st.integers(1, 5))
def test_shares_are_complete_ordered_and_balanced(costs, ranks):
    shares = divide(costs, ranks)
    assert len(shares) == ranks
    assert sorted(k for share in shares for k in share) == list(range(len(costs)))
    assert all(share == sorted(share) for share in shares)
    loads = [sum(costs[k].estimate for k in share) for share in shares]
    # Graham's bound against the mean and the largest single frame, both below the optimum
    optimum = max(sum(loads) / ranks, max(cost.estimate for cost in costs))
    assert max(loads) <= (2 - 1 / ranks) * optimum * (1 + 1e-12)


def test_shares_by_cost_are_not_shares_by_number():
    costs = [FrameCost(100, 5000), *[FrameCost(10, 500)] * 10]
    assert divide(costs, 2) == [[0], list(range(1, 11))]
    assert divide(costs, 1) == [list(range(11))]
    assert divide(costs[:1], 3) == [[0], [], []]


def test_second_derivatives_count_in_the_cost():
    plain, one, three = (FrameCost(2, 10, labels, n) for labels, n in ((("forces",), 3), (("polarizability",), 1),
                                                                       (("polarizability",), 3)))  # fmt: skip
    assert one.estimate == pytest.approx(1.5 * plain.estimate)
    assert three.estimate == pytest.approx(2.5 * plain.estimate)


@settings(deadline=None)
@given(costs_strategy, limits_strategy)
def test_parts_are_of_one_kind_within_the_limits(costs, limits):
    indices = list(range(0, len(costs), 2))
    parts = micro_batches(indices, costs, limits)
    assert sorted(i for part in parts for i in part) == indices
    for part in parts:
        assert len({costs[i].kind for i in part}) == 1
        atoms, edges = sum(costs[i].atoms for i in part), sum(costs[i].edges for i in part)
        assert len(part) == 1 or limits.admits(len(part), atoms, edges)
    assert micro_batches(indices[:1], costs, BatchLimits()) == [indices[:1]]


def test_the_smaller_of_each_limit():
    assert BatchLimits(4, edges=7).tightened(BatchLimits(2, 9)) == BatchLimits(2, 9, 7)
    assert BatchLimits().tightened(BatchLimits()) == BatchLimits()
