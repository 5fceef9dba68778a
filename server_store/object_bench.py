"""A folder of an object store for trying things, and requests that are made by hand: as a site, a stranger or a cheat makes them.

Knows S3, signatures and addresses. Does not know what is to be found out (``object_conformance``).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import ClientError
from botocore.httpsession import URLLib3Session
from botocore.utils import get_environ_proxies

from server_store.errors import StoreError
from server_store.object_faults import FAULTS, clock_skew_s, fault
from server_store.object_store import ObjectStore

DATA = b"Cafe au Lait tries this store.\n" * 40


class Bench:
    """A folder of the store for trying things, and requests that are made by hand."""

    def __init__(self, store: ObjectStore) -> None:
        self.store, self.folder = store, f"check-{secrets.token_hex(6)}"
        self.client = store.client
        self.skew_s: float | None = None

    def begin(self) -> None:
        """One object, which most probes use; raises StoreError where not even that can be done."""
        self.store.put(self.key("one"), DATA)
        try:
            self.skew_s = clock_skew_s(self.client.head_object(**self.at("one")))
        except FAULTS as error:
            raise fault(error, self.store.place.bucket) from None

    def key(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def at(self, name: str) -> dict[str, str]:
        return {"Bucket": self.store.place.bucket, "Key": self.store.full_key(self.key(name))}

    def url(self, name: str, seconds: int = 60) -> str:
        return self.store.url_get(self.key(name), seconds)

    def plain(self, name: str) -> str:
        """The object's address without any signature."""
        return self.url(name).partition("?")[0]

    def listing(self) -> str:
        """The address of the bucket's listing, without any signature."""
        return self.plain("one").removesuffix(self.store.full_key(self.key("one"))) + "?list-type=2"

    def status(self, url: str, method: str = "GET", data: bytes | None = None, headers: dict[str, str] | None = None) -> int:
        """Of a request by hand, as a site or a stranger would make it; redirects are not followed."""
        request = AWSRequest(method, url, headers=headers or {}, data=data).prepare()
        http = URLLib3Session(proxies=get_environ_proxies(url), verify=os.environ.get("AWS_CA_BUNDLE") or True, timeout=(5, 30))
        return int(http.send(request).status_code)

    def refused(self, url: str, method: str = "GET", data: bytes | None = None, headers: dict[str, str] | None = None) -> bool:
        return self.status(url, method, data, headers) in (400, 401, 403, 405)

    def fails(self, act: Callable[[], object], *statuses: int) -> bool:
        """Whether a call of the library is refused with one of these."""
        try:
            act()
        except ClientError as error:
            return error.response["ResponseMetadata"]["HTTPStatusCode"] in statuses
        return False

    def left(self) -> tuple[int, int]:
        """How many objects, and how many old versions of objects, are still there after a sweep."""
        self.sweep()
        try:
            page = self.client.list_object_versions(
                Bucket=self.store.place.bucket, Prefix=self.store.full_key(self.folder) + "/", MaxKeys=5
            )
        except FAULTS:
            page = {}  # not every key may look, and not every server knows the question
        versions = [one for one in page.get("Versions", []) if one.get("VersionId") not in ("null", None)]
        return len(list(self.store.list(self.folder + "/"))), len(versions)

    def signed_at(self, name: str, shift: timedelta) -> AWSRequest:
        """A request for an object as a machine signs it whose clock is wrong."""
        request = AWSRequest("GET", self.plain(name))
        _Shifted(self.store, shift).add_auth(request)
        return request

    def sweep(self) -> None:
        try:
            for one in list(self.store.list(self.folder + "/")):
                self.store.delete(one.key)
            self.store.abort_stale_uploads(timedelta(0), self.folder + "/")
        except StoreError:
            pass  # the finding that came before says why


class _Shifted(S3SigV4Auth):
    """Signs as a machine whose clock is wrong would."""

    def __init__(self, store: ObjectStore, shift: timedelta) -> None:
        super().__init__(store.credentials(), "s3", store.place.region)
        self._moment = (datetime.now(UTC) + shift).strftime("%Y%m%dT%H%M%SZ")

    def _modify_request_before_signing(self, request: AWSRequest) -> None:
        request.context["timestamp"] = self._moment
        super()._modify_request_before_signing(request)
