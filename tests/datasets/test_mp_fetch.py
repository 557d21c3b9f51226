"""Fetching dielectric documents with the real mp-api client from a real server on loopback."""

from __future__ import annotations

import gzip
import json
import logging
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from emmet.core.mpid import AlphaID

from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.dataset import build_dataset
from fieldflows.datasets.materials_project import MaterialsProject, identities, identity, materials_project_key
from fieldflows.datasets.sources.mp_dielectric import MPFilter
from fieldflows.datasets.web import AnswerCache
from fieldflows.errors import DataError, KeyProblem, SettingsError, Unreachable, WrongAnswer
from tests.datasets.mp_made import IDS, crystal, dielectric, documents, phonon, summary, task
from tests.datasets.synthetic import EPS0
from tests.support.materials_project import KEY, serve

ROUTES = ("/materials/dielectric/", "/materials/summary/", "/materials/tasks/")


@pytest.fixture(autouse=True)
def _places(monkeypatch, tmp_path):
    """An empty cache and home, and a key."""
    monkeypatch.setenv("FIELDFLOWS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MP_API_KEY", KEY)
    monkeypatch.delenv("PMG_MAPI_KEY", raising=False)


@pytest.fixture
def server(monkeypatch):
    with serve(documents(tasks=[task(name) for name in IDS])) as made:
        monkeypatch.setenv("MP_API_ENDPOINT", made.url)
        yield made


def config(**more) -> DatasetConfig:
    source = {"type": "mp_dielectric"} | ({} if "filter" in more else {"material_ids": list(IDS.values())}) | more
    return DatasetConfig.from_dict({"name": "mp", "sources": [source]})


def build(progress=None, **more):
    return build_dataset(config(**more), progress)


def check_labels(dataset) -> None:
    for frame in dataset.frames:
        atoms, epsilon, charges = crystal(frame.material)
        np.testing.assert_allclose(frame.atoms.cell[:], atoms.cell[:], atol=1e-9)
        np.testing.assert_allclose(np.eye(3) + frame.labels["polarizability"] / EPS0, epsilon, atol=1e-8)
        np.testing.assert_allclose(frame.labels["epsilon_ionic"], 2 * epsilon, atol=1e-8)
        np.testing.assert_allclose(frame.labels["born_effective_charges"], charges, atol=1e-8)


def test_one_flow_from_ids_to_labels(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stages = []
    dataset = build(lambda stage, done, total: stages.append((stage, done, total)))
    assert sorted(frame.material for frame in dataset.frames) == sorted(IDS)
    check_labels(dataset)
    assert {frame.extra["material_id"] for frame in dataset.frames} == set(IDS.values())
    assert {frame.extra["structure_from"] for frame in dataset.frames} == {"task"}
    (source,) = dataset.manifest.sources
    assert source.path == server.url + "/"
    assert "database 2026.04.13" in source.notes
    assert any("not confirmed on recorded answers" in note for note in source.notes)
    assert ("fetching dielectric", 3, 3) in stages
    assert [server.count(route) for route in ROUTES] == [1, 1, 1]
    asked = [item for item in server.requests if item.path in ROUTES]
    assert all("material_ids" in item.params or "task_ids" in item.params for item in asked)
    assert all("electronic" in item.params["_fields"] for item in asked if "dielectric/" in item.path)
    # what is kept answers the next build without the network, and gives the same dataset
    before = server.count()
    assert build().digest == dataset.digest
    assert build(offline=True).digest == dataset.digest
    assert server.count() == before
    assert not (tmp_path / "home" / "mp_datasets").exists()


def test_a_stopped_fetch_goes_on_where_it_was(server):
    class Stop(Exception):
        pass

    def stop(stage, done, total):
        if (stage, done) == ("fetching dielectric", 2):
            raise Stop

    with pytest.raises(Stop):
        build(stop, batch=1)
    assert server.count(ROUTES[0]) == 2
    check_labels(build(batch=1))
    assert [server.count(route) for route in ROUTES] == [3, 3, 3]
    asked = [item.params["material_ids"] for item in server.requests if item.path == ROUTES[0]]
    assert len(set(asked)) == 3  # nothing was asked twice


def test_a_killed_fetch_goes_on_where_it_was(server, tmp_path):
    """Killed by the system while the second batch is on its way."""
    server.misbehave("slow", path=ROUTES[0], skip=1, seconds=60)
    (tmp_path / "mp.yaml").write_text(
        f"name: mp\nsources: [{{type: mp_dielectric, material_ids: [{', '.join(IDS.values())}], batch: 1}}]\n"
    )
    code = "from fieldflows.cli.main import run; run(['dataset', 'build', 'mp.yaml', '--out', 'out', '--no-figure'])"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while server.count(ROUTES[0]) < 2 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    before = [item.params["material_ids"] for item in server.requests if item.path == ROUTES[0]]
    check_labels(build(batch=1))
    after = [item.params["material_ids"] for item in server.requests if item.path == ROUTES[0]][len(before) :]
    assert before == [IDS["GaN"], IDS["ZnO"]]
    assert after == [IDS["ZnO"], IDS["BeO"]]  # the first is kept, the second was never answered
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_an_addition_asks_for_the_addition_alone(server):
    build(material_ids=[IDS["ZnO"], IDS["GaN"]])
    build()
    assert [item.params["material_ids"] for item in server.requests if item.path == ROUTES[0]] == [
        f"{IDS['GaN']},{IDS['ZnO']}", IDS["BeO"]
    ]  # fmt: skip


def test_refresh_asks_for_everything_again(server):
    build()
    changed = documents(tasks=[])
    changed["dielectric"][0] |= {"deprecated": True}
    with serve(changed) as newer:
        server.routes = newer.routes
        assert len(build()) == 3
        assert len(build(refresh=True)) == 2
    assert server.count(ROUTES[0]) == 2
    assert len(build()) == 2  # the newer answers are the ones that are kept


def test_ids_in_either_spelling(server):
    alpha = [str(AlphaID(name)) for name in IDS.values()]
    assert not set(alpha) & set(IDS.values())
    check_labels(build(material_ids=[*alpha, *IDS.values()]))
    assert server.count(ROUTES[0]) == 1
    assert identity("mp-2133") == identity(AlphaID("mp-2133", padlen=8)) == ("mp", 2133)
    assert list(identities(["mp-804", "mp-ft", "mp-149"]).values()) == ["mp-ft", "mp-804"]


@pytest.mark.parametrize("name", ["BaTiO3", "mp-", "", "mp-12-34", "MP-AB"])
def test_what_is_no_id(server, name):
    with pytest.raises(SettingsError, match="is no id of the Materials Project"):
        build(material_ids=[name])
    assert server.count() == 0


def test_a_filter(server):
    dataset = build(filter={"chemsys": "O-Zn", "n": [1.5, 2.5]})
    assert [frame.material for frame in dataset.frames] == ["ZnO"]
    first = next(item for item in server.requests if item.path == ROUTES[1])
    assert first.params["has_props"] == "dielectric"
    assert first.params["n_max"] == "2.5"
    assert server.count(ROUTES[1]) == 2  # ids, then structures


def test_every_key_of_the_filter_is_known_to_the_client(server, tmp_path):
    given = {
        "elements": ["O"], "exclude_elements": ["H", "F"], "formula": "ABO3", "chemsys": ["O-Zn", "Ga-N"],
        "num_elements": [2, 3], "num_sites": [1, 10], "n": [1, 3], "e_electronic": [1, 9], "e_ionic": [0, 50],
        "e_total": [1, 60], "band_gap": [0.5, 9], "energy_above_hull": [0, 0.02], "volume": [10, 90],
        "spacegroup_number": 186, "is_stable": True, "theoretical": False,
    }  # fmt: skip
    assert set(given) == set(MPFilter.model_fields)
    found = MaterialsProject(AnswerCache(tmp_path)).find(MPFilter(**given).criteria(), lambda *_: None)
    assert found == [IDS["GaN"], IDS["ZnO"]]
    params = next(item.params for item in server.requests if item.path == ROUTES[1])
    expected = {
        "elements": "O", "exclude_elements": "H,F", "formula": "ABO3", "nelements_max": "3", "nsites_min": "1",
        "e_ionic_max": "50.0", "energy_above_hull_max": "0.02", "band_gap_min": "0.5", "volume_max": "90.0",
        "spacegroup_number": "186", "is_stable": "True", "theoretical": "False", "has_props": "dielectric",
    }  # fmt: skip
    assert expected.items() <= params.items()


@pytest.mark.parametrize(
    "more", [{"material_ids": []}, {"filter": {}}, {"filter": {"n": [1, 2]}, "material_ids": ["mp-1"]}]
)
def test_never_the_whole_collection(server, more):
    with pytest.raises(SettingsError, match="the whole collection is never downloaded"):
        build(**more)
    assert server.count() == 0


def test_the_client_never_searches_for_everything(server, tmp_path):
    service = MaterialsProject(AnswerCache(tmp_path))
    assert service.documents("dielectric", [], lambda *_: None) == []
    with pytest.raises(SettingsError, match="needs ids or a filter"):
        service._search("dielectric", material_ids=[], fields=["n"])
    assert server.count() == 0
    # even a search behind our back cannot write the collection anywhere
    assert not service.connect().local_dataset_cache.parent.is_dir()


def test_materials_without_a_document(server):
    (source,) = build(material_ids=[*IDS.values(), "mp-999999"]).manifest.sources
    assert "without a dielectric document: mp-999999" in source.notes
    with pytest.raises(DataError, match="none of 1 materials has a dielectric document"):
        build(material_ids=["mp-999999"])
    with pytest.raises(DataError, match="nothing passes the filter"):
        build(filter={"chemsys": "Xe"})


@pytest.mark.parametrize(
    ("fault", "options"),
    [("429", {"retry_after": "3"}), ("500", {}), ("503", {}), ("truncated", {}), ("cut", {}), ("closed", {})],
)
def test_the_real_client_is_polite(server, tmp_path, fault, options):
    waits = []
    service = MaterialsProject(AnswerCache(tmp_path), sleep=waits.append)
    server.misbehave(fault, path=ROUTES[0], times=2, **options)
    found = service.documents("dielectric", list(IDS.values()), lambda *_: None)
    assert [item["formula_pretty"] for item in found] == ["GaN", "ZnO", "BeO"]  # in the order of their ids
    assert waits == ([3.0, 3.0] if "retry_after" in options else [1.0, 2.0])
    assert server.count(ROUTES[0]) == 3


def test_faults_of_the_heartbeat(server, tmp_path):
    waits = []
    server.misbehave("500", path="/heartbeat")
    server.misbehave("html", path="/heartbeat", skip=1)  # after ours, to a request of mp-api's own
    MaterialsProject(AnswerCache(tmp_path), sleep=waits.append).connect()
    assert waits == [1.0, 1.0]


def test_a_heartbeat_that_hangs(server, tmp_path, monkeypatch):
    """mp-api asks for it without a time-out."""
    monkeypatch.setattr("fieldflows.datasets.materials_project.LONGEST_START", 0.2)
    server.misbehave("slow", path="/heartbeat", skip=1, times=10, seconds=2)
    with pytest.raises(Unreachable, match=r"does not answer mp-api within 0.2 s"):
        MaterialsProject(AnswerCache(tmp_path), sleep=lambda _: None).connect()


def test_a_slow_service(server, tmp_path):
    service = MaterialsProject(AnswerCache(tmp_path), timeout=0.2, retries=0)
    service.connect()
    server.misbehave("slow", seconds=0.6)
    with pytest.raises(Unreachable, match=r"within 0.2 s"):
        service.documents("dielectric", ["mp-1"], lambda *_: None)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (None, r"none is set.*export MP_API_KEY"),
        ("tooshort12345678", r"MP_API_KEY has 16 characters; keys .* have 32; shorter ones are of its legacy"),
        ("x" * 33, r"has 33 characters.*export MP_API_KEY"),
        ("w" * 32, r"refuses the key \(status 403.*next-gen.materialsproject.org/api.*MP_API_KEY"),
        ("two words" + "x" * 23, r"holds some that no key has"),
    ],
)
def test_keys(server, monkeypatch, tmp_path, caplog, key, reason):
    caplog.set_level(logging.DEBUG)
    if key is None:
        monkeypatch.delenv("MP_API_KEY")
        monkeypatch.setattr("pymatgen.core.SETTINGS", {})
    else:
        monkeypatch.setenv("MP_API_KEY", key)
    with pytest.raises(KeyProblem, match=reason) as caught:
        build()
    assert server.count(ROUTES[0]) == (key == "w" * 32)
    assert key is None or key not in str(caught.value) + caplog.text
    assert not list(tmp_path.rglob("*.gz"))


def test_where_a_key_is_found(monkeypatch):
    monkeypatch.delenv("MP_API_KEY")
    monkeypatch.setattr("pymatgen.core.SETTINGS", {"PMG_MAPI_KEY": "s" * 32})
    assert materials_project_key() == "s" * 32
    monkeypatch.setenv("PMG_MAPI_KEY", "p" * 32)
    assert materials_project_key() == "p" * 32
    monkeypatch.setenv("MP_API_KEY", "m" * 32)
    assert materials_project_key() == "m" * 32
    monkeypatch.setenv("MPCONTRIBS_API_KEY", "c")
    assert materials_project_key("MPCONTRIBS_API_KEY") == "c"


def test_a_key_is_in_no_file(server, tmp_path):
    dataset = build()
    dataset.save(tmp_path / "out")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        content = path.read_bytes()
        assert KEY.encode() not in (gzip.decompress(content) if path.suffix == ".gz" else content)
    assert all(item.headers.get("x-api-key") == KEY for item in server.requests if item.path in ROUTES)


def test_no_network_and_offline(monkeypatch, tmp_path):
    with serve({}) as gone:
        monkeypatch.setenv("MP_API_ENDPOINT", gone.url)
    service = MaterialsProject(AnswerCache(tmp_path), sleep=lambda _: None)
    with pytest.raises(Unreachable, match=r"cannot be reached.*Check the network"):
        service.documents("dielectric", ["mp-1"], lambda *_: None)
    with pytest.raises(Unreachable, match=r"Offline: not all documents of materials/dielectric are kept"):
        build(offline=True)


def test_a_changed_schema_names_field_and_document(server):
    server.misbehave("json", path=ROUTES[0], value={"results": []})
    with pytest.raises(WrongAnswer, match=r"materials/dielectric/.*has no list 'data', but results"):
        build()
    server.misbehave("json", path=ROUTES[0], value={"data": [{"id": 5, "electronic": 1}], "meta": {"total_doc": 1}})
    with pytest.raises(WrongAnswer, match=r"a document has material_id None.*its fields are electronic, id"):
        build()
    renamed = [{"eps_inf" if k == "electronic" else k: v for k, v in dielectric(name).items()} for name in IDS]
    with serve(documents(dielectric=renamed)) as other:
        server.routes = other.routes
        with pytest.raises(DataError, match=r"Field 'electronic' is missing from all 3 documents.*such as mp-aaaaabey"):
            build()


def test_a_bad_document_is_a_reject(server):
    bad = documents(
        dielectric=[
            dielectric("ZnO", n=7.0),
            dielectric("GaN", electronic=[[1, 2], [3, 4]]),
            dielectric("BeO"),
        ],
        tasks=[],
    )
    with serve(bad) as other:
        server.routes = other.routes
        dataset = build()
    assert [frame.material for frame in dataset.frames] == ["BeO"]
    reasons = {item.formula: item.findings[0].message for item in dataset.manifest.rejects}
    assert "field 'n' is 7, but the tensors give 1.91" in reasons["ZnO"]
    assert "field 'electronic' is no 3x3 tensor" in reasons["GaN"]


def test_a_document_without_an_id_does_not_stop_the_others(server, caplog):
    odd = documents(tasks=[])
    server.misbehave("json", path=ROUTES[0], value={
        "data": [*odd["dielectric"][:2], odd["dielectric"][2] | {"material_id": "?"}], "meta": {"total_doc": 3}
    })  # fmt: skip
    dataset = build()
    assert len(dataset) == 2
    assert "1 documents of materials/dielectric have no id" in caplog.text
    assert f"without a dielectric document: {IDS['BeO']}" in dataset.manifest.sources[0].notes
    assert len(build()) == 3  # asked again


def test_a_structure_of_another_compound(server):
    wrong = documents(tasks=[])
    wrong["summary"][0]["structure"] = json.loads(json.dumps(wrong["summary"][0]["structure"]).replace('"Zn"', '"Cd"'))
    with serve(wrong) as other:
        server.routes = other.routes
        (reject,) = build().manifest.rejects
    assert reject.findings[0].message == "field 'formula_pretty' is ZnO, but the structure is CdO"


def test_deprecated_documents_and_materials(server):
    old = documents(dielectric=[dielectric("ZnO", deprecated=True), dielectric("GaN"), dielectric("BeO")], tasks=[])
    old["summary"] = [summary("ZnO", deprecated=True), summary("GaN"), summary("BeO")]
    with serve(old) as other:
        server.routes = other.routes
        dataset = build()
        assert [(r.formula, r.findings[0].code) for r in dataset.manifest.rejects] == [("ZnO", "deprecated")]
        before = server.count(ROUTES[1])
        assert len(build(deprecated=True)) == 3
        assert server.count(ROUTES[1]) == before + 1  # for the structure of the deprecated material alone


def test_phonon_calculations_come_by_the_ids_of_the_summary(server):
    atoms, _, born = crystal("ZnO")
    atoms.set_cell(atoms.cell[:] * 0.98, scale_atoms=True)
    both = documents(tasks=[task(name) for name in IDS], phonon=[phonon(atoms, born)])
    both["summary"][0]["phonon_IDs"] = {"dfpt": ["mp-7777"], "pheasy": None}
    with serve(both) as other:
        server.routes = other.routes
        dataset = build(born_charges=["tasks", "phonon"])
    asked = [item.params["identifiers"] for item in server.requests if item.path == "/materials/phonon/"]
    assert asked == ["mp-7777"]
    assert sorted(frame.extra["structure_from"] for frame in dataset.frames) == ["phonon", "task", "task", "task"]
    assert dataset.manifest.counts["all"]["born_effective_charges"] == 4


def test_a_route_that_gives_nothing_is_done_without(server):
    """The routes of tasks and phonons are not confirmed: what they refuse is a note, not the end."""
    del server.routes["/materials/tasks"]
    (source,) = build().manifest.sources
    assert "3 structures from materials.summary" in source.notes
    assert any(note.startswith("materials.tasks: ") and "status 404" in note for note in source.notes)
    server.misbehave("403", path=ROUTES[2])
    with pytest.raises(KeyProblem):  # this is no matter of the schema
        build(refresh=True)


def test_a_damaged_cache_is_mended(server, tmp_path, caplog):
    digest = build().digest
    kept = sorted((tmp_path / "cache").rglob("??/*.json.gz"))
    kept[0].write_bytes(kept[0].read_bytes()[:50])
    kept[1].write_bytes(gzip.compress(json.dumps({"request": {}, "answer": 5}).encode()))
    before = server.count()
    assert build().digest == digest
    assert server.count() > before
    assert caplog.text.count("is damaged") >= 2
