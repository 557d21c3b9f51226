"""Documents by symmetry: the numbers of the full calculation, and a record of what was done."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldflows.backends.symmetric import SymmetrySettings
from fieldflows.backends.toy import ToyModel, ToyParameters
from fieldflows.physics.crystal import primitive_crystal
from fieldflows.properties.dielectric import DielectricProperty, DielectricSettings
from fieldflows.properties.run import run_property
from fieldflows.schemas.dielectric import DielectricDocument
from fieldflows.testing.strategies import SEEDS
from fieldflows.testing.structures import named_structures
from tests.backends.mace_field.models import small_model
from tests.backends.structures import TYPES, prototype, tilted

LIMIT = 1e-8
TOY = ToyModel(ToyParameters(anisotropy=8.0))
TENSORS = ("epsilon_electronic", "epsilon_ionic", "epsilon_total", "electronic", "ionic", "total")
NUMBERS = ("n", "e_electronic", "e_ionic", "e_total", "born_charge_min", "born_charge_max")
SIMPLE = tuple(name for name in TYPES if len(prototype(name)) <= 12)


def compute(atoms, model=TOY, hessian_model=None, **options) -> DielectricDocument:
    prop = DielectricProperty(DielectricSettings(allow_unstable=True, **options))
    (document,) = run_property(prop, [atoms], model, hessian_model)
    assert isinstance(document, DielectricDocument), document
    return document


def primitive_of(atoms: Atoms) -> Atoms:
    found = primitive_crystal(atoms.cell[:], atoms.positions, atoms.numbers, 1e-3)
    return Atoms(numbers=found.numbers, positions=found.positions, cell=found.cell, pbc=True)


def assert_same(found: DielectricDocument, expected: DielectricDocument) -> None:
    """Assert that two documents hold the same numbers about a crystal, whatever its cell."""
    assert found.status_electronic == expected.status_electronic
    assert found.spacegroup_number == expected.spacegroup_number
    for name in (*TENSORS, *NUMBERS, "epsilon_electronic_principal", "polarization"):
        left, right = getattr(found, name), getattr(expected, name)
        assert (left is None) == (right is None), name
        if right is not None:
            scale = max(1e-3, np.abs(right).max())
            np.testing.assert_allclose(left, right, rtol=0, atol=LIMIT * scale, err_msg=name)


def assert_same_modes(found: DielectricDocument, expected: DielectricDocument) -> None:
    """Compare ω² rather than ω, and strengths summed over modes of one frequency."""
    assert found.status_ionic == expected.status_ionic
    left, right = np.array(found.modes.frequencies_thz), np.array(expected.modes.frequencies_thz)
    scale = np.abs(right).max() ** 2
    np.testing.assert_allclose(left * np.abs(left), right * np.abs(right), rtol=0, atol=LIMIT * scale)
    strengths = [np.cumsum(doc.modes.oscillator_strengths) for doc in (found, expected)]
    ends = np.flatnonzero(np.append(np.diff(right) > 1e-3, True))
    np.testing.assert_allclose(strengths[0][ends], strengths[1][ends], rtol=0, atol=1e-7 * strengths[1][-1] + 1e-12)
    assert found.modes.ir_active == expected.modes.ir_active


@pytest.mark.parametrize("name", SIMPLE)
@pytest.mark.parametrize("make", [lambda: TOY, lambda: small_model(correlation=2)], ids=["toy", "mace_field"])
def test_equal_to_the_full_calculation(make, name):
    """Of the primitive cell, and of the conventional one but for modes folded from the zone boundary.

    Those carry no dipole, but may be imaginary.
    """
    conventional = prototype(name)
    primitive = primitive_of(conventional)
    found = compute(conventional, make())
    full = compute(primitive, make(), use_symmetry=False)
    large = compute(conventional, make(), use_symmetry=False)
    assert full.symmetry_used is None
    assert large.symmetry_used is None
    assert_same(found, full)
    assert_same(found, large)
    assert_same_modes(found, full)
    count = len(conventional) // len(primitive)
    assert len(large.modes.frequencies_thz) == 3 * len(conventional) - 3
    strengths = [sum(doc.modes.oscillator_strengths) for doc in (found, large)]
    assert strengths[1] == pytest.approx(count * strengths[0], rel=1e-8)
    every = np.sort(np.array(large.modes.frequencies_thz))
    own = np.array(found.modes.frequencies_thz)
    assert np.abs(every[:, None] - own).min(axis=0).max() < 1e-4 * np.abs(every).max()


@settings(max_examples=8, deadline=None)
@given(name=st.sampled_from(SIMPLE), seed=SEEDS, shears=st.integers(0, 2), twice=st.booleans())
def test_the_choice_of_the_cell_does_not_matter(name, seed, shears, twice):
    """In the same frame: conventional, primitive, skewed, doubled, with atoms in any image."""
    options = {"noise": 0.0, "strain": 0.0}
    plain = tilted(name, seed, **options)
    other = tilted(name, seed, shears=shears, scattered=True, repeat=(1, 1, 2) if twice else (1, 1, 1), **options)
    model = small_model(correlation=2)
    documents = [compute(atoms, model) for atoms in (plain, primitive_of(plain), other)]
    for document in documents[1:]:
        assert_same(document, documents[0])
        assert_same_modes(document, documents[0])
    uses = [document.symmetry_used for document in documents]
    assert len({(use.space_group_number, use.n_operations, len(use.primitive_atoms)) for use in uses}) == 1
    assert len(documents[2].born_effective_charges) == len(other)


def test_the_record_says_what_was_done():
    atoms = tilted("trigonal R3c", 3, noise=2e-5)
    document = compute(atoms)
    use = document.symmetry_used
    assert (use.space_group_number, use.n_operations, use.n_field_directions) == (161, 6, 3)  # toy takes no directions
    assert len(use.primitive_atoms) == 10
    assert len(document.modes.frequencies_thz) == 27
    assert len(document.born_effective_charges) == document.nsites == 30
    assert 0 < use.max_shift < 1e-4
    assert 0 < use.strain < 1e-4
    assert 0 < use.force_change < SymmetrySettings().force_tolerance
    assert abs(np.linalg.det(use.primitive_cell)) == pytest.approx(document.volume / 3, rel=1e-4)
    assert document.provenance.settings["use_symmetry"] is True
    assert document.provenance.settings["symmetrization"] == SymmetrySettings().model_dump()
    again = DielectricDocument.from_json_dict(json.loads(json.dumps(document.to_json_dict())))
    assert again == document
    model = small_model(correlation=2)
    assert compute(atoms, model).symmetry_used.n_field_directions == 1
    assert compute(atoms, model).symmetry_used.n_displacements < 9
    assert compute(atoms, model, ionic=False).symmetry_used.n_displacements == 0


def test_charges_belong_to_the_atoms_as_given():
    """In their order and images, in the frame of the structure."""
    atoms = tilted("tetragonal P4mm", 5, repeat=(2, 1, 1), scattered=True, noise=0.0, strain=0.0)
    order = np.random.default_rng(2).permutation(len(atoms))
    document = compute(atoms[order])
    expected = TOY.evaluate(atoms, observables=("born_effective_charges",)).born_effective_charges
    np.testing.assert_allclose(document.born_effective_charges, expected[order], rtol=0, atol=1e-8)


def test_switched_off_or_too_far_the_document_says_so():
    atoms = tilted("cubic Pm-3m", 1, noise=5e-3)
    assert compute(tilted("cubic Pm-3m", 1, noise=0.0), use_symmetry=False).symmetry_used is None
    far = {"symmetrization": SymmetrySettings(symprec=0.05)}
    document = compute(atoms, **far)
    assert document.symmetry_used is None
    assert_same(document, compute(atoms, use_symmetry=False))
    assert_same_modes(document, compute(atoms, use_symmetry=False))
    keys = {compute(atoms).key, document.key, compute(atoms, use_symmetry=False).key}
    assert len(keys) == 3


def test_a_ferroelectric_is_not_made_paraelectric():
    """A tolerance that takes BaTiO3 for cubic would move titanium by 0.06 Å: the forces disagree."""
    atoms = named_structures()["tetragonal_batio3"]
    coarse = SymmetrySettings(symprec=0.2, max_shift=0.3, max_strain=0.1)
    document = compute(atoms, symmetrization=coarse)
    assert document.symmetry_used is None
    assert np.abs(document.polarization).max() > 1e-5
    assert_same(document, compute(atoms, use_symmetry=False))


def test_a_separate_hessian_model_has_its_own_symmetry():
    field = ToyModel(trained_labels=("polarization", "born_effective_charges", "polarizability"))
    stiff = ToyModel(ToyParameters(depth=1.0))
    atoms = prototype("monoclinic C2/m")
    found, full = (compute(atoms, field, stiff, use_symmetry=flag) for flag in (True, False))
    assert_same(found, full)
    assert found.max_force == pytest.approx(full.max_force, rel=1e-9)
    assert found.symmetry_used.n_displacements == 12
    assert len(found.modes.frequencies_thz) == 9


def test_isotopes_are_not_averaged_away():
    """Two atoms of one element with different masses are no periodic images of each other."""
    atoms = prototype("cubic Fm-3m")
    masses = atoms.get_masses()
    masses[4] += 2.0
    atoms.set_masses(masses)
    document = compute(atoms)
    full = compute(atoms, use_symmetry=False)
    assert len(full.modes.frequencies_thz) == 21
    assert_same_modes(document, full)
    assert_same(document, compute(prototype("cubic Fm-3m")))
    standard = prototype("cubic Fm-3m")
    standard.set_masses(standard.get_masses())
    assert compute(standard).symmetry_used is not None


def test_pooled_results_are_those_of_single_runs():
    crystals = [tilted(name, 2) for name in SIMPLE[:6]]
    prop = DielectricProperty(DielectricSettings(allow_unstable=True))
    model = small_model(correlation=2)
    pooled = run_property(prop, crystals, model)
    for atoms, document in zip(crystals, pooled, strict=True):
        assert_same(document, compute(atoms, model))


def test_responses_are_handed_out_before_the_document(monkeypatch):
    """``on_responses`` gets the Hessian of the primitive cell with the atoms that it is of; in order, of successes."""
    broken = prototype("cubic Fm-3m")
    broken.positions[0, 0] = np.nan
    crystals = [prototype("cubic Fm-3m"), broken, prototype("hexagonal P6_3mc")]
    seen = []
    documents = run_property(
        DielectricProperty(),
        crystals,
        TOY,
        on_responses=lambda index, responses: seen.append((index, responses)),
        on_result=lambda index, outcome: seen.append((index, None)),
    )
    assert [(index, answer is None) for index, answer in seen if index != 1] == [
        (0, False),
        (0, True),
        (2, False),
        (2, True),
    ]
    assert [index for index, answer in seen if answer is not None] == [0, 2]
    (response,) = seen[[index for index, _ in seen].index(0)][1]
    assert response.hessian.shape == (6, 6)
    assert tuple(response.symmetry.representatives) == documents[0].symmetry_used.primitive_atoms


def test_a_response_that_says_nothing_about_symmetry_is_taken_as_it_is():
    """Responses of others, and of results made before symmetry was used."""
    atoms = prototype("cubic Fm-3m")
    prop = DielectricProperty().bind(TOY.info)
    from fieldflows.properties.base import Context, PropertyInput, model_card

    context = Context(PropertyInput(atoms), model_card(TOY))
    observables = prop.plan(atoms).evaluations[0].observables
    response = TOY.evaluate(atoms, observables=observables)
    document = prop.analyse(atoms, [replace(response, symmetry=None)], context)
    assert document.symmetry_used is None
    assert len(document.modes.frequencies_thz) == 21


def test_instabilities_of_a_larger_cell_are_looked_for_on_request():
    """The toy model's zincblende TiO is stable at Γ, and buckles in a cell of twice the length."""
    conventional = prototype("cubic F-43m")
    with_symmetry, without = compute(conventional), compute(conventional, use_symmetry=False)
    assert (with_symmetry.status_ionic, without.status_ionic) == ("ok", "unstable_summed")
    assert min(without.modes.frequencies_thz) < 0 < min(with_symmetry.modes.frequencies_thz)
    assert without.e_ionic == pytest.approx(with_symmetry.e_ionic, rel=1e-8)


def test_a_perfect_supercell_costs_what_its_primitive_cell_costs():
    """All of its operations would take seconds and a gigabyte before anything is evaluated."""
    from ase.build import bulk

    unit = bulk("NaCl", "rocksalt", a=5.64)
    model = Counting()
    document = compute(unit.repeat(6), model)
    assert document.nsites == 432
    assert set(model.sizes) == {2}
    assert len(document.symmetry_used.primitive_atoms) == 2
    assert_same(document, compute(unit))
    assert_same_modes(document, compute(unit))


class Counting:
    """The toy model, which writes down how many atoms it is given."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.info = TOY.info

    def evaluate(self, crystals, fields=None, observables=()):
        self.sizes += [len(atoms) for atoms in crystals]
        return TOY.evaluate(crystals, fields, observables)
