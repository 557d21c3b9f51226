"""A real HTTP server on loopback that replays answers of public services, and misbehaves when told to."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Params = Mapping[str, str]
Handler = Callable[[Params], Any]
"""Takes the parameters of a query and returns what is sent as JSON, or a Reply."""


@dataclass(frozen=True)
class Reply:
    """An answer that is not plain JSON with status 200."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What a client asked."""

    path: str
    params: dict[str, str]
    headers: dict[str, str]


@dataclass
class Fault:
    """What goes wrong with the next requests, see ReplayServer.misbehave."""

    kind: str
    times: int
    path: str | None
    skip: int
    options: dict[str, Any]


class ReplayServer:
    """Answers GETs of the given routes on 127.0.0.1, at a port of its own.

    Args:
        routes: Handler by path, such as "/materials/summary/"; a trailing slash makes no difference.
        key: Key that X-API-KEY must hold: none is answered by 401, another one by 403. None lets everyone in.
        open_paths: Paths that need no key.

    Use it as a context manager; ``url`` is its address, ``requests`` what was asked so far.
    """

    def __init__(self, routes: Mapping[str, Handler], key: str | None = None, open_paths: Sequence[str] = ()) -> None:
        self.routes = {_norm(path): handler for path, handler in routes.items()}
        self.key, self.open_paths = key, {_norm(path) for path in open_paths}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self._lock = Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> ReplayServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def misbehave(self, kind: str, times: int = 1, path: str | None = None, skip: int = 0, **options: Any) -> None:
        """Let the next ``times`` requests (of one path) go wrong, after ``skip`` good ones.

        Kinds: a status such as "401", "403", "429" (option ``retry_after``: text of the header), "500";
        "echo_key" (403 whose body repeats the key that was sent); "truncated" (half of the JSON, with a fitting
        length); "cut" (half of the body, then the connection closes); "slow" (nothing for ``seconds``);
        "dribble" (one byte every ``seconds``); "html" (a login page with status 200); "closed" (no answer at all);
        "redirect" (302 to ``location``); "json" (the given ``value`` in place of the answer).
        """
        self.faults.append(Fault(kind, times, None if path is None else _norm(path), skip, options))

    def count(self, path: str | None = None) -> int:
        """Return how many requests came, of one path or of all."""
        return sum(path is None or _norm(item.path) == _norm(path) for item in self.requests)

    def next_fault(self, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.times > 0 and fault.path in (None, path):
                    if fault.skip > 0:
                        fault.skip -= 1
                        return None
                    fault.times -= 1
                    return fault
        return None

    def answer(self, request: Request) -> Reply:
        """Return the answer of the routes, without faults."""
        path = _norm(request.path)
        if self.key is not None and path not in self.open_paths:
            sent = request.headers.get("x-api-key", "")
            if sent != self.key:
                return Reply(403 if sent else 401, b'{"message": "Unauthorized"}', {"Content-Type": "application/json"})
        if path not in self.routes:
            return Reply(404, b'{"detail": "Not Found"}')
        made = self.routes[path](request.params)
        return made if isinstance(made, Reply) else Reply(body=json.dumps(made).encode())


def _norm(path: str) -> str:
    return "/" + path.strip("/")


def _handler(server: ReplayServer) -> type[BaseHTTPRequestHandler]:
    class Replay(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            split = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(split.path, dict(parse_qsl(split.query, keep_blank_values=True)), headers)
            server.requests.append(request)
            fault = server.next_fault(_norm(request.path))
            try:
                if fault is None:
                    self.reply(server.answer(request))
                else:
                    self.fail(fault, request)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def reply(self, reply: Reply, sent: int | None = None, pause: float = 0.0) -> None:
            headers = {"Content-Type": "application/json", "Content-Length": str(len(reply.body))} | dict(reply.headers)
            self.send_response(reply.status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            body = reply.body[:sent]
            if not pause:
                self.wfile.write(body)
                return
            for k in range(len(body)):
                self.wfile.write(body[k : k + 1])
                self.wfile.flush()
                time.sleep(pause)

        def fail(self, fault: Fault, request: Request) -> None:
            good, options = server.answer(request), fault.options
            if fault.kind.isdigit():
                headers = {"Retry-After": options["retry_after"]} if "retry_after" in options else {}
                self.reply(Reply(int(fault.kind), b'{"detail": "as told"}', headers))
            elif fault.kind == "echo_key":
                self.reply(Reply(403, f"the key {request.headers.get('x-api-key')} is unknown".encode()))
            elif fault.kind == "truncated":
                self.reply(Reply(200, good.body[: len(good.body) // 2]))
            elif fault.kind == "cut":
                self.reply(good, sent=len(good.body) // 2)
                self.close_connection = True
            elif fault.kind == "slow":
                time.sleep(options["seconds"])
                self.reply(good)
            elif fault.kind == "dribble":
                self.reply(good, pause=options["seconds"])
            elif fault.kind == "html":
                self.reply(Reply(200, b"<html>please log in</html>", {"Content-Type": "text/html; charset=utf-8"}))
            elif fault.kind == "closed":
                self.close_connection = True
            elif fault.kind == "redirect":
                self.reply(Reply(302, b"", {"Location": options["location"]}))
            elif fault.kind == "json":
                self.reply(Reply(200, json.dumps(options["value"]).encode()))
            else:
                raise AssertionError(fault.kind)

    return Replay
