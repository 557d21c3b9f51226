"""Anyone's extended XYZ: the user declares which key holds what, in which convention."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fieldflows.datasets.declared import DeclaredSource, LabelDeclaration
from fieldflows.datasets.extxyz import raw_from_atoms, read_extxyz
from fieldflows.datasets.source import SourceData

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["ExtxyzGeneric", "LabelDeclaration"]


class ExtxyzGeneric(DeclaredSource):
    """An extended XYZ file with declared conventions; nothing is guessed."""

    type: Literal["extxyz"] = "extxyz"

    def read(self, path: Path, base: Path | None = None) -> SourceData:
        """Return the labeled frames.

        Raises:
            DataError: If the file cannot be read, a declared key is missing, or a field is declared.
            ConventionError: If labels are implausible or contradict each other.
        """
        return self.convert(list(islice(read_extxyz(path), self.limit)))

    def from_atoms(self, frames: Sequence[Atoms]) -> SourceData:
        """Return the labeled frames of crystals read by ASE; keys that ASE moved into a calculator are found."""
        return self.convert([raw_from_atoms(atoms, index) for index, atoms in enumerate(frames)])
