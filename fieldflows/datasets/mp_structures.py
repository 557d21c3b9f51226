"""Structures of the Materials Project by identifier, for paths between two of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fieldflows.datasets.materials_project import MaterialsProject
from fieldflows.datasets.mp_documents import FieldProblem, read_structure
from fieldflows.datasets.web import AnswerCache
from fieldflows.errors import StructureError, WrongAnswer

if TYPE_CHECKING:
    from ase import Atoms

_IDENTIFIER = re.compile(r"(?:mp|mvc)-\w+")


def is_identifier(text: str) -> bool:
    """Return whether a text looks like an identifier of the Materials Project.

    Example:
        >>> is_identifier("mp-5986"), is_identifier("BaTiO3.cif")
        (True, False)
    """
    return _IDENTIFIER.fullmatch(text) is not None


def fetch_structure(identifier: str, refresh: bool = False) -> Atoms:
    """Return the relaxed structure of a material; answers are kept on disk.

    Args:
        identifier: Such as "mp-5986".
        refresh: Ask again, even if the answer is kept.

    Raises:
        StructureError: If the Materials Project has no such material.
        ServiceError: If the service cannot be used, or the user has no key.
    """
    service = MaterialsProject(AnswerCache(refresh=refresh))
    documents = service.documents("summary", [identifier], lambda stage, done, total: None)
    if not documents:
        raise StructureError(f"The Materials Project has no material {identifier}.", "Check the identifier.")
    try:
        return read_structure(documents[0], 0).atoms()
    except FieldProblem as error:
        raise WrongAnswer(f"The summary of {identifier} cannot be used: {error}.", "Update fieldflows.") from None
