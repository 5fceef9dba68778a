"""What a site has sent: per order the body, whole and under its own hash, and the reply that names it.

Knows: bytes, hashes, which order they answer. Does not know what they mean or what they cost.
``<order hash>/draft.json`` (figures of the reply) comes first, then ``body.<sha256>``, then, last and by link(2), so that
the first writer wins, ``reply.json``: the mark of completeness. Nothing is delivered that ``reply.json`` does not name, so
whatever was drawn before a crash either is answered with for ever or was never seen by anybody.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from cafe_kit.errors import CafeError
from cafe_kit.failpoints import failpoint
from cafe_kit.inputs import hash_file
from cafe_kit.links import is_link, upload
from cafe_kit.orders import Blob, Numbers, Order, Reply, parse
from cafe_kit.release import seal_file, sync_folder

_BODY = re.compile(r"body\.([0-9a-f]{64})")


@dataclass(frozen=True)
class Sealed:
    """A reply that stands, its signature and the file with its body."""

    reply: Reply
    signature: str
    body: Path


@dataclass(frozen=True)
class Draft:
    """What was ready before a crash: a whole body and the figures for its reply, not yet a reply."""

    blob: Blob
    numbers: Numbers


class Outbox:
    """The sealed answers in ``folder``, one folder per order.

    Raises:
        CafeError: CAFE-132 when an answer is damaged or was dropped; CAFE-135 when the disk does not take it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _disk(error) from None

    def answered(self) -> list[str]:
        """The hashes of all orders that have an answer."""
        return [path.parent.name for path in self._folder.glob("*/reply.json")]

    def begin(self, order_hash: str) -> None:
        """Make the order's folder, durably, *before* it is charged: a charge without a folder then means that the answer was lost."""
        try:
            (self._folder / order_hash).mkdir(mode=0o700, exist_ok=True)
            sync_folder(self._folder)
        except OSError as error:
            raise _disk(error) from None

    def find(self, order_hash: str) -> Sealed | None:
        """The answer to this order, if there is one."""
        path = self._folder / order_hash / "reply.json"
        if not path.exists():
            return None
        try:
            kept = json.loads(path.read_bytes())
            reply = parse(Reply, kept["reply"])
            blob = reply.outputs["body"]
        except (ValueError, KeyError, TypeError, CafeError):
            raise _lost() from None
        body = path.parent / f"body.{blob.sha256}"
        if not body.exists() or hash_file(body) != blob.sha256:
            raise _lost()
        return Sealed(reply, str(kept["signature"]), body)

    def recover(self, order_hash: str) -> Draft | None:
        """What a crash left of a charged order: half-written files go, a whole body is returned to be answered with.

        None: nothing was ready, hence nothing was sent, and the answer may be computed (again).
        """
        folder = self._folder / order_hash
        if not folder.is_dir():
            raise _lost()
        for path in _files(folder):
            if path.name not in ("draft.json", "reply.json") and not _is_whole(path):
                path.unlink(missing_ok=True)
        bodies = [path for path in _files(folder) if _BODY.fullmatch(path.name)]
        if not bodies:
            return None
        blob = Blob(sha256=bodies[0].name.removeprefix("body."), size=bodies[0].stat().st_size)
        try:
            return Draft(blob, Numbers(**json.loads((folder / "draft.json").read_bytes())["numbers"]))
        except (OSError, ValueError, KeyError, TypeError):
            raise _lost() from None

    def put_body(self, order: Order, order_hash: str, body: bytes, numbers: Numbers) -> Draft:
        """Make ``body`` durable under its hash, with the figures of its reply before it."""
        folder = self._folder / order_hash
        draft = {"release_id": order.release_id, "numbers": asdict(numbers)}
        blob = Blob(sha256=hashlib.sha256(body).hexdigest(), size=len(body))
        try:
            _write_whole(folder / "draft.json", json.dumps(draft).encode())
            seal_file(folder / f"body.{blob.sha256}", body)
        except OSError as error:
            raise _disk(error) from None
        return Draft(blob, numbers)

    def put_reply(self, reply: Reply, signature: str) -> Sealed:
        """Complete the answer. If another process was first, its answer is the one that counts and is returned."""
        folder = self._folder / reply.order_hash
        beside = folder / f".{uuid.uuid4().hex}.tmp"
        try:
            _write_whole(beside, json.dumps({"reply": asdict(reply), "signature": signature}).encode())
            os.link(beside, folder / "reply.json")
        except FileExistsError:
            pass
        except OSError as error:
            raise _disk(error) from None
        finally:
            beside.unlink(missing_ok=True)
        sync_folder(folder)
        failpoint("site.after_seal")
        sealed = self.find(reply.order_hash)
        if sealed is None:
            raise _lost()
        for path in _files(folder):
            if _BODY.fullmatch(path.name) and path != sealed.body:
                path.unlink(missing_ok=True)
        return sealed

    def publish(self, sealed: Sealed, output: str) -> None:
        """Bring the body to where the order's transport wants it, whole or not at all; as often as asked. "": nowhere yet.

        Raises:
            CafeError: CAFE-131; what ``links.upload`` raises.
        """
        if not output:
            return
        if is_link(output):
            failpoint("site.before_publish")
            upload(sealed.body, output)
            failpoint("site.after_publish")
            return
        target = Path(output)
        beside = target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex}.part")
        try:
            sync_folder(sealed.body.parent)  # a kill may have come between the reply's link and its fsync
            failpoint("site.before_publish")
            _write_whole(beside, sealed.body.read_bytes())
            beside.replace(target)
            sync_folder(target.parent)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise CafeError(
                "CAFE-131",
                f"The answer is ready but cannot be put where the operator wants it ({error.strerror}).",
                "It is kept; sending the order again delivers the same bytes.",
            ) from None
        failpoint("site.after_publish")

    def forget(self, order: Order) -> None:
        """Drop the bodies of rounds of the same stage that are older than the one before ``order``'s; replies and hashes stay."""
        for draft in self._folder.glob("*/draft.json"):
            with suppress(OSError, ValueError, KeyError):  # a folder that another process is tidying, or a damaged one
                if (draft.parent / "reply.json").exists() and _is_older(json.loads(draft.read_bytes())["release_id"], order):
                    for path in _files(draft.parent):
                        if path.name != "reply.json":
                            path.unlink()


def _is_older(release_id: str, order: Order) -> bool:
    """Whether the release is of the same run and stage and two rounds back or more, or of an earlier attempt."""
    run, stage, attempt, round_, *_ = release_id.split("/")
    return (run, int(stage)) == (order.run, order.stage) and (int(attempt), int(round_)) < (order.attempt, order.round - 1)


def _files(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.iterdir())) if folder.is_dir() else iter(())


def _is_whole(path: Path) -> bool:
    name = _BODY.fullmatch(path.name)
    return name is not None and hash_file(path) == name[1]


def _write_whole(path: Path, data: bytes) -> None:
    """Write beside, make durable, rename."""
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _lost() -> CafeError:
    return CafeError(
        "CAFE-132",
        "The answer to this order was given, but its body was dropped or damaged; it is never drawn again.",
        "Order the statistic as a new attempt, which is charged anew.",
    )


def _disk(error: OSError) -> CafeError:
    return CafeError(
        "CAFE-135",
        f"The site's disk did not take the answer ({error.strerror}); nothing was sent.",
        "Free disk space, then send the order again.",
    )
