"""What a site has sent, or will: per order the body, whole and under its own hash, the reply that names it, and what is in it.

Knows: bytes, hashes, which order they answer, and the admin's word. Does not know what they mean or what they cost.
``<order hash>/draft.json`` (figures of the reply) comes first, then ``contents.<sha256 of the body>.*`` (for people), then
``body.<sha256>``, then, last and by link(2), so that the first writer wins, ``reply.json``: the mark of completeness. Nothing is
delivered that ``reply.json`` does not name, so whatever was drawn before a crash either is answered with for ever or was never
seen by anybody; its contents are then called ``contents.*``. An answer made in mode "review" waits for ``verdict.json``, whose
first writer wins, too. ``dry-run/<order hash>/`` holds contents alone: nothing of it was charged or can leave.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from cafe_kit.documents import read, write_once, write_whole
from cafe_kit.errors import CafeError
from cafe_kit.failpoints import failpoint
from cafe_kit.inputs import hash_file
from cafe_kit.links import is_link, upload
from cafe_kit.orders import Blob, Numbers, Order, Reply, parse
from cafe_kit.release import make_folder, seal_file, sync_folder
from cafe_kit.site_home import SiteHome

_BODY = re.compile(r"body\.([0-9a-f]{64})")
_CONTENTS = re.compile(r"contents\.([0-9a-f]{64})\.(json|txt|safetensors)")
_DRY_RUN = "dry-run"
_KEPT_BYTES = 1_000_000  # of readable contents: larger ones go with their body


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
    held: bool = False  # it waits for the admin's word


@dataclass(frozen=True)
class Waiting:
    """An answer that was charged and sealed, and leaves only if the site's admin says so. ``contents``: files that tell what is in it."""

    order_hash: str
    release_id: str
    since: str
    contents: tuple[Path, ...]


class Outbox:
    """The sealed answers in ``folder``, one folder per order.

    Raises:
        CafeError: CAFE-132 when an answer is damaged or was dropped; CAFE-135 when the disk does not take it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            make_folder(folder)
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
        _settle(path.parent, blob.sha256)
        return Sealed(reply, str(kept["signature"]), body)

    def check_free(self, order_hash: str) -> None:
        """Whether a complete answer may leave.

        Raises:
            CafeError: CAFE-328 while it waits for the site's admin, CAFE-342 when he said no.
        """
        found = state(self._folder / order_hash)
        if found == "kept in":
            raise CafeError("CAFE-342", "The site's admin does not let this answer out; what it cost stays spent.", "Ask him why.")
        if found == "waits":
            raise CafeError("CAFE-328", "The answer is ready and waits for the site's admin.", "He sees it with: cafe-site outbox")

    def recover(self, order_hash: str) -> Draft | None:
        """What a crash left of a charged order: half-written files go, a whole body is returned to be answered with.

        None: nothing was ready, hence nothing was sent, and the answer may be computed (again).
        """
        folder = self._folder / order_hash
        if not folder.is_dir():
            raise _lost()
        for path in _files(folder):
            if path.name not in ("draft.json", "reply.json") and not _CONTENTS.fullmatch(path.name) and not _is_whole(path):
                path.unlink(missing_ok=True)
        bodies = [path for path in _files(folder) if _BODY.fullmatch(path.name)]
        if not bodies:
            return None
        try:
            sync_folder(folder)  # a kill may have come between the body's rename and its fsync
        except OSError as error:
            raise _disk(error) from None
        blob = Blob(sha256=bodies[0].name.removeprefix("body."), size=bodies[0].stat().st_size)
        try:
            draft = json.loads((folder / "draft.json").read_bytes())
            return Draft(blob, Numbers(**draft["numbers"]), bool(draft.get("held")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise _lost() from None

    def put_body(self, order: Order, order_hash: str, body: bytes, numbers: Numbers, contents: Mapping[str, bytes], *, held: bool) -> Draft:
        """Make ``body`` durable under its hash; before it the figures of its reply, and its contents for people (ending -> bytes).

        ``held``: it waits for the admin's word.
        """
        folder = self._folder / order_hash
        draft = {"release_id": order.release_id, "numbers": asdict(numbers), "held": held}
        blob = Blob(sha256=hashlib.sha256(body).hexdigest(), size=len(body))
        try:
            write_whole(folder / "draft.json", json.dumps(draft).encode())
            for ending, data in contents.items():
                write_whole(folder / f"contents.{blob.sha256}.{ending}", data)
            sync_folder(folder)  # a body without its figures could not be answered with
            seal_file(folder / f"body.{blob.sha256}", body)
        except OSError as error:
            raise _disk(error) from None
        return Draft(blob, numbers, held)

    def put_reply(self, reply: Reply, signature: str, *, held: bool) -> Sealed:
        """Complete the answer. If another process was first, its answer is the one that counts and is returned."""
        kept = {"reply": asdict(reply), "signature": signature, "held": held, "time": _now()}
        try:
            write_once(self._folder / reply.order_hash / "reply.json", kept)
        except OSError as error:
            raise _disk(error) from None
        failpoint("site.after_seal")
        sealed = self.find(reply.order_hash)
        if sealed is None:
            raise _lost()
        return sealed

    def rehearse(self, order: Order, order_hash: str, contents: Mapping[str, bytes]) -> None:
        """Write what would have left, and nothing else."""
        folder = self._folder / _DRY_RUN / order_hash
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for ending, data in contents.items():
                write_whole(folder / f"contents.{ending}", data)
            write_whole(folder / "draft.json", json.dumps({"release_id": order.release_id, "time": _now()}).encode())
        except OSError as error:
            raise _disk(error) from None

    def rehearsed(self, order_hash: str) -> bool:
        """Whether what this order would get lies in the dry run's folder."""
        return (self._folder / _DRY_RUN / order_hash / "draft.json").exists()

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
            write_whole(beside, sealed.body.read_bytes())
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
        """Drop the bodies of rounds of the same stage that are older than the one before ``order``'s; replies, hashes and what
        tells people what was in them stay."""
        for draft in [*self._folder.glob("*/draft.json"), *self._folder.glob(f"{_DRY_RUN}/*/draft.json")]:
            with suppress(OSError, ValueError, KeyError):  # a folder that another process is tidying, or a damaged one
                complete = (draft.parent / "reply.json").exists() or draft.parent.parent.name == _DRY_RUN
                if complete and _is_older(json.loads(draft.read_bytes())["release_id"], order):
                    for path in _files(draft.parent):
                        if not _stays(path):
                            path.unlink()


def state(folder: Path) -> Literal["sent", "waits", "kept in"]:
    """What the admin's word makes of the complete answer in an order's folder: it may leave, waits for that word, or stays."""
    said = read(folder / "verdict.json").get("leaves")
    if said is False:
        return "kept in"
    return "waits" if said is not True and read(folder / "reply.json").get("held") else "sent"


def waiting(home: Path) -> list[Waiting]:
    """The answers that wait for the site's admin, the oldest first."""
    found = []
    for path in (home / "outbox").glob("*/reply.json"):
        if state(path.parent) == "waits" and any(path.parent.glob("body.*")):
            release_id, since = read(path.parent / "draft.json").get("release_id", ""), read(path).get("time", "")
            found.append(Waiting(path.parent.name, str(release_id), str(since), tuple(sorted(path.parent.glob("contents.*")))))
    return sorted(found, key=lambda one: (one.since, one.release_id))


def approve(home: Path, order_hash: str) -> Waiting:
    """Let an answer out: it is delivered when its order comes again. For good.

    Raises:
        CafeError: CAFE-347 when no such answer waits.
    """
    return _decide(home, order_hash, leaves=True)


def refuse(home: Path, order_hash: str) -> Waiting:
    """Keep an answer in, for good; its charge stays. Raises as ``approve``."""
    return _decide(home, order_hash, leaves=False)


def _decide(home: Path, order_hash: str, *, leaves: bool) -> Waiting:
    one = next((one for one in waiting(home) if one.order_hash == order_hash), None)
    try:
        said = one is not None and write_once(home / "outbox" / order_hash / "verdict.json", {"leaves": leaves, "time": _now()})
    except OSError as error:
        raise _disk(error) from None
    if one is None or not said:
        raise CafeError("CAFE-347", "No answer of this name waits for your word.", "cafe-site outbox lists those that do.")
    SiteHome(home).log("approved" if leaves else "kept in", release=one.release_id)
    return one


def _is_older(release_id: str, order: Order) -> bool:
    """Whether the release is of the same run and stage and two rounds back or more, or of an earlier attempt."""
    run, stage, attempt, round_, *_ = release_id.split("/")
    return (run, int(stage)) == (order.run, order.stage) and (int(attempt), int(round_)) < (order.attempt, order.round - 1)


def _stays(path: Path) -> bool:
    """Whether a file of an order's folder outlives its body."""
    readable = path.suffix in (".json", ".txt") and path.name != "draft.json"
    return readable and (not path.name.startswith("contents.") or path.stat().st_size <= _KEPT_BYTES)


def _settle(folder: Path, sha256: str) -> None:
    """The answer is decided: its contents get their name, and whatever another process had ready goes."""
    for path in _files(folder):
        contents, body = _CONTENTS.fullmatch(path.name), _BODY.fullmatch(path.name)
        with suppress(FileNotFoundError):  # another process settles, too
            if contents and contents[1] == sha256:
                path.replace(folder / f"contents.{contents[2]}")
            elif contents or (body and body[1] != sha256):
                path.unlink()


def _files(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.iterdir())) if folder.is_dir() else iter(())


def _is_whole(path: Path) -> bool:
    name = _BODY.fullmatch(path.name)
    return name is not None and hash_file(path) == name[1]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


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
