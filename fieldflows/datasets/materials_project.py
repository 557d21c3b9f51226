"""The Materials Project through its own client, mp-api: what is asked, in batches, and kept document by document.

The client builds the requests and turns the pages; they go out through :class:`fieldflows.datasets.web.Client`, which
waits, tries again and explains.  Every search names ids or a filter: without one, the client would download the whole
collection to a folder of its own.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import requests

from fieldflows.datasets.source import Progress
from fieldflows.datasets.web import AnswerCache, Client, canonical_json, checked_key
from fieldflows.errors import FieldflowsError, KeyProblem, SettingsError, Unreachable, WrongAnswer

if TYPE_CHECKING:
    from mp_api.client import MPRester

T = TypeVar("T")
_log = logging.getLogger(__name__)

KEY_VARIABLE = "MP_API_KEY"
SETTING = "PMG_MAPI_KEY"
KEY_LENGTH = 32
KEY_HINT = (
    "Take yours from https://next-gen.materialsproject.org/api and set it: export MP_API_KEY=..., "
    "or PMG_MAPI_KEY in pymatgen's settings."
)
ENDPOINT_VARIABLE = "MP_API_ENDPOINT"
"""Environment variable with another address of the service, as for mp-api itself."""
ENDPOINT = "https://api.materialsproject.org/"

LONGEST_START = 60.0
"""Seconds that mp-api may take to start."""

FIELDS: dict[str, tuple[str, ...]] = {
    "dielectric": (
        "material_id", "formula_pretty", "volume", "nsites", "deprecated", "deprecation_reasons", "origins", "warnings",
        "builder_meta", "electronic", "ionic", "total", "e_electronic", "e_ionic", "e_total", "n",
    ),
    "summary": ("material_id", "formula_pretty", "volume", "deprecated", "structure", "phonon_IDs"),
    "tasks": (
        "task_id", "task_type", "calc_type", "run_type", "structure", "output.dielectric_properties",
        "output.epsilon_static",
    ),
    "phonon": ("identifier", "phonon_method", "epsilon_static", "epsilon_electronic", "born", "structure"),
}  # fmt: skip
"""Fields that are asked for, by route."""

PAGES = {"tasks": 100}
"""Documents on one page that a route allows, where these are not 1000."""

IDENTIFIERS = {"dielectric": "material_id", "summary": "material_id", "tasks": "task_id", "phonon": "identifier"}
"""Field that names a document, by route; the parameter of the search is its plural."""


def materials_project_key(*first: str) -> str:
    """Return the user's key: from the given environment variables, MP_API_KEY, or pymatgen's settings.

    Args:
        first: Environment variables that come before MP_API_KEY; the length of their key is not checked.

    Raises:
        KeyProblem: If there is none, or it cannot be one.  The key is never shown.
    """
    for name in first:
        key = checked_key(os.environ.get(name), f"Check {name}.")
        if key is not None:
            return key
    origin, key = KEY_VARIABLE, checked_key(os.environ.get(KEY_VARIABLE), KEY_HINT)
    if key is None:
        from pymatgen.core import SETTINGS

        origin, key = SETTING, checked_key(os.environ.get(SETTING) or SETTINGS.get(SETTING), KEY_HINT)
    if key is None:
        raise KeyProblem("The Materials Project asks for a key, and none is set.", KEY_HINT)
    if len(key) != KEY_LENGTH:
        legacy = "; shorter ones are of its legacy service" if len(key) == 16 else ""
        raise KeyProblem(
            f"The key in {origin} has {len(key)} characters; keys of the Materials Project have {KEY_LENGTH}{legacy}.",
            KEY_HINT,
        )
    return key


def endpoint() -> str:
    """Return the address of the service: $MP_API_ENDPOINT, or the public one."""
    return (os.environ.get(ENDPOINT_VARIABLE) or ENDPOINT).rstrip("/") + "/"


def identity(identifier: object) -> tuple[str, int]:
    """Return what an id of a material or task stands for: prefix and number, alike for old and new spelling.

    Ids without a prefix count as ``mp``.

    Raises:
        ValueError: If it is none.

    Example:
        >>> identity("mp-149") == identity("mp-ft") == identity("mp-aaaaaaft")
        True
        >>> identity("mvc-149") == identity("mp-149")
        False
    """
    from emmet.core.mpid import AlphaID

    text = str(identifier).strip()
    try:
        prefix, number = AlphaID(text).parts if text else ("", -1)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{identifier!r} is no id") from error
    if number < 0:
        raise ValueError(f"{identifier!r} is no id")
    return prefix or "mp", number


def plain_id(identifier: object) -> str:
    """Return an id in one spelling, whatever the service uses: with a number up to where those end, else in letters.

    Raises:
        ValueError: If it is none.

    Example:
        >>> plain_id("mp-aaaaaaft"), plain_id(149)
        ('mp-149', 'mp-149')
    """
    from emmet.core.mpid import AlphaID

    prefix, number = identity(identifier)
    return str(AlphaID(number, prefix=prefix).string)


def identities(identifiers: Iterable[str]) -> dict[tuple[str, int], str]:
    """Return {what it stands for: id as given}, without repetitions, in the order of their numbers.

    Raises:
        SettingsError: Names the first id that is none.
    """
    found: dict[tuple[str, int], str] = {}
    for text in identifiers:
        try:
            found.setdefault(identity(text), str(text).strip())
        except ValueError:
            raise SettingsError(
                f"{text!r} is no id of the Materials Project.", "Ids are like mp-149 or mp-aaaaaaft."
            ) from None
    return dict(sorted(found.items()))


class _Session(requests.Session):
    """What mp-api sends its requests through: every GET goes to a polite client, and nothing else goes out."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client

    def get(self, url: str | bytes, **options: Any) -> requests.Response:  # type: ignore[override]
        """Return the answer of a route as a response with status 200."""
        text = str(url)
        if not text.startswith(self._client.base_url):
            raise WrongAnswer(f"mp-api asks {urlsplit(text).netloc}, which is not the service.", "Report this.")
        route = text.removeprefix(self._client.base_url)
        answer = self._client.get(route, options.get("params") or {}, cached=False)
        if not isinstance(answer, dict) or not isinstance(answer.get("data"), list):
            found = ", ".join(sorted(answer)[:8]) if isinstance(answer, dict) else type(answer).__name__
            raise WrongAnswer(
                f"{text}: the answer has no list 'data', but {found or 'nothing'}: its schema changed.",
                "Update mp-api and fieldflows.",
            )
        response = requests.Response()
        response.status_code, response.url, response.encoding = 200, text, "utf-8"
        response._content = canonical_json(answer)
        return response

    def request(self, method: str | bytes, url: str | bytes, **options: Any) -> requests.Response:  # type: ignore[override]
        """Refuse what is no GET."""
        raise WrongAnswer(f"mp-api tries {method!r} on {url!r}, which is not needed here.", "Report this.")


class MaterialsProject:
    """Searches of the Materials Project; the client is made when the first document is not at hand.

    Args:
        cache: Where documents are kept, one by one.
        batch: Ids of one request.
        settings: ``retries``, ``timeout`` and ``sleep`` of the web client.

    Attributes:
        endpoint: Address of the service.
        versions: Versions of the database that the documents come from.
    """

    def __init__(self, cache: AnswerCache, batch: int = 100, **settings: Any) -> None:
        self.endpoint, self.cache, self.batch, self._settings = endpoint(), cache, batch, settings
        self.versions: set[str] = set()
        self._rester: MPRester | None = None
        self._version = ""

    def find(
        self, filters: Mapping[str, Any], report: Progress, properties: Sequence[str] = ("dielectric",)
    ) -> list[str]:
        """Return the ids of all materials that pass a filter, in order.

        Args:
            filters: What mp-api's search takes.
            report: Called with (stage, done, all).
            properties: Properties that the service must have of them.

        Raises:
            ServiceError: If the service cannot be used.
        """
        report("asking for ids", 0, 1)
        request = {"service": self.endpoint, "route": "summary", "filter": dict(filters), "fields": ["material_id"]}
        if tuple(properties) != ("dielectric",):
            request["properties"] = list(properties)
        kept = self.cache.get(request)
        if kept is None:
            having = {"has_props": list(properties)} if properties else {}
            documents = self._search("summary", fields=["material_id"], **having, **filters)
            kept = {"version": self._version, "ids": [str(item.get("material_id")) for item in documents]}
            self.cache.put(request, kept)
        report("asking for ids", 1, 1)
        try:
            return list(identities(kept["ids"]).values())
        except SettingsError as error:
            raise WrongAnswer(f"{self.endpoint}materials/summary/: {error.message}", "Update fieldflows.") from None

    def documents(
        self, route: str, ids: Sequence[str], report: Progress, fields: Sequence[str] = (), **more: Any
    ) -> list[dict[str, Any]]:
        """Return the documents of some ids, in their order; ids without a document are left out.

        What is not kept from earlier is asked for in batches, and every document is kept when its batch is there.

        Args:
            route: A key of :data:`FIELDS`.
            ids: Of materials, tasks or phonon calculations.
            report: Called with (stage, done, all).
            fields: Fields to ask for; those of :data:`FIELDS` by default.
            more: More parameters of the search.

        Raises:
            ServiceError: If the service cannot be used.
        """
        wanted = identities(ids)
        names = tuple(fields) or FIELDS[route]
        found: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for key in wanted:
            kept = self.cache.get(self._request(route, key, names, more))
            if isinstance(kept, dict) and isinstance(kept.get("documents"), list):
                found[key] = kept["documents"]
                self.versions.add(str(kept.get("version")))
        missing = [key for key in wanted if key not in found]
        stage = f"fetching {route}"
        report(stage, len(found), len(wanted))
        for keys in _batches(missing, self.batch):
            plural = IDENTIFIERS[route] + "s"
            asked = {plural: [wanted[key] for key in keys]}
            answers = self._search(route, **asked, fields=list(names), **more)
            found |= self._keep(route, keys, answers, names, more)
            report(stage, len(found), len(wanted))
        return [item for key in wanted for item in found[key]]

    def _request(
        self, route: str, key: tuple[str, int], names: Sequence[str], more: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {"service": self.endpoint, "route": route, "id": list(key), "fields": list(names)} | dict(more)

    def _keep(
        self,
        route: str,
        keys: Sequence[tuple[str, int]],
        answers: Sequence[dict[str, Any]],
        names: Sequence[str],
        more: Mapping[str, Any],
    ) -> dict[tuple[str, int], list[dict[str, Any]]]:
        """Sort the answers of one batch by their ids, and keep them."""
        result: dict[tuple[str, int], list[dict[str, Any]]] = {key: [] for key in keys}
        nameless = []
        for document in answers:
            try:
                key = identity(document.get(IDENTIFIERS[route]))
            except ValueError:
                nameless.append(document)
                continue
            if key in result:
                result[key].append(document)
        if nameless and not any(result.values()):
            found = nameless[0]
            raise WrongAnswer(
                f"{self.endpoint}materials/{route}/: a document has {IDENTIFIERS[route]} "
                f"{found.get(IDENTIFIERS[route])!r}, which is no id; its fields are {', '.join(sorted(found)[:12])}.",
                "The schema of the service changed: update mp-api and fieldflows.",
            )
        if nameless:
            _log.warning("%d documents of materials/%s have no id and are left out.", len(nameless), route)
        for key, documents in result.items():
            if documents or not nameless:  # a nameless one may be the one that is missing: ask again next time
                answer = {"version": self._version, "documents": documents}
                self.cache.put(self._request(route, key, names, more), answer)
        return result

    def _search(self, route: str, **criteria: Any) -> list[dict[str, Any]]:
        """Search a route through mp-api.

        Raises:
            ServiceError: If the service cannot be used, or mp-api cannot read its answer.
        """
        if not any(value not in (None, [], "") for name, value in criteria.items() if name != "fields"):
            raise SettingsError("A search of the Materials Project needs ids or a filter.", "Give one.")
        if self.cache.offline:
            raise Unreachable(f"Offline: not all documents of materials/{route} are kept.", "Run once without offline.")
        rester = self.connect()
        search = getattr(rester.materials, route).search
        found = self._through(f"materials/{route}", lambda: search(chunk_size=PAGES.get(route, 1000), **criteria))
        if not all(isinstance(item, dict) for item in found):
            raise WrongAnswer(f"{self.endpoint}materials/{route}/ answers with something that is no document.")
        self.versions.add(self._version)
        return list(found)

    def connect(self) -> MPRester:
        """Return the client of mp-api, made when it is first needed.

        Raises:
            KeyProblem: If there is no key, or one of a wrong length.
            ServiceError: If the service does not answer.
        """
        if self._rester is not None:
            return self._rester
        key = materials_project_key()
        client = Client(self.endpoint, key, KEY_HINT, cache=self.cache, **self._settings)
        heartbeat = client.get("heartbeat", {}, cached=False)  # with time-outs and reasons, which mp-api has not
        if not isinstance(heartbeat, dict) or not heartbeat.get("db_version"):
            raise WrongAnswer(f"{self.endpoint}heartbeat names no db_version.", f"Check {ENDPOINT_VARIABLE}.")
        self._version = str(heartbeat["db_version"])

        def make() -> MPRester:
            from mp_api.client import MPRester

            rester = partial(
                MPRester,
                key,
                endpoint=self.endpoint,
                use_document_model=False,  # plain dictionaries: nothing that is read becomes an object
                session=_Session(client),
                mute_progress_bars=True,
                local_dataset_cache=Path(os.devnull) / "mp_datasets",  # a place that cannot hold a collection
            )
            return _within(LONGEST_START, rester, f"{self.endpoint}heartbeat")

        for attempt in range(3):
            try:
                self._rester = self._through("heartbeat", make)
                return self._rester
            except Unreachable:
                if attempt == 2:
                    raise
                client.sleep(2.0**attempt)
        raise AssertionError("not reached")

    def _through(self, route: str, call: Callable[[], T]) -> T:
        """Call mp-api and name what goes wrong."""
        from mp_api.client.core import MPRestError

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return call()
        except FieldflowsError:
            raise
        except requests.RequestException:
            raise Unreachable(f"{self.endpoint}{route} cannot be reached.", "Check the network.") from None
        except (MPRestError, KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise WrongAnswer(
                f"mp-api cannot ask {self.endpoint}{route} or read its answer ({reason}).",
                "Check the filter; else update mp-api and fieldflows.",
            ) from None


def _within(seconds: float, call: Callable[[], T], address: str) -> T:
    """Return what a call returns, unless it takes too long: mp-api asks for the heartbeat without a time-out.

    Raises:
        Unreachable: If it takes longer.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise Unreachable(f"{address} does not answer mp-api within {seconds:g} s.", "Run the same again later.")
    return results[0]


def _batches(items: Sequence[T], size: int) -> Iterable[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
