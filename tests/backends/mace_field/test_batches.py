"""Batches: packed by cost, smaller when memory runs out, and one outcome for every crystal whatever fails."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest
import torch
from ase.build import bulk
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fieldflows.backends.base import Response
from fieldflows.backends.mace_field import batches
from fieldflows.backends.mace_field.batches import (
    SIMILAR,
    Cost,
    available_bytes,
    out_of_memory,
    pack,
    peak_bytes,
    run_in_batches,
)
from fieldflows.backends.mace_field.model import MACEFieldModel
from fieldflows.backends.symmetric import SymmetrySettings, evaluate_each
from fieldflows.errors import EvaluationError, StructureError
from fieldflows.observables import FIRST_ORDER_OBSERVABLES
from tests.backends.mace_field.models import ALL, FIELD, small_network, triclinic
from tests.backends.structures import prototype

CPU_RAN_OUT = (
    "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
)

COSTS = st.lists(st.builds(Cost, size=st.integers(0, 60).map(float), products=st.integers(1, 40)), max_size=20)
BUDGETS = st.integers(1, 150)


def model(**options) -> MACEFieldModel:
    from fieldflows.backends.mace_field.checkpoint import CheckpointMetadata

    network = small_network(correlation=2)
    return MACEFieldModel(network, CheckpointMetadata(name="m", network=network.config), sha256="2" * 64, **options)


# Packing


@given(costs=COSTS, budget=BUDGETS)
def test_packing_respects_budget_and_similarity(costs, budget):
    groups = pack(costs, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(costs)))
    for group in groups:
        assert len(group) == 1 or sum(costs[i].size for i in group) <= budget
        products = [costs[i].products for i in group]
        assert max(products) <= max(SIMILAR * min(products), min(products) + 1)
    firsts = [costs[group[0]].products for group in groups]
    assert firsts == sorted(firsts)


@given(costs=COSTS, budget=BUDGETS)
def test_packing_wastes_little(costs, budget):
    """No two groups that follow each other could have been one."""
    groups = pack(costs, budget)
    for left, right in itertools.pairwise(groups):
        too_many = sum(costs[i].size for i in left) + costs[right[0]].size > budget
        first, last = costs[left[0]].products, costs[right[0]].products
        assert too_many or last > max(SIMILAR * first, first + 1)


def test_packing_groups_by_products_first():
    costs = [Cost(10, 30), Cost(10, 4), Cost(500, 4), Cost(10, 31), Cost(20, 4), Cost(10, 300)]
    assert pack(costs, 100) == [[1, 4], [2], [0, 3], [5]]
    assert pack([], 100) == []
    assert pack([Cost(0, 1)] * 3, 1) == [[0, 1, 2]]


# Running


class Machine:
    """Evaluates items with so many bytes of memory, and fails for some of them."""

    def __init__(self, costs, memory=10**9, culprits=(), isolates=False):
        self.costs, self.memory, self.culprits, self.isolates = costs, memory, set(culprits), isolates
        self.batches: list[list[int]] = []

    def __call__(self, members):
        self.batches.append(list(members))
        if sum(self.costs[i].size for i in members) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        if self.isolates:
            return [ValueError(str(i)) if i in self.culprits else i for i in members]
        if self.culprits & set(members):
            raise ValueError(f"one of {members}")
        return list(members)


@settings(max_examples=200, deadline=None)
@given(
    costs=COSTS,
    budget=BUDGETS,
    memory=st.integers(0, 120),
    culprits=st.sets(st.integers(0, 19)),
    isolates=st.booleans(),
)
@example(costs=[Cost(0, 1)] * 4, budget=1.0, memory=-1, culprits=set(), isolates=False)
@example(costs=[Cost(0, 1), Cost(0, 2), Cost(1, 2), Cost(9, 2)], budget=100, memory=-1, culprits={2}, isolates=False)
@example(costs=[Cost(50, 1)] + [Cost(1, 1)] * 9, budget=100, memory=10, culprits={3}, isolates=False)
def test_everything_gets_exactly_one_outcome_whatever_fails(costs, budget, memory, culprits, isolates):
    machine = Machine(costs, memory, culprits, isolates)
    outcomes, left = run_in_batches(costs, budget, machine)
    assert len(outcomes) == len(costs)
    for index, outcome in enumerate(outcomes):
        if costs[index].size > memory:
            assert isinstance(outcome, EvaluationError)
            assert "Memory ran out" in str(outcome)
        elif index in culprits:
            assert isinstance(outcome, ValueError)
        else:
            assert outcome == index
    assert 0 <= left <= budget
    assert len(machine.batches) <= 4 * len(costs) + 2 * int(np.log2(budget)) + 2


def test_memory_that_runs_out_halves_the_budget_for_all_that_remain(caplog):
    costs = [Cost(10, 4)] * 16
    machine = Machine(costs, memory=35)
    with caplog.at_level(logging.WARNING):
        outcomes, budget = run_in_batches(costs, 160, machine)
    assert outcomes == list(range(16))
    assert budget == 20
    assert [len(batch) for batch in machine.batches] == [16, 8, 4, *[2] * 8]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert "16 crystals" in caplog.text


def test_other_failures_do_not_make_batches_smaller():
    costs = [Cost(10, 4)] * 8
    machine = Machine(costs, culprits={5})
    outcomes, budget = run_in_batches(costs, 40, machine)
    assert [isinstance(outcome, ValueError) for outcome in outcomes] == [i == 5 for i in range(8)]
    assert budget == 40
    assert [len(batch) for batch in machine.batches] == [4, 4, 2, 1, 1, 2]


def test_an_evaluation_that_loses_outcomes_is_not_believed():
    def forgetful(members):
        return members[:1]

    outcomes, _ = run_in_batches([Cost(1, 1)] * 5, 10, forgetful)
    assert outcomes == list(range(5))
    outcomes, _ = run_in_batches([Cost(1, 1)] * 3, 10, lambda members: [])
    assert all(isinstance(outcome, ValueError) for outcome in outcomes)


def test_an_interrupt_is_no_failure():
    def interrupted(members):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_batches([Cost(1, 1)] * 5, 10, interrupted)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (np.exceptions.AxisError("no"), False),
        (RuntimeError(CPU_RAN_OUT), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_memory_that_ran_out(error, expected):
    assert out_of_memory(error) is expected


def test_the_message_names_the_cost_and_what_to_do():
    def too_big(members):
        raise RuntimeError(CPU_RAN_OUT + "\nException raised from alloc_cpu")

    (outcome,), _ = run_in_batches([Cost(12.3e9, 7)], 10, too_big)
    assert isinstance(outcome, EvaluationError)
    assert "12 GB" in str(outcome)
    assert "can't allocate memory" in str(outcome)
    assert "Exception raised" not in str(outcome)
    assert "primitive cell" in str(outcome)


# In the model


class Limited:
    """The engine of a model, with memory for so many edges."""

    def __init__(self, engine, edges: int, error: Exception) -> None:
        self.engine, self.edges, self.error = engine, edges, error
        self.device, self.sizes = engine.device, []

    def __call__(self, graph, **arguments):
        count = graph["edge_index"].shape[1]
        self.sizes.append(count)
        if count > self.edges:
            raise self.error
        return self.engine(graph, **arguments)


class Refusing:
    """The engine of a model, which must not be given a batch with a crystal of so many atoms and edges."""

    def __init__(self, engine, atoms: int, edges: int) -> None:
        self.engine, self.atoms, self.edges, self.device = engine, atoms, edges, engine.device

    def __call__(self, graph, **arguments):
        owners = graph["batch"][graph["edge_index"][0]]
        edges = torch.bincount(owners, minlength=len(graph["ptr"]) - 1)
        assert not ((graph["ptr"].diff() == self.atoms) & (edges == self.edges)).any()
        return self.engine(graph, **arguments)


def need(atoms, names) -> float:
    """Return the estimated bytes of an evaluation."""
    second = bool({"born_effective_charges", "polarizability", "hessian"} & set(names))
    return peak_bytes(model().graph(atoms)["edge_index"].shape[1], len(atoms), 4, 2, 8, second)


CRYSTALS = [
    triclinic(),
    bulk("NaO", "rocksalt", a=4.4),
    prototype("cubic Pm-3m"),
    prototype("hexagonal P6_3mc"),
    bulk("TiO", "zincblende", a=4.5),
    prototype("monoclinic Pm"),
    bulk("Na", "sc", a=3.0),
]
EDGES = [model().graph(atoms)["edge_index"].shape[1] for atoms in CRYSTALS]


@pytest.mark.parametrize("names", [ALL, FIRST_ORDER_OBSERVABLES], ids=["all", "first order"])
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU_RAN_OUT)], ids=["cuda", "cpu"]
)
def test_results_after_running_out_of_memory_are_those_of_one_by_one(error, names):
    limited = model(batch_bytes=1e12)
    limited._evaluator = Limited(limited._evaluator, max(EDGES), error)
    fields = np.outer(np.arange(len(CRYSTALS)), FIELD)
    together = limited.evaluate(CRYSTALS, fields, names)
    assert max(limited._evaluator.sizes) > max(EDGES)
    assert limited.batch_bytes < 1e10
    for atoms, field, found in zip(CRYSTALS, fields, together, strict=True):
        alone = model().evaluate(atoms, field, names)
        for name in names:
            expected = np.asarray(alone.get(name))
            scale = max(1.0, np.abs(expected).max())
            np.testing.assert_allclose(found.get(name), expected, rtol=0, atol=1e-12 * scale, err_msg=name)
    limited._evaluator.sizes.clear()
    limited.evaluate(CRYSTALS, fields, names)
    assert max(limited._evaluator.sizes) <= max(EDGES), "what was learned is forgotten"


def test_one_crystal_that_never_fits_fails_alone():
    limited = model(batch_bytes=1e12)
    order = np.argsort(EDGES)
    limited._evaluator = Limited(limited._evaluator, EDGES[order[-2]], MemoryError())
    outcomes = limited.evaluate_along(CRYSTALS, None, ALL)
    for index, outcome in enumerate(outcomes):
        if index == order[-1]:
            assert isinstance(outcome, EvaluationError)
            assert "one crystal alone" in str(outcome)
        else:
            assert isinstance(outcome, Response), outcome


@pytest.mark.parametrize("symmetry", [SymmetrySettings(), None], ids=["symmetry", "plain"])
def test_a_crystal_beyond_the_memory_budget_is_refused_before_anything_is_computed(symmetry):
    sizes = [need(atoms, ALL) for atoms in CRYSTALS]
    largest = int(np.argmax(sizes))
    strict = model(memory_budget=max(sizes) - 1)
    strict._evaluator = Refusing(strict._evaluator, len(CRYSTALS[largest]), EDGES[largest])
    outcomes = evaluate_each(strict, CRYSTALS, None, ALL, symmetry)
    for index, outcome in enumerate(outcomes):
        if index == largest:
            assert isinstance(outcome, EvaluationError)
            for word in (f"{len(CRYSTALS[index])} atoms", f"{EDGES[index]} neighbor pairs", "GB", "primitive cell"):
                assert word in str(outcome)
        else:
            assert isinstance(outcome, Response), outcome
    with pytest.raises(EvaluationError, match="neighbor pairs"):
        strict.evaluate(CRYSTALS[largest], observables=ALL)
    enough = model(memory_budget=max(sizes) - 1)
    assert isinstance(enough.evaluate(CRYSTALS[largest], observables=("energy",)), Response)


def test_the_primitive_cell_fits_where_the_conventional_one_does_not():
    """As the message says."""
    conventional = bulk("NaO", "rocksalt", a=4.4, cubic=True)
    small = model(memory_budget=0.5 * need(conventional, ALL))
    with pytest.raises(EvaluationError, match="primitive cell"):
        small.evaluate(conventional, observables=ALL)
    outcome = evaluate_each(small, [conventional], None, ALL, SymmetrySettings(), primitive_hessian=True)[0]
    assert outcome.hessian.shape == (6, 6)


def test_what_the_system_has_left_is_the_budget_by_default(monkeypatch):
    from fieldflows.backends.mace_field import model as module

    monkeypatch.setattr(module, "UNCHECKED_BYTES", 0.0)
    monkeypatch.setattr(module, "available_bytes", lambda device: 1000)
    with pytest.raises(EvaluationError, match="1e-06 GB are available"):
        model().evaluate(triclinic(), observables=ALL)
    monkeypatch.setattr(module, "available_bytes", lambda device: None)
    assert isinstance(model().evaluate(triclinic(), observables=ALL), Response)


def test_a_structure_that_cannot_be_prepared_fails_alone(monkeypatch):
    subject = model()
    original = subject.graph

    def graph(structure):
        if len(structure) == 1:
            raise ZeroDivisionError("in the neighbor list")
        return original(structure)

    monkeypatch.setattr(subject, "graph", graph)
    outcomes = subject.evaluate_along(CRYSTALS, None, ("energy",))
    assert [type(outcome) for outcome in outcomes] == [Response] * 6 + [ZeroDivisionError]


def test_the_list_says_which_structure_it_was():
    with pytest.raises(StructureError) as caught:
        model().evaluate([triclinic(), "POSCAR"])
    assert "structure 1" in caught.value.__notes__[0]


def test_memory_of_this_machine_is_known_and_plausible():
    there = available_bytes(torch.device("cpu"))
    if there is None:
        pytest.skip("this system does not say how much memory is available")
    assert 10**7 < there < 10**15


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    2000 kB\n"}, 2_048_000),
        ({"/sys/fs/cgroup/memory.max": "900\n", "/sys/fs/cgroup/memory.current": "300\n"}, 600),
        (
            {
                "/sys/fs/cgroup/memory.max": "900\n",
                "/sys/fs/cgroup/memory.current": "300\n",
                "/sys/fs/cgroup/memory.stat": "anon 100\ninactive_file 150\nactive_file 50\n",
            },
            750,
        ),
        ({"/sys/fs/cgroup/memory.max": "max\n", "/sys/fs/cgroup/memory.current": "300\n"}, None),
        ({"/sys/fs/cgroup/memory.max": "300\n", "/sys/fs/cgroup/memory.current": "301\n"}, 0),
        (
            {
                "/proc/meminfo": "MemAvailable: 1 kB\n",
                "/sys/fs/cgroup/memory.max": "5000\n",
                "/sys/fs/cgroup/memory.current": "1\n",
            },
            1024,
        ),
        ({}, None),
    ],
)
def test_memory_is_the_least_of_what_kernel_and_container_say(monkeypatch, files, expected):
    monkeypatch.setattr(batches, "_read", lambda path: files.get(path, ""))
    assert available_bytes(torch.device("cpu")) == expected


def test_the_estimate_grows_with_everything_that_costs_memory():
    base = peak_bytes(100, 10, 8, 2, 8, True)
    assert peak_bytes(100, 10, 16, 2, 8, True) == pytest.approx(2 * base)
    assert peak_bytes(100, 10, 8, 3, 8, True) == pytest.approx(1.5 * base)
    assert peak_bytes(100, 10, 8, 2, 4, True) == pytest.approx(0.5 * base)
    assert peak_bytes(200, 20, 8, 2, 8, True) == pytest.approx(2 * base)
    assert peak_bytes(100, 10, 8, 2, 8, False) < base
