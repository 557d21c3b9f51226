"""The crystals of the demonstration, with the published values and where each comes from."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from pymatgen.core import Structure

_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")

Component = Literal["iso", "xx", "yy", "zz"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PublishedOptics(_Record):
    """Published refraction: principal permittivities, or principal refractive indices at one wavelength."""

    epsilon: tuple[float, float, float] | None = Field(
        None, description="Principal values of ε∞, c axis last.", json_schema_extra={"unit": "1"}
    )
    n: tuple[float, float, float] | None = Field(
        None, description="Principal refractive indices, c axis last.", json_schema_extra={"unit": "1"}
    )
    wavelength: float | None = Field(None, description="Wavelength of `n`.", json_schema_extra={"unit": "nm"})
    kind: str = Field(description="'measured', or the method of the calculation.")
    source: str = Field(description="Key of the source.")

    @model_validator(mode="after")
    def _one_of_both(self) -> PublishedOptics:
        if (self.epsilon is None) == (self.n is None):
            raise ValueError("give either epsilon or n")
        return self

    @property
    def principal(self) -> tuple[float, float, float]:
        """The principal permittivities, ascending; n² where indices were published."""
        values = self.epsilon or tuple(index**2 for index in self.n or ())
        low, middle, high = sorted(values)
        return low, middle, high

    @property
    def refractive_index(self) -> float:
        """√(tr ε∞/3), as in the documents."""
        return float(np.sqrt(np.mean(self.principal)))


class PublishedCharge(_Record):
    """One published component of a Born effective charge."""

    element: str = Field(description="Chemical symbol.")
    component: Component = Field(description="'iso' for tr Z*/3, or a Cartesian component (c along z).")
    value: float = Field(description="The charge.", json_schema_extra={"unit": "e"})
    kind: str = Field(description="'measured', or the method of the calculation.")
    source: str = Field(description="Key of the source.")
    site: tuple[float, float, float] | None = Field(
        None, description="Fractional coordinates of the atom meant; any atom of the element if not given."
    )

    def pick(self, tensor: NDArray[np.float64]) -> float:
        """Return the component of a (3, 3) tensor."""
        if self.component == "iso":
            return float(np.trace(tensor) / 3)
        axis = "xyz".index(self.component[0])
        return float(tensor[axis, axis])


class DemoCrystal(_Record):
    """One crystal: structure as refined, published optics and Born charges."""

    name: str = Field(description="Short name, unique.")
    prototype: str = Field(description="Structure type.")
    spacegroup: int = Field(ge=1, le=230, description="International number.")
    setting: Literal[1, 2] = Field(1, description="Origin choice.")
    cell: dict[Literal["a", "b", "c", "alpha", "beta", "gamma"], float] = Field(
        description="Conventional cell, Å and degrees; what symmetry fixes may be left out."
    )
    sites: tuple[tuple[str, float, float, float], ...] = Field(description="Element and fractional coordinates.")
    structure: str = Field(description="Key of the source of the structure.")
    optics: PublishedOptics = Field(description="Published refraction.")
    charges: tuple[PublishedCharge, ...] = Field((), description="Published Born charges.")

    @property
    def label(self) -> str:
        """Name with digits as subscripts, and the polymorph where there are several."""
        formula, _, polymorph = self.name.partition("-")
        return f"{formula.translate(_SUBSCRIPTS)} {polymorph}".strip()

    def cell_parameters(self) -> tuple[float, float, float, float, float, float]:
        """Return a, b, c in Å and the angles in degrees."""
        a = self.cell["a"]
        hexagonal = 143 <= self.spacegroup <= 194
        return (
            a,
            self.cell.get("b", a),
            self.cell.get("c", a),
            self.cell.get("alpha", 90.0),
            self.cell.get("beta", 90.0),
            self.cell.get("gamma", 120.0 if hexagonal else 90.0),
        )

    def primitive(self) -> Structure:
        """Return the primitive cell, in the Cartesian frame of the conventional one (a along x, c along z)."""
        from ase.spacegroup import crystal

        from fieldflows.structures import as_structure

        atoms = crystal(
            [site[0] for site in self.sites],
            basis=[site[1:] for site in self.sites],
            spacegroup=self.spacegroup,
            setting=self.setting,
            cellpar=self.cell_parameters(),
            primitive_cell=True,
        )
        return as_structure(atoms)

    def atom(self, structure: Structure, charge: PublishedCharge) -> int:
        """Return the index of the atom that a published charge is about."""
        candidates = [i for i, site in enumerate(structure) if site.specie.symbol == charge.element]
        if charge.site is None:
            return candidates[0]
        from pymatgen.core import Lattice

        where = Lattice.from_parameters(*self.cell_parameters()).get_cartesian_coords(charge.site)
        target = structure.lattice.get_fractional_coords(where)
        return min(candidates, key=lambda i: structure[i].distance_and_image_from_frac_coords(target)[0])


@cache
def _read() -> tuple[tuple[DemoCrystal, ...], dict[str, str]]:
    text = files("fieldflows").joinpath("data", "demo", "crystals.yaml").read_text(encoding="utf-8")
    data = yaml.safe_load(text)
    return tuple(DemoCrystal.model_validate(entry) for entry in data["crystals"]), data["sources"]


def load_crystals() -> tuple[DemoCrystal, ...]:
    """Return the crystals of the demonstration.

    Example:
        >>> [crystal.optics.kind for crystal in load_crystals() if crystal.name == "MgO"]
        ['measured']
    """
    return _read()[0]


def load_sources() -> dict[str, str]:
    """Return the bibliography: the full reference of each key."""
    return dict(_read()[1])
