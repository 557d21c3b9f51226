"""The Matbench task ``matbench_dielectric``: 4764 crystals with their refractive index, and the official folds.

Dunn et al., npj Comput. Mater. 6, 138 (2020).  The file is JSON in pandas' "split" form with the columns ``structure``
and ``n``; it is read as plain JSON, no class that it names is loaded.  It carries no identifiers: row i (from 0) is
``mb-dielectric-{i + 1:04d}``, and the folds are those of ``KFold(5, shuffle=True, random_state=18012019)`` over the
rows, so that a file with other rows, or in another order, has neither.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldflows.datasets.extxyz import RawFrame, file_sha256, open_text
from fieldflows.datasets.mp_documents import FieldProblem, read_structure
from fieldflows.errors import DataError

if TYPE_CHECKING:
    from ase import Atoms

OFFICIAL_SHA256 = "83befa09bc2ec2f4b6143afc413157827a90e5e2e42c1eb507ccfa01bf26a1d6"
"""SHA-256 of ``matbench_dielectric.json.gz``, as the metadata of matbench and matminer state it."""
OFFICIAL_ROWS = 4764
N_FOLDS = 5
FOLD_SEED = 18012019
"""Seed of the official folds (matbench, ``KFOLD_DEFAULT``)."""
ADDRESS = "https://ml.materialsproject.org/projects/matbench_dielectric.json.gz"


@dataclass(frozen=True)
class MatbenchEntry:
    """One row of the task.

    Attributes:
        row: Number of the row, from 0.
        raw: The crystal.
        n: Refractive index, √(tr ε∞/3).
        mbid: Identifier, such as "mb-dielectric-0001"; empty if the rows are not the official ones.
        fold: Fold in whose test set it is, 0 to 4; None without an identifier.
    """

    row: int
    raw: RawFrame
    n: float
    mbid: str
    fold: int | None

    @property
    def atoms(self) -> Atoms:
        """The crystal."""
        return self.raw.atoms()


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
        row: Number of the row, from 0.
        reason: One sentence.
    """

    row: int
    reason: str


def official_mbid(row: int) -> str:
    """Return the identifier of an official row, counted from 0.

    Example:
        >>> official_mbid(0)
        'mb-dielectric-0001'
    """
    return f"mb-dielectric-{row + 1:04d}"


def official_folds(n_rows: int = OFFICIAL_ROWS) -> np.ndarray:
    """Return (n_rows,) the fold in whose test set each row is: scikit-learn's shuffled KFold, written out.

    A legacy numpy generator with the official seed shuffles the rows; the folds are consecutive pieces of them, the
    first n mod 5 one longer.
    """
    order = np.arange(n_rows)
    np.random.RandomState(FOLD_SEED).shuffle(order)
    folds = np.empty(n_rows, dtype=np.intp)
    for fold, piece in enumerate(np.array_split(order, N_FOLDS)):
        folds[piece] = fold
    return folds


def read_matbench(
    path: str | Path, sha256: str = OFFICIAL_SHA256, index: str | Path | None = None
) -> list[MatbenchEntry]:
    """Return the rows of the file that can be used.

    Args:
        path: ``matbench_dielectric.json.gz``.
        sha256: What the file must have; empty for another file of the same form.
        index: For another file, a CSV file with the columns ``row`` and ``mbid``.

    Raises:
        DataError: If the file is not the expected one, or not of this form.
    """
    return [entry for entry in read_rows(path, sha256, index) if isinstance(entry, MatbenchEntry)]


def read_rows(
    path: str | Path, sha256: str = OFFICIAL_SHA256, index: str | Path | None = None
) -> list[MatbenchEntry | BadRow]:
    """Return the rows of the file, and those that cannot be used with the reason; see :func:`read_matbench`."""
    path = Path(path)
    found = _checked_sha256(path, sha256)
    rows = _rows(path)
    names = _read_index(Path(index), len(rows)) if index else {}
    if not names and found == OFFICIAL_SHA256:
        names = {row: official_mbid(row) for row in range(len(rows))}
    folds = official_folds()
    fold_of = {official_mbid(row): int(folds[row]) for row in range(OFFICIAL_ROWS)}
    return [_entry(row, item, names.get(row, ""), fold_of) for row, item in enumerate(rows)]


def _checked_sha256(path: Path, expected: str) -> str:
    if not path.is_file():
        raise DataError(f"There is no file {path}.", f"Fetch it from {ADDRESS}.")
    found = file_sha256(path)
    if expected and found != expected.lower():
        raise DataError(
            f"{path} has the SHA-256 {found[:16]}..., expected is {expected[:16]}...: its rows, and with them "
            "identifiers and folds, may be others.",
            f"Fetch it again from {ADDRESS}, or say which SHA-256 it has (empty: any).",
        )
    return found


def _rows(path: Path) -> list[Sequence[Any]]:
    """Return [structure, n] of each row.

    Raises:
        DataError: Names what is missing.
    """
    try:
        with open_text(path) as handle:
            content = json.load(handle)
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}.", "Check that the file is complete.") from error
    columns = content.get("columns") if isinstance(content, dict) else None
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(columns, list) or not isinstance(data, list) or not {"structure", "n"} <= set(map(str, columns)):
        found = f"the columns {columns}" if isinstance(columns, list) else "no columns"
        raise DataError(f"{path} has {found}; expected index, columns (structure, n) and data, as pandas writes them.")
    places = [columns.index("structure"), columns.index("n")]
    rows = [item if isinstance(item, list) and len(item) == len(columns) else [] for item in data]
    return [[item[place] for place in places] if item else [] for item in rows]


def _read_index(path: Path, n_rows: int) -> dict[int, str]:
    try:
        with open_text(path) as handle:
            names = {int(item["row"]): str(item["mbid"]) for item in csv.DictReader(handle)}
    except FileNotFoundError:
        raise DataError(f"There is no index file {path}.", "Check `index`.") from None
    except (OSError, EOFError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no index with the columns row and mbid: {error!r}.") from error
    if len(names) != n_rows or set(names) != set(range(n_rows)):
        raise DataError(f"{path} names {len(names)} rows, the data have {n_rows}.", "Take the index of this file.")
    return names


def _entry(row: int, item: Sequence[Any], mbid: str, folds: dict[str, int]) -> MatbenchEntry | BadRow:
    if not item:
        return BadRow(row, "the row has another length than the columns")
    try:
        raw = read_structure({"structure": item[0]}, row)
        n = float(item[1])
    except (FieldProblem, TypeError, ValueError) as error:
        return BadRow(row, f"structure or n cannot be read: {error}")
    if not math.isfinite(n) or n < 1:
        return BadRow(row, f"n is {n:g}; refractive indices are 1 at least")
    return MatbenchEntry(row, raw, n, mbid, folds.get(mbid))
