"""The web client against a real server on loopback: what goes wrong, what is tried again, what is kept."""

from __future__ import annotations

import gzip
import json
import logging
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from fieldflows.datasets.web import AnswerCache, Client, cache_folder, canonical_json, write_answers
from fieldflows.errors import ArtifactError, KeyProblem, Unreachable, WrongAnswer
from tests.support.replay import ReplayServer, Reply

KEY = "s3cretOfTheTest0123456789"
HINT = "Set MY_KEY."
ANSWER = {"data": [{"name": "Ba\u00adTiO\u2083", "x": [0.1, 1e-17, -3.0]}] * 20, "meta": None}


@pytest.fixture
def server():
    with ReplayServer({"/things/": lambda params: ANSWER | {"asked": dict(params)}}, key=KEY) as made:
        yield made


class Waits(list):
    """Stands in for time.sleep and remembers how long it was asked to wait."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def waits():
    return Waits()


@pytest.fixture
def client(server, waits, tmp_path):
    return Client(server.url, KEY, HINT, cache=AnswerCache(tmp_path / "cache"), timeout=2.0, sleep=waits)


def test_an_answer_is_fetched_once(server, client, tmp_path):
    first = client.get("things/", {"a": 1, "b": None})
    assert first == ANSWER | {"asked": {"a": "1"}}
    assert client.get("/things/", {"a": 1}) == first
    assert server.count() == 1
    assert client.get("things/", {"a": 2})["asked"] == {"a": "2"}
    assert client.get("things/", {"a": 1}, cached=False) == first
    assert server.count() == 3
    assert [r.headers["x-api-key"] for r in server.requests] == [KEY] * 3


@pytest.mark.parametrize(
    ("fault", "options", "expected"),
    [
        ("429", {"retry_after": "7"}, [7.0]),
        ("429", {}, [1.0]),
        ("500", {}, [1.0]),
        ("502", {}, [1.0]),
        ("503", {"retry_after": "2"}, [2.0]),
        ("truncated", {}, [1.0]),
        ("cut", {}, [1.0]),
        ("closed", {}, [1.0]),
    ],
)
def test_what_may_pass_is_tried_again(server, client, waits, fault, options, expected):
    server.misbehave(fault, **options)
    assert client.get("things/", {})["data"] == ANSWER["data"]
    assert server.count() == 2
    assert waits == expected


def test_waits_double_and_end(server, client, waits):
    server.misbehave("500", times=100)
    with pytest.raises(Unreachable, match=r"out of order \(status 500.*Run the same again later"):
        client.get("things/", {})
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert server.count() == 6


def test_retry_after_as_a_date(server, client, waits):
    server.misbehave("429", retry_after=format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True))
    client.get("things/", {})
    assert 30 < waits[0] <= 40


def test_a_long_ban_is_not_waited_for(server, client, waits):
    server.misbehave("429", retry_after="86400")
    with pytest.raises(Unreachable, match="come back in 86400 s"):
        client.get("things/", {})
    assert waits == []


def test_slow_answers_are_given_up(server, waits, tmp_path):
    client = Client(server.url, KEY, HINT, cache=AnswerCache(tmp_path / "cache"), timeout=0.1, sleep=waits, retries=1)
    server.misbehave("slow", seconds=0.5)
    assert client.get("things/", {})["data"] == ANSWER["data"]
    assert waits == [1.0]
    server.misbehave("slow", seconds=0.5, times=2)
    with pytest.raises(Unreachable, match=r"within 0.1 s.*network"):
        client.get("things/", {"other": 1})


def test_a_dribble_does_not_go_on_for_ever(server, waits, tmp_path, monkeypatch):
    monkeypatch.setattr("fieldflows.datasets.web.LONGEST_ANSWER", 0.2)
    client = Client(server.url, KEY, HINT, cache=AnswerCache(tmp_path), timeout=1.0, sleep=waits, retries=0)
    server.misbehave("dribble", seconds=0.05)
    with pytest.raises(Unreachable, match="too slowly"):
        client.get("things/", {})


@pytest.mark.parametrize("status", ["401", "403"])
def test_a_refused_key_says_what_to_set(server, client, waits, status):
    server.misbehave(status)
    with pytest.raises(KeyProblem, match=rf"refuses the key \(status {status}.*Set MY_KEY"):
        client.get("things/", {})
    assert waits == []
    assert server.count() == 1


def test_without_a_key_nothing_is_asked(server, tmp_path):
    client = Client(server.url, None, HINT, cache=AnswerCache(tmp_path))
    with pytest.raises(KeyProblem, match=r"there is none\. Set MY_KEY"):
        client.get("things/", {})
    assert server.count() == 0


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "schlüssel"])
def test_a_key_that_cannot_be_one_is_not_shown(server, tmp_path, key):
    with pytest.raises(KeyProblem, match=f"key of {len(key)} characters") as caught:
        Client(server.url, key, HINT, cache=AnswerCache(tmp_path))
    assert key not in str(caught.value)


def test_a_key_stays_where_it_belongs(server, client, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    server.misbehave("echo_key")
    with pytest.raises(KeyProblem) as caught:
        client.get("things/", {})
    assert "the key *** is unknown" in str(caught.value)
    server.misbehave("500")
    client.get("things/", {})
    kept = b"".join(gzip.decompress(path.read_bytes()) for path in tmp_path.rglob("*.gz"))
    assert b"BaTiO" in kept.replace("\u00ad".encode(), b"")
    assert KEY.encode() not in kept
    assert KEY not in caplog.text + repr(client) + str(client.__dict__["cache"].__dict__)
    with ReplayServer({"/elsewhere": lambda _: {"data": []}}) as other:
        server.misbehave("redirect", location=f"{other.url}/elsewhere")
        assert client.get("things/", {"far": 1}) == {"data": []}
        assert "x-api-key" not in other.requests[0].headers


def test_a_key_is_not_sent_in_the_clear(tmp_path):
    with pytest.raises(KeyProblem, match="not encrypted"):
        Client("http://example.org", KEY, HINT, cache=AnswerCache(tmp_path))


def test_something_else_than_json(server, client, waits):
    server.misbehave("html")
    with pytest.raises(WrongAnswer, match=r"answers with text/html in place of JSON.*please log in.*proxy"):
        client.get("things/", {})
    with pytest.raises(WrongAnswer, match=r"status 404.*Not Found"):
        client.get("nothing/", {})
    server.misbehave("redirect", times=50, location=server.url + "/things/")
    with pytest.raises(WrongAnswer, match="redirects without end"):
        client.get("things/", {"round": 1})
    assert waits == []


def test_numbers_that_json_does_not_have_become_null(waits, tmp_path):
    with ReplayServer({"/things": lambda _: Reply(body=b'{"x": [NaN, -Infinity, 1.5]}')}) as server:
        client = Client(server.url, KEY, HINT, cache=AnswerCache(tmp_path), sleep=waits)
        assert client.get("things", {}) == {"x": [None, None, 1.5]}


def test_no_network(waits, tmp_path):
    with ReplayServer({}) as server:
        url = server.url  # nobody listens there any more
    client = Client(url, KEY, HINT, cache=AnswerCache(tmp_path), sleep=waits)
    with pytest.raises(Unreachable, match=r"cannot be reached.*HTTPS_PROXY.*saved answers"):
        client.get("things/", {})
    assert waits == [1.0, 2.0]  # soon, not after all retries


def test_offline_takes_what_is_kept(server, client, tmp_path):
    first = client.get("things/", {"a": 1})
    offline = Client(server.url, None, HINT, cache=AnswerCache(tmp_path / "cache", offline=True))
    assert offline.get("things/", {"a": 1}) == first
    with pytest.raises(Unreachable, match=r"Offline.*not kept.*Run once"):
        offline.get("things/", {"a": 2})
    assert server.count() == 1


def test_refresh_forgets_what_is_older(server, client, tmp_path):
    client.get("things/", {})
    again = Client(server.url, KEY, HINT, cache=AnswerCache(tmp_path / "cache", refresh=True))
    again.get("things/", {})
    again.get("things/", {})
    assert server.count() == 2


@pytest.mark.parametrize("damage", ["half", "text", "empty", "foreign", "no gzip"])
def test_a_damaged_answer_is_fetched_again(server, client, tmp_path, caplog, damage):
    first = client.get("things/", {})
    (path,) = (tmp_path / "cache").rglob("*.json.gz")
    content = path.read_bytes()
    path.write_bytes({
        "half": content[: len(content) // 2],
        "text": gzip.compress(b"not json"),
        "empty": b"",
        "foreign": gzip.compress(json.dumps({"request": {"url": "other"}, "answer": {}}).encode()),
        "no gzip": b"plain",
    }[damage])  # fmt: skip
    assert client.get("things/", {}) == first
    assert server.count() == 2
    assert "is damaged" in caplog.text
    assert path.read_bytes() == content


def test_the_same_answers_give_the_same_file(tmp_path):
    a = write_answers(tmp_path, {"b": [1.5, 2], "a": "ε∞"})
    b = write_answers(tmp_path, {"a": "ε∞", "b": [1.5, 2]})
    assert a == b
    assert json.loads(gzip.decompress(a.read_bytes())) == {"a": "ε∞", "b": [1.5, 2]}
    assert write_answers(tmp_path, {"a": "ε∞", "b": [1.5, 3]}) != a
    assert len(list(tmp_path.iterdir())) == 2  # nothing half-written stays behind
    with pytest.raises(WrongAnswer, match="cannot be written as JSON"):
        canonical_json({"x": float("nan")})


def test_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("FIELDFLOWS_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    assert AnswerCache().root == tmp_path / "mine" / "answers"
    monkeypatch.delenv("FIELDFLOWS_CACHE")
    assert cache_folder().name in ("fieldflows", "cache")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="cannot be written"):
        AnswerCache(tmp_path / "file").put({"a": 1}, {})
