"""Documents: strict, frozen, with units, readable for ever, and harmless to read."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import types
import typing
import uuid
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest
from ase.build import bulk
from monty.json import MontyDecoder, jsanitize
from pydantic import ValidationError
from pymatgen.core import Lattice, Structure
from pymongo.errors import AutoReconnect

from fieldflows.backends.toy import ToyModel
from fieldflows.errors import (
    ArtifactError,
    DataError,
    EvaluationError,
    InputError,
    StoreError,
    StructureError,
    Unreachable,
    WrongAnswer,
)
from fieldflows.properties.dielectric import DielectricProperty, DielectricSettings
from fieldflows.properties.run import run_property
from fieldflows.schemas import migrations
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
from fieldflows.schemas.identity import failure_key
from fieldflows.schemas.model import ModelDocument, RegisteredModel
from fieldflows.schemas.provenance import ModelCard, Provenance, Relaxation
from fieldflows.schemas.training import TrainingDocument

GOLDEN = Path(__file__).parent / "golden"
MIGRATED = {
    "dielectric_1.json": ("schema_version", "key", "provenance"),
    "failure_1.json": ("schema_version",),
    "training_1.json": ("schema_version",),
}
"""What migrations change in documents of older versions."""
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
        ("dielectric_2.json", DielectricDocument),
        ("failure_1.json", FailureDocument),
        ("failure_2.json", FailureDocument),
        ("training_1.json", TrainingDocument),
        ("spontaneous_polarization_1.json", SpontaneousPolarizationDocument),
    ],
)
def test_golden_documents_still_load_and_round_trip(name, cls):
    """One file for every released schema version; never change these files."""
    stored = golden(name)
    loaded = cls.from_json_dict(stored)
    assert loaded.schema_version == cls.latest_version
    again = cls.from_json_dict(json.loads(json.dumps(loaded.to_json_dict(), allow_nan=False)))
    assert again == loaded
    changed = {"structure", "nonpolar", *MIGRATED.get(name, ())}
    for key in set(stored) - changed:
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
    with pytest.raises(DataError, match=r"schema version 99.*reads up to 2.*Update"):
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


def test_failures_have_a_key_of_what_failed():
    """The key is the uuid5 of the name space and the text that names what failed, worked out here by hand."""
    namespace = uuid.uuid5(uuid.NAMESPACE_URL, "https://github.com/fieldflows/fieldflows")
    for text, facts in {
        '["key", "k", "dielectric", "ionic"]': {"key": "k", "source": "a.cif", "index": 1, "extent": "ionic"},
        '["source", "a.cif", 1, "dielectric", null]': {"source": "a.cif", "index": 1, "material_id": "mp-1"},
        '["material", "mp-1", "dielectric", null]': {"material_id": "mp-1", "index": 1},
        '["formula", "MgO", 1, "dielectric", null]': {"formula": "MgO", "index": 1},
    }.items():
        failure = FailureDocument.from_error(ValueError("x"), "plan", task="dielectric", **facts)
        assert failure.failure_key == str(uuid.uuid5(namespace, "failure|" + text))
        assert FailureDocument(stage="read", error_type="E", message="m", task="dielectric", **facts) == (
            failure.model_copy(
                update={"stage": "read", "error_type": "E", "message": "m", "created_at": ANY, "transient": False}
            )
        )
    stored = golden("failure_2.json")
    names = ("key", "source", "index", "material_id", "formula", "task", "extent")
    assert stored["failure_key"] == failure_key(**{name: stored[name] for name in names})
    with pytest.raises(DataError, match="index"):
        FailureDocument.from_json_dict({**stored, "failure_key": "", "index": {1}})


def test_failures_that_may_pass():
    import torch

    class Wrapped(OSError):
        pass

    memory = EvaluationError("Memory ran out.")
    memory.__cause__ = torch.OutOfMemoryError("CUDA")
    passing = [MemoryError(), torch.OutOfMemoryError("CUDA"), OSError(5, "I/O"), Wrapped(), ConnectionResetError()]
    passing += [StoreError("x"), ArtifactError("x"), Unreachable("x"), BrokenProcessPool("x"), AutoReconnect("x")]
    passing += [memory]
    staying = [ValueError("x"), StructureError("x"), EvaluationError("x"), WrongAnswer("x"), RuntimeError("x")]
    staying += [KeyError("x"), InputError("x")]
    staying[-1].__cause__ = FileNotFoundError("x")  # a file that the user misspelled
    assert [e for e in passing if not FailureDocument.from_error(e, "evaluate").transient] == []
    assert [e for e in staying if FailureDocument.from_error(e, "evaluate").transient] == []


def test_failures_keep_the_structure_that_was_given():
    crystal = bulk("NaCl", "rocksalt", 5.64)
    flat, partial = bulk("NaCl", "rocksalt", 5.64), Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])
    flat.positions[1] = flat.positions[0] + 0.01  # too near, which is why it fails
    lost = bulk("NaCl", "rocksalt", 5.64)
    lost.positions[1] = np.nan
    for given, kept in ((crystal, True), (flat, True), (partial, True), (lost, False), ("text", False), (None, False)):
        failure = FailureDocument.from_error(ValueError("x"), "plan", structure=given)
        again = FailureDocument.from_json_dict(json.loads(json.dumps(failure.to_json_dict(), allow_nan=False)))
        assert again == failure
        assert (failure.structure is not None) is kept
    stored = FailureDocument.from_error(ValueError("x"), "plan", structure=flat).structure
    assert np.allclose(stored.cart_coords, flat.positions, atol=1e-12)


def test_migrations_go_step_by_step(monkeypatch: pytest.MonkeyPatch):
    class Note(Document):
        latest_version = 3
        schema_version: int = 3
        text: str
        length: int

    class Notes(Document):
        notes: tuple[Note, ...]

    monkeypatch.setattr(migrations, "MIGRATIONS", {})
    migrations.migration("Note", 1)(lambda data: {"text": data["words"], "schema_version": 1})
    migrations.migration("Note", 2)(lambda data: {**data, "length": len(data["text"])})
    with pytest.raises(ValueError, match="version 1 already"):
        migrations.migration("Note", 1)(dict)
    with pytest.raises(DataError, match="schema version 1: KeyError 'words'"):
        Note.from_json_dict({"schema_version": 1})
    old = {"schema_version": 1, "words": "abc"}
    latest = Note(text="abc", length=3)
    assert Note.from_json_dict({**old, "_id": 1, "@class": "Note"}) == latest
    assert Note.from_json_dict({"schema_version": 2, "text": "abc"}) == latest
    assert Notes.from_json_dict({"notes": [old, latest.to_json_dict()]}).notes == (latest, latest)
    assert old == {"schema_version": 1, "words": "abc"}
    for version in (0, -1, True, "1", 3):
        with pytest.raises(DataError):
            Note.from_json_dict({**old, "schema_version": version})
    with pytest.raises(DataError, match="version 4"):
        Note.from_json_dict({**latest.to_json_dict(), "schema_version": 4})


@pytest.mark.parametrize("extra", [{}, {"relax": {"force_threshold": 0.01}, "head": "pbe"}])
@pytest.mark.parametrize("ionic", [True, False])
def test_dielectric_documents_of_version_1_get_the_keys_of_today(extra: dict, ionic: bool):
    """Version 1 had ``ionic`` in the hash of the settings; written that way by hand, it must lead to today's key."""
    crystal, model = bulk("MgO", "rocksalt", 4.21), ToyModel()
    prop = DielectricProperty(DielectricSettings(ionic=ionic))
    (today,) = (document.to_json_dict() for document in run_property(prop, [crystal], model, extra_settings=extra))
    provenance, card = today["provenance"], today["provenance"]["model"]
    settings = {name: value for name, value in provenance["settings"].items() if name not in extra}
    assert settings["ionic"] is ionic
    hashed = {"settings": settings, "extra": extra, "dtype": card["dtype"], "hessian_model": None}
    digest = hashlib.sha256(json.dumps(hashed, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    namespace = uuid.uuid5(uuid.NAMESPACE_URL, "https://github.com/fieldflows/fieldflows")
    key = str(uuid.uuid5(namespace, f"dielectric|{provenance['input_structure_hash']}|{card['sha256']}|{digest}|1"))
    old = {**today, "schema_version": 1, "key": key, "provenance": {**provenance, "settings_hash": digest}}
    del old["reference"]
    assert DielectricDocument.from_json_dict(old).to_json_dict() == today
    assert key != today["key"]
    # settings that do not lead to the stored hash: the document is read, under its own key
    other = {**old, "provenance": {**provenance, "settings_hash": "0" * 64}}
    read = DielectricDocument.from_json_dict(other)
    assert (read.key, read.schema_version, read.provenance.settings_hash) == (key, 2, "0" * 64)


def test_readable_without_torch_and_jobflow():
    code = (
        "import json, sys; from fieldflows.schemas.dielectric import DielectricDocument as D; "
        f"d = D.from_json_dict(json.load(open({str(GOLDEN / 'dielectric_1.json')!r}, encoding='utf-8'))); "
        "bad = sorted({'torch', 'jobflow', 'mace', 'maggma', 'matplotlib'} & set(sys.modules)); print(d.n, bad)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split(maxsplit=1)[1].strip() == "[]"
    assert float(result.stdout.split()[0]) == document().n
