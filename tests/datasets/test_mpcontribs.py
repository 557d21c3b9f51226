"""Fetching polarization paths from a real server on loopback that speaks as MPContribs does, and misbehaves."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from functools import partial

import pytest

from fieldflows.datasets import mpcontribs
from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.dataset import build_dataset
from fieldflows.datasets.extxyz import file_sha256
from fieldflows.datasets.mpcontribs import service_address
from fieldflows.datasets.web import Client
from fieldflows.errors import KeyProblem, ServiceError, WrongAnswer
from tests.support.contribs import KEY, answers, attachment_path, object_id, server, workflow
from tests.support.replay import ReplayServer

NAMES = ["wfid_1.5", "wfid_2.5", "wfid_3.5", "wfid_4.5", "wfid_5.5"]
COMPOUNDS = ["BaTiO3", "SrTiO3", "BaZrO3", "SrZrO3", "BaHfO3"]
PAGES = "/contributions/"


def made() -> dict:
    data = answers(*(workflow(*pair) for pair in zip(NAMES, COMPOUNDS, strict=True)))
    for document, formula in zip(data["contributions"]["data"], COMPOUNDS, strict=True):
        document["formula"] = formula
    return data


@pytest.fixture(scope="module")
def saved() -> str:
    return json.dumps(made())


@pytest.fixture
def waits(monkeypatch, tmp_path) -> list[float]:
    """An empty cache, a key, and a client that notes its waits in place of waiting."""
    found: list[float] = []
    monkeypatch.setenv("FIELDFLOWS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MPCONTRIBS_API_KEY", KEY)
    monkeypatch.setattr(mpcontribs, "Client", partial(Client, sleep=found.append, timeout=5.0))
    return found


@pytest.fixture
def service(saved, waits, monkeypatch):
    with server(json.loads(saved), most_per_page=2) as found:
        monkeypatch.setenv("MPCONTRIBS_API_HOST", found.url)
        yield found


def build(progress=None, **settings):
    source = (
        {"type": "mpcontribs_ferroelectrics"} | ({"whole_project": True} if "ids" not in settings else {}) | settings
    )
    if settings.get("filter"):
        del source["whole_project"]
    return build_dataset(DatasetConfig.from_dict({"name": "f", "sources": [source]}), progress)


def names(dataset) -> list[str]:
    return sorted({frame.extra["wfid"] for frame in dataset.frames})


def asked(service: ReplayServer) -> list[str]:
    return [f"{item.path} {item.params.get('page', '')}".strip() for item in service.requests]


def test_the_whole_project_page_by_page_is_what_saved_answers_hold(service, saved, tmp_path):
    dataset = build()
    assert names(dataset) == NAMES
    assert service.count(PAGES) == 3  # two contributions a page
    assert [service.count(attachment_path(k)) for k in range(5)] == [1] * 5
    assert not any(object_id(1000 + k) in item.path for k in range(5) for item in service.requests)  # other attachments
    (record,) = dataset.manifest.sources
    assert record.path == f"{service.url}/contributions/?project=ferroelectrics"
    (file,) = (tmp_path / "cache" / "answers" / "contribs").iterdir()
    assert record.sha256 == file_sha256(file)
    path = tmp_path / "mpcontribs_ferroelectrics.json"
    path.write_text(saved)
    offline = build_dataset(DatasetConfig.from_dict(
        {"name": "f", "sources": [{"type": "mpcontribs_ferroelectrics", "path": str(path)}]}
    ))  # fmt: skip
    assert offline.digest == dataset.digest


def test_what_was_fetched_is_not_asked_again(service, monkeypatch):
    first = build()
    count = service.count()
    monkeypatch.delenv("MPCONTRIBS_API_KEY")
    monkeypatch.delenv("MP_API_KEY", raising=False)
    assert build().digest == first.digest  # without a key: everything is there
    assert build(offline=True).digest == first.digest
    assert service.count() == count
    monkeypatch.setenv("MPCONTRIBS_API_KEY", KEY)
    assert build(refresh=True).digest == first.digest
    assert service.count() == 2 * count


def test_the_key_travels_in_a_header_alone(service, tmp_path):
    build()
    assert {item.headers["x-api-key"] for item in service.requests} == {KEY}
    assert not any(KEY in item.path or KEY in item.params.values() for item in service.requests)
    for file in (tmp_path / "cache").rglob("*.gz"):
        assert KEY not in gzip.decompress(file.read_bytes()).decode()


def test_ids_and_filters_ask_for_their_own(service):
    assert names(build(ids=[object_id(3), NAMES[0], "wfid_9"])) == [NAMES[0], NAMES[3]]
    params = [item.params for item in service.requests if item.path == PAGES]
    assert [(p.get("id__in"), p.get("identifier__in")) for p in params] == [
        (object_id(3), None),
        (None, f"{NAMES[0]},wfid_9"),
    ]
    rejects = build(ids=[object_id(3), NAMES[0], "wfid_9"]).manifest.rejects
    assert [reject.findings[0].code for reject in rejects] == ["unknown_id"]
    assert names(build(filter={"formula": ["SrTiO3", "BaHfO3"]})) == [NAMES[1], NAMES[4]]
    assert names(build(filter={"is_public": True, "formula": "SrTiO3"})) == [NAMES[1]]
    assert service.requests[-1].params["is_public"] == "true"
    assert names(build(limit=20)) == NAMES[:2]


def test_a_stopped_fetch_goes_on_where_it_was(service):
    def stop(stage, done, total):
        if (stage, done) == ("fetching attachments", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(stop)
    before = asked(service)
    assert len(before) == 1 + 3 + 3
    assert names(build()) == NAMES
    after = asked(service)[len(before) :]
    assert after == [attachment_path(3), attachment_path(4)]


KILLED = """
from fieldflows.datasets.config import DatasetConfig
from fieldflows.datasets.dataset import build_dataset
source = {"type": "mpcontribs_ferroelectrics", "whole_project": True}
build_dataset(DatasetConfig.from_dict({"name": "f", "sources": [source]}))
"""


def test_a_killed_process_goes_on_where_it_was(service):
    service.misbehave("slow", path=attachment_path(3), seconds=2.0)
    process = subprocess.Popen([sys.executable, "-c", KILLED])
    try:
        end = time.monotonic() + 120
        while not service.count(attachment_path(3)) and time.monotonic() < end:
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    before = asked(service)
    assert before[-1] == attachment_path(3)
    assert names(build()) == NAMES
    assert asked(service)[len(before) :] == [attachment_path(3), attachment_path(4)]


def test_a_damaged_answer_on_disk_is_fetched_again(service, tmp_path):
    digest = build().digest
    count = service.count()
    kept = [file for file in (tmp_path / "cache" / "answers").rglob("*.json.gz") if file.parent.name != "contribs"]
    kept[0].write_bytes(kept[0].read_bytes()[:20])
    assert build().digest == digest
    assert service.count() == count + 1


@pytest.mark.parametrize(
    ("kind", "options", "waited"),
    [
        ("429", {"retry_after": "7"}, [7.0]),
        ("500", {}, [1.0]),
        ("503", {"retry_after": "3"}, [3.0]),
        ("truncated", {}, [1.0]),
        ("cut", {}, [1.0]),
        ("closed", {}, [1.0]),
    ],
)
@pytest.mark.parametrize("path", [PAGES, attachment_path(2)])
def test_what_may_pass_is_tried_again(service, waits, kind, options, waited, path):
    service.misbehave(kind, path=path, **options)
    assert names(build()) == NAMES
    assert waits == waited


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("401", KeyProblem, "MPCONTRIBS_API_KEY"),
        ("403", KeyProblem, "refuses the key"),
        ("echo_key", KeyProblem, "refuses the key"),
        ("429", ServiceError, "fewer requests"),
        ("500", ServiceError, "out of order"),
        ("html", WrongAnswer, "text/html in place of JSON"),
    ],
)
@pytest.mark.parametrize("path", [PAGES, None])
def test_what_does_not_pass_says_why_and_nothing_is_lost(service, waits, kind, error, message, path):
    build(ids=[NAMES[0]])
    count = service.count()
    service.misbehave(kind, times=100, path=path)
    with pytest.raises(error, match=message) as caught:
        build()
    assert KEY not in str(caught.value)
    service.faults.clear()
    assert names(build()) == NAMES
    assert service.count(attachment_path(0)) == 1
    assert names(build(ids=[NAMES[0]])) == NAMES[:1]
    assert service.count() > count


def test_a_login_page_among_attachments_stops_the_fetch(service):
    service.misbehave("html", times=100, path=attachment_path(1))
    service.misbehave("html", times=100, path=attachment_path(2))
    service.misbehave("html", times=100, path=attachment_path(3))
    with pytest.raises(WrongAnswer, match=r"Attachments cannot be read.*text/html"):
        build()
    assert service.count(attachment_path(4)) == 0


def broken(data: str, number: int, change) -> dict:
    """Return the attachment with its content changed."""
    entry = json.loads(data)["attachments"][object_id(2000 + number)]
    return entry | {"content": change(entry["content"])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-1], "no base64"),
        (lambda text: text[: len(text) // 8 * 4], "no whole gzip"),
        (lambda text: None, "no field 'content'"),
    ],
)
def test_a_damaged_attachment_is_asked_again_and_then_rejected(service, saved, waits, change, message):
    bad = broken(saved, 2, change)
    service.misbehave("json", times=100, path=attachment_path(2), value=bad)
    dataset = build()
    assert service.count(attachment_path(2)) == 3
    assert waits == [1.0, 2.0]
    assert names(dataset) == NAMES[:2] + NAMES[3:]
    (reject,) = dataset.manifest.rejects
    assert reject.source_index == 20
    assert message in reject.findings[0].message
    assert object_id(2002) in reject.findings[0].message
    # It is not kept: the next build asks for it alone, and finds it whole at the third try.
    service.faults.clear()
    service.misbehave("json", times=2, path=attachment_path(2), value=bad)
    before = len(service.requests)
    assert names(build()) == NAMES
    assert asked(service)[before:] == [attachment_path(2)] * 3


def test_a_missing_attachment_is_a_reject(service):
    del service.routes[attachment_path(2).rstrip("/")]
    (reject,) = build().manifest.rejects
    assert "status 404" in reject.findings[0].message
    assert reject.formula == COMPOUNDS[2]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([], "/contributions/ is a list in place of an object"),
        ({"entries": [], "total_count": 5}, "/contributions/ has no list 'data'; it has entries, total_count"),
        ({"data": [], "count": 5}, "/contributions/ has no number 'total_count'; it has data, count"),
        ({"data": [{"_id": "a"}], "total_count": 1}, "/contributions/ has no field 'id' in contribution 0"),
        ({"data": [], "total_count": 5}, "announces 5 contributions and gives 0"),
    ],
)
def test_a_changed_schema_names_route_and_field_and_is_not_kept(service, answer, message):
    service.misbehave("json", path=PAGES, value=answer)
    with pytest.raises(WrongAnswer, match=message):
        build()
    if "announces" in message:
        assert names(build(refresh=True)) == NAMES
    else:
        assert names(build()) == NAMES


def test_a_project_that_is_not_there(service):
    with pytest.raises(
        WrongAnswer, match="no project 'ferroelectrics_ext' that this key may see; it answers with none"
    ):
        build(project="ferroelectrics_ext")
    service.misbehave("json", path="/projects/", value={"projects": []})
    with pytest.raises(WrongAnswer, match="/projects/ has no list 'data'; it has projects"):
        build()


def test_keys_are_asked_for_by_name(service, monkeypatch):
    monkeypatch.setenv("MPCONTRIBS_API_KEY", "short")
    with pytest.raises(KeyProblem, match="MPCONTRIBS_API_KEY has 5 characters; keys of MPContribs have 32"):
        build()
    monkeypatch.delenv("MPCONTRIBS_API_KEY")
    monkeypatch.delenv("PMG_MAPI_KEY", raising=False)
    monkeypatch.setattr("pymatgen.core.SETTINGS", {})
    monkeypatch.delenv("MP_API_KEY", raising=False)
    with pytest.raises(KeyProblem, match="or MP_API_KEY"):
        build()
    assert service.count() == 0
    monkeypatch.setenv("MP_API_KEY", KEY)
    assert names(build()) == NAMES
    monkeypatch.setenv("MPCONTRIBS_API_KEY", "x" * 32)
    with pytest.raises(KeyProblem, match="status 403"):
        build(refresh=True)


def test_the_address_of_the_service(monkeypatch):
    monkeypatch.delenv("MPCONTRIBS_API_HOST", raising=False)
    assert service_address() == "https://contribs-api.materialsproject.org"
    monkeypatch.setenv("MPCONTRIBS_API_HOST", "contribs-api-preview.materialsproject.org")
    assert service_address() == "https://contribs-api-preview.materialsproject.org"
    monkeypatch.setenv("MPCONTRIBS_API_KEY", KEY)
    monkeypatch.setenv("MPCONTRIBS_API_HOST", "http://elsewhere.org")
    with pytest.raises(KeyProblem, match="not encrypted"):
        build()
