"""Bulk exports as JSON lines: one object per line, with a structure and labels in declared conventions."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase.data import atomic_numbers
from pydantic import Field

from fieldflows.datasets.declared import DeclaredSource
from fieldflows.datasets.extxyz import RawFrame
from fieldflows.datasets.labels import FIELD_KEYS
from fieldflows.datasets.source import SourceData
from fieldflows.errors import DataError
from fieldflows.schemas.dataset import Finding, FrameFindings

STRUCTURE_KEYS: tuple[str, ...] = ("structure", "atoms")
"""Keys under which the structure is looked for; else the line itself is taken for one."""

CONTAINERS: tuple[str, ...] = ("labels", "info", "arrays", "results", "properties", "data")
"""Objects inside a line whose keys are found without their prefix."""

CRYSTAL_KEYS: frozenset[str] = frozenset(
    {"lattice", "sites", "cell", "numbers", "symbols", "species", "positions", "scaled_positions", "pbc", "charge"}
)
"""Keys of a crystal that are no labels."""

UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)
"""What reading a line that holds no crystal may raise."""

_OPENERS: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}


class JsonLines(DeclaredSource):
    """One JSON object per line, plain or compressed: nothing but plain numbers and text is read.

    The structure is a dictionary of pymatgen (``lattice.matrix``, ``sites``) or arrays as ASE has them (``cell``,
    ``positions`` or ``scaled_positions``, ``numbers`` or ``symbols``, ``pbc``).  Labels are the other keys of the
    line, those inside :data:`CONTAINERS` under their bare names, those inside other objects with dots
    (``output.epsilon``), and the properties that all sites have.  A line that cannot be read is a reject; the frame
    number is the line number less one.
    """

    type: Literal["jsonl"] = "jsonl"
    structure: str = Field(
        default="", description="Key of the structure (dots lead inside); 'structure', 'atoms' or the line if empty."
    )

    def read(self, path: Path, base: Path | None = None) -> SourceData:
        """Return the labeled frames.

        Raises:
            DataError: If the file cannot be read, no line holds a crystal, or a declared key is missing.
            ConventionError: If labels are implausible or contradict each other.
        """
        raws: list[RawFrame] = []
        rejects: list[FrameFindings] = []
        for number, text in islice(_lines(path), self.limit):
            try:
                raws.append(parse_line(text, self.structure, number - 1))
            except (
                ValueError,
                TypeError,
                KeyError,
                IndexError,
                AttributeError,
                OverflowError,
                RecursionError,
            ) as error:
                rejects.append(_bad_line(self.label, number, _reason(error)))
        if not raws:
            first = f": {rejects[0].findings[0].message}" if rejects else ", which is empty"
            raise DataError(f"{path} holds no crystal in {len(rejects)} lines{first}.", "One JSON object per line.")
        data = self.convert(raws)
        data.rejects = sorted([*rejects, *data.rejects], key=lambda reject: reject.source_index)
        data.n_frames += len(rejects)
        return data


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield number (from 1) and content of the lines that are not blank.

    Raises:
        DataError: If the file is missing or truncated.
    """
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as handle:
            for number, line in enumerate(handle, start=1):
                if line.strip():
                    yield number, line
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.", "Check the path and the environment variables in it.") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.", "The file may be truncated: fetch it again.") from error


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "the objects are nested too deeply"
    if isinstance(error, KeyError):
        return f"there is no {error.args[0]!r}"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return " ".join(str(error).split())[:200] or type(error).__name__


def _bad_line(source: str, number: int, reason: str) -> FrameFindings:
    finding = Finding(code="bad_line", value=number, threshold=None, unit="line", message=f"line {number}: {reason}")
    return FrameFindings(source=source, source_index=number - 1, formula="", findings=[finding])


def parse_line(text: str | bytes, structure_key: str = "", index: int = 0) -> RawFrame:
    """Return the crystal of a line with everything else as ``info`` and ``arrays``.

    Args:
        text: One JSON object.
        structure_key: Key of the structure; dots lead into objects.
        index: Number of the frame.

    Raises:
        ValueError: If it is no JSON object, or its structure is no crystal (also KeyError, TypeError, IndexError).
    """
    item = json.loads(text)
    if not isinstance(item, dict):
        raise ValueError(f"expected an object, found {type(item).__name__}")
    name = structure_key or next((key for key in STRUCTURE_KEYS if isinstance(item.get(key), dict)), "")
    inner: Any = item
    for part in name.split(".") if name else ():
        inner = inner[part]
    if not isinstance(inner, dict):
        raise ValueError(f"{name} is no object")
    crystal = {key: _plain(inner[key]) for key in CRYSTAL_KEYS & inner.keys()}
    raw = _from_sites(crystal) if "sites" in crystal else _from_arrays(crystal)
    raw.index = index
    beside = {key: value for key, value in inner.items() if key not in CRYSTAL_KEYS}
    for key, value in (*_flat(beside), *(_flat(item, skip=name) if name else ())):
        raw.info.setdefault(key, value)
    for key in FIELD_KEYS:
        if key in raw.info and not isinstance(raw.info[key], np.ndarray | float | int):
            raise ValueError(f"{key} is not numeric")
    return raw


def _from_sites(crystal: dict[str, Any]) -> RawFrame:
    """Return the crystal of a pymatgen dictionary."""
    lattice = crystal["lattice"]
    cell = _array(lattice["matrix"], (3, 3), "lattice.matrix")
    numbers, fractional = [], []
    for site in crystal["sites"]:
        kinds = site["species"]
        if len(kinds) != 1 or abs(float(kinds[0].get("occu", 1)) - 1) > 1e-8:
            raise ValueError("a site is partially occupied; order the structure first")
        numbers.append(_number(kinds[0]["element"]))
        fractional.append(site["abc"])
    n = len(numbers)
    positions = _array(fractional, (n, 3), "abc") @ cell
    names = set.intersection(*(set(site.get("properties") or {}) for site in crystal["sites"])) if n else set()
    info = {name: _numeric([site["properties"][name] for site in crystal["sites"]]) for name in sorted(names)}
    return _frame(numbers, positions, cell, lattice.get("pbc", True), info)


def _from_arrays(crystal: dict[str, Any]) -> RawFrame:
    """Return the crystal of arrays as ASE names them."""
    kinds = next((crystal[key] for key in ("numbers", "symbols", "species") if key in crystal), None)
    if kinds is None:
        raise ValueError("there is no structure: neither sites nor numbers or symbols were found")
    cell = crystal["cell"]
    cell = _array(cell.get("array") if isinstance(cell, dict) else cell, (3, 3), "cell")
    numbers = [_number(kind) for kind in kinds]
    n = len(numbers)
    if "positions" in crystal:
        positions = _array(crystal["positions"], (n, 3), "positions")
    else:
        positions = _array(crystal["scaled_positions"], (n, 3), "scaled_positions") @ cell
    return _frame(numbers, positions, cell, crystal.get("pbc", True), {})


def _frame(numbers: list[int], positions: Any, cell: Any, pbc: Any, info: dict[str, Any]) -> RawFrame:
    if not numbers:
        raise ValueError("the structure has no atoms")
    flags = [bool(flag) for flag in pbc] if isinstance(pbc, list) else [bool(pbc)] * 3
    if len(flags) != 3:
        raise ValueError(f"pbc has {len(flags)} values, expected 3")
    return RawFrame(np.array(numbers, dtype=np.int64), positions, cell, np.array(flags), info)


def _number(kind: Any) -> int:
    """Return the atomic number of an element given by number or symbol."""
    if isinstance(kind, str) and atomic_numbers.get(kind, 0) > 0:
        return int(atomic_numbers[kind])
    if isinstance(kind, int) and not isinstance(kind, bool) and 0 < kind < 119:
        return kind
    raise ValueError(f"{str(kind)[:20]!r} is no element")


def _array(value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    array = np.array(value, dtype=float)
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
    return array


def _plain(value: Any) -> Any:
    """Return lists of numbers for arrays as ASE and monty write them; all else as it is."""
    if isinstance(value, dict):
        if isinstance(value.get("__ndarray__"), list) and len(value["__ndarray__"]) == 3:
            shape, _, flat = value["__ndarray__"]
            return np.array(flat).reshape([int(extent) for extent in shape]).tolist()
        if value.get("@class") == "array" and "data" in value:
            return value["data"]
        return {key: _plain(item) for key, item in value.items()}
    return value


def _numeric(value: Any) -> Any:
    """Return an array for a list of numbers; all else as it is, for the messages."""
    if isinstance(value, list):
        try:
            return np.array(value, dtype=float)
        except (TypeError, ValueError):
            return value
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _flat(item: dict[str, Any], prefix: str = "", skip: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys of nested objects: bare for what containers hold, else with dots; without the structure."""
    for key, value in item.items():
        if key.startswith("@") or value is None or prefix + key == skip:
            continue
        plain = _plain(value)
        if isinstance(plain, dict):
            yield from _flat(plain, prefix if not prefix and key in CONTAINERS else f"{prefix}{key}.", skip)
        else:
            yield prefix + key, _numeric(plain)
