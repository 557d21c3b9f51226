"""Which store is taken, in which order, and what is said when it cannot be."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import mongomock_ng
import pytest
import yaml
from jobflow import JobStore
from maggma.stores import MemoryStore, MongoStore

from fieldflows.errors import StoreError
from fieldflows.store import ResultsCollection, SQLiteStore, describe_store, embedded_path, get_store, is_new
from fieldflows.store.patience import hide_password
from fieldflows.store.select import job_store_from_spec

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def clean_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No configuration of the machine that runs the tests plays a part."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("FIELDFLOWS_STORE", "JOBFLOW_CONFIG_FILE", "JOBFLOW_JOB_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    monkeypatch.chdir(tmp_path)
    return home


def place(store: JobStore) -> str:
    return Path(store.docs_store.path).name


def configuration(path: Path, database: str) -> Path:
    spec = {"docs_store": {"type": "SQLiteStore", "path": str(path.parent / database)}}
    path.write_text(yaml.safe_dump({"JOB_STORE": spec}))
    return path


def test_precedence(tmp_path: Path, clean_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = get_store()
    assert Path(store.docs_store.path) == embedded_path() == clean_home / "data" / "fieldflows" / "store.db"
    assert "embedded" in describe_store()

    configuration(clean_home / ".jobflow.yaml", "home.db")
    assert place(get_store()) == "home.db"
    monkeypatch.setenv("JOBFLOW_CONFIG_FILE", str(configuration(tmp_path / "other.yaml", "config.db")))
    assert place(get_store()) == "config.db"
    full = tmp_path / "full.yaml"
    full.write_text(json.dumps({"JOB_STORE": JobStore(SQLiteStore(tmp_path / "full.db")).as_dict()}))
    monkeypatch.setenv("JOBFLOW_CONFIG_FILE", str(full))
    assert place(get_store()) == "full.db"
    full.write_text(json.dumps({"JOB_STORE": str(configuration_of_store(tmp_path))}))
    assert place(get_store()) == "described.db"
    monkeypatch.setenv("FIELDFLOWS_STORE", str(tmp_path / "ours.db"))
    assert place(get_store()) == "ours.db"
    assert "FIELDFLOWS_STORE" in describe_store()
    assert place(get_store(tmp_path / "named.db")) == "named.db"
    assert place(get_store(str(configuration_of_store(tmp_path)))) == "described.db"


def configuration_of_store(folder: Path) -> Path:
    path = folder / "store.yaml"
    part = {"type": "SQLiteStore", "path": str(folder / "described.db")}
    spec = {"docs_store": part, "additional_stores": {"data": part | {"collection_name": "data"}}}
    path.write_text(yaml.safe_dump(spec))
    return path


def test_a_jobflow_configuration_without_a_store_changes_nothing(clean_home: Path) -> None:
    (clean_home / ".jobflow.yaml").write_text("UID_TYPE: uuid4\n")
    assert Path(get_store().docs_store.path) == embedded_path()


def test_a_stray_launchpad_file_changes_nothing(tmp_path: Path) -> None:
    before = describe_store()
    (tmp_path / "launchpad.yaml").write_text("host: db.example.org\nport: 1\nname: other\nusername: me\npassword: x\n")
    (tmp_path / "my_launchpad.yaml").write_text("host: db.example.org\n")
    (tmp_path / "FW_config.yaml").write_text(f"LAUNCHPAD_LOC: {tmp_path / 'launchpad.yaml'}\n")
    assert describe_store() == before
    assert Path(get_store().docs_store.path) == embedded_path()


def test_describing_creates_nothing(tmp_path: Path) -> None:
    assert "new.db" in describe_store(tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists()
    assert not embedded_path().parent.exists()


def test_one_file_holds_everything(tmp_path: Path) -> None:
    store = get_store(tmp_path / "s.db")
    assert set(store.additional_stores) == {"data", "results"}
    assert {s.path for s in (store.docs_store, *store.additional_stores.values())} == {str(tmp_path / "s.db")}
    assert sorted(p.name for p in tmp_path.glob("s.db*")) == ["s.db", "s.db-shm", "s.db-wal"]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("no/such/folder/s.db", "does not exist"),
        (".", "is a folder"),
        ("redis://localhost", "no store that fieldflows knows"),
        ("missing.yaml", "cannot be read"),
        ("broken.yaml", "no valid YAML"),
        ("list.yaml", "not a mapping"),
        ("nostore.yaml", "has no docs_store"),
        ("unknown.yaml", "does not describe a JobStore"),
        ("mongodb://127.0.0.1:1/x", "cannot be reached"),
        ("mongodb://", "no address of a MongoDB"),
    ],
)
def test_what_cannot_be_a_store_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, reason: str
) -> None:
    monkeypatch.setattr("fieldflows.store.select.MONGO_TIMEOUT_MS", 200)
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "nostore.yaml").write_text("a: 1\n")
    (tmp_path / "unknown.yaml").write_text("docs_store:\n  type: FancyStore\n")
    with pytest.raises(StoreError, match=reason):
        get_store(spec)


def test_an_embedded_store_that_cannot_be_made_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/proc/nowhere")
    with pytest.raises(StoreError, match="Name another store with --store FILE or FIELDFLOWS_STORE"):
        get_store()


def test_new_or_not(tmp_path: Path) -> None:
    assert is_new()
    assert is_new(tmp_path / "s.db")
    assert not is_new(tmp_path / "no" / "s.db")
    get_store(tmp_path / "s.db")
    assert not is_new(tmp_path / "s.db")
    assert not is_new("mongodb://127.0.0.1:1/x")


def test_a_missing_store_is_not_created_for_reading(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no store"):
        get_store(tmp_path / "s.db", must_exist=True)
    assert not (tmp_path / "s.db").exists()


def test_a_wrong_configuration_file_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBFLOW_CONFIG_FILE", "no-such-file.yaml")
    with pytest.raises(StoreError, match="does not exist"):
        get_store()


def test_a_description_cannot_run_code(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for spec in (
        {"docs_store": {"@module": "subprocess", "@class": "Popen", "args": ["touch", str(marker)]}},
        {"docs_store": {"type": "MemoryStore", "x": {"@module": "os", "@callable": "system"}}},
        {
            "@class": "JobStore",
            "@module": "jobflow.core.store",
            "docs_store": {"@module": "builtins", "@class": "eval"},
        },
    ):
        with pytest.raises(StoreError, match="no store of maggma"):
            job_store_from_spec(spec, "evil.yaml")
    text = tmp_path / "evil.yaml"
    text.write_text(f"!!python/object/apply:os.system ['touch {marker}']\n")
    with pytest.raises(StoreError, match="no valid YAML"):
        get_store(text)
    assert not marker.exists()


def test_passwords_are_not_shown() -> None:
    assert hide_password("mongodb://me:se@cret@db.example.org:27/x?y=1") == "mongodb://db.example.org:27/x?y=1"
    described = describe_store("mongodb+srv://me:secret@db.example.org/fields")
    assert "secret" not in described
    assert "db.example.org/fields" in described
    with pytest.raises(StoreError) as caught:
        get_store("mongodb://me:secret@127.0.0.1:1/?serverSelectionTimeoutMS=100")
    assert "secret" not in str(caught.value)


def test_committed_launchpad_loads_as_it_stands_and_holds_no_secret() -> None:
    fireworks = pytest.importorskip("fireworks")
    path = ROOT / "launchpad.yaml"
    launchpad = fireworks.LaunchPad.from_file(str(path))
    assert launchpad.host in ("127.0.0.1", "localhost")
    assert launchpad.username is None
    assert launchpad.password is None
    content = yaml.safe_load(path.read_text())
    assert not {"username", "password", "authsource"} & {key for key, value in content.items() if value}


# --- results --------------------------------------------------------------------------------------------------------


def mongo_store(collection: str, client: mongomock_ng.MongoClient, key: str) -> MongoStore:
    store = MongoStore("fields", collection, key=key)
    store._coll = client.fields[collection]
    return store


def job_stores(tmp_path: Path) -> dict[str, JobStore]:
    client = mongomock_ng.MongoClient()
    return {
        "sqlite": get_store(tmp_path / "s.db"),
        "sqlite docs only": JobStore(SQLiteStore(tmp_path / "d.db")),
        "memory": JobStore(MemoryStore()),
        "mongo": JobStore(
            mongo_store("outputs", client, "uuid"), additional_stores={"results": mongo_store("results", client, "key")}
        ),
    }


@pytest.mark.parametrize("kind", ["sqlite", "sqlite docs only", "memory", "mongo"])
def test_results_are_stored_once_by_key(tmp_path: Path, kind: str) -> None:
    job_store = job_stores(tmp_path)[kind]
    results = ResultsCollection.of(job_store)
    results.put([{"key": "a", "n": 1.0}, {"key": "b", "n": 2.0}])
    results.put([{"key": "a", "n": 3.0}])
    assert results.count() == 2
    assert results.get("a") == {"key": "a", "n": 3.0}
    assert results.get("c") is None
    assert [doc["key"] for doc in results.query({"n": {"$gt": 1}}, sort={"n": 1})] == ["b", "a"]
    assert results.existing(["a", "c"]) == {"a"}
    assert [doc["key"] for doc in results.fetch(["a", "c"])] == ["a"]
    assert ResultsCollection.of(job_store).count() == 2
    with pytest.raises(StoreError, match="has no key"):
        results.put([{"n": 1.0}])


def test_many_keys(tmp_path: Path) -> None:
    results = ResultsCollection.of(get_store(tmp_path / "s.db"))
    results.put([{"key": f"k{i}"} for i in range(1200)])
    assert len(results.existing([f"k{i}" for i in range(2400)])) == 1200


def test_a_server_that_comes_back_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pymongo.errors import AutoReconnect

    from fieldflows.store import patience as module

    waited: list[float] = []
    sleep, here = module.time.sleep, threading.current_thread()
    # threads of servers in this process go on sleeping
    monkeypatch.setattr(
        module.time, "sleep", lambda s: waited.append(s) if threading.current_thread() is here else sleep(s)
    )
    job_store = job_stores(tmp_path)["mongo"]
    results = ResultsCollection.of(job_store)
    results.count()
    update = results.store.update
    attempts = []

    def flaky(*args: object, **kwargs: object) -> None:
        attempts.append(1)
        if len(attempts) < 4:
            raise AutoReconnect("gone")
        update(*args, **kwargs)

    monkeypatch.setattr(results.store, "update", flaky)
    results.put([{"key": "a"}])
    assert (len(attempts), len(waited)) == (4, 3)
    assert results.count() == 1

    def dead(*args: object, **kwargs: object) -> None:
        raise AutoReconnect("gone")

    monkeypatch.setattr(results.store, "update", dead)
    with pytest.raises(StoreError, match="does not answer"):
        results.put([{"key": "b"}])
    assert sum(waited) > 200


def test_a_store_without_room_for_results_is_said() -> None:
    from maggma.stores import ConcatStore, JSONStore

    for docs in (ConcatStore([MemoryStore()]), JSONStore(["x.json"], read_only=False)):
        with pytest.raises(StoreError, match="additional store"):
            ResultsCollection.of(JobStore(docs))
