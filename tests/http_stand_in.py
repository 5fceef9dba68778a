"""A small HTTP service on loopback for tests: what it answers is a table of calls, and a test may let the next ones fail.

Knows requests, answers and faults. Does not know which service it plays (``tests/globus_auth_stand_in.py``).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, parse_qsl, urlsplit


@dataclass
class Fault:
    """The next ``times`` requests whose path begins with ``path`` are answered with ``status`` after ``delay_s`` seconds."""

    path: str
    status: int
    times: int = 1
    delay_s: float = 0.0


class Refused(Exception):
    """An error document of the service."""

    def __init__(self, status: int, code: str, detail: str = "") -> None:
        super().__init__(code)
        self.status, self.code, self.detail = status, code, detail or code


Answer = dict[str, Any] | str
Call = Callable[["Request"], Answer]


@dataclass
class Request:
    """One request, read whole."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes
    authorization: str

    @property
    def form(self) -> dict[str, str]:
        return dict(parse_qsl(self.body.decode()))

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.body or b"{}"))


class HttpStandIn:
    """``with HttpStandIn() as service``: on a free port. ``calls``: method, path (a prefix where it ends with a slash), what answers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, Call]] = []
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self._lock = threading.RLock()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """On the port that it had before, if it had one."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), _handler(self))
        self._server.daemon_threads = True
        self._port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        """Nobody answers any more."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def answer(self, asked: Request) -> tuple[int, Answer]:
        self.requests.append((asked.method, asked.path))
        fault = next((one for one in self.faults if one.times > 0 and asked.path.startswith(one.path)), None)
        if fault:
            fault.times -= 1
            time.sleep(fault.delay_s)
            return fault.status, {"errors": [{"status": str(fault.status), "code": "FAULT", "detail": "as the test asked"}]}
        for method, path, call in self.calls:
            exact = asked.path.rstrip("/") == path or (path.endswith("/") and asked.path.startswith(path))
            if method == asked.method and exact:
                try:
                    with self._lock:
                        return 200, call(asked)
                except Refused as no:
                    if asked.path.startswith("/v2/oauth2/token"):
                        return no.status, {"error": no.code, "error_description": no.detail}
                    return no.status, {"errors": [{"status": str(no.status), "code": no.code, "detail": no.detail}]}
        return 404, {"errors": [{"status": "404", "code": "NOT_FOUND", "detail": asked.path}]}


def _handler(service: HttpStandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            where = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(where.query).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = service.answer(Request(self.command, where.path, query, body, self.headers.get("Authorization", "")))
            self._send(status, answer)

        do_POST = do_PUT = do_DELETE = do_GET

        def _send(self, status: int, answer: Answer) -> None:
            location = answer[9:] if isinstance(answer, str) and answer.startswith("location:") else ""
            text = "" if location else answer if isinstance(answer, str) else json.dumps(answer)
            self.send_response(302 if location else status)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Type", "text/html; charset=utf-8" if isinstance(answer, str) else "application/json")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *_: object) -> None:
            """Quietly: addresses hold codes."""

    return Handler
