"""YAML with the line of every value, so that an error can say where it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from fieldflows.errors import SettingsError

Place = tuple[str | int, ...]


def load_with_lines(text: str, origin: str) -> tuple[Any, dict[Place, int]]:
    """Return what a YAML text holds, and the line (from 1) of each key and list item by its path.

    Only plain values are made: tags that name classes are errors.

    Args:
        text: The YAML.
        origin: What to call it in messages.

    Raises:
        SettingsError: If it is no YAML, or a key stands twice.

    Example:
        >>> load_with_lines("a:\\n  b: [1, 2]\\n", "file")
        ({'a': {'b': [1, 2]}}, {(): 1, ('a',): 1, ('a', 'b'): 2, ('a', 'b', 0): 2, ('a', 'b', 1): 2})
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f", line {mark.line + 1}"
        raise SettingsError(f"{origin}{where}: no valid YAML: {error.problem or error.context}.") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{origin}: no valid YAML: {' '.join(str(error).split())}.") from None
    lines: dict[Place, int] = {}
    if node is not None:
        _note(node, (), node.start_mark.line + 1, lines, origin)
    return data, lines


def line_of(place: Sequence[str | int], lines: dict[Place, int]) -> int | None:
    """Return the line of a value, or of the innermost thing around it that is in the text.

    Example:
        >>> line_of(("a", "missing"), {(): 1, ("a",): 3})
        3
    """
    known = tuple(place)
    while known and known not in lines:
        known = known[:-1]
    return lines.get(known)


def _note(node: yaml.Node, place: Place, line: int, lines: dict[Place, int], origin: str) -> None:
    lines[place] = line
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = (*place, str(key.value))
            here = key.start_mark.line + 1
            if name in lines:
                raise SettingsError(
                    f"{origin}, line {here}: the key {key.value!r} stands twice (first in line {lines[name]}).",
                    "Remove one of them.",
                )
            _note(value, name, here, lines, origin)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            _note(value, (*place, position), value.start_mark.line + 1, lines, origin)
