"""The contract that every backend must fulfill, as a pytest class to inherit.

::

    class TestMyBackend(FieldModelContract):
        def make_model(self):
            return load_model("my-model")

Every identity of the conventions page is checked by finite differences or as a symmetry, on a triclinic crystal
without symmetry.  A backend that lacks an observable leaves it out of :attr:`FieldModelContract.observables`; the
checks that need it are then skipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fieldflows.backends.base import FieldModel, ModelInfo
from fieldflows.observables import OBSERVABLES
from fieldflows.testing.structures import random_crystal, random_rotation

if TYPE_CHECKING:
    from ase import Atoms

    from fieldflows.structures import StructureLike


class FieldModelContract:
    """Checks of one model.  Override :meth:`make_model`, and the attributes where the defaults do not fit.

    Attributes:
        symbols: Atoms of the test crystals; all must be known to the model.
        volume_per_atom: Of the test crystals, in Å³.
        observables: What the backend supports.
        field: Field in V/Å of the checks under field.
        displacement: Step of finite differences in Å.
        field_step: Step of finite differences in V/Å.
        strain: Step of finite differences of strain.
        relative: Largest deviation of a finite difference, relative to the largest component.
        absolute: Largest absolute deviation of a finite difference, in the unit of the observable.
        exact: Largest deviation of what must hold to rounding, relative to the largest component, or absolute if
            all are below one.
        nonzero: Observables that must not vanish on the test crystal.
    """

    symbols: ClassVar[tuple[str, ...]] = ("Mg", "O", "O", "Si")
    volume_per_atom: ClassVar[float] = 14.0
    observables: ClassVar[tuple[str, ...]] = tuple(OBSERVABLES)
    field: ClassVar[tuple[float, float, float]] = (0.02, -0.01, 0.03)
    displacement: ClassVar[float] = 1e-4
    field_step: ClassVar[float] = 1e-3
    strain: ClassVar[float] = 1e-5
    relative: ClassVar[float] = 1e-5
    absolute: ClassVar[float] = 1e-8
    exact: ClassVar[float] = 1e-9
    nonzero: ClassVar[tuple[str, ...]] = ("forces", "polarization", "born_effective_charges", "polarizability")

    _cached: ClassVar[dict[type, Any]] = {}

    # What a backend provides

    def make_model(self) -> FieldModel:
        """Return the model in double precision."""
        raise NotImplementedError("return the model to test from make_model()")

    @property
    def model(self) -> FieldModel:
        """The model, made once per class."""
        if type(self) not in self._cached:
            self._cached[type(self)] = self.make_model()
        return self._cached[type(self)]

    def crystal(self) -> Atoms:
        """Return the triclinic test crystal."""
        return random_crystal(7, self.symbols, self.volume_per_atom)

    # Helpers

    def respond(self, atoms: StructureLike, field: Any = None, *names: str) -> Any:
        """Return the response for the given observables, or for all that are supported."""
        self.need(*names)
        return self.model.evaluate(atoms, fields=field, observables=names or self.observables)

    def need(self, *names: str) -> None:
        """Skip the check unless all observables are supported."""
        missing = [name for name in names if name not in self.observables]
        if missing:
            import pytest

            pytest.skip(f"the backend has no {', '.join(missing)}")

    def close(self, found: Any, expected: Any, what: str) -> None:
        """Assert agreement of a finite difference."""
        found, expected = np.asarray(found), np.asarray(expected)
        limit = self.absolute + self.relative * np.abs(expected).max()
        worst = np.abs(found - expected).max()
        assert worst <= limit, f"{what}: deviation {worst:.3g}, limit {limit:.3g}\n{found}\n{expected}"

    def same(self, found: Any, expected: Any, what: str) -> None:
        """Assert agreement to rounding."""
        found, expected = np.asarray(found), np.asarray(expected)
        assert found.shape == expected.shape, f"{what}: shape {found.shape}, expected {expected.shape}"
        limit = self.exact * max(1.0, np.abs(expected).max(initial=0.0))
        worst = np.abs(found - expected).max(initial=0.0)
        assert worst <= limit, f"{what}: deviation {worst:.3g}, limit {limit:.3g}\n{found}\n{expected}"

    def central(self, function: Any, step: float) -> np.ndarray:
        """Return the derivative at 0 by central differences of fourth order."""
        one = np.asarray(function(step)) - np.asarray(function(-step))
        two = np.asarray(function(2 * step)) - np.asarray(function(-2 * step))
        return (8 * one - two) / (12 * step)

    def moved(self, atoms: Atoms, atom: int, axis: int, step: float) -> Atoms:
        """Return a copy with one atom displaced."""
        copy = atoms.copy()
        copy.positions[atom, axis] += step
        return copy

    # The interface

    def test_card(self) -> None:
        """The card is complete and the object is a FieldModel."""
        info = self.model.info
        assert isinstance(self.model, FieldModel)
        assert isinstance(info, ModelInfo)
        assert len(info.sha256) == 64
        assert info.dtype == "float64"
        assert set(self.symbols) <= set(info.elements)
        assert set(info.trained_labels) <= set(OBSERVABLES)

    def test_shapes_and_types(self) -> None:
        """Observables that were asked for have their shape in float64; others are None."""
        atoms = self.crystal()
        response = self.respond(atoms)
        sizes = {"n": len(atoms), "3n": 3 * len(atoms)}
        for name in self.observables:
            value = response.get(name)
            if name == "energy":
                assert isinstance(value, float)
                continue
            expected = tuple(sizes[e] if isinstance(e, str) else e for e in OBSERVABLES[name].shape)
            assert value.shape == expected, name
            assert value.dtype == np.float64, name
        only = self.model.evaluate(atoms, observables=(self.observables[-1],))
        assert [name for name in OBSERVABLES if getattr(only, name) is not None] == [self.observables[-1]]

    def test_nothing_vanishes(self) -> None:
        """The crystal has no symmetry, so no response may be zero; else the checks below would be empty."""
        response = self.respond(self.crystal())
        for name in set(self.nonzero) & set(self.observables):
            assert np.abs(response.get(name)).max() > 1e-7, name

    def test_input_is_left_alone(self) -> None:
        """Evaluating changes neither positions nor cell nor calculator of the structure."""
        atoms = self.crystal()
        before = atoms.copy()
        self.respond(atoms, self.field)
        assert atoms == before
        assert atoms.calc is None

    def test_pymatgen_input(self) -> None:
        """A pymatgen Structure gives the same as ase.Atoms."""
        from fieldflows.structures import as_structure

        atoms = self.crystal()
        left, right = self.respond(atoms), self.respond(as_structure(atoms))
        for name in self.observables:
            self.same(right.get(name), left.get(name), name)

    def test_batch_equals_single(self) -> None:
        """A batch of different crystals under different fields gives the same as one by one."""
        many = [self.crystal(), random_crystal(8, self.symbols[:2], 20.0), self.crystal() * (2, 1, 1)]
        fields = np.array([[0.0, 0.0, 0.0], self.field, [-0.01, 0.02, 0.0]])
        together = self.model.evaluate(many, fields=fields, observables=self.observables)
        assert len(together) == len(many)
        for atoms, field, response in zip(many, fields, together, strict=True):
            self.same(response.field, field, "field")
            alone = self.respond(atoms, field)
            for name in self.observables:
                self.same(response.get(name), alone.get(name), name)

    def test_empty_batch(self) -> None:
        """No structures give no responses."""
        assert self.model.evaluate([], observables=self.observables) == []

    def test_bad_input(self) -> None:
        """Broken crystals and wrong names raise the errors that the protocol promises."""
        import pytest

        from fieldflows.errors import SettingsError, StructureError

        atoms = self.crystal()
        atoms.positions[0] = np.nan
        with pytest.raises(StructureError, match="finite"):
            self.model.evaluate(atoms)
        molecule = self.crystal()
        molecule.pbc = False
        with pytest.raises(StructureError, match="periodic"):
            self.model.evaluate(molecule)
        with pytest.raises(SettingsError, match="polarization"):
            self.model.evaluate(self.crystal(), observables=("polarisation",))

    # Derivatives

    def test_forces(self) -> None:
        """Forces are −∂F/∂u, at a finite field as well."""
        self.need("energy", "forces")
        atoms = self.crystal()
        for field in (None, self.field):
            forces = self.respond(atoms, field, "forces").forces
            for atom, axis in ((0, 0), (1, 2), (len(atoms) - 1, 1)):
                slope = self.central(
                    lambda h, a=atom, x=axis, e=field: self.respond(self.moved(atoms, a, x, h), e, "energy").energy,
                    self.displacement,
                )
                self.close(-slope, forces[atom, axis], f"force on atom {atom}, component {axis}")

    def test_stress(self) -> None:
        """Stress is (1/Ω) ∂F/∂strain at fixed Cartesian field."""
        self.need("energy", "stress")
        atoms = self.crystal()
        for field in (None, self.field):
            stress = self.respond(atoms, field, "stress").stress
            for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):

                def energy(h: float, i: int = i, j: int = j, field: Any = field) -> float:
                    strain = np.zeros((3, 3))
                    strain[i, j] += 0.5 * h
                    strain[j, i] += 0.5 * h
                    copy = atoms.copy()
                    copy.set_cell(atoms.cell[:] @ (np.eye(3) + strain), scale_atoms=True)
                    return self.respond(copy, field, "energy").energy

                slope = self.central(energy, self.strain) / atoms.get_volume()
                self.close(slope, stress[i, j], f"stress {i}{j}")
            self.same(stress, stress.T, "symmetry of stress")

    def test_polarization(self) -> None:
        """P is −(1/Ω) ∂F/∂𝓔."""
        self.need("energy", "polarization")
        atoms = self.crystal()
        for base in (np.zeros(3), np.array(self.field)):
            found = [
                -self.central(
                    lambda h, d=direction, b=base: self.respond(atoms, b + h * d, "energy").energy, self.field_step
                )
                / atoms.get_volume()
                for direction in np.eye(3)
            ]
            self.close(found, self.respond(atoms, base, "polarization").polarization, "polarization")

    def test_polarizability(self) -> None:
        """α is ∂P/∂𝓔 and symmetric."""
        self.need("polarization", "polarizability")
        atoms = self.crystal()
        for base in (np.zeros(3), np.array(self.field)):
            alpha = self.respond(atoms, base, "polarizability").polarizability
            columns = [
                self.central(
                    lambda h, d=direction, b=base: self.respond(atoms, b + h * d, "polarization").polarization,
                    self.field_step,
                )
                for direction in np.eye(3)
            ]
            self.close(np.transpose(columns), alpha, "polarizability")
            self.same(alpha, alpha.T, "symmetry of the polarizability")

    def test_born_charges_from_polarization(self) -> None:
        """Z*[κ, i, j] is Ω ∂P_i/∂u_κj."""
        self.need("polarization", "born_effective_charges")
        atoms = self.crystal()
        for field in (None, self.field):
            charges = self.respond(atoms, field, "born_effective_charges").born_effective_charges
            for atom, axis in ((0, 1), (1, 0), (len(atoms) - 1, 2)):
                slope = self.central(
                    lambda h, a=atom, x=axis, e=field: (
                        self.respond(self.moved(atoms, a, x, h), e, "polarization").polarization
                    ),
                    self.displacement,
                )
                self.close(atoms.get_volume() * slope, charges[atom, :, axis], f"Z* of atom {atom}, column {axis}")

    def test_forces_under_field(self) -> None:
        """Z*[κ, i, j] is ∂f_κj/∂𝓔_i, so that forces(𝓔) = forces(0) + Z*ᵀ𝓔 + O(𝓔²)."""
        self.need("forces", "born_effective_charges")
        atoms = self.crystal()
        charges = self.respond(atoms, None, "born_effective_charges").born_effective_charges
        for i, direction in enumerate(np.eye(3)):
            slope = self.central(lambda h, d=direction: self.respond(atoms, h * d, "forces").forces, self.field_step)
            self.close(slope, charges[:, i, :], f"forces under a field along {i}")

    def test_hessian(self) -> None:
        """H is −∂f/∂u with all periodic images moving together, and symmetric, at a finite field as well."""
        self.need("forces", "hessian")
        atoms = self.crystal()
        every = [(atom, axis) for atom in range(len(atoms)) for axis in range(3)]
        for field, chosen in ((None, every), (self.field, every[1::5])):
            hessian = self.respond(atoms, field, "hessian").hessian
            for atom, axis in chosen:
                slope = self.central(
                    lambda h, a=atom, x=axis, e=field: self.respond(self.moved(atoms, a, x, h), e, "forces").forces,
                    self.displacement,
                )
                self.close(-slope.ravel(), hessian[3 * atom + axis], f"Hessian, row of atom {atom}, component {axis}")
            self.same(hessian, hessian.T, "symmetry of the Hessian")

    # Sum rules and symmetries

    def test_sum_rules(self) -> None:
        """Z* and forces sum to zero over the atoms, and so do the rows of the Hessian."""
        for field in (None, self.field):
            response = self.respond(self.crystal(), field)
            if "born_effective_charges" in self.observables:
                self.same(response.born_effective_charges.sum(axis=0), np.zeros((3, 3)), "acoustic sum rule")
            if "forces" in self.observables:
                self.same(response.forces.sum(axis=0), np.zeros(3), "sum of forces")
        response = self.respond(self.crystal())
        if "hessian" in self.observables:
            rows = response.hessian.reshape(-1, len(self.crystal()), 3).sum(axis=1)
            self.same(rows, np.zeros_like(rows), "translations in the Hessian")

    def test_translation_and_wrapping(self) -> None:
        """Nothing changes when all atoms shift, or single atoms move by lattice vectors."""
        atoms = self.crystal()
        base = self.respond(atoms, self.field)
        shifted = atoms.copy()
        shifted.positions += [0.37, -1.21, 2.9]
        wrapped = shifted.copy()
        wrapped.wrap()
        lifted = atoms.copy()
        lifted.positions += np.outer(np.arange(len(atoms)) % 3 - 1, atoms.cell[0] - 2 * atoms.cell[2])
        for label, other in (("translation", shifted), ("wrapping", wrapped), ("lattice vectors", lifted)):
            response = self.respond(other, self.field)
            for name in self.observables:
                self.same(response.get(name), base.get(name), f"{name} after {label}")

    def test_permutation(self) -> None:
        """Quantities of atoms follow a permutation; all others do not change."""
        atoms = self.crystal()
        order = np.random.default_rng(3).permutation(len(atoms))
        base, response = self.respond(atoms, self.field), self.respond(atoms[order], self.field)
        for name in self.observables:
            expected = base.get(name)
            if OBSERVABLES[name].per_atom:
                expected = expected[order]
            elif name == "hessian":
                index = (3 * order[:, None] + np.arange(3)).ravel()
                expected = expected[np.ix_(index, index)]
            self.same(response.get(name), expected, name)

    def test_rotation(self) -> None:
        """F(QR, Q𝓔) = F(R, 𝓔) for proper and improper Q, and every tensor turns with the crystal."""
        atoms = self.crystal()
        base = self.respond(atoms, self.field)
        for seed, improper in ((1, False), (2, True)):
            turn = random_rotation(seed, improper)
            turned = atoms.copy()
            turned.set_cell(atoms.cell[:] @ turn.T)
            turned.positions = atoms.positions @ turn.T
            response = self.respond(turned, turn @ np.array(self.field))
            for name in self.observables:
                self.same(response.get(name), _rotated(name, base.get(name), turn), f"{name}, improper={improper}")

    def test_supercell(self) -> None:
        """A supercell has the same P, α, stress and quantities of atoms, and its energy is a multiple."""
        atoms = self.crystal()
        base, response = self.respond(atoms, self.field), self.respond(atoms * (1, 2, 1), self.field)
        for name in self.observables:
            expected = base.get(name)
            if name == "energy":
                expected = 2 * expected
            elif name == "hessian":
                continue
            elif OBSERVABLES[name].per_atom:
                expected = np.concatenate([expected, expected])
            self.same(response.get(name), expected, name)

    def test_choice_of_cell(self) -> None:
        """Another cell of the same lattice gives the same responses."""
        atoms = self.crystal()
        other = atoms.copy()
        other.set_cell(np.array([[1, 0, 0], [1, 1, 0], [0, -1, 1]]) @ atoms.cell[:], scale_atoms=False)
        base, response = self.respond(atoms, self.field), self.respond(other, self.field)
        for name in self.observables:
            self.same(response.get(name), base.get(name), name)


def _rotated(name: str, value: Any, turn: np.ndarray) -> Any:
    """Return an observable in the turned frame."""
    if name == "energy":
        return value
    if name in ("polarization", "forces"):
        return value @ turn.T
    if name == "hessian":
        block = np.kron(np.eye(len(value) // 3), turn)
        return block @ value @ block.T
    return turn @ value @ turn.T
