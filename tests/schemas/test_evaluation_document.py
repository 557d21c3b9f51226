"""The evaluation document: described, with units, and readable for ever."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fieldflows.errors import DataError
from fieldflows.schemas import evaluation
from fieldflows.schemas.common import Document
from fieldflows.schemas.evaluation import EvaluationDocument, IdentityCheck
from tests.schemas.test_documents import leaves

GOLDEN = Path(__file__).parent / "golden" / "evaluation_1.json"
DOCUMENTS = [
    item
    for item in vars(evaluation).values()
    if isinstance(item, type) and issubclass(item, Document) and item.__module__ == evaluation.__name__
]


@pytest.mark.parametrize("cls", DOCUMENTS)
def test_every_field_is_described_and_every_number_has_a_unit(cls):
    for name, field in cls.model_fields.items():
        assert field.description, f"{cls.__name__}.{name} has no description"
        if leaves(field.annotation) & {int, float}:
            assert (field.json_schema_extra or {}).get("unit"), f"{cls.__name__}.{name} has no unit"


def test_the_golden_document_still_loads():
    """Never change this file: a stored document of the first version."""
    stored = json.loads(GOLDEN.read_text(encoding="utf-8"))
    loaded = EvaluationDocument.from_json_dict(stored)
    dumped = loaded.to_json_dict()
    for path in dumped["paths"]:
        assert [path.pop(name) for name in ("from_charges", "guided")] == [None, None]  # not there in the first version
    assert dumped == stored
    assert loaded.obeys_identities
    quantity = loaded.subsets["test"].quantities["polarization"]
    assert quantity.factor("zero") == pytest.approx(quantity.baselines["zero"].rmse / quantity.model.rmse)
    with pytest.raises(DataError, match="schema version 99"):
        EvaluationDocument.from_json_dict({**stored, "schema_version": 99})


def test_an_identity_that_was_not_tried_is_no_violation():
    facts = {"name": "x", "formula": "x = 0", "unit": "e", "frames": 0, "tolerance": 1e-6}
    stored = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for passed, expected in ((None, True), (True, True), (False, False)):
        check = IdentityCheck(**facts, passed=passed)
        document = EvaluationDocument.from_json_dict({**stored, "identities": [check.to_json_dict()]})
        assert document.obeys_identities is expected
