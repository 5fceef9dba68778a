"""Objects in an S3 bucket: put, get, list, delete, and URLs that let somebody else do one of these for some minutes.

Knows S3 through boto3, and one folder (prefix) of one bucket. Does not know what the bytes are or who wants them. What was fetched
is checked by size and SHA-256, whatever the server says; faults that pass are waited out, all others are told at once. A URL is a
bearer token: it is never logged, and stands in no message.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, FlexibleChecksumError, IncompleteReadError, NoCredentialsError

from server_store.errors import StoreError
from server_store.object_faults import FAULTS, MISSING, PASSING, fault, other_bytes

URL_S = 15 * 60  # of one round; only enrolment, which waits for a person, asks for more
LONGEST_URL_S = 7 * 24 * 3600  # what S3's signatures allow
STALE_UPLOAD = timedelta(hours=24)
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_BLOCK, _PART = 2**20, 64 * 2**20
_WHOLE_TRIES = 3  # an object whose bytes are not what they should be is fetched this often before it is called another one
_T = TypeVar("_T")


@dataclass(frozen=True)
class Place:
    """Where objects lie. ``endpoint_url`` "": AWS itself."""

    bucket: str
    prefix: str = ""
    region: str = "us-east-1"
    endpoint_url: str = ""


@dataclass(frozen=True, repr=False)
class Keys:
    """An access key and its secret; never printed."""

    access_key: str
    secret_key: str
    session_token: str = ""


@dataclass(frozen=True)
class Stored:
    """One object of a listing."""

    key: str
    size: int
    modified: datetime


class ObjectStore:
    """The objects below ``place.prefix``; every key is relative to it.

    Args:
        keys: left out, boto3's usual chain finds them (environment, ``~/.aws``, the machine's role).
        profile: of ``~/.aws``, for that chain.
        patience_s: how long passing faults are waited out, in each call.
        timeout_s: how long the server may be silent.

    Raises:
        StoreError: of every method, the codes of ``object_faults.fault``; CAFE-652 where this machine's disk is full.
    """

    def __init__(
        self, place: Place, keys: Keys | None = None, *, profile: str = "", patience_s: float = 60.0, timeout_s: float = 30.0
    ) -> None:
        self.place, self._patience_s = place, patience_s
        known = (keys.access_key, keys.secret_key, keys.session_token or None) if keys else (None, None, None)
        try:
            session = boto3.session.Session(*known, region_name=place.region, profile_name=profile or None)
            self._session = session
            self.client: Any = session.client("s3", endpoint_url=place.endpoint_url or None, config=_config(place, timeout_s))
        except (BotoCoreError, ValueError) as error:
            if isinstance(error, BotoCoreError) and (told := fault(error, place.bucket)).code == "CAFE-694":
                raise told from None
            raise StoreError("CAFE-693", "The object store's address or region is not one.", "Set it again: `cafe storage set`.") from None

    def credentials(self) -> Any:
        """What the library signs with, as it is now."""
        found = self._session.get_credentials()
        if found is None:
            raise fault(NoCredentialsError(), self.place.bucket)
        return found.get_frozen_credentials()

    def keys(self) -> Keys:
        """The access key in use, as it is now."""
        found = self.credentials()
        return Keys(found.access_key, found.secret_key, found.token or "")

    def full_key(self, key: str) -> str:
        """The key in the bucket."""
        if not _KEY.fullmatch(key) or len(key) > 900:
            raise ValueError("no key for an object")
        return f"{self.place.prefix}/{key}" if self.place.prefix else key

    def put(self, key: str, data: bytes) -> None:
        """Put these bytes, in place of what was there."""
        self._patiently(lambda: self.client.put_object(**self._at(key), Body=data))

    def put_file(self, key: str, path: Path, sha256: str = "") -> None:
        """Put a file of any size, in parts where it is large. ``sha256`` is noted with the object, for ``holds``."""
        noted = {"Metadata": {"sha256": sha256}} if sha256 else {}
        parts = TransferConfig(multipart_threshold=_PART, multipart_chunksize=_PART, max_concurrency=2)

        def upload() -> None:
            with path.open("rb") as file:  # opened anew: a try that failed has read some of it
                try:
                    self.client.upload_fileobj(file, **self._at(key), ExtraArgs=noted, Config=parts)
                except KeyError:  # the answer that names a new upload was cut
                    raise IncompleteReadError(actual_bytes=0, expected_bytes=1) from None
                _complete(self.client.head_object(**self._at(key)), path.stat().st_size)

        self._patiently(upload)

    def holds(self, key: str, sha256: str, size: int) -> bool:
        """Whether ``put_file`` has put this content there, and nobody has put anything else since."""
        head = self._head(key)
        return head is not None and head["ContentLength"] == size and head.get("Metadata", {}).get("sha256") == sha256

    def size(self, key: str) -> int | None:
        """Of the object, in bytes; None where there is none."""
        head = self._head(key)
        return None if head is None else int(head["ContentLength"])

    def read(self, key: str, most: int) -> bytes | None:
        """The bytes of a small object that nobody has announced; None where there is none. Raises CAFE-692 above ``most`` bytes."""

        def whole() -> bytes:
            answer = _complete(self.client.get_object(**self._at(key)))
            with closing(answer["Body"]) as body:  # ("with body" would read past the library's own checks)
                data: bytes = body.read(most + 1)
            return data

        try:
            data = self._patiently(whole)
        except StoreError as error:
            if error.code == MISSING:
                return None
            raise
        if len(data) > most:
            raise other_bytes("is larger than allowed")
        return data

    def get(self, key: str, target: Path, sha256: str, size: int) -> None:
        """Fetch an object into ``target``, which gets that name only when size and hash are right.

        A body that breaks off is gone on with where it broke. Bytes that are wrong are fetched anew, since they may have been damaged
        on their way.

        Raises:
            StoreError: CAFE-691 not there, CAFE-692 other bytes.
        """
        beside = target.with_name(f".{target.name[:100]}.part")
        try:
            with beside.open("w+b") as file:
                for _ in range(_WHOLE_TRIES):
                    file.seek(0)
                    file.truncate()
                    self._fetch(key, file, size)
                    if _hash(file) == sha256:
                        break
                else:
                    raise other_bytes("does not have the bytes that were announced")
                os.fsync(file.fileno())
            beside.replace(target)
        except OSError as error:
            raise _disk(error) from error
        finally:
            beside.unlink(missing_ok=True)

    def list(self, prefix: str = "") -> Iterator[Stored]:
        """All objects whose key begins with ``prefix``."""
        token: dict[str, str] = {}
        where = {"Bucket": self.place.bucket, "Prefix": self._below(prefix)}
        while True:
            page = self._patiently(partial(self._page, "list_objects_v2", "Name", **where, **token))
            for one in page.get("Contents", []):
                yield Stored(one["Key"][len(self._below("")) :], one["Size"], one["LastModified"])
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, key: str) -> None:
        """Delete an object, if it is there."""
        self._patiently(lambda: self.client.delete_object(**self._at(key)))

    def url_get(self, key: str, seconds: float) -> str:
        """A URL that fetches this object, and does nothing else, for so many seconds."""
        return self._url("get_object", {}, key, seconds)

    def url_put(self, key: str, size: int | None, seconds: float) -> str:
        """A URL that puts an object of exactly ``size`` bytes there, and does nothing else.

        None: of any size, for enrolment, where nobody knows it before; ``read`` then bounds what is taken in.
        """
        return self._url("put_object", {} if size is None else {"ContentLength": size}, key, seconds)

    def abort_stale_uploads(self, older_than: timedelta = STALE_UPLOAD, prefix: str = "") -> int:
        """Drop the parts of uploads that were begun and never ended, as a killed process leaves them; returns how many."""
        before, count = datetime.now(UTC) - older_than, 0
        where = {"Bucket": self.place.bucket, "Prefix": self._below(prefix)}
        found = self._patiently(partial(self._page, "list_multipart_uploads", "Bucket", **where))
        for one in found.get("Uploads", []):
            if one["Initiated"] <= before:
                named = {"Bucket": self.place.bucket, "Key": one["Key"], "UploadId": one["UploadId"]}
                self._patiently(partial(self.client.abort_multipart_upload, **named))
                count += 1
        return count

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.place.bucket, "Key": self.full_key(key)}

    def _below(self, prefix: str) -> str:
        return f"{self.place.prefix}/{prefix}" if self.place.prefix else prefix

    def _page(self, action: str, told: str, **asked: str) -> dict[str, Any]:
        """One page of a listing; one that does not tell even the bucket was cut among its headers, and is no empty one."""
        page: dict[str, Any] = getattr(self.client, action)(**asked)
        if told not in page:
            raise IncompleteReadError(actual_bytes=0, expected_bytes=1)
        return page

    def _url(self, action: str, more: dict[str, Any], key: str, seconds: float) -> str:
        if not 1 <= seconds <= LONGEST_URL_S:
            raise ValueError(f"a URL lives 1 to {LONGEST_URL_S} seconds")
        try:
            return str(self.client.generate_presigned_url(action, Params=self._at(key) | more, ExpiresIn=int(seconds)))
        except FAULTS as error:
            raise fault(error, self.place.bucket) from None

    def _head(self, key: str) -> dict[str, Any] | None:
        """What the server says of an object; None where there is none."""

        def look() -> dict[str, Any] | None:
            try:
                return _complete(self.client.head_object(**self._at(key)))
            except ClientError as error:  # an answer to HEAD has no body, so it says no reason: an empty listing gives it
                if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (400, 403, 404):
                    raise
                self.client.list_objects_v2(Bucket=self.place.bucket, Prefix=self.full_key(key), MaxKeys=1)
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return None
                raise

        return self._patiently(look)

    def _fetch(self, key: str, file: IO[bytes], size: int) -> None:
        """Fill ``file`` with the object, on from where a broken body ended, as long as the object is still the same."""
        seen: dict[str, str] = {}

        def rest() -> None:
            only = {"Range": f"bytes={file.tell()}-", "IfMatch": seen["ETag"]} if seen and file.tell() else {}
            if not only:
                file.seek(0)
                file.truncate()
            try:
                answer = _complete(self.client.get_object(**self._at(key), **only))
                seen["ETag"] = answer["ETag"]
                if file.tell() + answer["ContentLength"] != size:
                    raise other_bytes("does not have the size that was announced")
                with closing(answer["Body"]) as body:  # ("with body" would read past the library's own checks)
                    while block := body.read(_BLOCK):
                        file.write(block)
            except (ClientError, FlexibleChecksumError):
                seen.clear()  # replaced meanwhile, or damaged: not to be gone on with
                raise

        self._patiently(rest)

    def _patiently(self, act: Callable[[], _T]) -> _T:
        """Do it; after a fault that passes, again and again, with random pauses that grow, until patience ends."""
        end, pause = time.monotonic() + self._patience_s, 0.25
        while True:
            try:
                return act()
            except FAULTS as error:
                told = fault(error, self.place.bucket)
            wait = random.uniform(0, pause)
            if told.code != PASSING or time.monotonic() + wait > end:
                raise told
            time.sleep(wait)
            pause = min(pause * 2, 8.0)


def _config(place: Place, timeout_s: float) -> Config:
    """Version 4 signatures, bounded waits, a few quick tries; bucket names in the path but at AWS itself."""
    in_path = place.endpoint_url or "." in place.bucket
    return Config(
        signature_version="s3v4",
        connect_timeout=min(5.0, timeout_s),
        read_timeout=timeout_s,
        retries={"mode": "standard", "total_max_attempts": 4},
        s3={"addressing_style": "path" if in_path else "virtual"},
    )


def _complete(answer: dict[str, Any], size: int | None = None) -> dict[str, Any]:
    """The answer, unless it was cut among its headers, which the library takes for a short answer; or tells another size."""
    if "ContentLength" not in answer or "ETag" not in answer or size not in (None, answer["ContentLength"]):
        raise IncompleteReadError(actual_bytes=0, expected_bytes=1)
    return answer


def _hash(file: IO[bytes]) -> str:
    file.flush()
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _disk(error: OSError) -> StoreError:
    return StoreError(
        "CAFE-652", f"The disk refused a file ({error.strerror or type(error).__name__}).", "Make room on the disk, then try again."
    )
