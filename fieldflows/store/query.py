"""Questions to the results collection, in words: ``n > 2 and e_total > 15``, turned into a Mongo filter.

The text is parsed as a Python expression and only comparisons are accepted; nothing of it is ever evaluated.
"""

from __future__ import annotations

import ast
import json
import math
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from fieldflows.errors import QueryError, suggestion
from fieldflows.store.versions import RESULT_CLASSES

MAXIMUM_LENGTH = 4000
"""Longest query in characters."""

MAXIMUM_PATTERN = 200
"""Longest regular expression in a Mongo filter, in characters."""

MAXIMUM_REPEATS = 3
"""Most repetitions (``*``, ``+``, ``{``) in a regular expression: its time grows with this power of the text."""

MAXIMUM_CHOICES = 10
"""Most choices (``?``, ``|``) in one: its time may double with each."""

_ESCAPED = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
"""Escaped characters and sets, in which parentheses and signs of repetition mean themselves."""

ALIASES = {
    "formula": "formula_pretty",
    "eps_inf": "e_electronic",
    "eps_ion": "e_ionic",
    "spacegroup": "spacegroup_number",
    "model": "provenance.model.name",
    "model_sha256": "provenance.model.sha256",
    "code_version": "provenance.code_version",
    "created_at": "provenance.created_at",
}
"""Short names that may be used for fields."""

OPERATORS = frozenset(
    {"$and", "$or", "$nor", "$not", "$eq", "$ne", "$gt", "$gte", "$lt", "$lte"}
    | {"$in", "$nin", "$exists", "$regex", "$options", "$size", "$all", "$elemMatch"}
)
"""Operators that a Mongo filter of a user may hold; ``$where`` and ``$expr``, which compute, are not among them."""

_COMPARISONS: dict[type, str] = {ast.Gt: "$gt", ast.GtE: "$gte", ast.Lt: "$lt", ast.LtE: "$lte", ast.NotEq: "$ne"}
_MIRROR = {"$gt": "$lt", "$gte": "$lte", "$lt": "$gt", "$lte": "$gte"}
_WORDS = {"null": None, "none": None, "true": True, "false": False}
_HELP = 'Write for example: n > 2 and e_total > 15, formula == "MgO", "O" in elements, e_ionic == null.'


@dataclass(frozen=True)
class QueryField:
    """A field that can be asked for.

    Attributes:
        path: Dotted path in the stored document.
        kind: ``"number"``, ``"text"``, ``"truth"`` or ``"object"``.
        is_list: Whether the document holds a list of them.
        unit: Unit, "" if it has none.
        description: What it is.
    """

    path: str
    kind: str
    is_list: bool
    unit: str
    description: str


@cache
def query_fields() -> dict[str, QueryField]:
    """Return all fields of stored results by dotted path; those of the dielectric document first."""
    found: dict[str, QueryField] = {}
    for kind in RESULT_CLASSES.values():
        own: dict[str, QueryField] = {}
        _collect(kind, "", False, own)
        found = own | found
    return found


def parse_query(text: str) -> dict[str, Any]:
    """Return the Mongo filter of a query.

    Fields are those of the documents in the results collection, nested ones with dots, elements of a list with
    ``[0]``; the short names of :data:`ALIASES` are understood.  Comparisons (``< <= > >= == !=``, also chained),
    ``in``, ``not in``, ``and``, ``or``, ``not`` and parentheses are allowed.  A value that is absent (null) fulfills no
    comparison by size.  A text that starts with ``{`` is taken as a Mongo filter in JSON; its operators must be among
    :data:`OPERATORS`.

    Args:
        text: The query; empty for everything.

    Raises:
        QueryError: If the text is no such expression, or names an unknown field.

    Example:
        >>> parse_query("n > 2 and e_total > 15")
        {'$and': [{'n': {'$gt': 2}}, {'e_total': {'$gt': 15}}]}
    """
    if len(text) > MAXIMUM_LENGTH:
        raise QueryError(f"The query has {len(text)} characters; at most {MAXIMUM_LENGTH} are read.")
    if not text.strip():
        return {}
    if text.lstrip().startswith("{"):
        return _mongo(text)
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return _condition(tree.body)
    except (SyntaxError, ValueError) as error:
        raise QueryError(f"The query {_short(text)!r} cannot be read: {error.args[0]}.", _syntax_hint(text)) from None
    except (RecursionError, MemoryError):
        raise QueryError("The query is nested too deeply.") from None


def resolve_field(name: str) -> QueryField:
    """Return the field of a name, which may be a short name or a path into a list (``elements.0``).

    Raises:
        QueryError: If there is none; the message suggests the nearest.
    """
    fields = query_fields()
    path = ALIASES.get(name, name)
    plain = ".".join(part for part in path.split(".") if not part.isdigit())
    if plain not in fields:
        near = get_close_matches(name, [*fields, *ALIASES], n=1, cutoff=0.6)
        hint = (f"Did you mean {near[0]!r}? " if near else "") + "`fieldflows query --fields` lists all."
        raise QueryError(f"There is no field {name!r} in the results.", hint)
    field = fields[plain]
    return QueryField(path, field.kind, field.is_list and path == plain, field.unit, field.description)


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _syntax_hint(text: str) -> str:
    if "&&" in text or "||" in text:
        return "Use the words and, or, not."
    if "=" in text.replace("==", "").replace(">=", "").replace("<=", "").replace("!=", ""):
        return "Use == to compare."
    return _HELP


def _condition(node: ast.expr) -> dict[str, Any]:
    if isinstance(node, ast.BoolOp):
        word = "$and" if isinstance(node.op, ast.And) else "$or"
        return {word: [_condition(part) for part in node.values]}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return {"$nor": [_condition(node.operand)]}
    if isinstance(node, ast.Compare):
        return _comparisons(node)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
        raise QueryError("& and | are not understood.", "Use the words and, or, not.")
    if isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
        field = resolve_field(_path(node))
        if field.kind == "truth":
            return {field.path: True}
        raise QueryError(f"{ast.unparse(node)} alone is no condition.", _HELP)
    raise QueryError(f"{ast.unparse(node)[:60]!r} is not understood.", _HELP)


def _comparisons(node: ast.Compare) -> dict[str, Any]:
    parts = [node.left, *node.comparators]
    terms = [_comparison(left, op, right) for (left, right), op in zip(pairwise(parts), node.ops, strict=True)]
    return terms[0] if len(terms) == 1 else {"$and": terms}


def _comparison(left: ast.expr, op: ast.cmpop, right: ast.expr) -> dict[str, Any]:
    if isinstance(op, ast.In | ast.NotIn):
        return _membership(left, isinstance(op, ast.In), right)
    if _is_value(left):
        left, right, mirrored = right, left, True
    else:
        mirrored = False
    if not _is_value(right):
        raise QueryError(
            f"{ast.unparse(left)} is compared with {ast.unparse(right)}, not with a value.",
            "Texts stand in quotes; two fields cannot be compared with each other.",
        )
    field, value = resolve_field(_path(left)), _value(right)
    operator = "$eq" if isinstance(op, ast.Eq | ast.Is) else _COMPARISONS.get(type(op), "$ne")
    if mirrored:
        operator = _MIRROR.get(operator, operator)
    if field.is_list and value is not None:
        raise QueryError(
            f"{field.path} is a list.",
            f"Ask for a member, {json.dumps(value)} in {field.path}, or for one place, {field.path}[0] == ...",
        )
    _check_type(field, value, ordered=operator in _MIRROR)
    return {field.path: value} if operator == "$eq" else {field.path: {operator: value}}


def _membership(left: ast.expr, positive: bool, right: ast.expr) -> dict[str, Any]:
    if _is_value(left):
        # "O" in elements: Mongo compares a value with each entry of a list.
        field, value = resolve_field(_path(right)), _value(left)
        if field.kind == "text" and not field.is_list and "." not in field.path:
            raise QueryError(f"{field.path} is one text, not a list.", f"Compare it with ==. {_HELP}")
        _check_type(field, value, ordered=False)
        return {field.path: value} if positive else {field.path: {"$ne": value}}
    if not isinstance(right, ast.List | ast.Tuple | ast.Set):
        raise QueryError(
            f"{ast.unparse(right)} is no list of values.", 'Write for example: formula in ["MgO", "SiO2"].'
        )
    field = resolve_field(_path(left))
    values = [_value(item) for item in right.elts]
    for value in values:
        _check_type(field, value, ordered=False)
    return {field.path: {"$in" if positive else "$nin": values}}


def _is_value(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        return _is_value(node.operand)
    return isinstance(node, ast.Constant) or (isinstance(node, ast.Name) and node.id.lower() in _WORDS)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        number = _value(node.operand)
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise QueryError(f"{ast.unparse(node)} is no number.")
        return -number if isinstance(node.op, ast.USub) else number
    if isinstance(node, ast.Name) and node.id.lower() in _WORDS:
        return _WORDS[node.id.lower()]
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | bool | None):
        return node.value
    raise QueryError(
        f"{ast.unparse(node)[:60]} is no value.", "Values are numbers, quoted texts, true, false and null."
    )


def _path(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_path(node.value)}.{node.attr}"
    if isinstance(node, ast.Subscript):
        index = _value(node.slice)
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise QueryError(f"{ast.unparse(node)}: an index counts from 0.", "Write for example: elements[0].")
        return f"{_path(node.value)}.{index}"
    raise QueryError(f"{ast.unparse(node)[:60]!r} is no field.", _HELP)


def _check_type(field: QueryField, value: Any, ordered: bool) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise QueryError(f"{field.path} is compared with {value}, which is not finite.")
    if value is None and not ordered:
        return
    given = "truth" if isinstance(value, bool) else "number" if isinstance(value, int | float) else "text"
    if value is None or (field.kind in ("number", "text", "truth") and given != field.kind):
        wanted = {"number": "a number", "text": "a text in quotes", "truth": "true or false"}.get(field.kind, "a value")
        unit = f" ({field.unit})" if field.unit not in ("", "1") else ""
        raise QueryError(f"{field.path}{unit} is compared with {value!r}; it is {wanted}.", _HELP)


def _mongo(text: str) -> dict[str, Any]:
    try:
        criteria = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise QueryError(f"The filter is no valid JSON: {error}.", 'Write for example: {"n": {"$gt": 2}}.') from None
    return _checked_filter(criteria, at_document=True)


def _checked_filter(criteria: Any, at_document: bool) -> Any:
    """Return the filter with short names resolved; fields are checked where they are paths from the document."""
    if isinstance(criteria, list):
        return [_checked_filter(item, at_document) for item in criteria]
    if not isinstance(criteria, Mapping):
        return criteria
    checked = {}
    for key, value in criteria.items():
        if key.startswith("$"):
            if key not in OPERATORS:
                raise QueryError(f"The operator {key} is not allowed.", suggestion(key, OPERATORS))
            if key == "$regex":
                _check_pattern(value)
            if key == "$options" and (not isinstance(value, str) or not set(value) <= set("ims")):
                raise QueryError(f"$options are some of the letters i, m and s, found {value!r}.")
            checked[key] = _checked_filter(value, at_document and key in ("$and", "$or", "$nor"))
        else:
            checked[resolve_field(key).path if at_document else key] = _checked_filter(value, False)
    return checked


def _check_pattern(pattern: Any) -> None:
    """Refuse expressions whose time can grow beyond a low power of the length of the text."""
    if not isinstance(pattern, str) or len(pattern) > MAXIMUM_PATTERN:
        raise QueryError(f"$regex needs a text of at most {MAXIMUM_PATTERN} characters.")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise QueryError(f"The $regex {_short(pattern)!r} is not valid: {error}.") from None
    bare = _ESCAPED.sub("x", pattern)
    if re.search(r"\)\s*[*+{]", bare):
        raise QueryError(f"The $regex {_short(pattern)!r} repeats a group.", "Repeat single characters or sets only.")
    if re.search(r"\\[1-9]", pattern) or re.search(r"\(\?(P=|\(|[a-zA-Z-]*x)", bare):
        raise QueryError(f"The $regex {_short(pattern)!r} refers back to a group, or is a verbose one.")
    bare = bare.replace("(?", "(")
    if len(re.findall(r"[*+{]", bare)) > MAXIMUM_REPEATS:
        raise QueryError(f"The $regex {_short(pattern)!r} has more than {MAXIMUM_REPEATS} repetitions.")
    if len(re.findall(r"(?<![*+}?])\?|\|", bare)) > MAXIMUM_CHOICES:
        raise QueryError(f"The $regex {_short(pattern)!r} has more than {MAXIMUM_CHOICES} choices.")


def _collect(model: type[BaseModel], prefix: str, in_list: bool, found: dict[str, QueryField]) -> None:
    for name, info in model.model_fields.items():
        extra = info.json_schema_extra
        unit = str(extra.get("unit", "")) if isinstance(extra, Mapping) else ""
        kind, is_list, nested = _kind(info.annotation)
        path = prefix + name
        found[path] = QueryField(path, kind, is_list or in_list, unit, info.description or "")
        if nested is not None:
            _collect(nested, f"{path}.", is_list or in_list, found)


def _kind(annotation: Any) -> tuple[str, bool, type[BaseModel] | None]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kind(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        inner = [part for part in get_args(annotation) if part is not type(None)]
        return _kind(inner[0])
    if origin is Literal:
        return "text", False, None
    if origin in (tuple, list):
        kind, _, nested = _kind(get_args(annotation)[0])
        return kind, True, nested
    if isinstance(annotation, type):
        tests: list[tuple[Callable[[type], bool], str]] = [
            (lambda t: issubclass(t, bool), "truth"),
            (lambda t: issubclass(t, int | float), "number"),
            (lambda t: issubclass(t, str | datetime), "text"),
        ]
        for test, kind in tests:
            if test(annotation):
                return kind, False, None
        if issubclass(annotation, BaseModel):
            return "object", False, annotation
    return "object", False, None
