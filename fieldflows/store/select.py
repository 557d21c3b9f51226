"""Which store: named, from the environment, from jobflow's own configuration, or the embedded file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldflows.artifacts import data_folder
from fieldflows.errors import StoreError
from fieldflows.store.patience import hide_password
from fieldflows.store.results import RESULTS_COLLECTION, ResultsCollection
from fieldflows.store.sqlite import SQLiteStore

if TYPE_CHECKING:
    from jobflow import JobStore

STORE_VARIABLE = "FIELDFLOWS_STORE"
"""Environment variable that names the store."""

DATA_COLLECTION = "data"
"""Name of the additional store for large arrays, such as Hessians."""

MONGO_TIMEOUT_MS = 5000
"""How long to look for a MongoDB server before giving up."""

_MODULES = ("maggma.", "jobflow.", "fieldflows.")


def get_store(spec: str | Path | None = None, must_exist: bool = False) -> JobStore:
    """Return the JobStore for results, opened.

    The first of these that is given decides: ``spec``; the environment variable ``FIELDFLOWS_STORE``; a JOB_STORE
    that the user configured for jobflow (in the file that ``JOBFLOW_CONFIG_FILE`` names, or in
    ``~/.jobflow.yaml``); the embedded file of :func:`embedded_path`.  A ``launchpad.yaml`` plays no part.

    Args:
        spec: Path of an embedded store (created if new), a ``mongodb://`` or ``mongodb+srv://`` address (database
            ``fieldflows`` unless it names one), or a YAML or JSON file that describes a JobStore.
        must_exist: Refuse to create a file.

    Raises:
        StoreError: If the store cannot be opened, or its description cannot be read.
    """
    require_jobflow()
    store = _choose(spec)[0]
    docs = store.docs_store
    if must_exist and isinstance(docs, SQLiteStore) and not Path(docs.path).exists():
        raise StoreError(f"There is no store {docs.path} yet.", "Screen something first, or name a store with --store.")
    _open(store)
    return store


def describe_store(spec: str | Path | None = None) -> str:
    """Return in words which store :func:`get_store` takes and why; nothing is opened or created."""
    store, reason = _choose(spec)
    place = store.docs_store.path if isinstance(store.docs_store, SQLiteStore) else store.docs_store.name
    return f"{hide_password(place)} ({reason})"


def require_jobflow() -> None:
    """Import jobflow, which reads its configuration on import, and say clearly if that cannot be read.

    Short names such as ``type: SQLiteStore`` are understood there once this module is loaded.

    Raises:
        StoreError: If the configuration is wrong.
    """
    try:
        import jobflow  # noqa: F401
    except ImportError:
        raise
    except Exception as error:  # whatever jobflow and its libraries raise for a wrong file
        place = os.environ.get("JOBFLOW_CONFIG_FILE") or "~/.jobflow.yaml"
        variables = ", ".join(sorted(name for name in os.environ if name.startswith("JOBFLOW_")))
        first = " ".join(str(error).split())[:200]
        raise StoreError(
            f"jobflow cannot read its configuration ({variables or place}): {type(error).__name__} {first}.",
            "jobflow does not understand JOBFLOW_JOB_STORE; name a file in JOBFLOW_CONFIG_FILE instead."
            if "JOBFLOW_JOB_STORE" in os.environ
            else "Correct it, or move it away; see docs/guides/stores.md.",
        ) from error


def is_new(spec: str | Path | None = None) -> bool:
    """Return whether :func:`get_store` would create the file of the store; nothing is opened or created."""
    docs = _choose(spec)[0].docs_store
    if not isinstance(docs, SQLiteStore) or Path(docs.path).exists():
        return False
    return Path(docs.path).parent.is_dir() or Path(docs.path) == embedded_path().absolute()


def embedded_path() -> Path:
    """Return the file of the embedded store: ``store.db`` in the user's data folder for fieldflows.

    That is ``$XDG_DATA_HOME/fieldflows`` or ``~/.local/share/fieldflows`` on Linux,
    ``~/Library/Application Support/fieldflows`` on macOS and ``%LOCALAPPDATA%/fieldflows`` on Windows.
    """
    return data_folder() / "store.db"


def sqlite_job_store(path: str | Path) -> JobStore:
    """Return a JobStore that keeps everything in one SQLite file: outputs, large arrays and results."""
    from jobflow import JobStore

    return JobStore(
        SQLiteStore(path, "outputs"),
        additional_stores={
            DATA_COLLECTION: SQLiteStore(path, DATA_COLLECTION, key="blob_uuid"),
            RESULTS_COLLECTION: SQLiteStore(path, RESULTS_COLLECTION, key="key"),
        },
    )


def mongo_job_store(uri: str) -> JobStore:
    """Return a JobStore in a MongoDB: collections ``outputs`` and ``results``, large arrays in GridFS."""
    from jobflow import JobStore
    from maggma.stores import GridFSStore, MongoStore
    from pymongo import uri_parser
    from pymongo.errors import PyMongoError

    try:
        # The records of mongodb+srv addresses are looked up when the client connects; only the path matters here.
        plain = uri.replace("mongodb+srv://", "mongodb://", 1)
        database = uri_parser.parse_uri(plain)["database"] or "fieldflows"
    except (PyMongoError, ValueError) as error:
        raise StoreError(
            f"{hide_password(uri)} is no address of a MongoDB: {error}.", "Write mongodb://HOST:PORT/DATABASE."
        ) from error
    settings: dict[str, Any] = {
        "database": database,
        "uri": uri,
        "mongoclient_kwargs": {"serverSelectionTimeoutMS": MONGO_TIMEOUT_MS},
    }
    return JobStore(
        MongoStore(collection_name="outputs", **settings),
        additional_stores={
            DATA_COLLECTION: GridFSStore(collection_name=DATA_COLLECTION, key="blob_uuid", **settings),
            RESULTS_COLLECTION: MongoStore(collection_name=RESULTS_COLLECTION, key="key", **settings),
        },
    )


def job_store_from_spec(spec: Mapping[str, Any], origin: str) -> JobStore:
    """Return the JobStore of a description, in jobflow's short form or in full.

    Only classes of maggma, jobflow and fieldflows are made from it, so that the file cannot run anything else.

    Args:
        spec: ``docs_store``, ``additional_stores`` with ``type`` names, or ``@module`` and ``@class``.
        origin: Where it was read, for messages.

    Raises:
        StoreError: If it names anything else or cannot be understood.
    """
    from jobflow import JobStore

    _check_classes(spec, origin)
    try:
        if spec.get("@class") == "JobStore":
            return JobStore.from_dict(dict(spec))
        if "docs_store" not in spec:
            raise StoreError(
                f"{origin} does not describe a JobStore: it has no docs_store.",
                "See docs/guides/stores.md for an example.",
            )
        extra = {key: spec[key] for key in ("save", "load") if key in spec}
        stores = dict(spec.get("additional_stores") or {})
        if any("type" not in part for part in [spec["docs_store"], *stores.values()]):
            return JobStore(_part(spec["docs_store"]), {k: _part(v) for k, v in stores.items()}, **extra)
        return JobStore.from_dict_spec(dict(spec), **extra)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(
            f"{origin} does not describe a JobStore: {type(error).__name__} {error}.",
            "See docs/guides/stores.md for an example.",
        ) from error


def _part(spec: Mapping[str, Any]) -> Any:
    from maggma.core import Store
    from monty.json import MontyDecoder

    if "type" in spec:
        from jobflow import JobStore

        return JobStore.from_dict_spec({"docs_store": dict(spec)}).docs_store
    store = MontyDecoder().process_decoded(dict(spec))
    if not isinstance(store, Store):
        raise TypeError(f"{spec.get('@class')} is no maggma store")
    return store


def _check_classes(value: Any, origin: str) -> None:
    if isinstance(value, Mapping):
        module = value.get("@module")
        if "@callable" in value or (module is not None and not str(module).startswith(_MODULES)):
            name = value.get("@callable") or value.get("@class")
            raise StoreError(
                f"{origin} names {module}.{name}, which is no store of maggma, jobflow or fieldflows.",
                "Build such a JobStore in Python and pass it to run_locally.",
            )
        for item in value.values():
            _check_classes(item, origin)
    elif isinstance(value, list):
        for item in value:
            _check_classes(item, origin)


def _choose(spec: str | Path | None) -> tuple[JobStore, str]:
    if spec is not None and str(spec):
        return _from_text(str(spec)), "as named"
    variable = os.environ.get(STORE_VARIABLE)
    if variable:
        return _from_text(variable), f"from {STORE_VARIABLE}"
    configured = _from_jobflow()
    if configured is not None:
        return configured
    return sqlite_job_store(embedded_path()), "embedded store"


def _from_text(text: str) -> JobStore:
    if text.startswith(("mongodb://", "mongodb+srv://")):
        return mongo_job_store(text)
    if "://" in text:
        raise StoreError(
            f"{hide_password(text)} is no store that fieldflows knows.",
            "Name a file, a mongodb:// address, or a YAML file that describes a JobStore.",
        )
    path = Path(text).expanduser()
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        return job_store_from_spec(_load(path), str(path))
    return sqlite_job_store(path)


def _from_jobflow() -> tuple[JobStore, str] | None:
    named = os.environ.get("JOBFLOW_CONFIG_FILE")
    path = Path(named or "~/.jobflow.yaml").expanduser()
    if not path.is_file() or path.stat().st_size == 0:
        if named and not path.is_file():
            raise StoreError(f"JOBFLOW_CONFIG_FILE names {path}, which does not exist.", "Correct or unset it.")
        return None
    spec = _load(path).get("JOB_STORE")
    if spec is None:
        return None
    if isinstance(spec, str):
        return job_store_from_spec(_load(Path(spec).expanduser()), spec), f"from {path}"
    return job_store_from_spec(spec, str(path)), f"from {path}"


def _load(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"The description of the store, {path}, cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise StoreError(f"The description of the store, {path}, is no valid YAML: {first}.") from error
    if not isinstance(content, Mapping):
        raise StoreError(
            f"The description of the store, {path}, holds {type(content).__name__}, not a mapping.",
            "See docs/guides/stores.md for an example.",
        )
    return content


def _open(store: JobStore) -> None:
    from pymongo.errors import PyMongoError

    docs = store.docs_store
    if isinstance(docs, SQLiteStore) and Path(docs.path) == embedded_path().absolute():
        try:
            embedded_path().parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"The folder {embedded_path().parent} of the embedded store cannot be made: {error.strerror}.",
                f"Name another store with --store FILE or {STORE_VARIABLE}.",
            ) from error
    try:
        store.connect()
        docs.count({"uuid": ""})
        ResultsCollection.of(store)
    except PyMongoError as error:
        first = str(error).split(",")[0]
        raise StoreError(
            f"The database {hide_password(docs.name)} cannot be reached: {first}.",
            "Start it, check the address, or name another store with --store.",
        ) from error
