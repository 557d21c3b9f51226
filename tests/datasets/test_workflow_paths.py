"""Attachments of MPContribs as saved answers: labels against the model that made them, rejects with their reasons."""

from __future__ import annotations

import base64
import gzip
import json
import re

import numpy as np
import pytest

from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.dataset import Dataset, build_dataset
from fieldflows.datasets.sources.mpcontribs_ferroelectrics import MPContribsFerroelectrics
from fieldflows.errors import ConventionError, DataError, SettingsError
from tests.support.contribs import answers, answers_of_dft, crystal, object_id, pack, workflow

GOOD = workflow("good", "SrTiO3")


def read(tmp_path, data, **settings):
    path = tmp_path / "answers.json.gz"
    with gzip.open(path, "wt") as handle:
        json.dump(data, handle)
    source = MPContribsFerroelectrics(path=str(path), **settings)
    return source.read(path)


@pytest.mark.parametrize("start", [(0, 0, 0), (0.5, 0, 0.5), (-2.0, 0.25, 0)])
def test_labels_are_those_of_the_model_in_internal_units(tmp_path, start):
    data = read(tmp_path, answers(workflow(start=start)))
    truth = answers_of_dft()
    assert [frame.source_index for frame in data.frames] == list(range(10))
    for k, (frame, expected) in enumerate(zip(data.frames, truth, strict=True)):
        assert frame.extra["path_index"] == k
        # The model is zero at the nonpolar end: whatever branch is published, the label is its P.
        np.testing.assert_allclose(frame.labels["polarization"], expected.polarization, atol=1e-12)
        np.testing.assert_allclose(frame.labels["forces"], expected.forces, atol=1e-10)
        np.testing.assert_allclose(frame.labels["stress"], expected.stress, atol=1e-12)
        assert float(frame.labels["energy"]) == pytest.approx(float(expected.energy), abs=1e-10)
        np.testing.assert_allclose(frame.atoms.positions, crystal(k).positions, atol=1e-10)
        cell = frame.atoms.cell[:]
        offset = np.array(start) @ cell / abs(np.linalg.det(cell))
        np.testing.assert_allclose(frame.extra["polarization_raw"], expected.polarization + offset, atol=1e-12)
    offset = any(f.code == "path_nonpolar_offset" for flags in data.flags.values() for f in flags)
    assert offset == (start[0] == 0.5 or start[1] == 0.25)
    assert data.frames[0].extra["contribution"] == object_id(0)
    assert any("unconfirmed" in note or "no recorded answer confirms" in note for note in data.notes)


def test_labels_can_be_left_out(tmp_path):
    data = read(tmp_path, answers(GOOD), energies=False, forces=False, stresses=False)
    assert {name for frame in data.frames for name in frame.labels} == {"polarization"}
    bare = {key: value for key, value in GOOD.items() if key not in ("forces", "stresses", "bandgaps")}
    data = read(tmp_path, answers(bare, packed=False))
    assert set(data.frames[3].labels) == {"polarization", "energy"}
    assert not any("confirms" in note for note in data.notes)


def holed(field: str, k: int = 4, value=None) -> list:
    values = list(GOOD[field])
    values[k] = value
    return values


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"workflow_status": "DEFUSED"}, "path_incomplete", "is DEFUSED, not COMPLETED"),
        ({"workflow_status": "FIZZLED", "structures": []}, "path_incomplete", "FIZZLED"),
        ({"workflow_status": "RUNNING"}, "path_incomplete", "RUNNING"),
        ({"structures": GOOD["structures"][:9]}, "path_incomplete", "'structures' of attachment .* has 9 frames"),
        ({"structures": holed("structures")}, "path_incomplete", "'structures' .* is empty for frame 4"),
        ({"same_branch_polarization": holed("same_branch_polarization")}, "path_incomplete", "empty for frame 4"),
        (
            {"same_branch_polarization": holed("same_branch_polarization", 7, [1.0, None, 2.0])},
            "path_incomplete",
            "not finite for frame 7",
        ),
        ({"same_branch_polarization": holed("same_branch_polarization", 7, [1.0, 2.0])}, "malformed", "frame 7"),
        ({"polarization_quanta": holed("polarization_quanta", 2, "1 2 3")}, "malformed", "'polarization_quanta'"),
        ({"polarization_quanta": [[0.0, 1.0, 1.0]] * 10}, "path_incomplete", "not positive"),
        ({"bandgaps": [1.0, 1.0, 0.0] + [1.0] * 7}, "path_metallic", "frame 2 is metallic"),
        ({"bandgaps": {"nonpolar": 1.0}}, "malformed", "'bandgaps'"),
        ({"forces": holed("forces", 3, [[0.0, 0.0]])}, "malformed", "'forces' .* frame 3, expected shape .5, 3."),
        ({"stresses": holed("stresses", 3, [0.0] * 6)}, "malformed", "'stresses' .*set stresses: false"),
        ({"energies": [0.0] * 10}, "malformed", "contradict each other"),
        ({"energies": "none"}, "malformed", "field 'energies' .* str in place of a list"),
        ({"wfid": "other"}, "malformed", "field 'wfid' .* another contribution"),
        ({"polarization_change_norm": 12.0}, "path_norm", "published norm"),
        ({"polarization_quanta": [[0.47, 0.5, 0.5]] * 10}, "path_quantum", "another unit"),
    ],
)
def test_what_is_no_path_is_rejected_with_its_reason(tmp_path, changes, code, message):
    identifier = "second"
    bad = workflow(identifier) | changes
    data = answers(GOOD, bad)
    data["contributions"]["data"][1]["identifier"] = identifier
    made = read(tmp_path, data)
    assert {frame.extra["wfid"] for frame in made.frames} == {"good"}
    findings = [finding for reject in made.rejects for finding in reject.findings]
    assert code in {finding.code for finding in findings}
    named = [finding.message for finding in findings if finding.code == code]
    assert re.search(message, named[0]), named[0]
    assert all(10 <= reject.source_index < 20 for reject in made.rejects)


@pytest.mark.parametrize("field", ["structures", "same_branch_polarization", "polarization_quanta"])
def test_a_changed_schema_names_field_and_document(tmp_path, field):
    renamed = {("new_" + key if key == field else key): value for key, value in workflow("second").items()}
    made = read(tmp_path, answers(GOOD, renamed))
    message = made.rejects[0].findings[0].message
    assert message.startswith("second: ")
    assert f"attachment {object_id(2001)} has no field '{field}'" in message
    assert f"new_{field}" in message
    with pytest.raises(DataError, match=f"no polarization path.*'{field}'"):
        read(tmp_path, answers(renamed))


def test_a_site_that_is_no_element_names_the_frame(tmp_path):
    bad = json.loads(json.dumps(workflow("second")))
    bad["structures"][6]["sites"][1]["species"] = [{"element": "Ti", "occu": 0.5}, {"element": "Zr", "occu": 0.5}]
    message = read(tmp_path, answers(GOOD, bad)).rejects[0].findings[0].message
    assert "frame 6" in message
    assert "'structures'" in message


ODD = [None, "", "x", 0, -1, 1.5, True, [], {}, [None], {"a": 1}, 1e308, 10**400, [1, 2, 3], float("nan")]


def places(document, place=()):
    """Yield the place of every value in nested JSON."""
    yield place
    if isinstance(document, dict | list):
        for key in document if isinstance(document, dict) else range(len(document)):
            yield from places(document[key], (*place, key))


def test_whatever_is_in_one_contribution_the_others_stay(tmp_path):
    """Eighty documents with one value replaced: rejected or kept, and the good one is always there."""
    rng = np.random.default_rng(0)
    text = json.dumps(answers(GOOD, workflow("second"), packed=False))
    roots = [("contributions", "data", 1), ("attachments", object_id(2001))]
    kept = 0
    for _ in range(80):
        data = json.loads(text)
        holder = data
        for key in roots[rng.integers(2)]:
            holder = holder[key]
        found = [place for place in places(holder) if 0 < len(place) < 6]
        *above, last = found[rng.integers(len(found))]
        for key in above:
            holder = holder[key]
        holder[last] = ODD[rng.integers(len(ODD))]
        path = tmp_path / "answers.json"
        path.write_text(json.dumps(data))
        made = MPContribsFerroelectrics(path=str(path)).read(path)
        assert sum(frame.extra["wfid"] == "good" for frame in made.frames) == 10
        assert (len(made.frames) == 20) != bool(made.rejects)
        kept += len(made.frames) == 20
    assert 8 < kept < 72  # some of the values are of no consequence


def cut(text: str) -> str:
    return text[: len(text) // 8 * 4]


PACKED = pack(workflow("second"))
HALF_GZIP = base64.b64encode(gzip.compress(json.dumps(workflow("second")).encode())[:400]).decode()
HALF_JSON = base64.b64encode(gzip.compress(json.dumps(workflow("second")).encode()[:400])).decode()


@pytest.mark.parametrize(
    ("attachment", "message"),
    [
        ({"content": PACKED[:-1]}, "no base64"),
        ({"content": PACKED[:100] + "*" + PACKED[101:]}, "no base64"),
        ({"content": cut(PACKED)}, "no whole gzip"),
        ({"content": HALF_GZIP}, "no whole gzip"),
        ({"content": base64.b64encode(b"<html>").decode()}, "no whole gzip"),
        ({"content": HALF_JSON}, "no whole JSON"),
        ({"content": pack([1, 2])}, "holds a list in place of an object"),
        ({"content": 3}, "no field 'content'"),
        ({"error": "the service is tired"}, "the service is tired"),
        ({"@module": "os", "@class": "system"}, "no field 'content'"),
        (None, "not among the answers"),
    ],
)
def test_a_damaged_attachment_leaves_the_others(tmp_path, attachment, message):
    data = answers(GOOD, workflow("second"))
    if attachment is None:
        del data["attachments"][object_id(2001)]
    else:
        data["attachments"][object_id(2001)] = {"id": object_id(2001)} | attachment
    made = read(tmp_path, data)
    assert len(made.frames) == 10
    (reject,) = made.rejects
    assert reject.source_index == 10
    assert message in reject.findings[0].message
    assert object_id(2001) in reject.findings[0].message


def test_a_contribution_without_a_path_is_a_reject(tmp_path):
    data = answers(GOOD, workflow("second"), workflow("third"), workflow("fourth"))
    documents = data["contributions"]["data"]
    documents[3]["files"] = documents[3].pop("attachments")
    documents[1] |= {"attachments": documents[1]["attachments"][:1], "structures": [{"id": "a"}, {"id": "b"}]}
    del documents[2]["identifier"]
    messages = [reject.findings[0].message for reject in read(tmp_path, data).rejects]
    assert "of distortion.json.gz and 2 structures, 0 are called workflow.json.gz" in messages[0]
    assert "no field 'identifier'" in messages[1]
    assert "fourth: the contribution has no list 'attachments'; it has data, files, formula" in messages[2]


def test_the_other_project_is_labeled_unconfirmed(tmp_path):
    data = answers(GOOD)
    data["contributions"]["data"][0]["project"] = "ferroelectrics_ext"
    made = read(tmp_path, data, project="ferroelectrics_ext")
    assert len(made.frames) == 10
    assert any("schema of ferroelectrics_ext is unconfirmed" in note for note in made.notes)
    source = MPContribsFerroelectrics(whole_project=True, project="ferroelectrics_ext")
    assert source.reference.startswith("Ricci")


def test_a_stress_of_another_sign_or_unit_does_not_pass(tmp_path):
    stresses = np.array(GOOD["stresses"])
    assert any("has slope 1.0" in note or "has slope 0.99" in note for note in read(tmp_path, answers(GOOD)).notes)
    with pytest.raises(ConventionError, match="−σ fits better"):
        read(tmp_path, answers(GOOD | {"stresses": (-stresses).tolist()}))
    with pytest.raises(ConventionError, match="stress"):
        read(tmp_path, answers(GOOD | {"stresses": (100 * stresses).tolist()}))
    with pytest.raises(ConventionError, match="another unit"):
        read(tmp_path, answers(GOOD | {"forces": (2 * np.array(GOOD["forces"])).tolist()}))
    assert len(read(tmp_path, answers(GOOD | {"stresses": (-stresses).tolist()}), stresses=False).frames) == 10


def test_broken_files(tmp_path):
    path = tmp_path / "answers.json"
    source = MPContribsFerroelectrics(path=str(path))
    with pytest.raises(DataError, match="There is no file"):
        source.read(path)
    for text, message in (("{", "cannot be read"), ("[]", "no answers"), ('{"a": 1}', "no contributions; it has a")):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            source.read(path)
    path.write_text(json.dumps({"contributions": [3, None]}))
    with pytest.raises(DataError, match="no polarization path"):
        source.read(path)
    cut_off = tmp_path / "answers.json.gz"
    cut_off.write_bytes(gzip.compress(json.dumps(answers(GOOD)).encode())[:1000])
    with pytest.raises(DataError, match="cannot be read"):
        source.read(cut_off)


def test_ids_and_limit_choose_among_saved_answers(tmp_path):
    data = answers(GOOD, workflow("second"), workflow("third"))
    made = read(tmp_path, data, ids=["third", object_id(0), "nothing"])
    assert {frame.extra["wfid"] for frame in made.frames} == {"good", "third"}
    (reject,) = made.rejects
    assert reject.findings[0].code == "unknown_id"
    assert reject.findings[0].message.startswith("nothing: ")
    assert {frame.extra["wfid"] for frame in read(tmp_path, data, limit=15).frames} == {"good"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "say what to fetch"),
        ({"whole_project": True, "ids": ["a"]}, "leave ids and filter out"),
        ({"path": "a.json", "filter": {"formula": "BaTiO3"}}, "choose with ids"),
        ({"whole_project": True, "project": "others"}, "project"),
        ({"filter": {"_fields": "id", "project": "x", "formula": "BaTiO3"}}, "may not set _fields, project"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    source = {"type": "mpcontribs_ferroelectrics"} | settings
    with pytest.raises(SettingsError, match=message):
        DatasetConfig.from_dict({"name": "f", "sources": [source]})


def test_a_dataset_of_saved_answers(tmp_path):
    path = tmp_path / "answers.json"
    path.write_text(
        json.dumps(answers(GOOD, workflow("two", "BaZrO3", 1.03), workflow("three", workflow_status="RUNNING")))
    )
    source = {"type": "mpcontribs_ferroelectrics", "path": "answers.json"}
    dataset = build_dataset(DatasetConfig.from_dict({"name": "f", "sources": [source]}, base=tmp_path))
    assert {frame.material for frame in dataset.frames} == {"SrTiO3", "BaZrO3"}
    assert dataset.manifest.sources[0].n_kept == len(dataset) == 20
    assert [reject.source_index for reject in dataset.manifest.rejects] == [20]
    assert dataset.manifest.sources[0].reference.startswith("Smidt")
    loaded = Dataset.load(dataset.save(tmp_path / "out"))
    assert loaded.frames[0].extra["contribution"] == object_id(0)  # an id that looks like a number
    again = build_dataset(DatasetConfig.from_dict({"name": "f", "sources": [source]}, base=tmp_path))
    assert again.digest == dataset.digest
