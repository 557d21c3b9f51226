"""A closed-form model of the electric enthalpy: Morse bonds, bond dipoles and polarizable spheres.

It needs no weights and no torch, accepts every element up to curium, and all its derivatives are formulas, so
that whatever is built on a model can be tested against pencil and paper.  It obeys every identity of a real
model (invariance, sum rules, symmetry of derivatives), and its numbers for simple ionic crystals have the right
size; it is not meant to predict anything.

With d the vector between two atoms i and j (every periodic image within the cut-off), r = |d|, R covalent radii
and χ Pauling electronegativities,

    F(R, 𝓔) = Σ_pairs φ(r) − 𝓔·μ − ½ 𝓔·A·𝓔
    φ(r) = D (x² − 2x) s(r),   x = exp(−a (r − R_i − R_j)),   D = D₀ + D₁ |χ_i − χ_j|
    μ    = Σ_pairs [1 + γ (s_i + s_j)] c w(r) d,   c = c₀ (χ_i − χ_j),   s_i = Σ_neighbors |χ_i − χ_j| w(r)
    w(r) = (1 − (r/r_q)⁶)³ for r < r_q, else 0,   r_q = min(b (R_i + R_j), r_c): nearest neighbors, as a rule
    A    = Σ_atoms 4π ε_vac R_i³ I  +  Σ_pairs h g(r) d dᵀ,   g(r) = s(r)/r²,   h = h₀ 4π ε_vac (R_i R_j)^{3/2}
    s(r) = (1 − r²/r_c²)³ for r < r_c, else 0

so that P = (μ + A 𝓔)/Ω and α = A/Ω.  The neighbors s_i of a bond make Z* asymmetric where the site allows it, as
it is in real crystals.  For a binary crystal with one formula unit and cubic sites this gives
ε_ion = Z²/(k Ω ε_vac) with Z = [1 + γ (s_i + s_j)] Σ_neighbors c (w + r w′/3) and k = Σ_neighbors (φ″ + 2 φ′/r)/3.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fieldflows.backends.base import ModelInfo, Response
from fieldflows.errors import SettingsError, UnknownElementError, suggestion
from fieldflows.observables import ELECTRONIC_OBSERVABLES, OBSERVABLES, check_observables
from fieldflows.structures import as_atoms, check_structure
from fieldflows.units import EPSILON_VACUUM

if TYPE_CHECKING:
    from ase import Atoms

    from fieldflows.structures import StructureLike

FloatArray = NDArray[np.float64]

LAST_ELEMENT = 96
"""Largest atomic number with a covalent radius."""
MISSING_ELECTRONEGATIVITY = 2.0
"""χ of elements for which Pauling's scale has none (noble gases and some actinides)."""


@dataclass(frozen=True)
class ToyParameters:
    """Parameters of the toy model; see the module for the formulas.

    Attributes:
        cutoff: r_c in Å.
        depth: D₀ in eV.
        ionic_depth: D₁ in eV per unit of electronegativity.
        stiffness: a in 1/Å.
        charge: c₀ in e per unit of electronegativity.
        charge_reach: b, dimensionless.
        environment: γ, dimensionless; 0 leaves dipoles of single bonds, whose Z* are symmetric.
        anisotropy: h₀, dimensionless; 0 leaves the isotropic polarizable spheres.
    """

    cutoff: float = 6.0
    depth: float = 0.3
    ionic_depth: float = 0.5
    stiffness: float = 1.5
    charge: float = 0.25
    charge_reach: float = 1.6
    environment: float = 0.02
    anisotropy: float = 0.02

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not np.isfinite(value) or (name in ("cutoff", "stiffness", "charge_reach") and value <= 0.0):
                raise SettingsError(f"Toy parameter {name} must be finite, and a length positive; found {value}.")


@lru_cache(maxsize=1)
def _elements() -> tuple[tuple[str, ...], FloatArray, FloatArray]:
    """Return symbols, covalent radii in Å and electronegativities by atomic number."""
    from ase.data import chemical_symbols, covalent_radii
    from pymatgen.core import Element

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns about every element without electronegativity
        chi = [float(Element.from_Z(z).X) if z else np.nan for z in range(LAST_ELEMENT + 1)]
    scale = np.where(np.isfinite(chi), chi, MISSING_ELECTRONEGATIVITY)
    return tuple(chemical_symbols[: LAST_ELEMENT + 1]), np.array(covalent_radii[: LAST_ELEMENT + 1]), scale


@dataclass(frozen=True)
class Radial:
    """A function of the distance with its first two derivatives, each (e,)."""

    value: FloatArray
    first: FloatArray
    second: FloatArray

    def __mul__(self, other: Radial) -> Radial:
        return Radial(
            self.value * other.value,
            self.first * other.value + self.value * other.first,
            self.second * other.value + 2 * self.first * other.first + self.value * other.second,
        )

    def scaled(self, factor: FloatArray) -> Radial:
        """Return factor times the function."""
        return Radial(factor * self.value, factor * self.first, factor * self.second)


def switch(r: FloatArray, cutoff: float) -> Radial:
    """Return s(r) = (1 − r²/r_c²)³, which ends with two continuous derivatives at the cut-off."""
    t = np.clip(1.0 - (r / cutoff) ** 2, 0.0, None)
    return Radial(t**3, -6 * r / cutoff**2 * t**2, (-6 * t**2 + 24 * (r / cutoff) ** 2 * t) / cutoff**2)


def plateau(r: FloatArray, reach: FloatArray) -> Radial:
    """Return (1 − (r/reach)⁶)³, flat at short distance and zero with two derivatives at the reach."""
    v = (r / reach) ** 6
    t = np.clip(1.0 - v, 0.0, None)
    return Radial(t**3, -18 * v * t**2 / r, (-90 * v * t**2 + 216 * v**2 * t) / r**2)


def exponential(r: FloatArray, decay: float, origin: FloatArray) -> Radial:
    """Return exp(−decay (r − origin))."""
    x = np.exp(-decay * (r - origin))
    return Radial(x, -decay * x, decay**2 * x)


class ToyModel:
    """The toy model as a :class:`fieldflows.backends.base.FieldModel`.

    Args:
        parameters: See :class:`ToyParameters`.
        dtype: With "float32" the inputs and outputs are rounded to single precision.
        trained_labels: What the card declares; all observables by default.  Tests pass fewer.

    Example:
        >>> from ase.build import bulk
        >>> response = ToyModel().evaluate(bulk("MgO", "rocksalt", 4.21))
        >>> response.polarizability.shape
        (3, 3)
    """

    def __init__(
        self,
        parameters: ToyParameters | None = None,
        dtype: str = "float64",
        trained_labels: Sequence[str] | None = None,
    ) -> None:
        if dtype not in ("float32", "float64"):
            raise SettingsError(f"dtype must be float32 or float64, found {dtype!r}.")
        self.parameters = parameters or ToyParameters()
        labels = tuple(name for name in OBSERVABLES if name != "hessian")
        self._info = ModelInfo(
            name="toy",
            backend="toy",
            sha256=hashlib.sha256(json.dumps(asdict(self.parameters), sort_keys=True).encode()).hexdigest(),
            elements=_elements()[0][1:],
            trained_labels=tuple(trained_labels) if trained_labels is not None else labels,
            cutoff=self.parameters.cutoff,
            dtype=dtype,
            license="MIT",
            provenance={"description": "closed-form model for tests", "parameters": asdict(self.parameters)},
        )

    @property
    def info(self) -> ModelInfo:
        """The card of the model."""
        return self._info

    def evaluate(  # type: ignore[no-untyped-def]
        self,
        structures: StructureLike | Sequence[StructureLike],
        fields: ArrayLike | None = None,
        observables: Sequence[str] = ELECTRONIC_OBSERVABLES,
    ):
        """Return the response of one structure, or a list of them for a list; see ``FieldModel.evaluate``.

        The Hessian too is the one at the given field.
        """
        names = check_observables(observables)
        single = not isinstance(structures, list | tuple)
        crystals: list[Any] = [structures] if single else list(structures)  # type: ignore[arg-type]
        vectors = np.zeros((len(crystals), 3)) if fields is None else np.asarray(fields, dtype=float)
        if vectors.shape == (3,):
            vectors = np.tile(vectors, (len(crystals), 1))
        if vectors.shape != (len(crystals), 3):
            raise SettingsError(
                f"Fields must have shape (3,) or ({len(crystals)}, 3), found {vectors.shape}.",
                "Give V/Å per structure.",
            )
        if not np.isfinite(vectors).all():
            raise SettingsError("The electric field is not finite.")
        responses = [self._respond(crystal, field, names) for crystal, field in zip(crystals, vectors, strict=True)]
        return responses[0] if single else responses

    def _respond(self, structure: StructureLike, field: FloatArray, names: tuple[str, ...]) -> Response:
        atoms = as_atoms(structure)
        if len(atoms) and atoms.numbers.max() > LAST_ELEMENT:
            raise UnknownElementError(
                f"{atoms.get_chemical_formula()} holds elements beyond {_elements()[0][-1]}, the toy model's last."
            )
        check_structure(atoms)
        if self._info.dtype == "float32":
            atoms.set_cell(self._round(atoms.cell[:]))
            atoms.positions = self._round(atoms.positions)
            field = self._round(field)
        terms = _Terms(atoms, field, self.parameters)
        values: dict[str, Any] = {name: getattr(terms, name)() for name in names}
        if self._info.dtype == "float32":
            values = {name: self._round(value) for name, value in values.items()}
        if "energy" in values:
            values["energy"] = float(values["energy"])
        return Response(field=np.array(field), **values)

    @staticmethod
    def _round(values: Any) -> FloatArray:
        return np.asarray(values, dtype=np.float32).astype(np.float64)


class _Terms:
    """The sums over pairs of one crystal at one field."""

    def __init__(self, atoms: Atoms, field: FloatArray, parameters: ToyParameters) -> None:
        from matscipy.neighbours import neighbour_list

        p = parameters
        _, radii, chi = _elements()
        self.n, self.volume, self.field = len(atoms), atoms.get_volume(), field
        i, j, r, d = neighbour_list("ijdD", atoms, p.cutoff)
        self.i, self.j, self.d = i, j, d
        radius_i, radius_j = radii[atoms.numbers[i]], radii[atoms.numbers[j]]
        origin, delta = radius_i + radius_j, chi[atoms.numbers[i]] - chi[atoms.numbers[j]]
        cut = switch(r, p.cutoff)
        x = exponential(r, p.stiffness, origin)
        well = Radial((x * x).value - 2 * x.value, (x * x).first - 2 * x.first, (x * x).second - 2 * x.second)
        self.phi = (well * cut).scaled(p.depth + p.ionic_depth * np.abs(delta))
        reach = np.minimum(p.charge_reach * origin, p.cutoff)
        bond = plateau(r, reach)
        self.w = bond.scaled(p.charge * delta)
        self.crowding = bond.scaled(p.environment * np.abs(delta))
        inverse_square = Radial(r**-2.0, -2 * r**-3.0, 6 * r**-4.0)
        sphere = 4 * np.pi * EPSILON_VACUUM
        self.g = (inverse_square * cut).scaled(p.anisotropy * sphere * (radius_i * radius_j) ** 1.5)
        self.spheres = sphere * float((radii[atoms.numbers] ** 3).sum())
        self.unit, self.r = d / r[:, None], r
        # μ = Σ_atoms (½ + γ s_i) v_i with v_i = Σ_neighbors c w d
        moments = np.zeros((self.n, 3))
        np.add.at(moments, i, self.w.value[:, None] * d)
        factors = np.full(self.n, 0.5)
        np.add.at(factors, i, self.crowding.value)
        self.dipole = factors @ moments
        self.factor, self.moment = factors[i], moments[i]
        pairs = 0.5 * np.einsum("e,ei,ej->ij", self.g.value, d, d)
        self.total_polarizability = self.spheres * np.eye(3) + pairs

    # The neighbor list holds every pair twice, as e = (i, j, d) and (j, i, −d) with d = r_j − r_i.  All sums run over
    # the whole list: energies of pairs enter with one half.

    def energy(self) -> float:
        field = self.field
        induced = 0.5 * field @ self.total_polarizability @ field
        return float(0.5 * self.phi.value.sum() - field @ self.dipole - induced)

    def polarization(self) -> FloatArray:
        return (self.dipole + self.total_polarizability @ self.field) / self.volume

    def polarizability(self) -> FloatArray:
        return self.total_polarizability / self.volume

    def moment_gradient(self) -> FloatArray:
        """∂(μ + A 𝓔)_a/∂d_b of each entry of the list, (e, 3, 3)."""
        d, unit, field = self.d, self.unit, self.field
        along = d @ field
        stretch = np.einsum("ea,eb->eab", d, unit)
        permanent = self.w.first[:, None, None] * stretch + self.w.value[:, None, None] * np.eye(3)
        crowding = self.crowding.first[:, None, None] * np.einsum("ea,eb->eab", self.moment, unit)
        induced = (
            (self.g.first * along)[:, None, None] * stretch
            + (self.g.value * along)[:, None, None] * np.eye(3)
            + self.g.value[:, None, None] * np.einsum("ea,b->eab", d, field)
        )
        return self.factor[:, None, None] * permanent + crowding + 0.5 * induced

    def gradient(self) -> FloatArray:
        """∂F/∂d of each entry of the list, (e, 3)."""
        along = self.d @ self.field
        springs = 0.5 * self.phi.first[:, None] * self.unit
        # ½ 𝓔·A·𝓔 has half the gradient of 𝓔·(A 𝓔)
        half = (
            0.25 * (self.g.first * along**2)[:, None] * self.unit + 0.5 * (self.g.value * along)[:, None] * self.field
        )
        return springs - np.einsum("a,eab->eb", self.field, self.moment_gradient()) + half

    def forces(self) -> FloatArray:
        result = np.zeros((self.n, 3))
        slopes = self.gradient()
        np.add.at(result, self.i, slopes)
        np.add.at(result, self.j, -slopes)
        return result

    def stress(self) -> FloatArray:
        virial = np.einsum("ea,eb->ab", self.gradient(), self.d) / self.volume
        return 0.5 * (virial + virial.T)

    def born_effective_charges(self) -> FloatArray:
        result = np.zeros((self.n, 3, 3))
        slopes = self.moment_gradient()
        np.add.at(result, self.j, slopes)
        np.add.at(result, self.i, -slopes)
        return result

    def hessian(self) -> FloatArray:
        """∂²F/∂u∂u at the field: blocks of entries, and products of the two sums over the neighbors of an atom."""
        unit, field = self.unit, self.field
        along = self.d @ field
        mixed = np.einsum("ea,b->eab", unit, field)
        mixed = mixed + mixed.transpose(0, 2, 1)
        blocks = 0.5 * self._radial_hessian(self.phi)
        blocks -= 0.25 * along[:, None, None] ** 2 * self._radial_hessian(self.g)
        blocks -= 0.5 * (self.g.first * along)[:, None, None] * mixed
        blocks -= 0.5 * self.g.value[:, None, None] * np.outer(field, field)
        bond = along[:, None, None] * self._radial_hessian(self.w) + self.w.first[:, None, None] * mixed
        blocks -= self.factor[:, None, None] * bond
        blocks -= (self.moment @ field)[:, None, None] * self._radial_hessian(self.crowding)

        total = np.zeros((self.n, self.n, 3, 3))
        for atom, other, sign in ((self.i, self.i, 1), (self.j, self.j, 1), (self.i, self.j, -1), (self.j, self.i, -1)):
            np.add.at(total, (atom, other), sign * blocks)
        crowding, moment = np.zeros((2, self.n, self.n, 3))  # gradients of s_i and of 𝓔·v_i
        slope_crowding = self.crowding.first[:, None] * unit
        slope_moment = (self.w.first * along)[:, None] * unit + self.w.value[:, None] * field
        for target, slope in ((crowding, slope_crowding), (moment, slope_moment)):
            np.add.at(target, (self.i, self.j), slope)
            np.add.at(target, (self.i, self.i), -slope)
        crowding, moment = crowding.reshape(self.n, -1), moment.reshape(self.n, -1)
        hessian = total.transpose(0, 2, 1, 3).reshape(3 * self.n, 3 * self.n)
        return hessian - crowding.T @ moment - moment.T @ crowding

    def _radial_hessian(self, function: Radial) -> FloatArray:
        """∂²/∂d∂d of a function of r = |d|, (e, 3, 3)."""
        outer = np.einsum("ea,eb->eab", self.unit, self.unit)
        transverse = np.eye(3) - outer
        return function.second[:, None, None] * outer + (function.first / self.r)[:, None, None] * transverse


def load(name: str, *, dtype: str, device: str, head: str | None = None) -> ToyModel | None:
    """Return the toy model if asked for "toy", else None; it computes on the CPU whatever the device.

    Raises:
        SettingsError: If a head is asked for that it does not have.
    """
    if name != "toy":
        return None
    model = ToyModel(dtype=dtype)
    if head is not None and head not in model.info.heads:
        raise SettingsError(f"The toy model has no head {head!r}.", suggestion(head, model.info.heads))
    return model
