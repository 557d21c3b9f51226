"""Files of phonopy read with phonopy: cells, Born charges, ε∞ and forces of displaced supercells, as plain arrays.

phonopy's own reader of YAML builds whatever objects a file names; here the file is read as plain data first, and
phonopy is given those.  It contracts its ``born_effective_charge`` with q by the first index (the macroscopic field),
the second is that of the displacement, as in VASP: Z[i, j] = Ω ∂P_i/∂u_j, no conversion needed.
"""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml
from ase.units import Bohr, Hartree, Rydberg
from numpy.typing import NDArray

from fieldflows.datasets.extxyz import open_text
from fieldflows.errors import DataError, SettingsError

FloatArray = NDArray[np.float64]

PARAMETER_NAMES = ("phonopy_params.yaml", "phonopy.yaml", "phonon.yaml", "phonopy_disp.yaml")
"""Names of phonopy's YAML files, the fullest first; each may be compressed."""

LENGTHS: dict[str, float] = {"angstrom": 1.0, "au": Bohr}
"""Units of length that phonopy writes, in Å."""
FORCES: dict[str, float] = {
    "eV/angstrom": 1.0,
    "Ry/au": Rydberg / Bohr,
    "mRy/au": Rydberg / Bohr / 1000,
    "hartree/au": Hartree / Bohr,
}
"""Units of force that phonopy writes, in eV/Å."""

ARCHIVES = (".tar.lzma", ".tar.xz", ".tar.gz", ".tar.bz2", ".tar")
"""Endings of archives, such as PhononDB's ``mp-3731-20180417.tar.lzma``."""
MOST_BYTES = 2 * 1024**3
"""Largest file that is taken out of an archive."""

_SUFFIXES = ("", ".xz", ".gz", ".bz2")


@dataclass(frozen=True)
class PhonopyCell:
    """A crystal in a file of phonopy, with what belongs to it.

    Attributes:
        numbers: (n,) atomic numbers.
        cell: (3, 3) rows, Å.
        positions: (n, 3) Å.
        born_charges: (n, 3, 3) e, first index polarization, second displacement, or None.
        epsilon: (3, 3) ε∞, or None.
        forces: (n, 3) eV/Å, or None.
    """

    numbers: NDArray[np.int64]
    cell: FloatArray
    positions: FloatArray
    born_charges: FloatArray | None = None
    epsilon: FloatArray | None = None
    forces: FloatArray | None = None


@dataclass(frozen=True)
class PhonopyFile:
    """What one file says.

    Attributes:
        primitive: The primitive cell with Born charges and ε∞.
        displaced: Supercells with one set of displacements each, and their forces.
        notes: What was decided while reading.
    """

    primitive: PhonopyCell
    displaced: list[PhonopyCell] = field(default_factory=list)
    notes: tuple[str, ...] = ()


def find_phonopy_files(path: Path) -> list[Path]:
    """Return the files to read: the file itself, or of every folder below a folder the fullest file of phonopy.

    Archives (:data:`ARCHIVES`) in a folder are files to read too; :func:`unpacked` opens them.

    Raises:
        DataError: If there is none.
    """
    if not path.is_dir():
        return [path]
    found = []
    for folder in sorted({item.parent for item in path.rglob("*.yaml*")}):
        names = [folder / (name + suffix) for name in PARAMETER_NAMES for suffix in _SUFFIXES]
        others = sorted(item for item in folder.glob("*phonopy_params*.yaml*") if item not in names)
        first = next((item for item in names if item.is_file()), None)
        found += [*([first] if first else []), *others]
    found += sorted(item for item in path.rglob("*.tar*") if item.name.endswith(ARCHIVES))
    if not found:
        raise DataError(
            f"{path} holds no file of phonopy; looked for {', '.join(PARAMETER_NAMES)}, *phonopy_params*.yaml and "
            f"archives ({', '.join(ARCHIVES)}) in it and the folders below it.",
            "Check the folder.",
        )
    return found


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Give a folder with the files of phonopy that an archive holds, for a while; any other file as it is.

    Nothing else is unpacked, and nothing outside that folder is written.

    Raises:
        DataError: If the archive cannot be read or holds no such file.
    """
    if not path.name.endswith(ARCHIVES):
        yield path
        return
    with TemporaryDirectory(prefix="fieldflows-") as name:
        folders: dict[str, Path] = {}
        try:
            with tarfile.open(path, "r:*") as archive:
                for member in archive:
                    inner = PurePosixPath(member.name)
                    known = inner.name in ("BORN", "FORCE_SETS") or inner.match("*.yaml*")
                    content = archive.extractfile(member) if known and member.size <= MOST_BYTES else None
                    if content is None:
                        continue
                    folder = folders.setdefault(str(inner.parent), Path(name) / str(len(folders)))
                    folder.mkdir(exist_ok=True)
                    (folder / inner.name).write_bytes(content.read())
        except (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error) as error:
            raise DataError(f"{path} cannot be unpacked: {error}.", "Fetch it again.") from error
        yield Path(name)


def read_phonopy_file(path: Path, displaced: bool = False) -> PhonopyFile:
    """Return what a file of phonopy says; ``BORN`` beside it is read if the file itself has no Born charges.

    Args:
        path: YAML, plain or compressed.
        displaced: Read displaced supercells and their forces too.

    Raises:
        DataError: If it cannot be read, has no cell, or its unit is unknown.
        SettingsError: If phonopy is not installed.
    """
    content = _plain_yaml(path)
    data = _interpreted(content, path)
    scale = _unit(content, "length", LENGTHS, path)
    notes = []
    primitive, nac = data.primitive, data.nac_params
    if primitive is None:
        primitive = _primitive_of(data, path)
        notes.append("primitive cell made by phonopy from the unit cell")
    if nac is None:
        nac = _beside(path, primitive)
        if nac is not None:
            notes.append("Born charges from BORN, symmetrized by phonopy")
    charges, epsilon = (None, None) if nac is None else (nac.get("born"), nac.get("dielectric"))
    if charges is not None and np.shape(charges) != (len(primitive), 3, 3):
        raise DataError(
            f"{path}: {len(charges)} Born charges for {len(primitive)} atoms of the primitive cell.",
            "Write the file again with phonopy.",
        )
    supercells = _displaced(data, content, scale, path) if displaced else []
    return PhonopyFile(_cell(primitive, scale, charges, epsilon), supercells, tuple(notes))


def _plain_yaml(path: Path) -> dict[str, Any]:
    try:
        with open_text(path) as handle:
            loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(handle.read())
        try:
            content = loader.get_single_data()
        finally:
            loader.dispose()
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.", "Check the path and the environment variables in it.") from None
    except (OSError, EOFError, ValueError, RecursionError, yaml.YAMLError) as error:
        text = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read as YAML: {text[:200]}.", "Check that the file is complete.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is no file of phonopy.", "Expected keys such as primitive_cell and nac.")
    return content


def _interpreted(content: dict[str, Any], path: Path) -> Any:
    try:
        from phonopy.interface.phonopy_yaml import load_phonopy_yaml
    except ImportError:
        raise SettingsError(
            f"{path} is read with phonopy, which is not installed.", "Install it: pip install 'fieldflows[phonons]'."
        ) from None
    try:
        return load_phonopy_yaml(content)
    except Exception as error:  # phonopy raises whatever a malformed part leads to
        raise DataError(
            f"phonopy cannot interpret {path}: {type(error).__name__}: {' '.join(str(error).split())[:200]}.",
            "Write the file again with phonopy.",
        ) from error


def _unit(content: dict[str, Any], kind: str, known: dict[str, float], path: Path) -> float:
    units = content.get("physical_unit")
    name = str(units.get(kind, "")) if isinstance(units, dict) else ""
    if not name:  # written before phonopy noted units: those of VASP
        return 1.0
    if name not in known:
        raise DataError(f"{path}: the unit of {kind} is {name!r}; known are {', '.join(known)}.")
    return known[name]


def _primitive_of(data: Any, path: Path) -> Any:
    if data.unitcell is None:
        raise DataError(f"{path} holds no crystal.", "Expected the keys primitive_cell or unit_cell.")
    from phonopy import Phonopy

    try:
        made = Phonopy(
            data.unitcell, supercell_matrix=np.eye(3, dtype=int), primitive_matrix=data.primitive_matrix, log_level=0
        )
    except Exception as error:  # phonopy raises whatever a malformed cell leads to
        raise DataError(f"phonopy finds no primitive cell in {path}: {' '.join(str(error).split())[:200]}.") from error
    return made.primitive


def _beside(path: Path, primitive: Any) -> dict[str, Any] | None:
    """Return Born charges and ε∞ of a ``BORN`` file in the same folder, or None."""
    file = path.with_name("BORN")
    if not file.is_file():
        return None
    from phonopy.file_IO import parse_BORN_from_strings

    try:
        return dict(parse_BORN_from_strings(file.read_text(encoding="utf-8"), primitive))
    except Exception as error:  # phonopy raises whatever a malformed line leads to
        raise DataError(f"phonopy cannot read {file}: {' '.join(str(error).split())[:200]}.") from error


def _cell(atoms: Any, scale: float, charges: Any = None, epsilon: Any = None, forces: Any = None) -> PhonopyCell:
    cell = np.array(atoms.cell, dtype=float) * scale

    def array(value: Any) -> FloatArray | None:
        return None if value is None else np.array(value, dtype=float)

    return PhonopyCell(
        np.array(atoms.numbers, dtype=np.int64),
        cell,
        np.array(atoms.scaled_positions, dtype=float) @ cell,
        array(charges),
        array(epsilon),
        array(forces),
    )


def _displaced(data: Any, content: dict[str, Any], scale: float, path: Path) -> list[PhonopyCell]:
    """Return the supercells whose forces are filled, in the file itself or in ``FORCE_SETS`` beside it."""
    if data.supercell is None:
        return []
    factor = _unit(content, "force", FORCES, path)
    base = _cell(data.supercell, scale)
    found = list(_displacements(data.dataset or {}, len(base.numbers)))
    beside = path.with_name("FORCE_SETS")
    if not found and beside.is_file():
        from phonopy.file_IO import parse_FORCE_SETS

        try:
            found = list(
                _displacements(parse_FORCE_SETS(filename=str(beside), natom=len(base.numbers)), len(base.numbers))
            )
        except Exception as error:  # phonopy raises whatever a malformed line leads to
            raise DataError(f"phonopy cannot read {beside}: {' '.join(str(error).split())[:200]}.") from error
    result = []
    for moved, forces in found:
        if forces.shape != base.positions.shape or moved.shape != base.positions.shape:
            raise DataError(f"{path}: {len(forces)} forces for {len(base.numbers)} atoms of the supercell.")
        positions = base.positions + moved * scale
        result.append(PhonopyCell(base.numbers, base.cell, positions, forces=forces * factor))
    return result


def _displacements(dataset: Any, n_atoms: int) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yield (displacements, forces), each (n, 3), of the supercells whose forces are filled."""
    for item in dataset.get("first_atoms", []):
        if "forces" in item:
            moved = np.zeros((n_atoms, 3))
            moved[int(item["number"])] = item["displacement"]
            yield moved, np.asarray(item["forces"], dtype=float)
    if "displacements" in dataset and "forces" in dataset:
        yield from zip(np.asarray(dataset["displacements"]), np.asarray(dataset["forces"]), strict=True)
