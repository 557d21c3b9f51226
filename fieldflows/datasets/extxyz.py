"""Extended XYZ in and out: a reader that leaves every key where the file has it, and a writer that loses no digit.

``ase.io.read`` moves ``energy``, ``forces``, ``stress``, ``polarization`` and others into ``atoms.calc.results`` and
turns a stress of nine components into six.  The reader here does not, and is several times faster;
:func:`raw_from_atoms` looks in all three places when frames come from ASE.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import NDArray

from fieldflows.errors import DataError

if TYPE_CHECKING:
    from ase import Atoms

_OPENERS: dict[str, Callable[..., IO[str]]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}

_PAIR = re.compile(
    r"""\s*(?P<key>[^\s="']+|"[^"]*"|'[^']*')            # key, quoted or not
        (?:\s*=\s*(?P<value>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\{[^}]*\}|\[(?:[^\[\]]|\[[^\]]*\])*\]|[^\s]+))?""",
    re.VERBOSE,
)
_NUMBERS = re.compile(r"[\s,\[\]]+")
_BOOLEANS = {"T": True, "True": True, "true": True, "F": False, "False": False, "false": False}


@dataclass
class RawFrame:
    """One frame as the file has it: no unit is changed and no key is moved.

    Attributes:
        numbers: (n,) atomic numbers.
        positions: (n, 3) in Å.
        cell: (3, 3) rows are lattice vectors in Å.
        pbc: (3,) periodic directions.
        info: Values of the comment line: str, bool, float or a flat array of floats.
        arrays: Values per atom: (n,) or (n, k).
        index: Position in the file, from 0.
    """

    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]
    info: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    index: int = 0

    def __len__(self) -> int:
        return len(self.numbers)

    def atoms(self) -> Atoms:
        """Return the bare crystal, without labels and without calculator."""
        from ase import Atoms

        return Atoms(numbers=self.numbers, positions=self.positions, cell=self.cell, pbc=self.pbc)


def open_text(path: str | Path) -> IO[str]:
    """Open a text file, decompressing ``.xz``, ``.gz`` and ``.bz2``."""
    path = Path(path)
    return _OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8")


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes as they lie on disk; of a folder, that of names and hashes of its files."""
    path = Path(path)
    if path.is_dir():
        files = sorted(item for item in path.rglob("*") if item.is_file())
        lines = (f"{file_sha256(item)}  {item.relative_to(path).as_posix()}\n" for item in files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_extxyz(path: str | Path) -> Iterator[RawFrame]:
    """Yield the frames of an extended XYZ file, plain or compressed.

    Raises:
        DataError: If the file is missing, empty, truncated or malformed; names the frame and the line.
    """
    path = Path(path)
    try:
        with open_text(path) as handle:
            yield from _frames(handle, path)
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.", "Check the path and the environment variables in it.") from None
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.", "The file may be truncated: fetch it again.") from error


def _frames(handle: IO[str], path: Path) -> Iterator[RawFrame]:
    index, line_number = 0, 0
    while True:
        head = handle.readline()
        line_number += 1
        if not head:
            break
        if not head.strip():
            continue
        where = f"frame {index} of {path} (line {line_number})"
        try:
            n = int(head)
        except ValueError:
            raise DataError(f"Expected a number of atoms at {where}, found {head.strip()[:40]!r}.") from None
        if n < 1:
            raise DataError(f"{where} announces {n} atoms.", "Remove the frame.")
        comment = handle.readline()
        rows = [handle.readline().split() for _ in range(n)]
        line_number += 1 + n
        if rows and not rows[-1]:
            raise DataError(f"The file ends inside {where}: {n} atoms were announced.", "Fetch the file again.")
        yield _parse(comment, rows, index, where)
        index += 1
    if index == 0:
        raise DataError(f"{path} holds no frames.", "Check that the file is complete.")


def _parse(comment: str, rows: list[list[str]], index: int, where: str) -> RawFrame:
    info = parse_comment(comment)
    cell = np.asarray(info.pop("Lattice", np.zeros(9)), dtype=float)
    if cell.size != 9:
        raise DataError(f"Lattice of {where} has {cell.size} numbers, expected 9.")
    pbc = info.pop("pbc", None)
    columns = _parse_properties(str(info.pop("Properties", "species:S:1:pos:R:3")), where)
    width = sum(count for _, _, count in columns)
    arrays: dict[str, NDArray[Any]] = {}
    try:
        table = np.array(rows, dtype=str).reshape(len(rows), width)
        start = 0
        for name, kind, count in columns:
            block = table[:, start : start + count]
            start += count
            if kind == "R":
                value: NDArray[Any] = block.astype(float)
            elif kind == "I":
                value = block.astype(np.int64)
            elif kind == "L":
                value = np.array([[_BOOLEANS[text] for text in row] for row in block], dtype=bool)
            else:
                value = block
            arrays[name] = value[:, 0] if count == 1 else value
    except (ValueError, KeyError) as error:
        raise DataError(f"The atoms of {where} do not match the announced columns: {error}.") from error
    try:
        species = arrays.pop("species") if "species" in arrays else arrays.pop("Z")
        positions = arrays.pop("pos")
        numbers = [atomic_numbers[item] if isinstance(item, str) else int(item) for item in species.tolist()]
    except KeyError as error:
        raise DataError(f"{where} has no column or element {error}.") from None
    flags = [True] * 3 if pbc is None and cell.any() else [False] * 3 if pbc is None else _pbc(pbc)
    return RawFrame(
        numbers=np.array(numbers, dtype=np.int64),
        positions=positions,
        cell=cell.reshape(3, 3),
        pbc=np.array(flags, dtype=bool),
        info=info,
        arrays=arrays,
        index=index,
    )


def _pbc(value: Any) -> list[bool]:
    if isinstance(value, bool):
        return [value] * 3
    return [_BOOLEANS.get(text, text == "1") for text in str(value).split()]


def _parse_properties(text: str, where: str) -> list[tuple[str, str, int]]:
    parts = text.split(":")
    if len(parts) % 3:
        raise DataError(f"Properties of {where} is malformed: {text[:80]!r}.")
    return [(parts[i], parts[i + 1], int(parts[i + 2])) for i in range(0, len(parts), 3)]


def parse_comment(comment: str) -> dict[str, Any]:
    """Return the key-value pairs of a comment line.

    Numbers become floats, several numbers (separated by blanks or commas, bracketed or not) a flat array of floats,
    T/F booleans; all else stays text.

    Example:
        >>> parse_comment('REF_electric_field="0.3, 0.3, 0.3" polar_mpid=mp-1')["polar_mpid"]
        'mp-1'
    """
    result: dict[str, Any] = {}
    for match in _PAIR.finditer(comment.strip()):
        key = match["key"].strip("\"'")
        value = match["value"]
        result[key] = True if value is None else _value(value)
    return result


def _value(text: str) -> Any:
    if text[0] in "\"'{[" and len(text) > 1:
        text = text[1:-1]
    text = text.strip()
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    words = [word for word in _NUMBERS.split(text) if word]
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return text
    if not numbers:
        return text
    return numbers[0] if len(numbers) == 1 else np.array(numbers)


def raw_from_atoms(atoms: Atoms, index: int = 0) -> RawFrame:
    """Return a frame read by ASE with the results of its calculator put back among the other keys.

    A stress is given as the six ASE Voigt components that ASE makes of it.
    """
    info = {
        key: np.asarray(value, dtype=float).ravel() if isinstance(value, (list, tuple, np.ndarray)) else value
        for key, value in atoms.info.items()
    }
    arrays = {key: value for key, value in atoms.arrays.items() if key not in ("numbers", "positions")}
    for key, value in (atoms.calc.results if atoms.calc is not None else {}).items():
        array = np.asarray(value)
        if array.ndim and array.shape[0] == len(atoms) and key in ("forces", "magmoms", "charges", "energies"):
            arrays.setdefault(key, array)
        else:
            info.setdefault(key, float(array) if array.ndim == 0 else array.astype(float).ravel())
    return RawFrame(
        numbers=atoms.numbers.astype(np.int64),
        positions=atoms.positions.copy(),
        cell=np.array(atoms.cell[:]),
        pbc=atoms.pbc.copy(),
        info=info,
        arrays=arrays,
        index=index,
    )


def write_extxyz(handle: IO[str], frames: Iterable[RawFrame]) -> None:
    """Write frames so that every float reads back as the same float.

    Values of ``info`` may be str, bool, int, float or arrays of floats; ``arrays`` hold floats.
    """
    for frame in frames:
        columns = ["species:S:1", "pos:R:3"]
        table = [frame.positions.tolist()]
        for key, array in frame.arrays.items():
            flat = np.asarray(array, dtype=float).reshape(len(frame), -1)
            columns.append(f"{key}:R:{flat.shape[1]}")
            table.append(flat.tolist())
        pairs = [
            f'Lattice="{_floats(frame.cell)}"',
            f"Properties={':'.join(columns)}",
            f'pbc="{" ".join("T" if flag else "F" for flag in frame.pbc)}"',
        ]
        pairs.extend(f"{key}={format_value(value)}" for key, value in frame.info.items())
        lines = [str(len(frame)), " ".join(pairs)]
        for i, number in enumerate(frame.numbers.tolist()):
            numbers = " ".join(repr(x) for block in table for x in block[i])
            lines.append(f"{chemical_symbols[number]} {numbers}")
        handle.write("\n".join(lines) + "\n")


def _floats(array: NDArray[np.float64]) -> str:
    return " ".join(repr(x) for x in np.asarray(array, dtype=float).ravel().tolist())


def format_value(value: Any) -> str:
    """Return a value of ``info`` as the comment line holds it; double quotes in a text become single ones."""
    if isinstance(value, (bool, np.bool_)):
        return "T" if value else "F"
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        return repr(float(value))
    if isinstance(value, str):
        return '"' + value.replace('"', "'") + '"'
    return f'"{_floats(np.asarray(value))}"'
