"""Conditions of stages: questions as for ``fieldflows query``, asked to one row at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Condition:
    """A condition on what is known of a crystal so far.

    Attributes:
        text: As written.
        criteria: The Mongo filter.
        roots: Top-level fields that it looks at.

    Example:
        >>> condition = Condition.of("n < 3 and band_gap > 0.5")
        >>> condition.holds({"n": 2.0, "band_gap": 1.0}), condition.holds({"n": 2.0, "band_gap": None})
        (True, False)
    """

    text: str
    criteria: dict[str, Any]
    roots: frozenset[str]

    @classmethod
    def of(cls, text: str, also: Mapping[str, Any] | None = None) -> Condition:
        """Return the condition of a text; empty for one that always holds.

        Args:
            text: The question.
            also: A Mongo filter that has to hold, too.

        Raises:
            QueryError: If it cannot be read, or names an unknown field.
        """
        from fieldflows.store.query import parse_query

        criteria = parse_query(text)
        if also:
            criteria = {"$and": [dict(also), criteria]} if criteria else dict(also)
        return cls(text, criteria, frozenset(_roots(criteria)))

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row fulfills the condition; what is absent fulfills no comparison by size."""
        from fieldflows.store.filters import matches

        return matches(self.criteria, dict(row))


def _roots(criteria: Any) -> set[str]:
    found: set[str] = set()
    if isinstance(criteria, Mapping):
        for name, value in criteria.items():
            if name.startswith("$"):
                found |= _roots(value)
            else:
                found.add(name.partition(".")[0])
    elif isinstance(criteria, list | tuple):
        for item in criteria:
            found |= _roots(item)
    return found
