"""Messages as tasks of Globus Compute, against a stand-in of the web service: formats, failures in plain words, patience, and no trust.

The test plays the endpoint here; real ones answer in ``tests/test_globus_compute.py``.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cafe_kit.errors import CafeError
from globus_compute_sdk.serialize import ComputeSerializer, JSONData

from pipeline import globus_compute, globus_service
from pipeline.globus_compute import FUNCTION, GlobusMessenger
from pipeline.vault import Vault
from server_store.site_kits import SiteKit, SiteKits
from tests.globus_stand_in import StandIn, stand_in
from tests.rabbitmq import free_port
from tests.test_house import ROOMS, ROOT, imports, modules

NAME, SERIAL = "cafe-clinics-north", "ab" * 16
MESSAGE = {"order": {"site": "nörth"}, "signature": "00", "transport": {"deadline_s": 5.0}}
ANSWER = {"reply": {"site": "nörth"}, "signature": "11"}


@dataclass
class Site:
    """A server's home, a site with an application of its own, and the endpoint that the test plays."""

    service: StandIn
    home: Path
    client_id: str
    endpoint_id: str

    @property
    def kit(self) -> SiteKit:
        store = SiteKits(self.home / "store.db")
        try:
            return store.kit(SERIAL)
        finally:
            store.close()

    def beat(self, period: float = 30.0) -> None:
        one = self.service.service.endpoints[self.endpoint_id]
        one.heard, one.period = time.monotonic(), period

    def messenger(self, **options: Any) -> GlobusMessenger:
        return GlobusMessenger(self.home, **{"poll_s": 0.0, **options})

    def settle(self, number: int = -1, result: str = "11\n" + json.dumps(ANSWER), exception: str = "") -> None:
        self.service.service.settle(list(self.service.service.tasks)[number], result, exception)

    def requests(self, what: str) -> int:
        return sum(what in request for request in self.service.service.seen)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with stand_in() as running:
        monkeypatch.setenv("CAFE_GLOBUS_LOCAL_URL", running.url)
        yield running


@pytest.fixture
def site(service: StandIn, cafe_home: Path) -> Site:
    client_id, secret = service.service.new_client()
    Vault(cafe_home).put(f"globus.{client_id}", {"client_secret": secret})
    function = globus_compute.function_id(cafe_home, client_id, "local")
    made = service.service.register_endpoint(client_id, {"endpoint_name": NAME, "allowed_functions": [function]})
    kits = SiteKits(cafe_home / "store.db")
    kits.issue(SiteKit(SERIAL, "clinics", "north", "cpu", time.time(), time.time() + 1e5, "issued", "", "", "00"))
    told = {"via": "globus", "client_id": client_id, "function_id": function, "endpoint_name": NAME, "service": "local"}
    kits.connect(SERIAL, told)
    kits.close()
    found = Site(service, cafe_home, client_id, str(made["endpoint_id"]))
    found.beat()
    return found


# There and back


def arrived(messenger: GlobusMessenger, ticket: str) -> Any:
    """What came, within the time that the messenger takes between two looks."""
    stop = time.monotonic() + 2.0
    while time.monotonic() < stop:
        if found := messenger.collect([ticket]):
            return found[ticket]
        time.sleep(0.02)
    return None


def test_a_message_and_its_answer(site: Site) -> None:
    messenger = site.messenger()
    ticket = messenger.send(site.kit, MESSAGE)
    assert messenger.collect([ticket]) == {}
    (task,) = site.service.service.tasks.values()
    assert ComputeSerializer(strategy_data=JSONData()).unpack_buffers(task.packed) == [f"11\n{json.dumps([MESSAGE])}", "11\n{}"]
    site.settle()
    assert messenger.collect([ticket]) == {ticket: ANSWER}
    messenger.forget(ticket)


def test_a_message_is_packed_as_globus_packs_it() -> None:
    serializer = ComputeSerializer(strategy_data=JSONData(), allowed_deserializer_types=None)
    theirs = serializer.pack_buffers([serializer.serialize([MESSAGE]), serializer.serialize({})])
    assert globus_compute.pack(MESSAGE) == theirs


def test_a_ticket_outlives_the_process_that_sent(site: Site) -> None:
    ticket = site.messenger().send(site.kit, MESSAGE)
    site.settle()
    assert site.messenger().collect([ticket]) == {ticket: ANSWER}


def test_the_endpoint_is_found_by_its_name_once_and_again_when_it_is_gone(site: Site) -> None:
    site.messenger().send(site.kit, MESSAGE)
    assert site.kit.connection["endpoint_id"] == site.endpoint_id
    before = site.requests("GET /v2/endpoints")
    site.messenger().send(site.kit, MESSAGE)
    assert site.requests("GET /v2/endpoints") == before
    core = site.service.service.endpoints.pop(site.endpoint_id)  # deleted, and started anew under another id
    site.endpoint_id = str(site.service.service.register_endpoint(site.client_id, core.data)["endpoint_id"])
    site.beat()
    site.messenger().send(site.kit, MESSAGE)
    assert site.kit.connection["endpoint_id"] == site.endpoint_id and len(site.service.service.tasks) == 3


def test_an_endpoint_of_the_sites_own_is_never_looked_for(site: Site) -> None:
    """It belongs to somebody else, so no list of ours holds it."""
    with pytest.raises(CafeError, match="CAFE-179 This is no id"):
        globus_compute.take_endpoint(site.home, site.kit, "../x")
    globus_compute.take_endpoint(site.home, site.kit, site.endpoint_id)
    site.service.service.endpoints[site.endpoint_id].owner = "the centre"
    site.service.knobs.check_owner = False
    messenger = site.messenger()
    messenger.send(site.kit, MESSAGE)
    assert messenger.endpoint(site.kit, anew=True) == site.endpoint_id and site.requests("GET /v2/endpoints") == 0
    del site.service.service.endpoints[site.endpoint_id]
    with pytest.raises(CafeError, match="CAFE-179"):
        messenger.send(site.kit, MESSAGE)


def test_the_function_is_registered_once_for_an_account_and_anew_when_it_changes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    first = globus_compute.function_id(site.home, site.client_id, "local")
    assert first == site.kit.connection["function_id"] and len(site.service.service.functions) == 1
    code = site.service.service.functions[first].code
    assert code.startswith(f"{len(code.partition(chr(10))[2])}\nst\ncafe_answer:def cafe_answer(message):\n")
    monkeypatch.setattr(globus_compute, "FUNCTION", FUNCTION + "\n")
    assert globus_compute.function_id(site.home, site.client_id, "local") != first
    kept = Vault(site.home).get(f"globus.{site.client_id}")
    assert kept and kept["client_secret"] == site.service.service.clients[site.client_id]


def test_whether_a_site_is_heard(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    messenger = site.messenger()
    assert abs((messenger.heard(site.kit) or 0) - time.time()) < 5 and messenger.doing(site.kit) is None
    site.beat(period=0)
    assert messenger.heard(site.kit) is not None and site.requests("/status") == 1  # good for some seconds
    monkeypatch.setattr(globus_compute, "_HEARD_S", 0.0)
    assert messenger.heard(site.kit) is None
    site.service.knobs.fail_anything = 1
    assert site.messenger().heard(site.kit) is None


# What goes wrong, in plain words


@pytest.mark.parametrize(
    ("status", "code", "ours", "word"),
    [
        (403, "FUNCTION_NOT_PERMITTED", "CAFE-181", "does not let this function run"),
        (404, "TASK_GROUP_NOT_FOUND", "CAFE-179", "does not know"),
        (413, "TASK_PAYLOAD_TOO_LARGE", "CAFE-182", "larger than Globus takes"),
        (422, "SEMANTICALLY_INVALID", "CAFE-183", "could not start"),
        (409, "ENDPOINT_NOT_ONLINE", "CAFE-180", "not online"),
        (503, "ENDPOINT_NOT_ONLINE", "CAFE-180", "not online"),
        (423, "ENDPOINT_LOCKED", "CAFE-180", "not online"),
        (429, "TOO_MANY_REQUESTS", "CAFE-178", "Too many"),
        (500, "INTERNAL_ERROR", "CAFE-177", "HTTP 500"),
        (503, "SERVICE_UNAVAILABLE", "CAFE-177", "HTTP 503"),
        (401, "AUTHENTICATION_FAILED", "CAFE-174", "application"),
    ],
)
def test_a_refused_submit_is_told_and_not_repeated(site: Site, status: int, code: str, ours: str, word: str) -> None:
    site.service.knobs.fail_submits, site.service.knobs.fail_status, site.service.knobs.fail_code = 1, status, code
    with pytest.raises(CafeError, match=f"{ours}.*{word}") as told:
        site.messenger().send(site.kit, MESSAGE)
    assert site.service.url not in str(told.value) and "told to fail" not in str(told.value)
    assert site.requests("/submit") == 1
    site.messenger().send(site.kit, MESSAGE)  # and later it goes


def test_an_endpoint_that_is_offline_or_was_never_started(site: Site) -> None:
    site.beat(period=0)
    with pytest.raises(CafeError, match=r"CAFE-180.*cafe-site start"):
        site.messenger().send(site.kit, MESSAGE)
    del site.service.service.endpoints[site.endpoint_id]
    with pytest.raises(CafeError, match=r"CAFE-179.*cafe-site start"):
        site.messenger().send(site.kit, MESSAGE)


def test_a_secret_that_is_wrong_or_missing(site: Site) -> None:
    vault = Vault(site.home)
    vault.put(f"globus.{site.client_id}", {"client_secret": "wrong-secret-of-mine"})
    with pytest.raises(CafeError, match="CAFE-174 Globus does not accept") as told:
        site.messenger().send(site.kit, MESSAGE)
    assert "wrong-secret" not in repr(told.value) + repr(told.value.__cause__)
    vault.drop(f"globus.{site.client_id}")
    with pytest.raises(CafeError, match="CAFE-174 This server keeps no secret"):
        site.messenger().send(site.kit, MESSAGE)


def test_a_service_that_cannot_be_reached_or_does_not_answer(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(globus_service, "SUBMIT_TIMEOUT_S", 0.5)
    site.service.knobs.delay_submit_s = 1.5
    began = time.monotonic()
    with pytest.raises(CafeError, match="CAFE-177 Globus does not answer in time"):
        site.messenger().send(site.kit, MESSAGE)
    assert time.monotonic() - began < 1.4 and len(site.service.service.tasks) == 1  # it was taken all the same: orders bear that
    monkeypatch.setenv("CAFE_GLOBUS_LOCAL_URL", f"http://localhost:{free_port()}")
    with pytest.raises(CafeError, match="CAFE-177 Globus cannot be reached"):
        site.messenger().send(site.kit, MESSAGE)


def test_one_account_that_cannot_be_asked_does_not_hide_another(site: Site) -> None:
    messenger = site.messenger()
    ticket = messenger.send(site.kit, MESSAGE)
    site.settle()
    broken = f"globus:local:{'0' * 8}-0000-4000-8000-{'0' * 12}:{'0' * 8}-0000-4000-8000-{'1' * 12}"
    assert messenger.collect([broken, ticket]) == {ticket: ANSWER}
    site.service.knobs.fail_anything = 1
    assert messenger.collect([ticket]) == {}  # down for a moment: still open
    assert arrived(messenger, ticket) == ANSWER


# Patience


def test_a_lost_message_is_sent_again_under_the_same_ticket(site: Site) -> None:
    messenger = site.messenger(again_s=0.2)
    ticket = messenger.send(site.kit, MESSAGE)
    assert messenger.collect([ticket]) == {} and len(site.service.service.tasks) == 1
    time.sleep(0.25)
    assert messenger.collect([ticket]) == {} and len(site.service.service.tasks) == 2
    time.sleep(0.25)
    messenger.collect([ticket])
    assert len(site.service.service.tasks) == 2  # the next wait is twice as long
    site.settle(1)
    assert arrived(messenger, ticket) == ANSWER


def test_an_endpoint_that_is_away_when_a_message_is_sent_again_ends_nothing(site: Site) -> None:
    messenger = site.messenger(again_s=0.1)
    ticket = messenger.send(site.kit, MESSAGE)
    time.sleep(0.15)
    site.beat(period=0)
    assert messenger.collect([ticket]) == {} and len(site.service.service.tasks) == 1
    site.settle(0)
    assert arrived(messenger, ticket) == ANSWER


def test_of_two_answers_the_one_that_is_an_answer_counts(site: Site) -> None:
    messenger = site.messenger(again_s=0.1)
    ticket = messenger.send(site.kit, MESSAGE)
    time.sleep(0.15)
    messenger.collect([ticket])
    site.settle(0, exception="Traceback\nWorkerLost: gone")
    site.settle(1)
    assert arrived(messenger, ticket) == ANSWER


def test_looking_for_answers_keeps_within_the_limits(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    messenger = site.messenger(poll_s=0.4)
    tickets = [messenger.send(site.kit, MESSAGE) for _ in range(3)]
    stop = time.monotonic() + 1.0
    while time.monotonic() < stop:
        messenger.collect(tickets)
        time.sleep(0.01)
    assert 2 <= site.requests("/batch_status") <= 4  # all tickets at once, and not at each call
    monkeypatch.setattr(globus_service, "MOST_REQUESTS", 3)
    monkeypatch.setattr(globus_service, "WINDOW_S", 0.5)
    account = globus_service.Account(site.client_id, site.service.service.clients[site.client_id], "local")
    began = time.monotonic()
    for _ in range(7):
        account.statuses([])
    assert time.monotonic() - began >= 1.0


# What comes back is not trusted


@pytest.mark.parametrize(
    ("result", "why"),
    [
        ("00\ngASVAAAAAAAA", "not JSON, and might be a program"),
        ("12\n15\n00\ngASVAAAAAAAA", "not JSON, and might be a program"),
        ("st\nf:def f(): pass", "not JSON, and might be a program"),
        ('{"reply": {}}', "not JSON, and might be a program"),
        ("", "not JSON, and might be a program"),
        ("11\n{", "not plain JSON"),
        ("11\n" + "[" * 100_000, "not plain JSON"),
        ("11\n[1]", "not a document"),
        ("11\n" + json.dumps({"reply": "x" * 300_000}), "too large"),
    ],
)
def test_what_is_no_answer_is_refused_unopened(site: Site, result: str, why: str) -> None:
    messenger = site.messenger()
    ticket = messenger.send(site.kit, MESSAGE)
    site.settle(result=result)
    refused = messenger.collect([ticket])[ticket]
    assert isinstance(refused, CafeError) and refused.code == "CAFE-184" and why in refused.message
    assert "gASV" not in str(refused) and "xxx" not in str(refused)


@pytest.mark.parametrize(
    ("told", "code", "shown"),
    [
        ("Traceback...\n  patient = 'Erika M.'\nValueError: could not read 'Erika M.'", "CAFE-185", "(ValueError)"),
        ("parsl...WorkerLost: Task failure due to loss of worker 3", "CAFE-185", "(WorkerLost)"),
        ("something <b>odd</b> & Erika", "CAFE-185", "no reason that may be shown"),
        (f"Function {'a' * 8} not permitted on endpoint {'b' * 8}", "CAFE-181", "does not run this function"),
    ],
)
def test_of_a_remote_failure_only_its_class_is_shown(site: Site, told: str, code: str, shown: str) -> None:
    messenger = site.messenger()
    ticket = messenger.send(site.kit, MESSAGE)
    site.settle(exception=told)
    failed = messenger.collect([ticket])[ticket]
    assert isinstance(failed, CafeError) and failed.code == code and shown in failed.message
    assert "Erika" not in str(failed) and "<b>" not in str(failed)


def test_nothing_of_ours_can_open_anything_but_json() -> None:
    """Globus's own serializers run what they read; the server never has them at hand. (pickle and dill: ``tests/test_house.py``.)"""
    files = [path for path in modules(ROOT).values()] + list((ROOT / "client_kits").glob("*.py"))
    found = {
        path.name for path in files for name in imports(path, "x.y") if name.partition(".")[0] in ("globus_compute_sdk", "parsl", "dill")
    }
    assert found == set() and len(files) > 100 and set(ROOMS) == {"app", "pipeline", "server_store", "cafe_kit"}
    code = "import sys, pipeline.globus_compute; print(sorted({'dill', 'globus_compute_sdk', 'pika'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"


# The function that sites run


def call(command: Any, tmp_path: Path, message: Any = MESSAGE) -> dict[str, Any]:
    """What the function returns, run in a process of its own as an endpoint runs it."""
    (tmp_path / "log").mkdir(exist_ok=True)
    (tmp_path / "function.py").write_text(f"{FUNCTION}\nimport json, sys\nprint(json.dumps(cafe_answer(json.load(sys.stdin))))\n")
    environment = os.environ | {"CAFE_SITE_COMMAND": json.dumps(command), "CAFE_SITE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-I", str(tmp_path / "function.py")], input=json.dumps(message), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_the_function_hands_a_message_on_and_an_answer_back(tmp_path: Path) -> None:
    echo = "import json, sys; print('chatter', file=sys.stderr); print(json.dumps({'reply': json.load(sys.stdin)['order']}))"
    assert call(python(echo), tmp_path) == {"reply": {"site": "nörth"}}
    assert (tmp_path / "log" / "answer.out").read_text() == "chatter\n"


@pytest.mark.parametrize(
    ("command", "code", "sentence"),
    [
        (["/nowhere/python"], "CAFE-185", "could not be started (FileNotFoundError)"),
        ([], "CAFE-185", "could not be started (IndexError)"),
        (python("import sys; sys.exit(3)"), "CAFE-185", "gave no answer (exit status 3)"),
        (python("print('Traceback: the patient Erika')"), "CAFE-185", "gave no answer (exit status 0)"),
        (python("print([1])"), "CAFE-185", "gave no answer (exit status 0)"),
        (python("print('{\"a\": \"' + 'x' * 300000 + '\"}')"), "CAFE-185", "gave no answer (exit status 0)"),
    ],
)
def test_the_function_never_raises_and_quotes_nothing(tmp_path: Path, command: list[str], code: str, sentence: str) -> None:
    problem = call(command, tmp_path)["problem"]
    assert problem["code"] == code and sentence in problem["sentence"] and "Erika" not in str(problem)


def test_the_function_bears_a_message_of_any_shape(tmp_path: Path) -> None:
    for message in ([], "x", {}, {"transport": {}}, {"transport": {"deadline_s": "soon"}}):
        assert call(["true"], tmp_path, message)["problem"]["code"] == "CAFE-185"


def test_the_function_ends_a_command_that_is_late_with_all_it_started(tmp_path: Path) -> None:
    slow = ["bash", "-c", f"sleep 321 & echo $! >{tmp_path}/child; wait"]
    late = {**MESSAGE, "transport": {"deadline_s": -59.5}}
    assert call(slow, tmp_path, late) == {"problem": {"code": "CAFE-124", "sentence": "The site did not answer before the deadline."}}
    child = Path(f"/proc/{(tmp_path / 'child').read_text().strip()}/stat")
    assert not child.exists() or "Z" in child.read_text()


def test_the_function_stands_alone() -> None:
    """It runs where nothing of ours is installed: it imports the standard library, inside."""
    tree = ast.parse(FUNCTION)
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert [type(node).__name__ for node in tree.body] == ["FunctionDef"] and names == {"json", "os", "signal", "subprocess"}
