"""The benchmark of questions: documents are real ones and all different, and times are taken."""

from __future__ import annotations

import json
from itertools import islice

from benchmarks.__main__ import main
from benchmarks.queries import WAYS, flat_results, questions
from fieldflows.schemas.dielectric import DielectricDocument
from fieldflows.store.query import parse_query


def test_documents_are_those_of_a_screening():
    documents = list(islice(flat_results(200), 200))
    assert len({document["key"] for document in documents}) == 200
    assert len({document["formula_pretty"] for document in documents}) > 150
    for document in documents[:20]:
        assert DielectricDocument.from_json_dict(document).n == document["n"]
    assert len({len(document["structure"]["sites"]) for document in documents}) > 10
    assert any(document["e_total"] is None for document in documents)
    again = list(islice(flat_results(200), 3))
    assert [{**one, "provenance": None} for one in again] == [{**one, "provenance": None} for one in documents[:3]]


def test_questions_are_asked_and_answers_compared(tmp_path):
    output = tmp_path / "speed.json"
    assert main(["queries", "--count", "120", "--repeats", "1", "--compare", "--output", str(output)]) == 0
    result = json.loads(output.read_text())["queries"]["result"]
    assert result["documents"] == 120
    assert set(result["questions"]) == set(questions(120))
    assert all(item["agrees"] for item in result["questions"].values())
    assert result["questions"]["one material"]["hits"] == 2
    assert result["questions"]["all, largest n first"]["hits"] == 100
    assert all(set(item["milliseconds"]) == set(WAYS) for item in result["questions"].values())
    assert result["milliseconds_to_write"] > 0
    assert all(isinstance(parse_query(text), dict) for text, _ in questions(10).values())
