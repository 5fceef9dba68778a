"""The Globus Compute web service, in the name of one site's application (a confidential client): what this server asks of it.

Knows requests, their limits, and what each refusal means in plain words. Does not know orders, kits or what an answer holds. Nothing that
comes back is unpickled: results are handed on as text. No request is repeated by the library: whoever asks decides about that.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import globus_sdk
from cafe_kit.endpoint import LOCAL_SERVICE
from cafe_kit.errors import CafeError
from globus_sdk.scopes import ComputeScopes
from globus_sdk.transport import RequestsTransport, RetryConfig

from pipeline.vault import Vault

TIMEOUT_S, SUBMIT_TIMEOUT_S = 10.0, 30.0  # a submit is answered when the endpoint has started what takes orders
MOST_REQUESTS, WINDOW_S = 16, 10.0  # of this process; the service allows 20 to one account
SERIALIZER = "globus_compute_sdk.serialize.JSONData"
_SDK = "4.19.0"  # whose formats we speak; the endpoint's template may look at it
_NOT_ONLINE = "ENDPOINT_NOT_ONLINE"
_NEW_SECRET = "`cafe globus client SITE` makes one, or takes one that you paste; then approve the site again."

T = TypeVar("T")


class Account:
    """What this server may do at Globus Compute in the name of one site. One for each site and process: see ``account``."""

    def __init__(self, client_id: str, secret: str, service: str) -> None:
        self.client_id, self._secret = client_id, secret
        self._url = os.environ.get("CAFE_GLOBUS_LOCAL_URL", LOCAL_SERVICE) if service else None
        self._lock, self._recent = threading.Lock(), deque[float](maxlen=MOST_REQUESTS)
        self._clients: tuple[globus_sdk.ComputeClientV2, globus_sdk.ComputeClientV3] | None = None

    def sign_in(self) -> None:
        """Have a token. Raises CafeError CAFE-174 for a wrong id or secret, 177, 178."""
        with self._lock, _in_words():
            self._signed_in()

    def register(self, name: str, source: str, description: str) -> str:
        """Make a function of this source known; its id. Raises CafeError CAFE-174, 177, 178, 181."""
        asked = {"function_name": name, "function_code": source, "serialized": False, "description": description, "public": False}
        asked["meta"] = {"python_version": platform.python_version(), "sdk_version": _SDK, "serde_identifier": "st"}
        return str(self._ask(lambda _, v3: v3.register_function(asked)["function_uuid"]))

    def endpoint(self, name: str) -> str | None:
        """The id of this account's endpoint of that name; None while it was never started."""
        return self._ask(lambda v2, _: _named(v2.get_endpoints(role="owner"), name))

    def online(self, endpoint: str) -> bool:
        """Whether the service has heard of the endpoint lately."""
        return bool(self._ask(lambda v2, _: v2.get_endpoint_status(endpoint)["status"]) == "online")

    def allowed(self, endpoint: str) -> list[str] | None:
        """The functions that the endpoint runs; None when it runs any."""
        return self._ask(lambda _, v3: _listed(v3.get_endpoint_allowlist(endpoint)))

    def submit(self, endpoint: str, function: str, packed: str) -> str:
        """One task with these packed arguments; its id. A time-out may leave a task that nobody knows of: orders bear that."""
        asked = {"tasks": {function: [packed]}, "create_queue": False, "result_serializers": [SERIALIZER], "user_runtime": _runtime()}
        return self._ask(lambda _, v3: str(v3.submit(endpoint, asked)["tasks"][function][0]), SUBMIT_TIMEOUT_S)

    def statuses(self, tasks: Collection[str]) -> dict[str, dict[str, Any]]:
        """What became of each task that the service knows: ``status``, and ``result`` or ``exception`` as text once it is done."""
        return self._ask(lambda v2, _: {str(task): dict(found) for task, found in v2.get_task_batch(list(tasks))["results"].items()})

    def _ask(self, call: Callable[[globus_sdk.ComputeClientV2, globus_sdk.ComputeClientV3], T], timeout_s: float = TIMEOUT_S) -> T:
        with self._lock, _in_words():
            v2, v3 = self._signed_in()
            self._take_turn()
            v2.transport.http_timeout = v3.transport.http_timeout = timeout_s
            return call(v2, v3)

    def _signed_in(self) -> tuple[globus_sdk.ComputeClientV2, globus_sdk.ComputeClientV3]:
        if self._clients is None:
            app = globus_sdk.ConfidentialAppAuthClient(self.client_id, self._secret, base_url=self._url, **_plain())
            authorizer = globus_sdk.ClientCredentialsAuthorizer(app, ComputeScopes.all)
            v2 = globus_sdk.ComputeClientV2(authorizer=authorizer, base_url=self._url, **_plain())
            v3 = globus_sdk.ComputeClientV3(authorizer=authorizer, base_url=self._url, **_plain())
            self._clients = v2, v3
        return self._clients

    def _take_turn(self) -> None:
        """Wait until a further request is within the limit."""
        if len(self._recent) == MOST_REQUESTS:
            time.sleep(max(0.0, self._recent[0] + WINDOW_S - time.monotonic()))
        self._recent.append(time.monotonic())


def account(home: Path, client_id: str, service: str) -> Account:
    """The account of a site, by what the vault holds of it.

    Raises:
        CafeError: CAFE-174 where its secret is not kept here, 688 where it does not open.
    """
    kept = Vault(home).get(f"globus.{client_id}")
    if kept is None:
        raise CafeError("CAFE-174", "This server keeps no secret of the site's Globus application.", _NEW_SECRET)
    return _account(client_id, str(kept["client_secret"]), service, os.environ.get("CAFE_GLOBUS_LOCAL_URL", ""))


@lru_cache(maxsize=256)
def _account(client_id: str, secret: str, service: str, where: str) -> Account:
    """One token and one count of requests for all who ask in this process."""
    return Account(client_id, secret, service)


def _named(told: Any, name: str) -> str | None:
    """Of several with this name the one that was made last."""
    found = [str(one["uuid"]) for one in told if name in (one.get("display_name"), one.get("name"))]
    return found[-1] if found else None


def _listed(told: Any) -> list[str] | None:
    return [str(one) for one in told["functions"]] if told["restricted"] else None


def _plain() -> dict[str, Any]:
    """No patience of the library's own: an attempt, and an answer to whoever asked."""
    return {"transport": RequestsTransport(http_timeout=TIMEOUT_S), "retry_config": RetryConfig(max_retries=0)}


def _runtime() -> dict[str, str]:
    """As little of this machine as the service wants; an endpoint starts another process for another runtime."""
    return {"globus_compute_sdk_version": _SDK, "globus_sdk_version": globus_sdk.__version__, "python_version": platform.python_version()}


@contextmanager
def _in_words() -> Iterator[None]:
    """Failures of the service or the network as people understand them; never an address, a token or a body."""
    try:
        yield
    except globus_sdk.NetworkError as error:
        kind = "does not answer in time" if isinstance(error, globus_sdk.GlobusTimeoutError) else "cannot be reached"
        raise CafeError("CAFE-177", f"Globus {kind}.", "Is this machine's way to the Internet open? See status.globus.org.") from None
    except globus_sdk.GlobusAPIError as error:
        raise _refusal(error) from None
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CafeError("CAFE-177", f"Globus answers what was not agreed ({type(error).__name__}).", "Update this server.") from None


def _refusal(error: globus_sdk.GlobusAPIError) -> CafeError:
    status, code = error.http_status, error.code or ""
    if code == _NOT_ONLINE or status == 423:
        return CafeError("CAFE-180", "The site's endpoint is not online.", "Its admin starts it: `./cafe-site start`.")
    if status == 401 or (isinstance(error, globus_sdk.AuthAPIError) and status < 500 and status != 429):
        return CafeError(
            "CAFE-174",
            f"Globus does not accept the site's application (HTTP {status}).",
            "Make a new secret: `cafe globus client SITE`.",
        )
    known = {
        403: ("CAFE-181", "Globus does not let this function run at the site's endpoint.", "Approve the site again; then it starts again."),
        404: ("CAFE-179", "Globus does not know the endpoint or the function.", "Has the site started once? `./cafe-site start`."),
        413: ("CAFE-182", "The message is larger than Globus takes.", "Large inputs go through the object store: `cafe storage check`."),
        422: ("CAFE-183", "The site's endpoint could not start what takes orders.", "Its admin looks into endpoint/*/endpoint.log."),
        429: ("CAFE-178", "Too many requests to Globus in a short time.", "It goes on by itself after some seconds."),
    }
    told = known.get(status) or ("CAFE-177", f"Globus cannot answer now (HTTP {status}).", "See status.globus.org; it is tried again.")
    return CafeError(*told)
