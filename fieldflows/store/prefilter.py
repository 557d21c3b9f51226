"""A Mongo filter as an SQL condition that lets through everything that matches, and perhaps more.

The exact decision is taken afterwards, document by document; SQL only spares reading those that cannot match.  So
each translation below errs on the side of letting a document through:

- what is not understood gives no condition at all;
- Mongo looks into arrays on the way of a path, SQL does not: documents that hold an array there always pass;
- SQLite reads decimal numbers to within rounding: numbers are compared with a relative slack of 1e-12.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_PART = re.compile(r"[A-Za-z0-9_@ -]+")
_SLACK = 1e-12
_MAXIMUM_PARAMETERS = 900


@dataclass(frozen=True)
class Columns:
    """Paths whose values stand in columns of a table, named like the paths.

    Attributes:
        scalars: Paths of numbers and texts, null where a document has none; there is no array on their way.
        lists: Paths of texts in arrays; the column holds them all as a JSON array.
        searched: Those of the scalars that SQLite may search by an index; where many rows match, reading the whole
            table is quicker.
    """

    scalars: tuple[str, ...]
    lists: tuple[str, ...] = ()
    searched: frozenset[str] = frozenset()

    @property
    def all(self) -> tuple[str, ...]:
        """All columns in order."""
        return self.scalars + self.lists


def path_expression(path: str) -> str | None:
    """Return the SQL expression of the value at a dotted path, or None if the path has unusual characters."""
    pointer = _pointer(path.split("."))
    return None if pointer is None else f"json_extract(doc,'{pointer}')"


def array_expressions(path: str) -> list[str]:
    """Return SQL conditions, one for each prefix of the path, that are true where an array lies on its way."""
    parts = path.split(".")
    return [f"json_type(doc,'{_pointer(parts[:i])}')='array'" for i in range(1, len(parts) + 1)]


def superset(criteria: Mapping[str, Any] | None, columns: Columns | None = None) -> tuple[str, list[Any]]:
    """Return an SQL condition and its parameters that hold for every document that matches the filter.

    Args:
        criteria: A Mongo filter.
        columns: The columns of a table to put the condition to, in place of the documents.

    Example:
        >>> superset({"n": {"$gte": 2}})[1]
        [1.999999999998]
    """
    condition, parameters = _conjunction(criteria or {}, columns)
    if len(parameters) > _MAXIMUM_PARAMETERS:
        return "1", []
    return condition, parameters


def _pointer(parts: list[str]) -> str | None:
    if not all(_PART.fullmatch(part) for part in parts):
        return None
    return "$" + "".join(f'."{part}"' for part in parts)


def _conjunction(criteria: Any, columns: Columns | None) -> tuple[str, list[Any]]:
    if not isinstance(criteria, Mapping):
        return "1", []
    terms: list[str] = []
    parameters: list[Any] = []
    for key, value in criteria.items():
        condition, more = _clause(key, value, columns)
        if condition != "1":
            terms.append(condition)
            parameters.extend(more)
    return (" AND ".join(f"({term})" for term in terms) or "1"), parameters


def _clause(key: str, value: Any, columns: Columns | None) -> tuple[str, list[Any]]:
    if key in ("$and", "$or") and isinstance(value, list | tuple):
        parts = [_conjunction(item, columns) for item in value]
        if key == "$or" and any(condition == "1" for condition, _ in parts):
            return "1", []
        parts = [part for part in parts if part[0] != "1"]
        word = " AND " if key == "$and" else " OR "
        return word.join(f"({condition})" for condition, _ in parts) or "1", [p for _, more in parts for p in more]
    if key.startswith("$"):
        return "1", []
    is_list = columns is not None and key in columns.lists
    expression = _column(key, columns) if columns is not None else path_expression(key)
    if expression is None:
        return "1", []
    is_operators = isinstance(value, Mapping) and value and all(str(name).startswith("$") for name in value)
    tests = value.items() if is_operators else [("$eq", value)]
    terms: list[str] = []
    parameters: list[Any] = []
    for operator, operand in tests:
        translated = (_contains if is_list else _test)(expression, operator, operand)
        if translated is not None:
            terms.append(translated[0])
            parameters.extend(translated[1])
    if not terms:
        return "1", []
    joined = " AND ".join(f"({term})" for term in terms)
    if columns is not None:
        return joined, parameters
    return " OR ".join([f"({joined})", *array_expressions(key)]), parameters


def _column(path: str, columns: Columns) -> str | None:
    if path not in columns.all:
        return None
    # A plus sign keeps SQLite from using the index.
    return f'"{path}"' if path in columns.searched else f'+"{path}"'


def _contains(expression: str, operator: str, operand: Any) -> tuple[str, list[Any]] | None:
    """Return the condition that a text is among those of a column of lists."""
    if operator == "$eq":
        operator, operand = "$in", [operand]
    if operator not in ("$in", "$all") or not isinstance(operand, list | tuple) or not operand:
        return None
    if not all(isinstance(item, str) and _is_text(item) and not set(item) & {'"', "\\"} for item in operand):
        return None
    word = " OR " if operator == "$in" else " AND "
    return word.join([f"instr({expression}, ?)"] * len(operand)), [f'"{item}"' for item in operand]


def _test(expression: str, operator: str, operand: Any) -> tuple[str, list[Any]] | None:
    if operator == "$eq":
        return _equal(expression, operand)
    if operator == "$in" and isinstance(operand, list | tuple):
        return _among(expression, operand)
    if operator in ("$gt", "$gte", "$lt", "$lte") and _is_number(operand):
        slack = abs(operand) * _SLACK
        if operator in ("$gt", "$gte"):
            return f"{expression} >= ?", [operand - slack]
        return f"{expression} <= ?", [operand + slack]
    if operator == "$ne" and operand is None:
        return f"{expression} IS NOT NULL", []
    if operator == "$exists" and not expression.startswith("json_extract"):
        return None if operand else (f"{expression} IS NULL", [])
    if operator == "$exists":
        kind = expression.replace("json_extract", "json_type")
        return f"{kind} IS NOT NULL" if operand else f"{kind} IS NULL", []
    return None


def _among(expression: str, operands: list[Any] | tuple[Any, ...]) -> tuple[str, list[Any]] | None:
    plain = [operand for operand in operands if isinstance(operand, str) and _is_text(operand)]
    terms: list[str] = []
    parameters: list[Any] = []
    if plain:
        terms.append(f"{expression} IN ({','.join('?' * len(plain))})")
        parameters.extend(plain)
    for operand in operands:
        if isinstance(operand, str) and _is_text(operand):
            continue
        translated = _equal(expression, operand)
        if translated is None:
            return None
        terms.append(translated[0])
        parameters.extend(translated[1])
    return (" OR ".join(terms) or "0"), parameters


def _equal(expression: str, operand: Any) -> tuple[str, list[Any]] | None:
    if operand is None:
        return f"{expression} IS NULL", []
    if isinstance(operand, bool):
        return f"{expression} = ?", [int(operand)]
    if isinstance(operand, int) and _is_number(operand):
        return f"{expression} = ?", [operand]
    if _is_number(operand):
        slack = abs(operand) * _SLACK
        return f"{expression} BETWEEN ? AND ?", [operand - slack, operand + slack]
    if isinstance(operand, str) and _is_text(operand):
        return f"{expression} = ?", [operand]
    return None


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return abs(value) < 2**62
    return isinstance(value, float) and abs(value) < 1e300


def _is_text(value: str) -> bool:
    return value.isprintable() and value.isascii()
