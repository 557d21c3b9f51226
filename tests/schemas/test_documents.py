"""Documents: strict, frozen, with units, readable for ever, and harmless to read."""

from __future__ import annotations

import json
import subprocess
import sys
import types
import typing
from pathlib import Path

import numpy as np
import pytest
from monty.json import MontyDecoder, jsanitize
from pydantic import ValidationError
from pymatgen.core import Lattice, Structure

from fieldflows.errors import DataError
from fieldflows.schemas.artifact import ArtifactReference
from fieldflows.schemas.common import Document, Flag, finite_or_none, make_flag, structure_from_dict
from fieldflows.schemas.dataset import DatasetDocument
from fieldflows.schemas.dielectric import DielectricDocument, ModeSet
from fieldflows.schemas.failure import FailureDocument
from fieldflows.schemas.ferroelectric import (
    FerroelectricScreeningDocument,
    IndependentEstimate,
    PathErrors,
    ProposedRecord,
    PublishedPath,
    PublishedPathsDocument,
    SpontaneousPolarizationDocument,
)
from fieldflows.schemas.model import ModelDocument, RegisteredModel
from fieldflows.schemas.provenance import ModelCard, Provenance, Relaxation
from fieldflows.schemas.training import TrainingDocument

GOLDEN = Path(__file__).parent / "golden"
DOCUMENTS = (DielectricDocument, FailureDocument, ModeSet, Flag, ModelCard, Provenance, Relaxation)
DOCUMENTS += (ArtifactReference, DatasetDocument, RegisteredModel, ModelDocument)
DOCUMENTS += (SpontaneousPolarizationDocument, FerroelectricScreeningDocument, IndependentEstimate, ProposedRecord)
DOCUMENTS += (PublishedPath, PublishedPathsDocument, PathErrors)


def golden(name):
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def document(**changes):
    return DielectricDocument.from_json_dict({**golden("dielectric_1.json"), **changes})


def leaves(annotation):
    """Return all plain types inside an annotation."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal or not arguments:
        return {annotation}
    if typing.get_origin(annotation) is typing.Annotated:
        arguments = arguments[:1]
    return set().union(*(leaves(a) for a in arguments if a is not types.EllipsisType and a is not Ellipsis))


@pytest.mark.parametrize("cls", DOCUMENTS)
def test_every_field_is_described_and_every_number_has_a_unit(cls):
    for name, field in cls.model_fields.items():
        assert field.description, f"{cls.__name__}.{name} has no description"
        if leaves(field.annotation) & {int, float}:
            unit = (field.json_schema_extra or {}).get("unit")
            assert unit, f"{cls.__name__}.{name} has no unit"


@pytest.mark.parametrize("cls", DOCUMENTS)
def test_documents_are_strict(cls):
    assert issubclass(cls, Document)
    assert cls.model_config["frozen"] is True
    assert cls.model_config["extra"] == "forbid"
    assert cls.model_config["allow_inf_nan"] is False


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("dielectric_1.json", DielectricDocument),
        ("failure_1.json", FailureDocument),
        ("training_1.json", TrainingDocument),
        ("spontaneous_polarization_1.json", SpontaneousPolarizationDocument),
    ],
)
def test_golden_documents_still_load_and_round_trip(name, cls):
    """One file for every released schema version; never change these files."""
    stored = golden(name)
    loaded = cls.from_json_dict(stored)
    assert loaded.schema_version == stored["schema_version"]
    again = cls.from_json_dict(json.loads(json.dumps(loaded.to_json_dict(), allow_nan=False)))
    assert again == loaded
    for key in set(stored) - {"structure", "nonpolar"}:
        assert loaded.to_json_dict()[key] == stored[key], key


def test_golden_numbers_survive():
    loaded = document()
    assert loaded.e_electronic == pytest.approx(np.trace(np.array(loaded.epsilon_electronic)) / 3)
    assert loaded.total == tuple(map(tuple, golden("dielectric_1.json")["total"]))
    assert isinstance(loaded.structure, Structure)
    assert loaded.structure.composition.reduced_formula == "ZnO"
    assert len(loaded.modes.eigenvectors) == 9
    assert loaded.relaxation.n_steps == 7


def test_stores_of_jobflow_can_write_and_read_them():
    """jobflow sanitizes documents by monty; both its plain and its decoded form must come back."""
    loaded = document()
    stored = jsanitize(loaded, strict=True, enum_values=True)
    text = json.loads(json.dumps(stored, allow_nan=False))
    assert text["@class"] == "DielectricDocument"
    assert DielectricDocument.from_json_dict({**text, "_id": "abc"}) == loaded
    assert MontyDecoder().process_decoded(text) == loaded


def test_frozen_and_closed():
    loaded = document()
    with pytest.raises(ValidationError, match="frozen"):
        loaded.n = 2.0
    with pytest.raises(DataError, match=r"surprise: Extra inputs"):
        document(surprise=1)
    with pytest.raises(DataError, match="status_ionic"):
        document(status_ionic="fine")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_number_that_is_not_finite(bad):
    with pytest.raises(DataError, match="n: Input should be a finite number"):
        document(n=bad)
    tensor = np.eye(3)
    tensor[0, 1] = bad
    with pytest.raises(DataError, match=r"total\.0\.1"):
        document(total=tensor.tolist())
    assert finite_or_none(bad) is None
    assert make_flag("x", "y", bad, 1.0).value is None


def test_wrong_shapes_are_refused():
    with pytest.raises(DataError, match="polarizability"):
        document(polarizability=[[1, 0], [0, 1]])
    with pytest.raises(DataError, match="mapping"):
        DielectricDocument.from_json_dict([1, 2])


def test_newer_versions_say_so():
    with pytest.raises(DataError, match=r"schema version 99.*reads up to 1.*Update"):
        document(schema_version=99)


def test_reading_executes_nothing():
    """Site properties and class markers may name any callable; nothing of that is imported or called."""
    data = golden("dielectric_1.json")
    trap = {"@module": "os", "@callable": "system", "@class": "system"}
    data["structure"]["sites"][0]["properties"] = {"trap": trap}
    data["structure"]["properties"] = trap
    data["@module"], data["@class"] = "os", "system"
    loaded = DielectricDocument.from_json_dict(data)
    assert loaded.structure.site_properties == {}
    assert "trap" not in json.dumps(loaded.to_json_dict())


def test_site_properties_are_not_stored():
    structure = Structure(Lattice.cubic(4.2), ["Na", "Cl"], [[0, 0, 0], [0.5] * 3], site_properties={"magmom": [0, 1]})
    stored = document().model_copy(update={"structure": structure}).to_json_dict()["structure"]
    assert all(not site.get("properties") for site in stored["sites"])
    assert structure.site_properties == {"magmom": [0, 1]}


@pytest.mark.parametrize(
    "broken", [{}, {"lattice": {}}, {"lattice": {"matrix": [[1, 0], [0, 1]]}, "sites": []}, "text", 3, None]
)
def test_broken_structures_are_refused(broken):
    with pytest.raises(ValueError):
        structure_from_dict(broken)
    with pytest.raises(DataError, match="structure"):
        document(structure=broken)


def test_oxidation_states_survive():
    structure = Structure(Lattice.cubic(4.2), ["Na+", "Cl-"], [[0, 0, 0], [0.5] * 3])
    assert structure_from_dict(structure.as_dict()) == structure


def test_json_schema_carries_the_units():
    schema = DielectricDocument.model_json_schema()
    assert schema["properties"]["born_effective_charges"]["unit"] == "e"
    assert schema["$defs"]["ModeSet"]["properties"]["oscillator_strengths"]["unit"] == "e²/amu"


def test_failure_from_any_error():
    error = DataError("Found 3 frames, expected 4.", "Check the file.")
    failure = FailureDocument.from_error(error, "read", source="a.xyz", index=2)
    assert failure.message == "Found 3 frames, expected 4. Check the file."
    assert failure.error_type == "DataError"
    foreign = FailureDocument.from_error(KeyError("cell"), "plan")
    assert foreign.message == "KeyError: 'cell'"
    assert FailureDocument.from_error(ValueError(), "plan").message == "ValueError: ValueError"


def test_readable_without_torch_and_jobflow():
    code = (
        "import json, sys; from fieldflows.schemas.dielectric import DielectricDocument as D; "
        f"d = D.from_json_dict(json.load(open({str(GOLDEN / 'dielectric_1.json')!r}, encoding='utf-8'))); "
        "bad = sorted({'torch', 'jobflow', 'mace', 'maggma', 'matplotlib'} & set(sys.modules)); print(d.n, bad)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split(maxsplit=1)[1].strip() == "[]"
    assert float(result.stdout.split()[0]) == document().n
