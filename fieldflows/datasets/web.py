"""Labels from public services: polite requests, answers kept on disk one by one, sources that read offline.

A fetch writes every answer to the cache as it comes, so that one that was stopped goes on where it was, and in the end
one file with all answers.  Everything after that reads the file: the same answers give the same dataset.  Keys travel
in a header alone; they are in no file, no message and no address.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import math
import os
import sys
import time
import zlib
from abc import abstractmethod
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urljoin, urlsplit

import requests
from pydantic import Field
from urllib3.exceptions import HTTPError

from fieldflows.artifacts import replacing
from fieldflows.datasets.source import Progress, Source
from fieldflows.errors import KeyProblem, Unreachable, WrongAnswer

CACHE_VARIABLE = "FIELDFLOWS_CACHE"
"""Environment variable that names the cache folder of this machine."""

LONGEST_WAIT = 300.0
"""Longest wait in s that a service may ask for (Retry-After) before the fetch stops instead."""

LONGEST_ANSWER = 20.0
"""An answer may take so many times the time-out from its first to its last byte."""

MOST_BYTES = 4 * 1024**3
"""Largest unpacked answer: more is taken for a mistake."""

_CONNECTION_TRIES = 2  # a machine without network should say so at once, not after all retries
_PART = 1 << 18
_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the cache folder for fieldflows: ``$FIELDFLOWS_CACHE``, or the user's; it may not exist yet.

    The user's is ``$XDG_CACHE_HOME/fieldflows`` or ``~/.cache/fieldflows`` on Linux, ``~/Library/Caches/fieldflows`` on
    macOS and ``%LOCALAPPDATA%/fieldflows/cache`` on Windows.
    """
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE]).expanduser()
    if sys.platform == "darwin":
        return Path("~/Library/Caches/fieldflows").expanduser()
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local").expanduser() / "fieldflows" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fieldflows"


def canonical_json(value: Any) -> bytes:
    """Return JSON with sorted keys and no spaces: equal values give equal bytes.

    Raises:
        WrongAnswer: If something in it has no JSON form.

    Example:
        >>> canonical_json({"b": 1.5, "a": [None]})
        b'{"a":[null],"b":1.5}'
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise WrongAnswer(f"An answer cannot be written as JSON: {error}.") from None
    return text.encode("utf-8")


def write_answers(folder: Path, answers: Any) -> Path:
    """Write answers as canonical gzip JSON into a folder, named by the sha256 of the JSON; return the file.

    Raises:
        ArtifactError: If it cannot be written.
        WrongAnswer: If something in it has no JSON form.
    """
    text = canonical_json(answers)
    target = folder / f"{hashlib.sha256(text).hexdigest()}.json.gz"
    _write(target, text)
    return target


def _write(target: Path, text: bytes) -> None:
    with replacing(target) as handle:
        handle.write(gzip.compress(text, 6, mtime=0))


class AnswerCache:
    """Answers of public services on disk: one gzip JSON file each, named by the sha256 of its request.

    Files appear at once and whole.  One that was damaged counts as absent, with a warning, and is fetched anew.

    Args:
        root: Folder; ``answers`` in :func:`cache_folder` if None.
        refresh: Forget what was kept before this object was made.
        offline: Take what is kept, and never ask the service.

    Example:
        >>> import tempfile
        >>> cache = AnswerCache(Path(tempfile.mkdtemp()))
        >>> cache.put({"route": "a"}, {"data": [1]})
        >>> cache.get({"route": "a"}), cache.get({"route": "b"})
        ({'data': [1]}, None)
    """

    def __init__(self, root: Path | None = None, refresh: bool = False, offline: bool = False) -> None:
        self.root = cache_folder() / "answers" if root is None else Path(root)
        self.refresh, self.offline = refresh, offline
        self._written: set[Path] = set()

    def path(self, request: Mapping[str, Any]) -> Path:
        """Return where the answer to a request lies if it is kept."""
        digest = hashlib.sha256(canonical_json(dict(request))).hexdigest()
        return self.root / digest[:2] / f"{digest}.json.gz"

    def get(self, request: Mapping[str, Any]) -> Any | None:
        """Return the answer to a request, or None if none is kept, or it is damaged or to be refreshed."""
        path = self.path(request)
        if self.refresh and path not in self._written:
            return None
        try:
            kept = json.loads(gzip.decompress(path.read_bytes()))
            if kept["request"] == json.loads(canonical_json(dict(request))):
                return kept["answer"]
            reason = "it answers another request"
        except FileNotFoundError:
            return None
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
            reason = str(error) or type(error).__name__
        _log.warning("The kept answer %s is damaged (%s); it is fetched again.", path, reason)
        return None

    def put(self, request: Mapping[str, Any], answer: Any) -> None:
        """Keep the answer to a request.

        Raises:
            ArtifactError: If it cannot be written.
        """
        path = self.path(request)
        _write(path, canonical_json({"request": dict(request), "answer": answer}))
        self._written.add(path)


class Client:
    """Polite GETs of JSON from a public service.

    It waits when it is told to (429, Retry-After), tries again after 5xx, time-outs and answers that are cut off, with
    1, 2, 4, ... seconds between, and otherwise says what is wrong.  The key goes to the service's own host alone.

    Args:
        base_url: Address that routes are appended to.
        key: Key of the user; None if there is none.
        key_hint: What to set to have a key, in one sentence.
        cache: Where answers are kept.
        retries: How often to try again.
        timeout: Seconds without a byte after which a try is given up.
        sleep: Waits for so many seconds.

    Raises:
        KeyProblem: If the key holds characters that no key has, or the address is not encrypted.
    """

    def __init__(
        self,
        base_url: str,
        key: str | None,
        key_hint: str,
        *,
        cache: AnswerCache,
        retries: int = 5,
        timeout: float = 30.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.base_url = base_url.rstrip("/") + "/"
        address = urlsplit(self.base_url)
        if address.scheme != "https" and address.hostname not in ("127.0.0.1", "::1", "localhost"):
            raise KeyProblem(f"{base_url} is not encrypted (https): it gets no key.", "Check the address.")
        self.cache, self.retries, self.timeout = cache, retries, timeout
        self._key, self._key_hint, self.sleep = checked_key(key, key_hint), key_hint, sleep
        self._session = requests.Session()

    def __repr__(self) -> str:
        return f"Client({self.base_url!r})"

    def get(self, route: str, params: Mapping[str, Any], *, cached: bool = True) -> Any:
        """Return the answer of a route, from the cache if it is there.

        Args:
            route: Appended to the base address.
            params: Parameters of the query; None values are left out.
            cached: Look into the cache and keep the answer.

        Raises:
            KeyProblem: If there is no key, or the service refuses it (401, 403).
            Unreachable: If the service does not answer, or is too busy, after all retries.
            WrongAnswer: If the answer is no JSON, or the request itself is refused (other 4xx).
            ArtifactError: If the answer cannot be kept.
        """
        url, query = self.base_url + route.lstrip("/"), {k: v for k, v in params.items() if v is not None}
        request = {"url": url, "params": query}
        if cached:
            answer = self.cache.get(request)
            if answer is not None:
                return answer
        if self.cache.offline:
            raise Unreachable(f"Offline: the answer of {url} is not kept.", "Run once without offline.")
        answer = self._ask(url, query)
        if cached:
            self.cache.put(request, answer)
        return answer

    def _ask(self, url: str, params: Mapping[str, Any]) -> Any:
        """Ask until there is an answer or the retries are used up."""
        if self._key is None:
            raise KeyProblem(f"{url} needs a key, and there is none.", self._key_hint)
        for attempt in range(self.retries + 1):
            try:
                status, headers, body = self._send(url, params)
                if status == 200:
                    return self._parse(url, headers.get("Content-Type", ""), body)
                self._judge(url, status, headers, body)
            except _Again as again:
                if attempt >= min(self.retries, again.most):
                    raise again.error from None
                pause = again.wait if again.wait is not None else float(2**attempt)
                _log.info("%s Trying again in %.0f s.", again.error.message, pause)
                self.sleep(pause)
        raise AssertionError("unreachable")

    def _send(self, url: str, params: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers and body; redirections are followed, the key stays with the host."""
        here, query = url, dict(params)
        try:
            for _ in range(6):
                headers = {"Accept": "application/json"}
                if self._key and urlsplit(here)[:2] == urlsplit(self.base_url)[:2]:
                    headers["X-API-KEY"] = self._key
                with self._session.get(
                    here, params=query, headers=headers, timeout=self.timeout, stream=True, allow_redirects=False
                ) as response:
                    if not response.is_redirect:
                        return response.status_code, response.headers, self._body(url, response)
                    here, query = urljoin(here, response.headers["Location"]), {}
        except requests.exceptions.Timeout:
            raise _Again(Unreachable(f"{url} does not answer within {self.timeout:g} s.", _NETWORK)) from None
        except requests.exceptions.SSLError as error:
            raise Unreachable(f"{url}: no secure connection ({_short(error)}).", "Check proxies and clocks.") from None
        except requests.exceptions.ConnectionError as error:
            problem = Unreachable(f"{url} cannot be reached ({_short(error)}).", _NETWORK)
            raise _Again(problem, most=_CONNECTION_TRIES) from None
        except requests.exceptions.RequestException as error:
            raise Unreachable(f"{url} cannot be asked: {_short(error)}.", "Check the address.") from None
        raise WrongAnswer(f"{url} redirects without end.", "Check the address.")

    def _body(self, url: str, response: requests.Response) -> bytes:
        """Return the whole body, in bounded time and size."""
        end = time.monotonic() + LONGEST_ANSWER * self.timeout
        body = bytearray()
        try:
            while part := response.raw.read1(_PART, decode_content=True):
                body += part
                if len(body) > MOST_BYTES:
                    raise WrongAnswer(
                        f"The answer of {url} is larger than {MOST_BYTES} bytes.", "Ask for less at once."
                    )
                if time.monotonic() > end:
                    problem = Unreachable(f"{url} sends too slowly: {len(body)} bytes so far.", "Ask for less at once.")
                    raise _Again(problem)
        except (HTTPError, OSError) as error:
            raise _Again(Unreachable(f"The answer of {url} broke off ({_short(error)}).", _NETWORK)) from None
        return bytes(body)

    def _parse(self, url: str, content_type: str, body: bytes) -> Any:
        try:
            return json.loads(body, parse_constant=lambda _: None)  # NaN and infinities, which JSON does not have
        except (ValueError, RecursionError):
            pass
        if "json" in content_type or body[:1] in (b"{", b"["):
            raise _Again(WrongAnswer(f"The answer of {url} is cut off after {len(body)} bytes.", "Ask again later."))
        what = content_type.split(";")[0] or "something"
        raise WrongAnswer(
            f"{url} answers with {what} in place of JSON: {self._quote(body)}.",
            "Check the address; a proxy or a login page may stand between.",
        )

    def _judge(self, url: str, status: int, headers: Mapping[str, str], body: bytes) -> NoReturn:
        """Raise for an answer that is none: to be tried again, or for good."""
        said = self._quote(body)
        if status in (401, 403):
            raise KeyProblem(f"{url} refuses the key (status {status}: {said}).", self._key_hint)
        if status == 429:
            wait = _retry_after(headers.get("Retry-After"))
            problem = Unreachable(f"{url} asks for fewer requests (status 429).", "Run the same again later.")
            if wait is not None and wait > LONGEST_WAIT:
                raise Unreachable(
                    f"{url} asks to come back in {wait:.0f} s (status 429).", "Run the same again then; it goes on."
                )
            raise _Again(problem, wait)
        if status in (408, 425) or status >= 500:
            wait = _retry_after(headers.get("Retry-After"))
            problem = Unreachable(f"{url} is out of order (status {status}: {said}).", "Run the same again later.")
            raise _Again(problem, None if wait is None else min(wait, LONGEST_WAIT))
        raise WrongAnswer(
            f"{url} does not take the request (status {status}: {said}).", "Check ids, filter and address."
        )

    def _quote(self, body: bytes) -> str:
        """Return the beginning of an answer for a message, without the key if a server echoes it."""
        text = body[:2000].decode("utf-8", "replace")
        if self._key:
            text = text.replace(self._key, "***")
        return repr(" ".join(text.split())[:160])


_NETWORK = "Check the network and the proxy (HTTPS_PROXY); or name saved answers in path."


class _Again(Exception):
    """A try that failed in a way that may pass: the error if it does not, and how long to wait."""

    def __init__(self, error: Unreachable | WrongAnswer, wait: float | None = None, most: int = 1000) -> None:
        super().__init__(error.message)
        self.error, self.wait, self.most = error, wait, most


def checked_key(key: str | None, hint: str) -> str | None:
    """Return a key without blanks around it; None for an empty one.

    Raises:
        KeyProblem: If it holds blanks, line breaks or anything but printable ASCII.  The key is not shown.
    """
    key = (key or "").strip()
    if any(not 33 <= ord(character) <= 126 for character in key):
        raise KeyProblem(f"The key of {len(key)} characters holds some that no key has (blanks, line breaks).", hint)
    return key or None


def _short(error: Exception) -> str:
    """Return the innermost reason of a failed connection, without addresses."""
    reason: BaseException = error
    while reason.args and isinstance(getattr(reason, "reason", reason.args[0]), BaseException):
        reason = getattr(reason, "reason", reason.args[0])
    return " ".join(str(reason).split(": ")[-1].split())[:160] or type(reason).__name__


def _retry_after(text: str | None) -> float | None:
    """Return seconds from a Retry-After header (seconds or a date), or None if there is none that can be read."""
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        except (TypeError, ValueError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


class WebSource(Source):
    """A source whose answers come from a public service, or from a file that holds such answers already."""

    path: str = Field(default="", description="File with saved answers; empty: the answers are fetched.")
    refresh: bool = Field(default=False, description="Fetch again what is kept from earlier.")
    offline: bool = Field(default=False, description="Take only what is kept from earlier.")

    @property
    def label(self) -> str:
        """The name, the stem of the file, or the type."""
        return self.name or Path(self.path).name.split(".")[0] or self.type

    @property
    def place(self) -> str:
        """The path, or the service."""
        return self.path or self.service

    @property
    @abstractmethod
    def service(self) -> str:
        """Address of the service."""

    @abstractmethod
    def fetch(self, cache: AnswerCache, report: Progress) -> Path:
        """Ask the service and write ONE file with all answers (:func:`write_answers`) below the cache.

        Each answer is kept as it comes, so that a fetch that was stopped goes on where it was.

        Args:
            cache: Where answers are kept; it knows of ``refresh`` and ``offline``.
            report: Called with (stage, done, all).

        Raises:
            ServiceError: If the service cannot be used.
        """

    def locate(self, base: Path | None, report: Progress) -> Path:
        """Return the saved answers, or fetch them.

        Raises:
            ServiceError: If the service cannot be used.
            SettingsError: If the path names a variable that is not set.
        """
        if self.path:
            return super().locate(base, report)
        return self.fetch(AnswerCache(refresh=self.refresh, offline=self.offline), report)
