"""What went wrong between this machine and an object store, in words: from the library's exceptions to a StoreError.

Knows S3's error codes and which faults pass by themselves. Shows no URL, no signature and no key, and of what a server says only
its code and its clock.
"""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)
from botocore.exceptions import ConnectionError as NoConnection
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from server_store.errors import StoreError

FAULTS = (BotoCoreError, ClientError, ResponseParserError, HTTPError)  # all that the library raises for what happened outside this machine
PASSING, MISSING, OTHER_BYTES = "CAFE-683", "CAFE-691", "CAFE-692"
SKEW_S = 300.0  # from here on the clocks are named as the likely reason of a refusal

_DAMAGED = {"BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "InvalidDigest"}
_BUSY = {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling", "TooManyRequests", "OperationAborted"}
_KEYLESS = (
    NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, ProfileNotFound, TokenRetrievalError, UnauthorizedSSOTokenError,
)  # fmt: skip
_WORDS = {
    "InvalidAccessKeyId": "it does not know this access key",
    "SignatureDoesNotMatch": "the secret does not belong to the access key",
    "ExpiredToken": "the session of this access key has expired",
    "AccessDenied": "this access key may not do that in the bucket",
}


def fault(error: Exception, bucket: str) -> StoreError:
    """The refusal that says what ``error`` means. Its code is ``PASSING`` where trying again may help.

    Codes: CAFE-683 unreachable or out of order, 684 key refused, 685 no such bucket, 686 clocks, 691 no such object, 692 replaced,
    693 wrong region, 694 no key, 695 anything else.
    """
    if isinstance(error, ClientError):
        return _answered(error, bucket)
    if isinstance(error, _KEYLESS):
        return StoreError(
            "CAFE-694",
            "There is no access key for the object store, or it cannot be had.",
            "Keep one with `cafe storage set --access-key`, or name a profile of ~/.aws with `--profile`.",
        )
    if isinstance(error, SSLError):
        return StoreError(
            "CAFE-683",
            "The object store's certificate is not trusted here, or is for another name.",
            "If it is of your own authority, name its file in AWS_CA_BUNDLE.",
        )
    if isinstance(error, HTTPClientError | NoConnection | ConnectionClosedError | IncompleteReadError | FlexibleChecksumError | HTTPError):
        return _passing("cannot be reached or breaks off")
    return StoreError(
        "CAFE-695",
        f"What answers is no object store, or it cannot do that ({type(error).__name__}).",
        "Check its address with `cafe storage show`, then run `cafe storage check`.",
    )


def other_bytes(what: str) -> StoreError:
    """An object is there, but is not what it should be."""
    return StoreError("CAFE-692", f"An object in the store {what}.", "It is not used. Put it there again, and ask who else writes there.")


def clock_skew_s(response: dict[str, Any]) -> float | None:
    """By how much this machine's clock is ahead of the server's, by the date of its answer; None where it told none."""
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    try:
        return time.time() - parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return None


def in_words(skew_s: float) -> str:
    """A difference of clocks as a person says it: "21 minutes ahead of"."""
    minutes = max(1, round(abs(skew_s) / 60))
    return f"{minutes} minute{'s' * (minutes > 1)} {'ahead of' if skew_s > 0 else 'behind'}"


def _answered(error: ClientError, bucket: str) -> StoreError:
    """The server answered, and said no."""
    code = re.sub(r"[^A-Za-z0-9]", "", str(error.response.get("Error", {}).get("Code", "")))[:40]
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    skew = clock_skew_s(error.response)
    if code == "RequestTimeTooSkewed" or (status == 403 and skew is not None and abs(skew) > SKEW_S):
        told = f"This machine's clock is {in_words(skew)} the object store's" if skew is not None else "The two clocks differ"
        return StoreError("CAFE-686", f"{told}, so it refuses what is signed here.", "Set the clock that is wrong (NTP), then try again.")
    if status >= 500 or status == 429 or code in _BUSY:
        return _passing(f"is out of order (HTTP {status})")
    if code in _DAMAGED:
        return _passing("says that the bytes were damaged on their way")
    if code == "NoSuchBucket":
        return StoreError("CAFE-685", f"The object store has no bucket '{bucket}'.", "Make it there, or name another: `cafe storage set`.")
    if code == "NoSuchKey" or (status == 404 and code in ("", "404", "NotFound")):
        return StoreError("CAFE-691", "There is no such object in the store.", "It was deleted, or has not been put there yet.")
    if status in (412, 416):
        return other_bytes("was replaced while it was fetched")
    if status in (301, 307) or code in ("AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException"):
        return StoreError(
            "CAFE-693",
            f"The bucket '{bucket}' is in another region.",
            "Name its region: `cafe storage set --region`.",
        )
    if status in (401, 403):
        why = _WORDS.get(code, f"HTTP {status} {code}".strip())
        return StoreError("CAFE-684", f"The object store refuses the access key: {why}.", "Mend its rights there, or `cafe storage set`.")
    return StoreError(
        "CAFE-695", f"The object store refused a request (HTTP {status} {code}).", "`cafe storage check` says what it can and cannot do."
    )


def _passing(what: str) -> StoreError:
    return StoreError(
        "CAFE-683", f"The object store {what}.", "Check address, network and proxy; what was under way is tried again and goes on later."
    )
