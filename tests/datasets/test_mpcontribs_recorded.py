"""Recorded answers of MPContribs against the published paths of the same workflows; skipped without FIELDFLOWS_DATA."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import numpy as np
import pytest

from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.dataset import build_dataset
from fieldflows.datasets.duplicates import DuplicatesConfig, find_duplicates
from fieldflows.datasets.extxyz import read_extxyz
from fieldflows.datasets.source import SourceData
from fieldflows.datasets.sources.ferroelectric_paths import FerroelectricPaths
from fieldflows.datasets.sources.mpcontribs_ferroelectrics import MPContribsFerroelectrics
from tests.support.contribs import KEY, UC_PER_CM2, pack, server

FIXTURE = "mpcontribs_ferroelectrics_fixture.json.xz"
ATTACHMENTS = "attachments (content = base64(gzip(json.dumps(json))))"


@pytest.fixture(scope="module")
def recorded(data_folder) -> dict:
    with lzma.open(data_folder / FIXTURE) as handle:
        return json.load(handle)


@pytest.fixture(scope="module")
def contributions(data_folder) -> SourceData:
    return MPContribsFerroelectrics(path=str(data_folder / FIXTURE)).read(data_folder / FIXTURE)


@pytest.fixture(scope="module")
def published(data_folder) -> SourceData:
    path = data_folder / "ferroelectric_paths_dev.extxyz.xz"
    return FerroelectricPaths(path=str(path)).read(path)


@pytest.fixture(scope="module")
def audit(data_folder) -> dict:
    with lzma.open(data_folder / "ferroelectric_paths_audit_dev.json.xz") as handle:
        return {entry["wfid"]: entry for entry in json.load(handle)}


def by_frame(data: SourceData) -> dict:
    return {(frame.extra["wfid"], frame.extra["path_index"]): frame for frame in data.frames}


def test_frames_are_the_published_ones(contributions, published):
    ours, theirs = by_frame(contributions), by_frame(published)
    assert len(ours) == 300
    assert ours.keys() <= theirs.keys()
    for key, frame in ours.items():
        other = theirs[key]
        assert np.array_equal(frame.atoms.numbers, other.atoms.numbers)
        np.testing.assert_allclose(frame.atoms.cell[:], other.atoms.cell[:], atol=1e-6)
        np.testing.assert_allclose(frame.atoms.positions, other.atoms.positions, atol=1e-6)
        energies = float(frame.labels["energy"]), float(other.labels["energy"])
        assert energies[0] == pytest.approx(energies[1], abs=1e-6)
        np.testing.assert_allclose(frame.labels["polarization"], other.labels["polarization"], atol=1e-6 / UC_PER_CM2)
        np.testing.assert_allclose(
            frame.extra["polarization_raw"], other.extra["polarization_raw"], atol=1e-6 / UC_PER_CM2
        )
        assert {k: frame.extra[k] for k in ("nonpolar_mpid", "polar_mpid")} == {
            k: other.extra[k] for k in ("nonpolar_mpid", "polar_mpid")
        }


def codes(data: SourceData, frame) -> set[str]:
    return {finding.code for finding in data.flags.get(frame.source_index, [])}


def test_both_sources_together_hold_every_frame_once(contributions, published):
    frames = published.frames + contributions.frames
    trajectories = frozenset({published.frames[0].source, contributions.frames[0].source})
    copies = find_duplicates(frames, DuplicatesConfig(), trajectories)
    assert sorted(copies) == list(range(len(published.frames), len(frames)))
    for copy, (kept, kind) in copies.items():
        assert kind == "exact"
        for name in ("wfid", "path_index"):
            assert frames[copy].extra[name] == frames[kept].extra[name]


def test_flags_are_those_of_the_published_paths(contributions, published):
    theirs = by_frame(published)
    found = {key: codes(contributions, frame) for key, frame in by_frame(contributions).items()}
    assert found == {key: codes(published, theirs[key]) for key in found}
    assert {code for one in found.values() for code in one} >= {"path_not_smooth", "path_nonpolar_offset"}


def test_spontaneous_polarizations_of_the_labels(contributions, published, recorded, audit):
    """The label of the polar end, with the published norms and the audit's vectors: 0.01 µC/cm² are asked for."""
    norms = {
        entry["json"]["wfid"]: entry["json"]["polarization_change_norm"]
        for entry in recorded[ATTACHMENTS].values()
        if entry["json"].get("polarization_change_norm") is not None
    }
    for data, count in ((contributions, 30), (published, 201)):
        ends = [frame for frame in data.frames if frame.extra["path_index"] == 9]
        assert len(ends) == count
        for frame in ends:
            wfid = frame.extra["wfid"]
            label = frame.labels["polarization"] * UC_PER_CM2
            np.testing.assert_allclose(label, audit[wfid]["Ps_vec_cart_uC_cm2"], atol=1e-5)
            if wfid in norms:
                assert np.linalg.norm(label) == pytest.approx(norms[wfid], abs=1e-5)


def test_spontaneous_polarizations_have_the_published_direction(contributions, recorded):
    """Published are components of the change along the normalized lattice vectors of the polar end."""
    changes = {
        entry["json"]["wfid"]: np.ravel(entry["json"]["polarization_change"])
        for entry in recorded[ATTACHMENTS].values()
        if entry["json"].get("polarization_change")
    }
    for frame in contributions.frames:
        if frame.extra["path_index"] == 9:
            axes = frame.atoms.cell[:] / frame.atoms.cell.lengths()[:, None]
            label = frame.labels["polarization"] * UC_PER_CM2
            np.testing.assert_allclose(label, changes[frame.extra["wfid"]] @ axes, atol=1e-5)


def test_rejects_are_the_audit_s_and_those_without_a_path(contributions, recorded, audit):
    status = {
        item["identifier"]: item["data"]["workflow"]["status"] for item in recorded["GET /contributions/"]["data"]
    }
    kept = {frame.extra["wfid"] for frame in contributions.frames}
    bent = {wfid for wfid in status if wfid in audit and audit[wfid]["reject"]}
    unfinished = {wfid for wfid, text in status.items() if text != "COMPLETED"}
    assert len(bent) == 2
    assert len(unfinished) == 3
    assert set(status) - kept == bent | unfinished
    single = [reject for reject in contributions.rejects if reject.findings[0].code == "path_incomplete"]
    assert {reject.findings[0].message.split(":")[0] for reject in single} == unfinished
    assert {text for reject in single for text in status.values() if f"is {text}," in reject.findings[0].message} == {
        "DEFUSED", "FIZZLED", "RUNNING",
    }  # fmt: skip
    rest = {reject.findings[0].code for reject in contributions.rejects if reject not in single}
    assert rest == {"path_second_difference"}
    assert len(contributions.rejects) == 3 + 10 * 2


def test_half_quantum_references_are_flagged(published, audit):
    flagged = {
        frame.extra["wfid"]: finding.value
        for frame in published.frames
        for finding in published.flags.get(frame.source_index, [])
        if finding.code == "path_nonpolar_offset"
    }
    half = {wfid for wfid, entry in audit.items() if entry["nonpolar_half_quantum"] and not entry["reject"]}
    assert len(half) > 10
    assert {wfid for wfid, value in flagged.items() if value > 0.49} == half
    for frame in published.frames:
        if frame.extra["path_index"] == 0:
            assert not frame.labels["polarization"].any()
            assert (np.abs(frame.extra["polarization_raw"]).max() > 1e-3) or frame.extra["wfid"] not in half


def test_every_path_of_the_file_is_judged_as_the_audit_does(published, audit, data_folder):
    """Ten rejects each for the paths that the audit rejects, and none for another reason."""
    wfids = {raw.index: raw.info["wfid"] for raw in read_extxyz(data_folder / "ferroelectric_paths_dev.extxyz.xz")}
    rejected = {wfids[reject.source_index] for reject in published.rejects}
    assert rejected == {wfid for wfid, entry in audit.items() if entry["reject"]}
    assert len(published.rejects) == 10 * len(rejected) == 80
    assert {finding.code for reject in published.rejects for finding in reject.findings} == {"path_second_difference"}


def test_the_service_gives_what_the_recorded_answers_hold(recorded, contributions, tmp_path, monkeypatch, data_folder):
    attachments = {
        key: {name: entry[name] for name in ("id", "name", "md5", "mime")} | {"content": pack(entry["json"])}
        for key, entry in recorded[ATTACHMENTS].items()
    }
    saved = {
        "projects": recorded["GET /projects/"],
        "contributions": recorded["GET /contributions/"],
        "attachments": attachments,
    }
    monkeypatch.setenv("FIELDFLOWS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MPCONTRIBS_API_KEY", KEY)
    with server(saved, most_per_page=10) as service:
        monkeypatch.setenv("MPCONTRIBS_API_HOST", service.url)
        source = MPContribsFerroelectrics(whole_project=True)
        path = source.locate(None, lambda *_: None)
        assert service.count("/contributions/") == 4
        assert service.count() == 1 + 4 + 32  # what is not COMPLETED has no path to ask for
    data = source.read(path)
    assert len(data.frames) == len(contributions.frames)
    ours = by_frame(contributions)
    for key, frame in by_frame(data).items():
        for name, value in ours[key].labels.items():
            assert np.array_equal(frame.labels[name], value)


def test_the_workflow_file_builds_from_recorded_answers(data_folder):
    path = Path(__file__).resolve().parents[2] / "workflows" / "dataset_mpcontribs_ferroelectric.yaml"
    config = DatasetConfig.from_yaml(path)
    (source,) = config.sources
    assert source.whole_project
    saved = source.model_copy(update={"path": str(data_folder / FIXTURE), "whole_project": False})
    manifest = build_dataset(config.model_copy(update={"sources": [saved]})).manifest
    assert manifest.n_frames + len(manifest.duplicates) + len(manifest.rejects) == 300 + 23
