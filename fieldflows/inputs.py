"""Reading crystals from files, one by one, so that a broken one is reported and the others go on.

Nothing that a file holds is executed: JSON is read as plain JSON, and no pickle-based format is accepted.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldflows.errors import InputError, StructureError
from fieldflows.schemas.failure import FailureDocument
from fieldflows.structures import as_atoms, as_structure, check_structure

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

MAXIMUM_STRETCH = 1.5
"""Largest accepted distance of the closest pair of atoms, in units of the sum of their covalent radii."""

_NOBLE_GASES = {"He", "Ne", "Ar", "Kr", "Xe", "Rn"}
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_ID_KEYS = ("material_id", "mp_id", "mpid", "mbid")
_GAP_KEYS = ("band_gap", "bandgap")


@dataclass(frozen=True)
class InputStructure:
    """A crystal as it came in.

    Attributes:
        structure: The crystal, checked: ordered, periodic, finite, atoms apart.
        source: Path of the file, as given.
        index: Position in the file, from 0.
        material_id: Identifier that the file gives, if any.
        band_gap: Band gap in eV that the file gives, if any.
        n_in_file: Number of structures that the file holds.
    """

    structure: Structure
    source: str
    index: int = 0
    material_id: str | None = None
    band_gap: float | None = None
    n_in_file: int = 1

    @property
    def label(self) -> str:
        """The file, and which structure of it if it holds several."""
        return self.source if self.n_in_file == 1 else f"{self.source}#{self.index}"


@dataclass(frozen=True)
class _Raw:
    """One entry of a file: how to make a structure of it, and what the file says about it."""

    make: Callable[[], Any]
    facts: Mapping[str, Any]


def read_structures(
    paths: Iterable[str | Path], progress: Callable[[int], None] | None = None
) -> tuple[list[InputStructure], list[FailureDocument]]:
    """Return the crystals of all files, and a record of each that could not be read.

    Known: CIF (also several in one file), POSCAR and CONTCAR, extended XYZ with many frames, JSON and JSON lines of
    pymatgen structures (alone, in a list, in a mapping by identifier, or under ``structure`` in documents with
    ``material_id`` and ``band_gap``), XSF, Quantum ESPRESSO input (``.pwi``); each also compressed with
    gzip, bzip2 or xz.

    Args:
        paths: The files.
        progress: Called with the number of files read so far, after each.

    Example:
        >>> structures, failures = read_structures(["no-such-file.cif"])
        >>> failures[0].message
        'no-such-file.cif does not exist.'
    """
    structures: list[InputStructure] = []
    failures: list[FailureDocument] = []
    for number, path in enumerate(paths, start=1):
        source = str(path)
        count, first = 0, len(structures)
        try:
            for count, raw in enumerate(_entries(Path(path).expanduser(), source), start=1):
                _read_one(raw, source, count - 1, structures, failures)
            if count == 0:
                raise InputError(f"{source} holds no structure.", "Check that the file is complete.")
        except Exception as error:  # one bad file among many must not stop the others
            failures.append(_failure(error, source, count))
        structures[first:] = [replace(item, n_in_file=max(count, 1)) for item in structures[first:]]
        if progress is not None:
            progress(number)
    return structures, failures


def _read_one(
    raw: _Raw, source: str, index: int, structures: list[InputStructure], failures: list[FailureDocument]
) -> None:
    formula = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            crystal = raw.make()
            formula = _formula(crystal)
            _refuse_dummies(crystal)
            check_structure(crystal)
            # Back and forth drops oxidation states, magnetic moments and other site properties.
            atoms = as_atoms(crystal)
            _check_lengths(atoms, source)
            structure = as_structure(atoms)
        structures.append(
            InputStructure(structure, source, index, _material_id(raw.facts), _band_gap(raw.facts, source))
        )
    except Exception as error:  # one bad frame among many must not stop the others
        failures.append(_failure(error, source, index, formula, _material_id(raw.facts)))


def _failure(
    error: Exception, source: str, index: int, formula: str | None = None, material_id: str | None = None
) -> FailureDocument:
    if not isinstance(error, InputError):
        text = " ".join(str(error).split())[:200]
        text = text if len(text) > 8 else f"{type(error).__name__} {text}".strip()
        error = InputError(f"{source} cannot be read (entry {index}): {text}.", "Check that the file is complete.")
    return FailureDocument.from_error(
        error, "read", source=source, index=index, formula=formula, material_id=material_id, task="dielectric"
    )


def _entries(path: Path, source: str) -> Iterator[_Raw]:
    text = _text(path, source)
    name = path.name.lower()
    suffix = Path(name).suffix
    if suffix in _OPENERS:
        name = name.removesuffix(suffix)
        suffix = Path(name).suffix
    if suffix == ".cif":
        return _cif(text)
    if suffix in (".vasp", ".poscar") or name.startswith(("poscar", "contcar")):
        return _poscar(text, source)
    if suffix in (".xyz", ".extxyz"):
        return _extxyz(text, source)
    if suffix == ".json":
        return _json(_parse_json(text, source), source)
    if suffix == ".jsonl":
        return (raw for line in text.splitlines() if line.strip() for raw in _json(_parse_json(line, source), source))
    for ending, form in ((".xsf", "xsf"), (".pwi", "espresso-in")):
        if name.endswith(ending):
            return _ase(text, form)
    raise InputError(
        f"{source} has no ending that tells its format.",
        "Known: .cif, POSCAR, .vasp, .extxyz, .xyz, .json, .jsonl, .xsf, .pwi; also with .gz, .bz2, .xz.",
    )


def _text(path: Path, source: str) -> str:
    if path.is_dir():
        raise InputError(f"{source} is a folder.", f"Name its files, for example {source.rstrip('/')}/*.cif.")
    if not path.exists():
        raise InputError(f"{source} does not exist.")
    opener = _OPENERS.get(path.suffix.lower(), open)
    try:
        with opener(path, "rt", encoding="utf-8") as handle:
            text = str(handle.read())
    except UnicodeDecodeError:
        raise InputError(f"{source} is not a text file.", "Structures are read from text formats only.") from None
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise InputError(f"{source} cannot be read: {error}.", "Check that the file is complete.") from None
    if not text.strip():
        raise InputError(f"{source} is empty.")
    return text.removeprefix("\ufeff")


def _cif(text: str) -> Iterator[_Raw]:
    from pymatgen.io.cif import CifFile, CifParser

    def make(block: str) -> Structure:
        # Occupancies a little above one are rounding in the file; anything below one is left for the check.
        found = CifParser.from_str(block, occupancy_tolerance=1.001).parse_structures(primitive=False, on_error="raise")
        return found[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        blocks = CifFile.from_str(text).data
    for name, block in blocks.items():
        if any(key.startswith("_atom_site_") for key in block.data):
            identifier = name if name.lower().startswith(("mp-", "mvc-")) else None
            yield _Raw(partial(make, str(block)), {"material_id": identifier})


def _poscar(text: str, source: str) -> Iterator[_Raw]:
    from pymatgen.io.vasp import Poscar

    def make() -> Structure:
        lines = text.splitlines()
        if len(lines) > 5 and lines[5].split()[:1] and lines[5].split()[0].isdigit():
            raise StructureError(
                f"{source} names no elements (VASP 4 format).", "Add a line with the symbols before the line of counts."
            )
        return Poscar.from_str(text).structure

    yield _Raw(make, {})


def _extxyz(text: str, source: str) -> Iterator[_Raw]:
    from ase.io import read

    lines = text.splitlines()
    start = 0
    while start < len(lines):
        if not lines[start].strip():
            start += 1
            continue
        try:
            count = int(lines[start])
        except ValueError:
            raise InputError(
                f"{source}, line {start + 1}: the number of atoms was expected, found {lines[start][:40]!r}.",
                "The rest of the file was not read.",
            ) from None
        block = lines[start : start + count + 2]
        facts: dict[str, Any] = {}
        if len(block) < count + 2:
            raise InputError(
                f"{source}, line {start + 1}: {count} atoms were announced, {max(len(block) - 2, 0)} follow.",
                "The file is truncated.",
            )

        def make(block: list[str] = block, facts: dict[str, Any] = facts) -> Atoms:
            atoms = read(io.StringIO("\n".join(block) + "\n"), index=0, format="extxyz")
            facts.update(atoms.info)
            return atoms

        yield _Raw(make, facts)
        start += count + 2


def _ase(text: str, form: str) -> Iterator[_Raw]:
    from ase.io import read

    found = read(io.StringIO(text), index=":", format=form)
    for atoms in found if isinstance(found, list) else [found]:
        yield _Raw(atoms.copy, {})


def _parse_json(text: str, source: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{source} is no valid JSON: {error}.", "Check that the file is complete.") from None


def _json(content: Any, source: str, identifier: str | None = None) -> Iterator[_Raw]:
    from fieldflows.schemas.common import structure_from_dict

    def make(value: Any) -> Structure:
        try:
            return structure_from_dict(value)
        except ValueError as error:
            raise StructureError(f"{source}: {error}.", "Write it with pymatgen's Structure.to(fmt='json').") from None

    if isinstance(content, list):
        for item in content:
            yield from _json(item, source)
    elif isinstance(content, Mapping) and "sites" in content and "lattice" in content:
        facts = {"material_id": identifier, **_plain(content.get("properties"))}
        yield _Raw(lambda: make(content), facts)
    elif isinstance(content, Mapping) and "structure" in content:
        facts = {"material_id": identifier, **_plain(content)}
        yield _Raw(lambda: make(content["structure"]), facts)
    elif isinstance(content, Mapping) and content and all(isinstance(item, Mapping) for item in content.values()):
        for name, item in content.items():
            yield from _json(item, source, name)
    else:
        yield _Raw(lambda: make(content), {})


def _plain(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {}
    return {key: item for key, item in value.items() if isinstance(item, str | int | float) and item != ""}


def _material_id(facts: Mapping[str, Any]) -> str | None:
    for key in _ID_KEYS:
        if facts.get(key) is not None:
            return str(facts[key])
    return None


def _band_gap(facts: Mapping[str, Any], source: str) -> float | None:
    for key in _GAP_KEYS:
        if facts.get(key) is None:
            continue
        try:
            gap = float(facts[key])
        except (TypeError, ValueError):
            gap = -1.0
        if not 0 <= gap < 100:
            raise InputError(f"{source} gives a band gap of {facts[key]!r}; a number of eV is expected.")
        return gap
    return None


def _formula(crystal: Any) -> str | None:
    from ase import Atoms

    if isinstance(crystal, Atoms):
        return crystal.get_chemical_formula(empirical=True) or None
    return str(crystal.composition.reduced_formula)


def _check_lengths(atoms: Atoms, source: str) -> None:
    """Raise if no two atoms are near enough to interact: then lengths are most likely in bohr, not in Å.

    In 200 real crystals the closest pair is 0.7 to 1.25 times the sum of its covalent radii apart; lengths in bohr read
    as Å are 1.89 times too large.  Solids of noble gases really are that wide.
    """
    from ase.data import covalent_radii
    from ase.neighborlist import neighbor_list

    if set(atoms.get_chemical_symbols()) <= _NOBLE_GASES:
        return
    radii = covalent_radii[atoms.numbers]
    i, j, distance = neighbor_list("ijd", atoms, 2.0 * MAXIMUM_STRETCH * float(radii.max()))
    ratios = distance / (radii[i] + radii[j])
    if len(ratios) and ratios.min() <= MAXIMUM_STRETCH:
        return
    found = f"{distance[ratios.argmin()]:.2f} Å apart" if len(ratios) else "too far apart to be found"
    raise StructureError(
        f"{source}: the closest atoms of {atoms.get_chemical_formula(empirical=True)} are {found}, more than "
        f"{MAXIMUM_STRETCH:g} times the sum of their covalent radii.",
        "Check the unit of lengths: Å is expected, not bohr.",
    )


def _refuse_dummies(crystal: Any) -> None:
    from pymatgen.core import DummySpecies, Structure

    if isinstance(crystal, Structure):
        dummies = sorted({str(s) for s in crystal.composition if isinstance(s, DummySpecies)})
        if dummies:
            raise StructureError(f"{', '.join(dummies)} is no chemical element.", "Remove or replace these sites.")
