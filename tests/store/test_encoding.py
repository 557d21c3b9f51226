"""Texts of documents: whatever goes in comes out, by the quick parser where it reads as the standard library does."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import numpy as np
import pytest
from bson import ObjectId
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldflows.store.encoding import PLAIN, decode, encode

integers = st.one_of(
    st.integers(),
    st.sampled_from([2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**18, 10**19, 10**30]),
)
texts = st.one_of(st.text(), st.sampled_from(["\ud800", "\udfff x", "😀", "$date", ',12345678901234567890"', " "]))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), integers, st.floats(allow_nan=False, allow_infinity=False), texts),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def same(first: object, second: object) -> bool:
    """Return whether two values are equal and of one type throughout: 1, 1.0 and True are three things."""
    return repr(first) == repr(second)


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(texts, values, max_size=4))
def test_every_document_comes_back_as_the_standard_library_reads_it(document: dict) -> None:
    text = encode(document)
    assert text.isascii()
    assert same(json.loads(text), document)
    if not any(key in text for key in ('"$date"', '"$oid"', '"$binary"')):
        assert same(decode(text), document)
    # texts of older versions have no mark
    if text.startswith(PLAIN) or '"$' not in text:
        assert same(decode(text.removeprefix(PLAIN)), document)


@pytest.mark.parametrize(
    ("document", "quick"),
    [
        ({"n": 2**64 - 1, "m": -(2**63), "x": 1.5e300}, True),
        ({"n": 2**64}, False),
        ({"n": [[-(2**63) - 1]]}, False),
        ({"s": "\ud800"}, False),
        ({"s": "ε∞ 😀 \x00"}, True),
        ({"when": datetime(2026, 1, 2, tzinfo=UTC)}, False),
        ({"id": ObjectId("65a1b2c3d4e5f60718293a4b")}, False),
        ({"x": np.eye(2), "n": np.int64(3)}, True),
        ({"x": np.eye(2), "n": 2**64}, False),
        ({"x": np.eye(2), "s": "\ud800"}, False),
        ({"x": float("nan"), "y": 1.0}, True),
        ({1: 2}, True),
    ],
)
def test_the_quick_parser_gets_only_what_it_reads_alike(document: dict, quick: bool) -> None:
    text = encode(document)
    assert text.startswith(PLAIN) is quick
    if quick:
        assert same(decode(text), json.loads(text))


def test_deep_documents() -> None:
    deep: dict = {}
    for _ in range(600):
        deep = {"a": deep}
    assert same(decode(encode(deep)), deep)
