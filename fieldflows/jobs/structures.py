"""Crystals by name: a file, one of the structures of a file, or an identifier of the Materials Project."""

from __future__ import annotations

from pathlib import Path

from fieldflows.errors import InputError
from fieldflows.inputs import InputStructure, read_structures
from fieldflows.structures import as_structure


def named_structure(text: str) -> InputStructure:
    """Return the crystal that a text names.

    Args:
        text: A file; ``file#2`` for its third structure; or an identifier, such as ``mp-2998``.

    Raises:
        InputError: If the file holds no such structure, or several and none is named.
        ServiceError: If the Materials Project cannot be asked.
    """
    from fieldflows.datasets.mp_structures import fetch_structure, is_identifier

    if is_identifier(text) and not Path(text).exists():
        return InputStructure(as_structure(fetch_structure(text)), text, material_id=text)
    name, _, number = text.rpartition("#") if "#" in text and not Path(text).exists() else (text, "", "")
    structures, failures = read_structures([name])
    wanted = [item for item in structures if not number or str(item.index) == number]
    failed = [item for item in failures if not number or str(item.index) == number]
    if failed and not wanted:
        raise InputError(failed[0].message)
    if len(wanted) != 1:
        raise InputError(
            f"{name} holds {len(structures)} structures" + (f", none of number {number}." if number else "."),
            f"Name one of them: {name}#0 is the first.",
        )
    return wanted[0]
