"""Responses by symmetry are those of the full calculation, for any model, and fall back to it where they must."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldflows.backends import symmetric
from fieldflows.backends.base import FieldModel, Response
from fieldflows.backends.mace_field.graphs import volumes
from fieldflows.backends.symmetric import SymmetricModel, SymmetrySettings, evaluate_each
from fieldflows.backends.toy import ToyModel, ToyParameters
from fieldflows.errors import EvaluationError, FieldflowsError, InputError, StructureError, UnknownElementError
from fieldflows.physics.crystal import symmetrize_crystal
from fieldflows.testing import structures
from fieldflows.testing.strategies import SEEDS
from tests.backends.mace_field.models import ALL, HIDDEN, small_model
from tests.backends.structures import TYPES, hidden_field, prototype, tilted

LIMIT = 1e-8
"""Largest difference, relative to the largest component."""
SMALLEST = {"energy": 1e-3, "forces": 1e-3, "stress": 1e-4, "polarization": 1e-3, "polarizability": 1e-4}
"""Quantities that symmetry makes zero are compared on these scales, in their units."""

TOY = ToyModel(ToyParameters(anisotropy=8.0))


def mace():
    return small_model(correlation=2)


def symmetrized(atoms: Atoms, symprec: float = 1e-3) -> Atoms:
    found = symmetrize_crystal(atoms.cell[:], atoms.positions, atoms.numbers, symprec)
    return Atoms(numbers=found.numbers, positions=found.positions, cell=found.cell, pbc=True)


def evaluated(response: Response, atoms: Atoms) -> Atoms:
    """Return the cell that was evaluated, as the response describes it."""
    use = response.symmetry
    return Atoms(numbers=atoms.numbers[use.representatives], positions=use.positions, cell=use.cell, pbc=True)


def rebuilt(response: Response, atoms: Atoms) -> Atoms:
    """Return the crystal as given, put together from images of the cell that was evaluated."""
    use = response.symmetry
    inverse = np.linalg.inv(use.cell)
    cell = np.round(atoms.cell[:] @ inverse) @ use.cell
    home = use.positions[use.mapping]
    positions = home + np.round((atoms.positions - home) @ inverse) @ use.cell
    assert np.abs(cell - atoms.cell[:]).max() < 1e-2
    return Atoms(numbers=atoms.numbers, positions=positions, cell=cell, pbc=True)


def assert_same(found: Response, expected: Response, names=ALL, limit: float = LIMIT) -> None:
    for name in names:
        left, right = np.asarray(found.get(name)), np.asarray(expected.get(name))
        scale = max(np.abs(right).max(initial=0.0), SMALLEST.get(name, 1e-3))
        np.testing.assert_allclose(left, right, rtol=0, atol=limit * scale, err_msg=name)
    np.testing.assert_array_equal(found.field, expected.field)


def assert_same_as_full(model: FieldModel, atoms: Atoms, field=None, names=ALL) -> Response:
    """Assert that responses by symmetry are those of the full calculation on the same symmetrized crystal.

    With the Hessian of the cell as given, and with that of the primitive cell.
    """
    whole = SymmetricModel(model).evaluate(atoms, field, names)
    assert len(whole.symmetry.representatives) == len(atoms)
    assert_same(whole, model.evaluate(evaluated(whole, atoms), field, names), names)
    np.testing.assert_allclose(whole.symmetry.positions, symmetrized(atoms).positions, rtol=0, atol=1e-12)

    primitive = evaluate_each(model, [atoms], field, names, SymmetrySettings(), primitive_hessian=True)[0]
    use = primitive.symmetry
    small = model.evaluate(evaluated(primitive, atoms), field, names)
    np.testing.assert_allclose(
        primitive.get("hessian"), small.hessian, rtol=0, atol=LIMIT * max(1e-3, np.abs(small.hessian).max())
    )
    rest = [name for name in names if name != "hessian"]
    repeated = replace(
        small,
        energy=small.energy * len(atoms) / len(use.representatives),
        forces=small.forces[use.mapping],
        born_effective_charges=small.born_effective_charges[use.mapping],
    )
    assert_same(primitive, repeated, rest)
    assert_same(primitive, whole, rest)
    folded = fold(whole.hessian, use.representatives, use.mapping)
    np.testing.assert_allclose(folded, small.hessian, rtol=0, atol=LIMIT * max(1e-3, np.abs(small.hessian).max()))
    return primitive


def fold(hessian: np.ndarray, representatives: np.ndarray, mapping: np.ndarray) -> np.ndarray:
    """Return the Hessian at Γ of the primitive cell: rows of its atoms, columns summed over periodic images."""
    n = len(representatives)
    blocks = hessian.reshape(len(mapping), 3, len(mapping), 3)[representatives]
    folded = np.zeros((n, 3, n, 3))
    for atom, image in enumerate(mapping):
        folded[:, :, image] += blocks[:, :, atom]
    return folded.reshape(3 * n, 3 * n)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("make", [mace, lambda: TOY], ids=["mace_field", "toy"])
def test_equal_to_the_full_calculation(make, name):
    """Conventional cells in tilted frames, 10⁻⁵ Å off their symmetry."""
    response = assert_same_as_full(make(), tilted(name, seed=len(name), noise=2e-5))
    expected = {"triclinic": 3, "monoclinic": 2}.get(name.split()[0], 1)
    assert response.symmetry.n_field_directions == (expected if make is mace else 3)


def test_the_models_of_this_file_are_lively():
    """Else equality would prove nothing: Z* and α are no multiples of 1, nothing is close to zero."""
    for model in (mace(), TOY):
        response = model.evaluate(prototype("monoclinic P2_1/c"), observables=ALL)
        for tensor in (response.polarizability, response.born_effective_charges[0], response.hessian[:3, 3:6]):
            spread = np.abs(tensor - np.eye(3) * np.trace(tensor) / 3).max()
            assert spread > 0.01 * np.abs(tensor).max()
        assert np.abs(response.forces).max() > 0.1
        assert np.abs(response.born_effective_charges).max() > 0.1


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from([name for name in TYPES if name != "trigonal R3c"]),
    seed=SEEDS,
    shears=st.integers(0, 3),
    repeat=st.sampled_from([(1, 1, 1), (2, 1, 1)]),
    left_handed=st.booleans(),
    scattered=st.booleans(),
)
def test_however_the_crystal_is_written_down(name, seed, shears, repeat, left_handed, scattered):
    atoms = tilted(
        name,
        seed,
        shears=shears,
        repeat=repeat if len(prototype(name)) < 9 else (1, 1, 1),
        left_handed=left_handed,
        scattered=scattered,
    )
    names = [n for n in ALL if n != "hessian"]
    found = SymmetricModel(mace()).evaluate(atoms, observables=names)
    assert_same(found, mace().evaluate(rebuilt(found, atoms), observables=names), names)


@pytest.mark.parametrize(
    ("along", "operations"),
    [([0, 0, 0.05], 8), ([0.03, 0.03, 0.03], 6), ([0.03, -0.03, 0], 4), ([0.03, 0.02, 0], 2), ([0.03, 0.02, -0.01], 1)],
)
@pytest.mark.parametrize("model", [small_model(correlation=2), TOY], ids=["mace_field", "toy"])
def test_finite_fields_along_and_off_the_axes(model, along, operations):
    field = hidden_field("cubic Pm-3m", 7, np.array(along))
    response = assert_same_as_full(model, tilted("cubic Pm-3m", 7), field)
    assert response.symmetry.n_operations == operations
    assert response.symmetry.space_group == 221


@pytest.mark.parametrize("name", ["trigonal P3_221", "hexagonal P6_3mc", "cubic Fm-3m"])
def test_a_field_of_no_special_direction(name):
    response = assert_same_as_full(mace(), tilted(name, 2), np.array([0.02, 0.01, -0.04]))
    assert (response.symmetry.n_operations, response.symmetry.n_field_directions) == (1, 3)


@pytest.mark.parametrize("hidden", list(HIDDEN))
def test_networks_of_higher_degree(hidden):
    model = small_model(hidden_irreps=HIDDEN[hidden], element_polarizability=True, correlation=3)
    assert_same_as_full(model, tilted("orthorhombic Amm2", 1))


def test_lists_of_mixed_crystals_and_fields():
    """Each is answered as if it were alone: with its own group, its own directions, and its own field."""
    names = ["triclinic P1", "cubic Fm-3m", "monoclinic Pm", "trigonal P3_221", "cubic Fm-3m", "tetragonal P4mm"]
    crystals = [tilted(name, seed) for seed, name in enumerate(names)]
    fields = np.array([[0, 0, 0], [0.01, 0.02, 0.03], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0.03, 0, 0]])
    together = SymmetricModel(mace()).evaluate(crystals, fields, ALL)
    for atoms, field, found in zip(crystals, fields, together, strict=True):
        assert_same(found, mace().evaluate(symmetrized(atoms), field, ALL))
        alone = SymmetricModel(mace()).evaluate(atoms, field, ALL)
        assert_same(found, alone, limit=1e-11)
        assert found.symmetry.n_displacements == alone.symmetry.n_displacements
    assert [r.symmetry.space_group for r in together] == [1, 225, 6, 154, 225, 99]


def test_one_atom_cells():
    """In a list of their own there is no displacement at all to take."""
    crystals = [bulk("Na", "sc", a=3.0), bulk("Ti", "fcc", a=3.6), bulk("O", "bcc", a=2.6, cubic=True)]
    for model in (mace(), TOY):
        for found, atoms in zip(
            evaluate_each(model, crystals, None, ALL, SymmetrySettings(), primitive_hessian=True), crystals, strict=True
        ):
            assert isinstance(found, Response), found
            np.testing.assert_allclose(found.hessian, np.zeros((3, 3)), rtol=0, atol=1e-9)
            full = model.evaluate(atoms, observables=ALL)
            assert_same(found, full, [name for name in ALL if name != "hessian"])
        mixed = SymmetricModel(model).evaluate([*crystals, prototype("cubic Fm-3m")], observables=ALL)
        assert mixed[0].hessian.shape == (3, 3)
        assert_same(mixed[2], model.evaluate(crystals[2], observables=ALL))


def test_isolated_atoms():
    """Nothing within the cut-off: no forces, no charges, a polarizability if the model gives atoms one."""
    lonely = Atoms("NaO", cell=[9.0, 9.0, 9.0], scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5]], pbc=True)
    single = Atoms("Ti", cell=[8.0, 9.0, 10.0], pbc=True)
    for atoms in (lonely, single):
        for model in (mace(), small_model(element_polarizability=True)):
            found = SymmetricModel(model).evaluate(atoms, observables=ALL)
            assert_same(found, model.evaluate(atoms, observables=ALL))
            assert np.abs(found.hessian).max() < 1e-12
    outcomes = evaluate_each(mace(), [lonely, prototype("cubic Fm-3m"), single], None, ALL, SymmetrySettings())
    assert all(isinstance(outcome, Response) for outcome in outcomes)


def test_single_precision():
    """Positions in single precision, a model in single precision: the same to six digits."""
    model = single_precision_model()
    for name in ("triclinic P-1", "trigonal P3_221", "cubic Pm-3m"):
        atoms = tilted(name, 4)
        atoms.positions = atoms.positions.astype(np.float32)
        found = SymmetricModel(model).evaluate(atoms, observables=ALL)
        assert_same(found, mace().evaluate(symmetrized(atoms), observables=ALL), limit=2e-5)
        assert all(np.asarray(found.get(n)).dtype == np.float64 for n in ALL)


def single_precision_model():
    import copy

    from fieldflows.backends.mace_field.checkpoint import CheckpointMetadata
    from fieldflows.backends.mace_field.model import MACEFieldModel

    network = copy.deepcopy(mace().network).float()
    return MACEFieldModel(network, CheckpointMetadata(name="single", network=network.config), sha256="1" * 64)


# What is reported


def test_the_change_against_the_crystal_as_given_is_reported():
    atoms = tilted("trigonal P3_221", 5, noise=3e-4, strain=2e-5)
    response = SymmetricModel(mace()).evaluate(atoms, observables=ALL)
    use = response.symmetry
    assert 1e-4 < use.max_shift < 1e-3
    assert 1e-6 < use.strain < 1e-4
    before = mace().evaluate(atoms, observables=("forces",)).forces
    after = mace().evaluate(symmetrized(atoms), observables=("forces",)).forces
    assert use.force_change == pytest.approx(np.abs(before - after).max(), rel=1e-6)
    assert use.force_change > 1e-5
    assert use.cell == pytest.approx(symmetrized(atoms).cell[:], abs=1e-12)


def test_forces_are_not_compared_for_changes_that_nobody_notices():
    model = Plain()
    use = SymmetricModel(model).evaluate(tilted("cubic Fm-3m", 1, noise=1e-6, strain=1e-7)).symmetry
    assert use.force_change is None
    assert 0 < use.max_shift < symmetric.UNNOTICED
    assert [names for _, names in model.calls] == [("polarization", "born_effective_charges", "polarizability")]


def test_nothing_changes_for_a_crystal_that_has_its_symmetry():
    response = SymmetricModel(mace()).evaluate(prototype("cubic Pa-3"), observables=ALL)
    assert response.symmetry.max_shift < 1e-12
    assert_same(response, mace().evaluate(prototype("cubic Pa-3"), observables=ALL))


def test_the_wrapper_is_a_model():
    wrapped = SymmetricModel(mace())
    assert isinstance(wrapped, FieldModel)
    assert wrapped.info is mace().info or wrapped.info == mace().info
    assert wrapped.device == "cpu"
    assert SymmetricModel(TOY).device == "cpu"
    assert wrapped.evaluate([]) == []
    assert isinstance(wrapped.evaluate((prototype("cubic Fm-3m"),)), list)
    with pytest.raises(StructureError):
        wrapped.evaluate([prototype("cubic Fm-3m"), Atoms()])
    with pytest.raises(InputError, match=r"\(2, 3\)"):
        wrapped.evaluate([prototype("cubic Fm-3m")] * 2, fields=np.zeros((3, 3)))
    with pytest.raises(InputError, match="finite"):
        wrapped.evaluate(prototype("cubic Fm-3m"), fields=[0, np.inf, 0])


# Where symmetry is not used


def assert_as_given(model, atoms, settings=None) -> None:
    found = SymmetricModel(model, settings).evaluate(atoms, observables=ALL)
    assert found.symmetry is None
    assert_same(found, model.evaluate(atoms, observables=ALL), limit=1e-12)


def test_not_if_atoms_would_move_too_far():
    atoms = tilted("cubic Pm-3m", 3, noise=5e-3)
    assert_as_given(mace(), atoms, SymmetrySettings(symprec=0.05))
    near = SymmetrySettings(symprec=0.05, max_shift=0.02, force_tolerance=10.0)
    assert SymmetricModel(mace(), near).evaluate(atoms).symmetry.space_group == 221


def test_not_if_the_cell_would_be_strained_too_far():
    atoms = tilted("cubic Pm-3m", 3, noise=0.0, strain=4e-3)
    settings = {"symprec": 0.05, "max_shift": 0.05, "force_tolerance": 10.0}
    assert_as_given(mace(), atoms, SymmetrySettings(**settings))
    near = SymmetricModel(mace(), SymmetrySettings(**settings, max_strain=0.01)).evaluate(atoms).symmetry
    assert near.space_group == 221
    assert 1e-3 < near.strain < 0.01


def test_not_if_forces_would_change():
    """A ferroelectric whose coarse tolerance finds the paraelectric group."""
    atoms = structures.tetragonal_batio3()
    coarse = {"symprec": 0.2, "max_shift": 0.3, "max_strain": 0.1}
    assert_as_given(TOY, atoms, SymmetrySettings(**coarse))
    forced = SymmetricModel(TOY, SymmetrySettings(**coarse, force_tolerance=100.0)).evaluate(atoms)
    assert forced.symmetry.space_group == 221
    assert forced.symmetry.force_change > 0.01
    assert np.abs(forced.polarization).max() < 1e-12
    assert np.abs(TOY.evaluate(atoms).polarization).max() > 1e-5
    own = SymmetricModel(TOY).evaluate(atoms)
    assert own.symmetry.space_group == 99
    assert_same(own, TOY.evaluate(atoms), ("polarization", "born_effective_charges", "polarizability"))


def test_not_if_no_group_is_found():
    assert_as_given(mace(), tilted("trigonal P3_221"), SymmetrySettings(symprec=1e3, max_shift=1e3, max_strain=1e3))


def test_not_if_the_search_breaks(monkeypatch):
    def broken(*arguments):
        raise np.linalg.LinAlgError("Eigenvalues did not converge")

    monkeypatch.setattr(symmetric, "symmetrize_crystal", broken)
    assert_as_given(mace(), tilted("trigonal P3_221"))


def test_not_unless_asked_for():
    outcome = evaluate_each(mace(), [prototype("cubic Fm-3m")], None, ALL, symmetry=None, primitive_hessian=True)[0]
    assert outcome.symmetry is None
    assert outcome.hessian.shape == (24, 24)


# What fails, fails alone


def broken() -> dict[str, tuple[object, type[Exception]]]:
    nan = prototype("cubic Fm-3m")
    nan.positions[1, 2] = np.nan
    overlapping = prototype("cubic Fm-3m")
    overlapping.positions[1] = overlapping.positions[0] + [0.05, 0, 0]
    flat = prototype("cubic Fm-3m")
    flat.set_cell([[4, 0, 0], [0, 4, 0], [4, 4, 0]])
    return {
        "nan": (nan, StructureError),
        "overlapping": (overlapping, StructureError),
        "flat": (flat, StructureError),
        "unknown": (bulk("AgCl", "rocksalt", a=5.55), UnknownElementError),
        "string": ("POSCAR", StructureError),
        "none": (None, StructureError),
    }


@pytest.mark.parametrize("settings", [SymmetrySettings(), None], ids=["symmetry", "plain"])
def test_broken_structures_fail_alone_and_in_place(settings):
    bad = broken()
    good = [tilted("cubic Fm-3m", 1), tilted("trigonal P3_221", 2)]
    mixed = [good[0], *(item for item, _ in bad.values()), good[1]]
    outcomes = evaluate_each(mace(), mixed, None, ALL, settings)
    for (name, (_, kind)), outcome in zip(bad.items(), outcomes[1:-1], strict=True):
        assert type(outcome) is kind, name
    for atoms, outcome in ((good[0], outcomes[0]), (good[1], outcomes[-1])):
        expected = mace().evaluate(atoms if settings is None else symmetrized(atoms), observables=ALL)
        assert_same(outcome, expected)


class Spoiled:
    """The engine of a model, which computes NaN from the first layer on for crystals in a cell of that volume."""

    def __init__(self, engine, volume: float) -> None:
        self.engine, self.volume = engine, volume
        self.device, self.batches = engine.device, []

    def __call__(self, graph, **arguments):
        found = volumes(graph)
        self.batches.append(len(found))
        factor = torch.ones_like(found).masked_fill((found - self.volume).abs() < 1e-3, float("nan"))
        owner = torch.zeros(len(graph["distances"]), dtype=torch.int64)
        owner[graph["distance_index"]] = graph["batch"][graph["edge_index"][0]]
        distances = {**graph, "distances": graph["distances"] * factor[owner]}
        positions = arguments.pop("positions") * factor[graph["batch"]][:, None]
        return self.engine(distances, positions=positions, **arguments)


@pytest.mark.parametrize("symmetry", [SymmetrySettings(), None], ids=["symmetry", "plain"])
@pytest.mark.parametrize("culprit", [0, 1, 2])
def test_a_model_that_gives_nan_for_one_crystal_fails_for_that_one(symmetry, culprit):
    """Crystals of one batch share padded neighbors and dummy edges, by which NaN must not spread."""
    crystals = [bulk("NaO", "rocksalt", a=4.4), bulk("TiO", "zincblende", a=4.5), bulk("NaO", "rocksalt", a=3.9)]
    model = small_model(correlation=2)
    model._evaluator = Spoiled(model._evaluator, crystals[culprit].get_volume())
    outcomes = evaluate_each(model, crystals, None, ALL, symmetry)
    assert max(model._evaluator.batches) > 1
    for index, (atoms, outcome) in enumerate(zip(crystals, outcomes, strict=True)):
        if index == culprit:
            assert isinstance(outcome, EvaluationError)
            assert "not finite" in str(outcome)
        else:
            assert_same(outcome, mace().evaluate(atoms, observables=ALL))
    with pytest.raises(EvaluationError, match="not finite"):
        SymmetricModel(model).evaluate(crystals)


class Plain:
    """A model of someone else: no directions, no isolation, and whatever ``answer`` makes of its responses."""

    def __init__(self, answer=None, inner=TOY) -> None:
        self.inner, self.calls = inner, []
        self.answer = answer or (lambda atoms, response: response)

    @property
    def info(self):
        return self.inner.info

    def evaluate(self, crystals, fields=None, observables=()):
        single = not isinstance(crystals, list)
        self.calls.append((1 if single else len(crystals), tuple(observables)))
        found = self.inner.evaluate([crystals] if single else crystals, fields, observables)
        answers = [self.answer(a, r) for a, r in zip([crystals] if single else crystals, found, strict=True)]
        return answers[0] if single else answers


def test_a_model_without_directions_gets_the_primitive_cell():
    model = Plain()
    assert not hasattr(model, "evaluate_along")
    crystals = [tilted(name, 3, noise=1e-5) for name in ("cubic Fm-3m", "monoclinic C2/m", "trigonal P3_221")]
    outcomes = evaluate_each(model, crystals, None, ALL, SymmetrySettings(), primitive_hessian=True)
    for atoms, outcome in zip(crystals, outcomes, strict=True):
        use = outcome.symmetry
        assert (use.n_field_directions, use.n_displacements) == (3, 3 * len(use.representatives))
        assert_same(outcome, TOY.evaluate(symmetrized(atoms), observables=ALL), [n for n in ALL if n != "hessian"])
        np.testing.assert_allclose(
            outcome.hessian, TOY.evaluate(evaluated(outcome, atoms), observables=("hessian",)).hessian, atol=1e-10
        )


def failing_for(element: str, error: Exception):
    def answer(atoms, response):
        if element in atoms.get_chemical_symbols():
            raise error
        return response

    return answer


def test_a_foreign_model_that_raises_fails_for_that_crystal_only():
    model = Plain(failing_for("Ti", RuntimeError("no parameters")))
    crystals = [tilted(name, 3) for name in ("cubic Fm-3m", "cubic F-43m", "hexagonal P6_3mc")]
    for symmetry in (SymmetrySettings(), None):
        outcomes = evaluate_each(model, crystals, None, ALL, symmetry)
        assert isinstance(outcomes[1], RuntimeError)
        for index in (0, 2):
            expected = crystals[index] if symmetry is None else symmetrized(crystals[index])
            assert_same(outcomes[index], TOY.evaluate(expected, observables=ALL))


POOL = {
    "cubic": (prototype("cubic Fm-3m"), Response),
    "quartz": (tilted("trigonal P3_221", 1, noise=1e-5), Response),
    "triclinic": (prototype("triclinic P1"), Response),
    "one atom": (bulk("Na", "sc", a=3.0), Response),
    "raises": (bulk("KF", "rocksalt", a=5.35, cubic=True), RuntimeError),
    "nan": (broken()["nan"][0], StructureError),
    "overlapping": (broken()["overlapping"][0], StructureError),
    "string": ("POSCAR", StructureError),
}


@settings(max_examples=25, deadline=None)
@given(names=st.lists(st.sampled_from(list(POOL)), max_size=7), use=st.booleans(), primitive=st.booleans())
def test_every_structure_gets_exactly_one_outcome(names, use, primitive):
    model = Plain(failing_for("K", RuntimeError("no parameters")))
    crystals = [POOL[name][0] for name in names]
    observables = ("energy", "polarizability", "hessian")
    outcomes = evaluate_each(model, crystals, None, observables, SymmetrySettings() if use else None, primitive)
    assert [type(outcome) for outcome in outcomes] == [POOL[name][1] for name in names]
    for atoms, outcome in zip(crystals, outcomes, strict=True):
        if isinstance(outcome, Response):
            expected = TOY.evaluate(atoms, observables=("energy", "polarizability"))
            assert outcome.energy == pytest.approx(expected.energy, rel=1e-6)
            assert outcome.polarizability == pytest.approx(expected.polarizability, rel=1e-4, abs=1e-6)


def without_forces(atoms, response):
    if response.forces is not None:
        raise NotImplementedError("this model has no forces")
    return response


@pytest.mark.parametrize(
    "answer",
    [
        without_forces,
        lambda atoms, response: replace(response, forces=None),
        lambda atoms, response: replace(response, forces=None if response.forces is None else response.forces * np.nan),
    ],
    ids=["raises", "none", "nan"],
)
def test_a_model_without_forces_cannot_vouch_for_the_change(answer):
    """So that the crystal is evaluated as it is, unless it hardly moves."""
    model = Plain(answer)
    moved, exact = tilted("trigonal P3_221", 3), prototype("trigonal P3_221")
    outcomes = evaluate_each(model, [moved, exact], None, ("polarizability",), SymmetrySettings())
    assert outcomes[0].symmetry is None
    assert_same(outcomes[0], TOY.evaluate(moved), ("polarizability",))
    assert outcomes[1].symmetry.space_group == 154


def test_a_model_that_loses_answers_is_asked_one_by_one():
    class Lossy(Plain):
        def evaluate(self, crystals, fields=None, observables=()):
            answers = super().evaluate(crystals, fields, observables)
            return answers[:1]

    crystals = [prototype("cubic Fm-3m"), prototype("hexagonal P6_3mc"), prototype("cubic Pa-3")]
    for symmetry in (SymmetrySettings(), None):
        outcomes = evaluate_each(Lossy(), crystals, None, ALL, symmetry)
        for atoms, outcome in zip(crystals, outcomes, strict=True):
            assert_same(outcome, TOY.evaluate(atoms, observables=ALL))


def test_nothing_for_nothing():
    assert evaluate_each(mace(), [], None, ALL, SymmetrySettings()) == []
    assert evaluate_each(TOY, [], np.zeros((0, 3)), ALL) == []


def test_settings_refuse_nonsense():
    for values in ({"symprec": 0.0}, {"max_shift": -1.0}, {"force_tolerance": 0.0}, {"unknown": 1}):
        with pytest.raises(ValueError):
            SymmetrySettings(**values)
    assert hash(SymmetrySettings()) == hash(SymmetrySettings(symprec=1e-3))


def test_errors_are_those_of_this_package():
    outcomes = evaluate_each(mace(), [item for item, _ in broken().values()], None, ALL, SymmetrySettings())
    assert all(isinstance(outcome, FieldflowsError) for outcome in outcomes)
