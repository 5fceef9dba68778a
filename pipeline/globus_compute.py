"""Messages through Globus Compute: each is one task of one registered function, which hands it to the site's own command.

Knows the function, tickets, when to look for an answer and when to send again. Does not know what a message asks, and trusts no answer: it
is read as JSON of a bounded size or not at all, and whoever collects it checks its signature. Requests: ``globus_service.py``. A task may
be lost without a word, or run twice: a message that stays unanswered is sent again under the same ticket, and orders bear to come twice.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cafe_kit.errors import CafeError
from cafe_kit.orders import MAX_BYTES

from pipeline.globus_service import Account, account
from pipeline.messengers import Doing
from pipeline.vault import Vault
from server_store.site_kits import SiteKit, SiteKits

FUNCTION = '''\
def cafe_answer(message):
    """Hand one message to the command that this site has chosen, and its answer back. Nothing else is done here."""
    import json
    import os
    import signal
    import subprocess

    def problem(code, sentence):
        return {"problem": {"code": code, "sentence": sentence}}

    try:
        command = json.loads(os.environ["CAFE_SITE_COMMAND"])
        errors = os.path.join(os.environ["CAFE_SITE_HOME"], "log", "answer.out")
        seconds = float(message["transport"]["deadline_s"]) + 60.0
        with open(errors, "wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True)
    except Exception as error:
        return problem("CAFE-185", "The site's command could not be started (%s)." % type(error).__name__)
    try:
        told, _ = process.communicate(json.dumps(message).encode(), timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return problem("CAFE-124", "The site did not answer before the deadline.")
    try:
        answer = json.loads(told[:262145])
    except Exception:
        answer = None
    if not isinstance(answer, dict) or len(told) > 262144:
        return problem("CAFE-185", "The site's command gave no answer (exit status %d)." % process.returncode)
    return answer
'''
_NAME = "cafe_answer"
_JSON = "11\n"  # how a buffer begins that holds JSON; whatever begins otherwise may be code and is not opened
_MOST = 4 * MAX_BYTES
_POLL_S, _MOST_POLL_S, _POLL_SHARE = 1.0, 15.0, 0.1  # the longer a ticket is open, the more seldom it is asked for
AGAIN_S, _MOST_AGAIN_S = 120.0, 3600.0  # a message without an answer is sent again after so long; doubled each time
_CLASS = re.compile(r"\b[A-Z][A-Za-z]{2,40}(?:Error|Exception|Lost|Exceeded|Expired|Timeout|Failed)\b")
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
THE_SITE = "the site"  # whose the endpoint is, where it is not the application's
_HEARD_S = 10.0  # for how long a status is good


@dataclass
class _Sent:
    """A message under way. ``tasks``: it, and what it was sent again as; the first answer counts."""

    kit: SiteKit
    message: dict[str, Any]
    tasks: list[str]
    again_at: float
    wait_s: float
    began: float = field(default_factory=time.monotonic)


class GlobusMessenger:
    """Messages to sites that are reached through Globus Compute. A ticket names application and task, so that it outlives this process.

    Args:
        home: whose vault holds the secrets and whose store the kits.
        again_s: after how long an unanswered message is sent again.
    """

    def __init__(self, home: Path, *, again_s: float = AGAIN_S, poll_s: float = _POLL_S) -> None:
        self._home, self._again_s, self._poll_s = home, again_s, poll_s
        self._lock = threading.Lock()
        self._sent: dict[str, _Sent] = {}
        self._look_at: dict[tuple[str, str], float] = {}
        self._heard: dict[str, tuple[float, float | None]] = {}

    def send(self, kit: SiteKit, message: dict[str, Any]) -> str:
        """Raises CafeError CAFE-174 to 183."""
        task = self._submit(kit, message)
        ticket = f"globus:{kit.connection.get('service', '')}:{kit.connection['client_id']}:{task}"
        with self._lock:
            self._sent[ticket] = _Sent(kit, message, [task], time.monotonic() + self._again_s, self._again_s)
            self._look_at.pop(_account_of(ticket), None)
        return ticket

    def collect(self, tickets: Collection[str]) -> dict[str, dict[str, Any] | CafeError]:
        """Asks the service for all open tickets of a site at once, and not at every call. One that cannot be asked is open still."""
        found: dict[str, dict[str, Any] | CafeError] = {}
        for key in {_account_of(ticket) for ticket in tickets}:
            mine = [ticket for ticket in tickets if _account_of(ticket) == key]
            if self._due(key, mine):
                with suppress(CafeError):
                    found |= self._ask(account(self._home, key[1], key[0]), mine)
        self._send_again([ticket for ticket in tickets if ticket not in found])
        return found

    def forget(self, ticket: str) -> None:
        """There is no way to end a task at the site; its answer is not looked for any more."""
        with self._lock:
            self._sent.pop(ticket, None)

    def heard(self, kit: SiteKit) -> float | None:
        """Now, if the service says that the endpoint is online; None otherwise."""
        looked, told = self._heard.get(kit.serial, (0.0, None))
        if time.monotonic() - looked > _HEARD_S or not looked:
            told = None
            with suppress(CafeError):
                told = time.time() if _account(self._home, kit).online(self.endpoint(kit)) else None
            self._heard[kit.serial] = time.monotonic(), told
        return told

    def doing(self, kit: SiteKit) -> Doing | None:
        """Globus Compute tells nothing of a task on its way."""
        return None

    def endpoint(self, kit: SiteKit, anew: bool = False) -> str:
        """The id of the site's endpoint, found by its name and then kept with the kit.

        Raises:
            CafeError: CAFE-179 while the site has not started it; 174, 177, 178.
        """
        known = kit.connection.get("endpoint_id")
        if known and (not anew or kit.connection.get("endpoint_of") == THE_SITE):
            return str(known)
        found = _account(self._home, kit).endpoint(str(kit.connection["endpoint_name"]))
        if found is None:
            raise CafeError("CAFE-179", "The site has not started its endpoint yet.", "Its admin starts it: `./cafe-site start`.")
        if found != known:
            store = SiteKits(self._home / "store.db")
            try:
                store.connect(kit.serial, store.kit(kit.serial).connection | {"endpoint_id": found})
            finally:
                store.close()
            kit.connection["endpoint_id"] = found
        return found

    def _submit(self, kit: SiteKit, message: dict[str, Any]) -> str:
        """A task of the message. An endpoint that the service no longer knows is looked for by its name once more."""
        site, packed = _account(self._home, kit), pack(message)
        known = self.endpoint(kit)
        try:
            return site.submit(known, str(kit.connection["function_id"]), packed)
        except CafeError as error:
            if error.code != "CAFE-179" or self.endpoint(kit, anew=True) == known:
                raise
        return site.submit(self.endpoint(kit), str(kit.connection["function_id"]), packed)

    def _due(self, key: tuple[str, str], tickets: Collection[str]) -> bool:
        """Whether it is time to ask for these: often at first, more seldom the longer the youngest is open."""
        now = time.monotonic()
        with self._lock:
            if now < self._look_at.get(key, 0.0):
                return False
            age = min((now - self._sent[ticket].began for ticket in tickets if ticket in self._sent), default=0.0)
            self._look_at[key] = now + max(self._poll_s, min(_MOST_POLL_S, age * _POLL_SHARE))
        return True

    def _ask(self, site: Account, tickets: Collection[str]) -> dict[str, dict[str, Any] | CafeError]:
        with self._lock:
            tasks = {ticket: list(self._sent[ticket].tasks) if ticket in self._sent else [ticket.rpartition(":")[2]] for ticket in tickets}
        statuses = site.statuses([task for each in tasks.values() for task in each])
        found: dict[str, dict[str, Any] | CafeError] = {}
        for ticket, each in tasks.items():
            done = [answer for task in each if (answer := unpack(statuses.get(task, {}))) is not None]
            if done:
                found[ticket] = next((answer for answer in done if not isinstance(answer, CafeError)), done[0])
        return found

    def _send_again(self, tickets: Collection[str]) -> None:
        """What has been without an answer for long may be lost: its task, its result, or the process that had it."""
        now = time.monotonic()
        with self._lock:
            late = [self._sent[ticket] for ticket in tickets if ticket in self._sent and self._sent[ticket].again_at <= now]
            for sent in late:
                sent.wait_s = min(_MOST_AGAIN_S, sent.wait_s * 2)
                sent.again_at = now + sent.wait_s
        for sent in late:
            with suppress(CafeError):
                sent.tasks.append(self._submit(sent.kit, sent.message))


def function_id(home: Path, client_id: str, service: str = "") -> str:
    """The id under which Globus knows our function in this account's name; registered once, and kept beside the secret.

    Raises:
        CafeError: CAFE-174, 177, 178, 181, 688.
    """
    site, vault, digest = account(home, client_id, service), Vault(home), hashlib.sha256(FUNCTION.encode()).hexdigest()
    kept = vault.get(f"globus.{client_id}") or {}
    if kept.get("function_sha256") != digest:
        made = site.register(_NAME, FUNCTION, "Hands one signed message to a site's own program and its answer back.")
        kept |= {"function_id": made, "function_sha256": digest}
        vault.put(f"globus.{client_id}", kept)
    return str(kept["function_id"])


def take_endpoint(home: Path, kit: SiteKit, endpoint_id: str) -> None:
    """From now on the site is reached at this endpoint, which belongs to the site itself: it is never looked for by its name.

    Raises:
        CafeError: CAFE-179 for what is no id.
    """
    if not _ID.fullmatch(endpoint_id):
        raise CafeError("CAFE-179", "This is no id of an endpoint.", "`globus-compute-endpoint list`, at the site, shows it.")
    store = SiteKits(home / "store.db")
    try:
        store.connect(kit.serial, store.kit(kit.serial).connection | {"endpoint_id": endpoint_id, "endpoint_of": THE_SITE})
    finally:
        store.close()


def pack(message: dict[str, Any]) -> str:
    """The message as the one argument of a call: two buffers, arguments and named arguments, each with its length."""
    parts: tuple[Any, ...] = ([message], {})
    buffers = [_JSON + json.dumps(part, allow_nan=False) for part in parts]
    return "".join(f"{len(buffer)}\n{buffer}" for buffer in buffers)


def unpack(status: dict[str, Any]) -> dict[str, Any] | CafeError | None:
    """What a task's status says: its answer, why there is none, or None while it is open."""
    if (result := status.get("result")) is not None:
        return _opened(result)
    if (exception := status.get("exception")) is not None:
        return _failed(str(exception)[-2000:])
    return None


def _opened(result: Any) -> dict[str, Any] | CafeError:
    if not isinstance(result, str) or len(result) > _MOST:
        return _no_answer("too large")
    if not result.startswith(_JSON):
        return _no_answer("not JSON, and might be a program")
    try:
        answer = json.loads(result[len(_JSON) :])
    except (ValueError, RecursionError):
        return _no_answer("not plain JSON")
    return answer if isinstance(answer, dict) else _no_answer("not a document")


def _no_answer(why: str) -> CafeError:
    return CafeError(
        "CAFE-184", f"What came from the site is no answer: it is {why}. Nothing of it was run.", "Look at the site's endpoint."
    )


def _failed(told: str) -> CafeError:
    """Of a failure at the endpoint only its class is shown: its text is the site's, and may quote anything."""
    if "not permitted on endpoint" in told:
        return CafeError("CAFE-181", "The site's endpoint does not run this function.", "Approve the site again; then it starts again.")
    names = _CLASS.findall(told)
    what = names[-1] if names else "no reason that may be shown"
    return CafeError("CAFE-185", f"The site's endpoint could not run the order ({what}).", "Its admin looks into log and endpoint.")


def _account(home: Path, kit: SiteKit) -> Account:
    return account(home, str(kit.connection.get("client_id", "")), str(kit.connection.get("service", "")))


def _account_of(ticket: str) -> tuple[str, str]:
    """Service and application of a ticket."""
    _, service, client_id, _ = ticket.split(":")
    return service, client_id
