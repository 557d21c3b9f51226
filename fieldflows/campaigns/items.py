"""Crystals of a campaign as plain records: small, in JSON, read without making any class that they name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldflows.errors import DataError

if TYPE_CHECKING:
    from ase import Atoms

    from fieldflows.inputs import InputStructure
    from fieldflows.structures import StructureLike


def pack_structure(structure: StructureLike) -> dict[str, Any]:
    """Return a crystal as lattice (Å, rows), atomic numbers and fractional coordinates."""
    from fieldflows.structures import as_atoms

    atoms = as_atoms(structure)
    return {
        "lattice": np.asarray(atoms.cell[:], dtype=float).tolist(),
        "numbers": atoms.numbers.tolist(),
        "abc": atoms.cell.scaled_positions(atoms.positions).tolist(),
    }


def unpack_structure(record: Mapping[str, Any]) -> Atoms:
    """Return the crystal of :func:`pack_structure`.

    Raises:
        DataError: If the record is damaged.
    """
    from ase import Atoms

    try:
        lattice = np.array(record["lattice"], dtype=float).reshape(3, 3)
        scaled = np.array(record["abc"], dtype=float).reshape(-1, 3)
        return Atoms(numbers=record["numbers"], positions=scaled @ lattice, cell=lattice, pbc=True)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"The record of a crystal is damaged ({type(error).__name__}: {error}).") from error


@dataclass
class Item:
    """One crystal of a campaign.

    Attributes:
        index: Position among the crystals of the campaign.
        record: The crystal (:func:`pack_structure`).
        material_id: Identifier of the material, if there is one.
        source: Where it came from.
        band_gap: Band gap in eV, if known.
        reference: What a database says (:class:`~fieldflows.schemas.dielectric.DielectricReference`, JSON).
        keys: Keys of the results by stage.
        cost: Predicted seconds of all stages.
        facts: What conditions may ask before anything is computed.
        rows: Results of stages that another job has finished, by stage.
    """

    index: int
    record: dict[str, Any]
    material_id: str | None = None
    source: str | None = None
    band_gap: float | None = None
    reference: dict[str, Any] | None = None
    keys: dict[str, str] = field(default_factory=dict)
    cost: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, index: int, given: InputStructure, reference: dict[str, Any] | None = None) -> Item:
        """Return the item of a crystal that was read."""
        item = cls(index, pack_structure(given.structure), given.material_id, given.label, given.band_gap, reference)
        item.facts = item.known()
        return item

    def learn(self, other: Item) -> None:
        """Take over what is known of an equal crystal and not of this one."""
        for name, value in other.known_to_the_user.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
                self.facts[name] = value

    def atoms(self) -> Atoms:
        """Return the crystal."""
        return unpack_structure(self.record)

    @property
    def known_to_the_user(self) -> dict[str, Any]:
        """Those of :data:`USER_FACTS` that are known."""
        return {name: getattr(self, name) for name in USER_FACTS if getattr(self, name) is not None}

    @property
    def label(self) -> str:
        """What to call it in messages."""
        return self.material_id or self.source or self.facts.get("formula_pretty") or f"crystal {self.index}"

    def known(self) -> dict[str, Any]:
        """Return the facts: formula, elements, size, identifiers, band gap, what the database says."""
        from pymatgen.core import Composition

        atoms = self.atoms()
        composition = Composition(atoms.get_chemical_formula())
        symbols = sorted({str(element) for element in composition})
        return {
            "material_id": self.material_id,
            "source": self.source,
            "formula_pretty": composition.reduced_formula,
            "chemsys": "-".join(symbols),
            "elements": symbols,
            "nelements": len(symbols),
            "nsites": len(atoms),
            "volume": float(atoms.get_volume()),
            "band_gap": self.band_gap,
            "reference": self.reference,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the item in JSON types."""
        return {
            "index": self.index,
            "record": self.record,
            "material_id": self.material_id,
            "source": self.source,
            "band_gap": self.band_gap,
            "reference": self.reference,
            "keys": self.keys,
            "cost": self.cost,
            "rows": self.rows,
            "facts": {name: value for name, value in self.facts.items() if name not in _REPEATED},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Item:
        """Return the item of :meth:`to_dict`."""
        item = cls(**dict(data))
        item.facts = {**item.facts, **{name: getattr(item, name) for name in _REPEATED}}
        return item


USER_FACTS = ("material_id", "band_gap", "reference")
"""What is known of a crystal that no model computes, and that results show."""

_REPEATED = ("material_id", "source", "band_gap", "reference")
