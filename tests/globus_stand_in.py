"""Our own stand-in for the Globus Compute web service: what a real endpoint and a real client say to it over HTTP and AMQP.

Knows clients (confidential, by id and secret), functions, endpoints, tasks, heartbeats, and failures on demand (``POST /control``). Does
not know what a function does: it hands tasks to real endpoints through a real RabbitMQ. What it leaves out: policies, groups, quotas,
credentials for each endpoint. In the test's process: ``with stand_in(amqp_url) as running``, without a URL for tests that play the
endpoint themselves; alone: ``python -m tests.globus_stand_in AMQP_URL [PORT]``, and it prints its URL.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import secrets
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pika
from globus_compute_common.messagepack import pack, unpack
from globus_compute_common.messagepack.message_types import EPStatusReport, Result, Task

MOST_BYTES = 10_000_000  # of one submit
CHECK_IN_S = 20.0  # how long a submit waits for the user endpoint to start
_COMPUTE = "facd7ccc-c5f4-42aa-916b-a0e270e2c2a9"  # the scope of the compute service names it
_NAMESPACE = uuid.UUID(int=7)


class Refused(Exception):
    """An answer with an error document."""

    def __init__(self, status: int, code: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.code, self.reason = status, code, reason


@dataclass
class Function:
    owner: str
    name: str
    code: str  # as it travels: length, newline, strategy, newline, source


@dataclass
class Endpoint:
    """``heard``: when it said last that it lives (monotonic); ``period``: how often it does; ``error``: why it did not start."""

    id: str
    owner: str
    data: dict[str, Any]
    heard: float = 0.0
    period: float = 0.0
    error: str = ""

    @property
    def online(self) -> bool:
        return self.period > 0 and time.monotonic() - self.heard < 2.2 * self.period


@dataclass
class TaskRecord:
    owner: str
    packed: str  # the arguments, as they came
    done: dict[str, Any] = field(default_factory=dict)


@dataclass
class Knobs:
    """What goes wrong next. Counts go down as they are used."""

    drop_results: int = 0  # results that are lost between endpoint and service
    duplicate_results: int = 0  # results that arrive twice
    replace_result: str = ""  # what the next result says instead: a hostile site
    fail_submits: int = 0  # submits that are refused, as the next two say
    fail_status: int = 503
    fail_code: str = "SERVICE_UNAVAILABLE"
    fail_anything: int = 0  # requests of any kind that answer 503
    delay_submit_s: float = 0.0  # the task is taken at once, the answer comes late
    not_online: int = 0  # submits that are refused although the endpoint is there
    check_owner: bool = True  # False: leave it to the endpoint to refuse a stranger
    check_allowed: bool = True  # False: leave it to the endpoint to refuse a function


class Service:
    """The state, and what the requests do to it. One lock: requests are few and short."""

    def __init__(self, amqp_url: str) -> None:
        self.amqp_url, self.knobs = amqp_url, Knobs()
        self.clients: dict[str, str] = {}  # id → secret
        self.tokens: dict[str, str] = {}  # token → client's id
        self.functions: dict[str, Function] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.tasks: dict[str, TaskRecord] = {}
        self.seen: list[str] = []  # "METHOD path" of every request
        self._lock, self._heartbeat = threading.RLock(), threading.Condition()
        self._stop = threading.Event()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        if amqp_url:
            self._declare_all()
            self._listener.start()

    def _declare_all(self) -> None:
        with self._channel() as channel:
            for name, kind in (("commands", "direct"), ("tasks", "direct"), ("results", "topic"), ("heartbeats", "topic")):
                channel.exchange_declare(name, kind, durable=True)
            for name in ("results", "heartbeats"):
                channel.queue_declare(name, durable=True)
                channel.queue_bind(name, name, f"*.{name}")

    def close(self) -> None:
        self._stop.set()
        if self.amqp_url:
            self._listener.join()

    def new_client(self) -> tuple[str, str]:
        """A confidential client as an operator registers it: id and secret."""
        client, secret = str(uuid.uuid4()), secrets.token_urlsafe(24)
        self.clients[client] = secret
        return client, secret

    # Auth

    def token(self, authorization: str, scope: str) -> dict[str, Any]:
        given = base64.b64decode(authorization.removeprefix("Basic ") or b"").decode()
        client, _, secret = given.partition(":")
        if not secret or self.clients.get(client) != secret:
            raise Refused(401, "invalid_client", "The client's id or secret is wrong.")
        made = [self._one_token(client, "funcx_service" if _COMPUTE in part else "auth.globus.org", part) for part in _by_server(scope)]
        return {**made[0], "other_tokens": made[1:]}

    def _one_token(self, client: str, server: str, scope: str) -> dict[str, Any]:
        token = secrets.token_urlsafe(24)
        self.tokens[token] = client
        return {"access_token": token, "scope": scope, "expires_in": 172800, "token_type": "Bearer", "resource_server": server}

    def who(self, authorization: str) -> str:
        client = self.tokens.get(authorization.removeprefix("Bearer "))
        if client is None:
            raise Refused(401, "AUTHENTICATION_FAILED", "The token is not known.")
        return client

    # Functions and endpoints

    def register_function(self, who: str, asked: dict[str, Any]) -> dict[str, Any]:
        name, code = asked["function_name"], asked["function_code"]
        if not asked.get("serialized", True):
            code = _packed(f"st\n{name}:{code}")
        made = str(uuid.uuid4())
        self.functions[made] = Function(who, name, code)
        return {"function_uuid": made}

    def register_endpoint(self, who: str, asked: dict[str, Any], known: str = "") -> dict[str, Any]:
        if known and known not in self.endpoints:
            raise Refused(404, "ENDPOINT_NOT_FOUND", "There is no such endpoint.")
        if known and self.endpoints[known].owner != who:
            raise Refused(403, "FORBIDDEN", "This endpoint belongs to somebody else.")
        made = known or str(uuid.uuid4())
        self.endpoints[made] = Endpoint(made, who, asked)
        if self.amqp_url:
            with self._channel() as channel:
                self._declare(channel, "commands", f"{made}.commands")
        return {
            "endpoint_id": made,
            "command_queue_info": {"connection_url": self.amqp_url, "exchange": "commands", "queue": f"{made}.commands"},
            "heartbeat_queue_info": self._publishing("heartbeats", made),
        }

    def endpoint(self, who: str, endpoint: str) -> Endpoint:
        found = self.endpoints.get(endpoint)
        if found is None or (self.knobs.check_owner and found.owner != who):
            raise Refused(404, "ENDPOINT_NOT_FOUND", "There is no such endpoint.")
        return found

    def listed(self, who: str) -> list[dict[str, Any]]:
        mine = [one for one in self.endpoints.values() if one.owner == who and "endpoint_name" in one.data]
        return [self.described(one) for one in mine]

    def described(self, one: Endpoint) -> dict[str, Any]:
        name = one.data["endpoint_name"]
        return {"uuid": one.id, "name": name, "display_name": one.data.get("display_name") or name, "owner": one.owner}

    # Tasks

    def submit(self, who: str, endpoint: str, asked: dict[str, Any], size: int) -> dict[str, Any]:
        self._on_purpose()
        core = self.endpoint(who, endpoint)
        if size > MOST_BYTES:
            raise Refused(413, "TASK_PAYLOAD_TOO_LARGE", f"The request is larger than {MOST_BYTES} bytes.")
        for function in asked["tasks"]:
            self._may_run(who, core, function)
        if self.knobs.not_online > 0 or not core.online:
            self.knobs.not_online = max(0, self.knobs.not_online - 1)
            raise Refused(409, "ENDPOINT_NOT_ONLINE", f"Endpoint {endpoint} is not online.")
        user = self._user_endpoint(who, core, asked) if self.amqp_url else ""
        calls = asked["tasks"].items()
        made = {function: [self._task(who, user, function, packed, asked) for packed in each] for function, each in calls}
        time.sleep(self.knobs.delay_submit_s)
        return {"tasks": made, "task_group_id": str(uuid.uuid4()), "request_id": str(uuid.uuid4()), "endpoint_id": endpoint}

    def statuses(self, who: str, tasks: list[str]) -> dict[str, Any]:
        mine = {task: self.tasks[task] for task in tasks if task in self.tasks and self.tasks[task].owner == who}
        return {"results": {task: {"task_id": task, "status": "waiting-for-ep"} | found.done for task, found in mine.items()}}

    def _on_purpose(self) -> None:
        with self._lock:
            if self.knobs.fail_submits > 0:
                self.knobs.fail_submits -= 1
                raise Refused(self.knobs.fail_status, self.knobs.fail_code, "It was told to fail.")

    def _may_run(self, who: str, core: Endpoint, function: str) -> None:
        found = self.functions.get(function)
        if found is None or found.owner != who:
            raise Refused(404, "FUNCTION_NOT_FOUND", "There is no such function.")
        allowed = core.data.get("allowed_functions")
        if self.knobs.check_allowed and allowed is not None and function not in allowed:
            raise Refused(403, "FUNCTION_NOT_PERMITTED", f"Function {function} not permitted on endpoint {core.id}")

    def _user_endpoint(self, who: str, core: Endpoint, asked: dict[str, Any]) -> str:
        """Have the endpoint start the process that takes tasks, and wait until it says that it lives, or why it does not."""
        same = json.dumps([core.id, who, asked.get("user_endpoint_config"), asked.get("user_runtime")], sort_keys=True)
        user = str(uuid.uuid5(_NAMESPACE, same))
        child = self.endpoints.setdefault(user, Endpoint(user, who, {}))
        child.error = ""
        tasks = {"connection_url": self.amqp_url, "exchange": "tasks", "queue": f"{user}.tasks"}
        queues = {"task_queue_info": tasks, "result_queue_info": self._publishing("results", user)}
        queues["heartbeat_queue_info"] = self._publishing("heartbeats", user)
        opts, runtime = asked.get("user_endpoint_config") or {}, asked.get("user_runtime") or {}
        known = {"name": f"uep.{core.id}.{user}", "user_opts": opts, "user_runtime": runtime, "amqp_creds": {"endpoint_id": user, **queues}}
        identity = {"sub": who, "id": who, "username": f"{who}@clients.auth.globus.org", "status": "used"}
        command = {"command": "cmd_start_endpoint", "args": [], "kwargs": known, "globus_effective_identity": who}
        command |= {"globus_username": identity["username"], "globus_identity_set": [identity]}
        with self._channel() as channel:
            self._declare(channel, "tasks", f"{user}.tasks")
            properties = pika.BasicProperties(content_type="application/json", timestamp=int(time.time()))
            channel.basic_publish("commands", f"{core.id}.commands", json.dumps(command).encode(), properties)
        with self._heartbeat:
            self._heartbeat.wait_for(lambda: child.online or child.error, CHECK_IN_S)
        if child.error:
            raise Refused(422, "SEMANTICALLY_INVALID", f"Request payload failed validation: {child.error}")
        if not child.online:
            raise Refused(409, "ENDPOINT_NOT_ONLINE", f"Endpoint {core.id} is not online.")
        return user

    def _task(self, who: str, user: str, function: str, packed: str, asked: dict[str, Any]) -> str:
        task = str(uuid.uuid4())
        self.tasks[task] = TaskRecord(who, packed)
        if not self.amqp_url:
            return task
        specification = json.dumps(asked.get("resource_specification"))
        headers = {"function_uuid": function, "task_uuid": task, "resource_specification": specification}
        headers["result_serializers"] = asked.get("result_serializers") or []
        body = pack(Task(task_id=uuid.UUID(task), task_buffer=self.functions[function].code + packed))
        with self._channel() as channel:
            channel.basic_publish("tasks", f"{user}.tasks", body, pika.BasicProperties(headers=headers, delivery_mode=2))
        return task

    def settle(self, task: str, result: str = "", exception: str = "") -> None:
        """What becomes of a task, as a test says that plays the endpoint."""
        told = {"status": "failed", "exception": exception} if exception else {"status": "success", "result": result}
        self.tasks[task].done = {"completion_t": str(time.time()), **told}

    # AMQP

    @contextlib.contextmanager
    def _channel(self) -> Iterator[Any]:
        connection = pika.BlockingConnection(pika.URLParameters(self.amqp_url))
        try:
            yield connection.channel()
        finally:
            connection.close()

    def _declare(self, channel: Any, exchange: str, queue: str) -> None:
        channel.queue_declare(queue, durable=True)
        channel.queue_bind(queue, exchange, queue)

    def _publishing(self, exchange: str, endpoint: str) -> dict[str, Any]:
        to = {"exchange": exchange, "routing_key": f"{endpoint}.{exchange}", "mandatory": True, "properties": {"delivery_mode": 2}}
        return {"connection_url": self.amqp_url, "exchange": exchange, "queue": exchange, "queue_publish_kwargs": to}

    def _listen(self) -> None:
        """Results and heartbeats, until it is closed; a broker that goes away is looked for again."""
        while not self._stop.is_set():
            with contextlib.suppress(pika.exceptions.AMQPError, OSError), self._channel() as channel:
                channel.basic_consume("results", lambda *got: self._result(got[3]), auto_ack=True)
                channel.basic_consume("heartbeats", lambda *got: self._beat(got[3]), auto_ack=True)
                while not self._stop.is_set():
                    channel.connection.process_data_events(0.2)
            self._stop.wait(0.2)

    def _beat(self, body: bytes) -> None:
        report = unpack(body)
        assert isinstance(report, EPStatusReport)
        one = self.endpoints.get(str(report.endpoint_id))
        with self._heartbeat:
            if one is not None:
                one.error = str(report.global_state.get("error", ""))
                if not one.error or "endpoint_name" not in one.data:  # a failed start is told under the core's id, too
                    one.heard, one.period = time.monotonic(), 0.0 if one.error else float(report.global_state["heartbeat_period"])
            self._heartbeat.notify_all()

    def _result(self, body: bytes) -> None:
        with self._lock:
            if self.knobs.drop_results > 0:
                self.knobs.drop_results -= 1
                return
            times = 1
            if self.knobs.duplicate_results > 0:
                self.knobs.duplicate_results, times = self.knobs.duplicate_results - 1, 2
            result = unpack(body)
            assert isinstance(result, Result)
            if self.knobs.replace_result:
                result.data, result.error_details, self.knobs.replace_result = self.knobs.replace_result, None, ""
            for _ in range(times):
                self._keep(result)

    def _keep(self, result: Result) -> None:
        if str(result.task_id) in self.tasks:
            self.settle(str(result.task_id), **{"exception" if result.is_error else "result": result.data})


def _packed(buffer: str) -> str:
    return f"{len(buffer)}\n{buffer}"


def _by_server(scope: str) -> list[str]:
    """The scopes that are asked for, those of one service together."""
    compute = [part for part in scope.split() if _COMPUTE in part]
    return [" ".join(part) for part in (compute, [one for one in scope.split() if one not in compute]) if part]


Answer = Callable[[Service, "_Request"], Any]


@dataclass
class _Request:
    parts: tuple[str, ...]  # what the path's pattern caught
    query: dict[str, list[str]]
    body: bytes
    authorization: str

    def json(self) -> dict[str, Any]:
        return json.loads(self.body or b"{}")


def _control(service: Service, request: _Request) -> dict[str, Any]:
    asked = request.json()
    for name, value in asked.get("knobs", {}).items():
        setattr(service.knobs, name, type(getattr(service.knobs, name))(value))
    made = [service.new_client() for _ in range(asked.get("new_clients", 0))]
    endpoints = [service.described(one) | {"online": one.online} for one in service.endpoints.values() if "endpoint_name" in one.data]
    return {
        "knobs": vars(service.knobs),
        "clients": made,
        "endpoints": endpoints,
        "tasks": len(service.tasks),
        "requests": len(service.seen),
    }


def _userinfo(service: Service, request: _Request) -> dict[str, Any]:
    who = service.who(request.authorization)
    identity = {"sub": who, "username": f"{who}@clients.auth.globus.org"}
    return {**identity, "preferred_username": identity["username"], "identity_set": [identity]}


def _version(service: Service, request: _Request) -> dict[str, Any]:
    return {"api": "1.0.0", "min_sdk_version": "1.0.0", "min_ep_version": "1.0.0"}


def _status(service: Service, request: _Request) -> dict[str, Any]:
    online = service.endpoint(service.who(request.authorization), request.parts[0]).online
    return {"status": "online" if online else "offline", "details": {}}


def _allowed(service: Service, request: _Request) -> dict[str, Any]:
    one = service.endpoint(service.who(request.authorization), request.parts[0])
    allowed = one.data.get("allowed_functions")
    return {"endpoint_id": one.id, "restricted": allowed is not None, "functions": allowed or []}


def _mine(act: Callable[..., Any]) -> Answer:
    """A call of the service in the name of whoever asks."""
    return lambda service, request: act(service, service.who(request.authorization), request)


_ID = r"([0-9a-f-]{36})"
_ROUTES: list[tuple[str, Answer]] = [
    (r"POST /v2/oauth2/token", lambda s, r: s.token(r.authorization, parse_qs(r.body.decode()).get("scope", [""])[0])),
    (r"GET /v2/oauth2/userinfo", _userinfo),
    (r"GET /v2/version", _version),
    (r"POST /v3/functions", _mine(lambda s, who, r: s.register_function(who, r.json()))),
    (r"POST /v3/endpoints", _mine(lambda s, who, r: s.register_endpoint(who, r.json()))),
    (rf"PUT /v3/endpoints/{_ID}", _mine(lambda s, who, r: s.register_endpoint(who, r.json(), r.parts[0]))),
    (r"GET /v2/endpoints", _mine(lambda s, who, r: s.listed(who))),
    (rf"GET /v2/endpoints/{_ID}", _mine(lambda s, who, r: s.described(s.endpoint(who, r.parts[0])))),
    (rf"GET /v2/endpoints/{_ID}/status", _status),
    (rf"GET /v3/endpoints/{_ID}/allowed_functions", _allowed),
    (rf"POST /v3/endpoints/{_ID}/submit", _mine(lambda s, who, r: s.submit(who, r.parts[0], r.json(), len(r.body)))),
    (r"POST /v2/batch_status", _mine(lambda s, who, r: s.statuses(who, r.json()["task_ids"]))),
    (r"POST /control", _control),
]


class _Handler(BaseHTTPRequestHandler):
    service: Service
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        address = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.service.seen.append(f"{self.command} {address.path}")
        try:
            status, told = 200, self._told(address.path, parse_qs(address.query), body)
        except Refused as no:
            status, told = no.status, {"status": "Failed", "code": no.code, "error_args": [], "http_status_code": no.status}
            told |= {"reason": no.reason, "detail": no.reason, "error": no.code}
        data = json.dumps(told).encode()
        with contextlib.suppress(OSError):  # whoever asked may have given up
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def _told(self, path: str, query: dict[str, list[str]], body: bytes) -> Any:
        if path != "/control" and self.service.knobs.fail_anything > 0:
            self.service.knobs.fail_anything -= 1
            raise Refused(503, "SERVICE_UNAVAILABLE", "It was told to fail.")
        for pattern, act in _ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return act(self.service, _Request(found.groups(), query, body, self.headers.get("Authorization") or ""))
        raise Refused(404, "NOT_FOUND", "There is no such page.")

    do_GET = do_POST = do_PUT = _answer

    def log_message(self, format: str, *args: Any) -> None:
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads, allow_reuse_address = True, True


@dataclass
class StandIn:
    """A running one: its URL, its state, its knobs."""

    url: str
    service: Service

    @property
    def knobs(self) -> Knobs:
        return self.service.knobs


@contextlib.contextmanager
def stand_in(amqp_url: str = "", port: int = 0) -> Iterator[StandIn]:
    """The service on loopback, as long as the block."""
    service = Service(amqp_url)
    server = _Server(("127.0.0.1", port), type("Handler", (_Handler,), {"service": service}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield StandIn(f"http://localhost:{server.server_port}", service)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        service.close()


if __name__ == "__main__":
    with stand_in(sys.argv[1], int(sys.argv[2]) if sys.argv[2:] else 0) as running:
        print(running.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
