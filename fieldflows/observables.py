"""The glossary of observables: one name, symbol, shape, unit and index order each.

Names, signs and index orders are those of ``docs/concepts/conventions.md``.  Everything else in the package
(responses, labels, documents, metrics) takes names and units from here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fieldflows.errors import SettingsError, suggestion


@dataclass(frozen=True)
class Observable:
    """One quantity that a model predicts or a dataset labels.

    Attributes:
        name: Public name, used as attribute, key and label everywhere.
        symbol: Symbol in formulas.
        shape: Shape of the array; ``n`` stands for the number of atoms.
        unit: Unit, in plain text.
        definition: Formula in terms of the electric enthalpy F(R, 𝓔).
        per_atom: Whether the first axis runs over atoms.
        field_order: How many derivatives by the electric field are taken.
        displacement_order: How many derivatives by atomic displacements (or strain) are taken.
    """

    name: str
    symbol: str
    shape: tuple[int | str, ...]
    unit: str
    definition: str
    per_atom: bool = False
    field_order: int = 0
    displacement_order: int = 0

    @property
    def n_components(self) -> int:
        """Number of components per atom (``per_atom``) or per structure; 0 for the Hessian, which has no fixed size."""
        size = 1
        for extent in self.shape:
            if isinstance(extent, int):
                size *= extent
            elif not self.per_atom:
                return 0
        return size


OBSERVABLES: dict[str, Observable] = {
    item.name: item
    for item in (
        Observable("energy", "F", (), "eV", "F(R, 𝓔), atomic baselines included"),
        Observable("forces", "f", ("n", 3), "eV/Å", "−∂F/∂u", per_atom=True, displacement_order=1),
        Observable(
            "stress", "σ", (3, 3), "eV/Å³", "(1/Ω) ∂F/∂strain at fixed Cartesian 𝓔 (ASE sign)", displacement_order=1
        ),
        Observable("polarization", "P", (3,), "e/Å²", "−(1/Ω) ∂F/∂𝓔", field_order=1),
        Observable(
            "born_effective_charges",
            "Z*",
            ("n", 3, 3),
            "e",
            "Z*[κ, i, j] = Ω ∂P_i/∂u_κj = ∂f_κj/∂𝓔_i (first index polarization, second displacement)",
            per_atom=True,
            field_order=1,
            displacement_order=1,
        ),
        Observable("polarizability", "α", (3, 3), "e/(V·Å)", "∂P_i/∂𝓔_j, per volume", field_order=2),
        Observable("hessian", "H", ("3n", "3n"), "eV/Å²", "∂²F/∂u∂u at the Γ point", displacement_order=2),
    )
}
"""All observables by name."""

ENERGY_SURFACE_LABELS: frozenset[str] = frozenset({"energy", "forces"})
"""Labels that a model must have been trained on before forces, stresses or Hessians mean anything."""

ENERGY_SURFACE_OBSERVABLES: frozenset[str] = frozenset({"energy", "forces", "stress", "hessian"})
"""Observables that are derivatives of the zero-field energy surface."""

ELECTRONIC_OBSERVABLES: tuple[str, ...] = ("polarization", "born_effective_charges", "polarizability")
"""Observables that need no energy surface."""

FIRST_ORDER_OBSERVABLES: tuple[str, ...] = ("energy", "forces", "stress", "polarization")
"""The electric enthalpy and its first derivatives, which one backward pass gives together."""


def get_observable(name: str) -> Observable:
    """Return the observable of that name.

    Raises:
        SettingsError: If no observable has that name; the message suggests the nearest.

    Example:
        >>> get_observable("polarization").unit
        'e/Å²'
    """
    try:
        return OBSERVABLES[name]
    except KeyError:
        raise SettingsError(f"There is no observable {name!r}.", suggestion(name, OBSERVABLES)) from None


def check_observables(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names as a tuple without repetition after checking each of them.

    Raises:
        SettingsError: If a name is unknown or none is given.
    """
    unique = tuple(dict.fromkeys(get_observable(name).name for name in names))
    if not unique:
        raise SettingsError("No observable was asked for.", suggestion("", OBSERVABLES))
    return unique
