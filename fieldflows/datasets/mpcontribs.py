"""Answers of MPContribs: contributions of a project, page by page, and their attachments, one by one.

Three routes are asked: ``/projects/``, ``/contributions/`` (pages, ids, filter) and ``/attachments/<id>/``, whose
``content`` is base64(gzip(JSON)).  An answer is kept once it is whole and of the expected schema.  Attachments are read
as plain JSON: no class that they name is loaded.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fieldflows.datasets.materials_project import materials_project_key
from fieldflows.datasets.source import Progress
from fieldflows.datasets.web import AnswerCache, Client, checked_key, write_answers
from fieldflows.errors import DataError, KeyProblem, WrongAnswer

SERVICE = "https://contribs-api.materialsproject.org"
HOST_VARIABLE = "MPCONTRIBS_API_HOST"
"""Environment variable with another address of the service, as for the client of mp-api."""
KEY_VARIABLE = "MPCONTRIBS_API_KEY"
KEY_LENGTH = 32
KEY_HINT = (
    "Take yours from the profile at https://contribs.materialsproject.org and set it: export MPCONTRIBS_API_KEY=... "
    "(or MP_API_KEY)."
)
ATTACHMENT = "workflow.json.gz"
"""Name of the attachment that holds a path."""

FIELDS = "id,project,identifier,formula,last_modified,data,structures,attachments"
"""Fields that are asked of a contribution; those of an attachment are :data:`ATTACHMENT_FIELDS`."""
ATTACHMENT_FIELDS = "id,name,mime,md5,content"

RESERVED = frozenset({"project", "page", "per_page", "format", "id__in", "identifier__in"})
"""Parameters of ``/contributions/`` that no filter may set; nor any that begins with an underscore."""

PER_PAGE = 100
IDS_AT_ONCE = 50  # the service takes addresses of up to about 4000 characters
DAMAGED_TRIES = 3
FAILED_IN_A_ROW = 3  # attachments, before the fetch stops: the service, not one attachment, is at fault
MOST_BYTES = 256 * 2**20
"""Largest unpacked attachment; the service takes 2.4 MB packed."""

_OBJECT_ID = re.compile(r"[0-9a-f]{24}")


def service_address() -> str:
    """Return the address of the service: $MPCONTRIBS_API_HOST, or the public one."""
    host = os.environ.get(HOST_VARIABLE, "").strip().rstrip("/")
    if not host:
        return SERVICE
    return host if "://" in host else f"https://{host}"


def service_key() -> str:
    """Return the user's key: MPCONTRIBS_API_KEY, or that of the Materials Project.

    Raises:
        KeyProblem: If there is none, or it cannot be one.  The key is never shown.
    """
    key = checked_key(os.environ.get(KEY_VARIABLE), KEY_HINT)
    if key is None:
        try:
            return materials_project_key()
        except KeyProblem as error:
            raise KeyProblem(error.message, KEY_HINT) from None
    if len(key) != KEY_LENGTH:
        raise KeyProblem(
            f"The key in {KEY_VARIABLE} has {len(key)} characters; keys of MPContribs have {KEY_LENGTH}.", KEY_HINT
        )
    return key


class Contribs:
    """One project of MPContribs.

    Args:
        project: Its name.
        cache: Where answers are kept.
        report: Called with (stage, done, all).
    """

    def __init__(self, project: str, cache: AnswerCache, report: Progress) -> None:
        self.project, self.cache, self.report = project, cache, report
        self.address = service_address()
        self._opened: Client | None = None

    def fetch(self, ids: Sequence[str], query: Mapping[str, Any], most: int | None) -> Path:
        """Ask for contributions and their attachments; return the file with all answers, below the cache.

        Args:
            ids: Contribution ids (24 hexadecimal digits) or identifiers; empty for all that the filter lets through.
            query: Filter: parameters of ``/contributions/``.
            most: Take only so many contributions, in the order of their ids.

        Raises:
            ServiceError: If the service cannot be used, or its answers have another schema.
        """
        project = self.project_document()
        found = {item["id"]: item for page in self._pages(ids, query) for item in page}
        contributions = [found[key] for key in sorted(found)][:most]
        finished = [item for item in contributions if stated_status(item) in (None, "COMPLETED")]
        wanted = [item["id"] for contribution in finished for item in workflow_attachments(contribution)]
        answers = {
            "projects": {"data": [project]},
            "contributions": {"data": contributions},
            "attachments": self._attachments(wanted),
            "asked": {"project": self.project, "ids": list(ids), "filter": dict(query)},
        }
        return write_answers(self.cache.root / "contribs", answers)

    def project_document(self) -> dict[str, Any]:
        """Return what the service knows of the project.

        Raises:
            WrongAnswer: If there is no such project, or the key may not see it.
        """
        answer = self._get("/projects/", {"name": self.project}, _is_list("/projects/"))
        for item in answer["data"]:
            if isinstance(item, dict) and item.get("name") == self.project:
                return item
        names = sorted(str(item.get("name")) for item in answer["data"] if isinstance(item, dict))
        raise WrongAnswer(
            f"{self.address} has no project {self.project!r} that this key may see; it answers with "
            f"{', '.join(names) or 'none'}.",
            "Check the name, and the terms of the project on its page.",
        )

    def _pages(self, ids: Sequence[str], query: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
        """Yield the contributions of one page after the other."""
        base = {"project": self.project, "_fields": FIELDS, "per_page": PER_PAGE, **_flat(query)}
        for more in _batches(ids):
            page, done = 1, 0
            while True:
                answer = self._get("/contributions/", {**base, **more, "page": page}, _is_page)
                items, total = answer["data"], answer["total_count"]
                done += len(items)
                self.report("fetching contributions", done, total)
                yield items
                if done >= total:
                    break
                if not items:
                    raise WrongAnswer(
                        f"{self.address}/contributions/ announces {total} contributions and gives {done}.",
                        "They may change at this moment: run the same again with refresh: true.",
                    )
                page += 1

    def _attachments(self, identifiers: Sequence[str]) -> dict[str, Any]:
        """Return attachments by id; of one that cannot be had, what is wrong stands under ``error``.

        Raises:
            ServiceError: If the service cannot be used; also if one attachment after the other cannot be had.
        """
        found: dict[str, Any] = {}
        failed = 0  # in a row
        for done, identifier in enumerate(identifiers):
            self.report("fetching attachments", done, len(identifiers))
            try:
                found[identifier] = self.attachment(identifier)
                failed = 0
            except (DataError, WrongAnswer) as error:
                failed += 1
                if failed >= min(FAILED_IN_A_ROW, len(identifiers)):
                    raise WrongAnswer(
                        f"Attachments cannot be read. The last one: {error.message}", error.hint
                    ) from error
                found[identifier] = {"id": identifier, "error": error.message}
        self.report("fetching attachments", len(identifiers), len(identifiers))
        return found

    def attachment(self, identifier: str) -> dict[str, Any]:
        """Return an attachment that can be unpacked; one that cannot is asked for anew, and is not kept.

        Raises:
            DataError: If it stays damaged.
            ServiceError: If the service cannot be used, or does not have it.
        """
        for attempt in range(DAMAGED_TRIES - 1):
            with suppress(DataError):
                return self._ask_attachment(identifier)
            self._client.sleep(2.0**attempt)
        return self._ask_attachment(identifier)

    def _ask_attachment(self, identifier: str) -> dict[str, Any]:
        return self._get(f"/attachments/{identifier}/", {"_fields": ATTACHMENT_FIELDS}, _can_be_unpacked)

    def _get(self, route: str, params: Mapping[str, Any], check: Callable[[Any], None]) -> dict[str, Any]:
        """Return an answer that passes a check: kept from earlier, or asked for and then kept."""
        request = {"url": self.address + route, "params": dict(params)}
        kept = self.cache.get(request)
        if kept is not None:
            return kept
        answer = self._client.get(route, params, cached=False)
        check(answer)
        self.cache.put(request, answer)
        return answer

    @property
    def _client(self) -> Client:
        if self._opened is None:
            key = None if self.cache.offline else service_key()
            self._opened = Client(self.address, key, KEY_HINT, cache=self.cache)
        return self._opened


def stated_status(contribution: Mapping[str, Any]) -> str | None:
    """Return the status of the workflow that a contribution states, or None if it states none."""
    status: Any = contribution
    for key in ("data", "workflow", "status"):
        status = status.get(key) if isinstance(status, Mapping) else None
    return status if isinstance(status, str) else None


def workflow_attachments(contribution: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of a contribution that name its path; their content is another answer."""
    items = contribution.get("attachments")
    if not isinstance(items, list):
        return []
    return [
        item
        for item in items
        if isinstance(item, dict) and item.get("name") == ATTACHMENT and isinstance(item.get("id"), str)
    ]


def unpack(attachment: Mapping[str, Any]) -> Any:
    """Return the JSON that an attachment holds: ``content`` = base64(gzip(JSON)), or ``json`` as it is.

    Raises:
        DataError: If it holds none, is cut off, damaged, or too large.
    """
    if "json" in attachment:
        return attachment["json"]
    name = f"attachment {attachment.get('id')}"
    if attachment.get("error"):
        raise DataError(f"{name} could not be fetched: {attachment['error']}")
    content = attachment.get("content")
    if not isinstance(content, str):
        raise DataError(f"{name} has no field 'content'; it has {', '.join(map(str, attachment)) or 'nothing'}")
    try:
        packed = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{name}: 'content' is no base64 ({error})") from None
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as handle:
            text = handle.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: 'content' is no whole gzip file ({error})") from None
    if len(text) > MOST_BYTES:
        raise DataError(f"{name} is larger than {MOST_BYTES} bytes unpacked")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: 'content' is no whole JSON ({error})") from None


def _can_be_unpacked(answer: Any) -> None:
    if not isinstance(answer, dict):
        raise DataError(f"an attachment is a {type(answer).__name__} in place of an object")
    unpack(answer)


def _is_list(route: str) -> Callable[[Any], None]:
    """Return a check that an answer of a route is an object with a list under ``data``."""

    def check(answer: Any) -> None:
        if not isinstance(answer, dict):
            raise _changed(route, f"is a {type(answer).__name__} in place of an object")
        if not isinstance(answer.get("data"), list):
            raise _changed(route, f"has no list 'data'; it has {', '.join(map(str, answer)) or 'nothing'}")

    return check


def _is_page(answer: Any) -> None:
    """Check a page of contributions: ``data`` holds objects with an ``id``, ``total_count`` is a number."""
    route = "/contributions/"
    _is_list(route)(answer)
    if not isinstance(answer.get("total_count"), int):
        raise _changed(route, f"has no number 'total_count'; it has {', '.join(map(str, answer))}")
    for k, item in enumerate(answer["data"]):
        if not isinstance(item, dict) or not isinstance(item.get("id"), str):
            raise _changed(route, f"has no field 'id' in contribution {k} of the page")


def _changed(route: str, what: str) -> WrongAnswer:
    return WrongAnswer(
        f"The answer of {route} {what}.",
        "The service may have changed its schema: see whether fieldflows is up to date.",
    )


def _flat(query: Mapping[str, Any]) -> dict[str, Any]:
    """Return a filter as parameters of a query: lists become comma-separated, truth values small letters."""

    def text(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    return {
        name: ",".join(map(text, value)) if isinstance(value, list | tuple) else text(value)
        for name, value in query.items()
    }


def _batches(ids: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield parameters that select ids, so many at once; nothing to select if there are none."""
    if not ids:
        yield {}
    hexadecimal = [text for text in ids if _OBJECT_ID.fullmatch(text)]
    others = [text for text in ids if not _OBJECT_ID.fullmatch(text)]
    for name, members in (("id__in", hexadecimal), ("identifier__in", others)):
        for start in range(0, len(members), IDS_AT_ONCE):
            yield {name: ",".join(members[start : start + IDS_AT_ONCE])}
