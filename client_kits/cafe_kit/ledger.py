"""What a site has spent: one file per charge, each holding the hash of the one before.

Knows: events (never records, never drawn noise) and their exact cost. Does not know what the site allows or sends.
Charge k is ``%08d.json``, made by a temporary file and link(2), which fails if the name is taken: a compare-and-swap that
needs no lock, also between processes and on network homes. A charge is durable before anything may follow from it, is
never taken back and never counted twice. The chain shows a changed, missing or inserted charge; charges cut off the *end*
are seen by whoever remembers ``head`` (the server does) and by the outbox (an answer without its charge).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

from cafe_kit.errors import CafeError
from cafe_kit.orders import Order
from cafe_kit.release import clip_steps, make_folder, sigma_steps, sync_folder

GENESIS = ""


@dataclass(frozen=True)
class Charge:
    """One entry. ``mu_squared`` is (clip_steps², sigma_steps²), or None for an answer without a formal guarantee."""

    seq: int
    prev: str
    order_hash: str
    release_id: str
    stage: int
    mechanism: str
    trust: str
    unit: str
    clip_steps: int
    sigma_steps: int
    mu_squared: tuple[int, int] | None
    time: str

    @property
    def cost(self) -> Fraction:
        return Fraction(*self.mu_squared) if self.mu_squared else Fraction(0)

    @property
    def run(self) -> str:
        return self.release_id.split("/")[0]


@dataclass(frozen=True)
class Spent:
    """``mu_squared``: exact sum over everything charged. ``answers``: how many of these are to one run, which sum up to ``in_run``."""

    mu_squared: Fraction
    answers: int
    in_run: Fraction = Fraction(0)


def epsilon(mu_squared: Fraction, delta: float) -> float:
    """The epsilon of Gaussian releases that compose to ``mu_squared`` = Σ Δ²/σ², rounded up.

    Inverts delta(eps) = Φ(-eps/mu + mu/2) - e^eps Φ(-eps/mu - mu/2) (Balle & Wang 2018, theorem 8) with 50 digits.
    """
    from mpmath import mp, mpf, ncdf

    if mu_squared == 0:
        return 0.0
    with mp.workdps(50):
        mu = mp.sqrt(mpf(mu_squared.numerator) / mu_squared.denominator)

        def exceeds(eps: Any) -> bool:
            return bool(ncdf(-eps / mu + mu / 2) - mp.exp(eps) * ncdf(-eps / mu - mu / 2) > delta)

        low, high = mpf(0), mpf(1)
        while exceeds(high):
            low, high = high, high * 2
        while exceeds(low) and high - low > high * mpf("1e-13"):
            middle = (low + high) / 2
            low, high = (middle, high) if exceeds(middle) else (low, middle)
        return math.nextafter(float(high), math.inf) if exceeds(low) else 0.0


class SiteLedger:
    """The site's charges in ``folder``.

    Raises:
        CafeError: CAFE-318 when the chain does not hold, CAFE-135 when the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._charges: list[Charge] = []
        self._by_order: dict[str, Charge] = {}
        self._releases: set[str] = set()
        self._answers: Counter[str] = Counter()  # per run
        self._mu_squared = Fraction(0)
        self._in_run: dict[str, Fraction] = {}  # mu squared per run
        self._head = GENESIS
        self._heads = {GENESIS}  # every head that this chain ever had
        try:
            make_folder(folder)
            last = max((int(path.stem) for path in folder.glob(8 * "[0-9]" + ".json")), default=0)
            self._read_on()
        except OSError as error:
            raise _disk(error) from None
        if len(self._charges) < last:  # the chain ends before its end
            raise _broken(len(self._charges) + 1)

    @property
    def head(self) -> str:
        """SHA-256 of the last charge's file, or "" before the first: names the whole history."""
        self._read_on()
        return self._head

    def knows(self, head: str) -> bool:
        """Whether this chain has, or once had, that head. One that others remember and this chain does not: it was set back."""
        self._read_on()
        return head in self._heads

    @property
    def charges(self) -> tuple[Charge, ...]:
        self._read_on()
        return tuple(self._charges)

    def verify(self) -> int:
        """Read the whole chain again from disk; the number of charges.

        Raises:
            CafeError: CAFE-318, naming the first charge that does not fit.
        """
        return len(SiteLedger(self._folder)._charges)

    def has(self, order_hash: str) -> bool:
        """Whether this order was charged."""
        self._read_on()
        return order_hash in self._by_order

    def spent(self, delta: float) -> float:
        """The epsilon of everything charged so far, rounded up."""
        self._read_on()
        return epsilon(self._mu_squared, delta)

    def after(self, order: Order, order_hash: str) -> Spent:
        """What will have been spent once ``order`` is charged; the same if it was already.

        Raises:
            CafeError: CAFE-317 when another order was already charged for the same release, CAFE-312 without noise.
        """
        self._read_on()
        if order_hash in self._by_order:
            return Spent(self._mu_squared, self._answers[order.run], self._in_run.get(order.run, Fraction(0)))
        if order.release_id in self._releases:
            raise CafeError(
                "CAFE-317",
                "This statistic was already ordered with other terms; one release has one answer.",
                "Order it as a new attempt, which is charged anew.",
            )
        cost = _charge(order, order_hash, len(self._charges) + 1, self._head).cost
        return Spent(self._mu_squared + cost, self._answers[order.run] + 1, self._in_run.get(order.run, Fraction(0)) + cost)

    def charge(self, order: Order, order_hash: str, check: Callable[[Order, Spent], None]) -> Charge:
        """Record the cost of ``order``, durably, once; ``check`` (the policy) is asked again on what is then the end of the chain.

        Raises:
            CafeError: what ``check`` raises, CAFE-312, CAFE-317, CAFE-318, CAFE-135.
        """
        while not self.has(order_hash):
            check(order, self.after(order, order_hash))
            self._link(_charge(order, order_hash, len(self._charges) + 1, self._head))
        sync_folder(self._folder)  # also when an earlier try was killed between link and fsync
        return self._by_order[order_hash]

    def _link(self, charge: Charge) -> None:
        """Write ``charge`` under its number unless that is taken; who won, the next reading shows."""
        beside = self._folder / f".{uuid.uuid4().hex}.tmp"
        try:
            with beside.open("xb") as file:
                file.write(_to_bytes(charge))
                file.flush()
                os.fsync(file.fileno())
            sync_folder(self._folder)  # whoever wrote the charge before may have been killed: never one without the other
            os.link(beside, self._path(charge.seq))
        except FileExistsError:
            pass
        except OSError as error:
            raise _disk(error) from None
        finally:
            beside.unlink(missing_ok=True)

    def _read_on(self) -> None:
        """Read what was charged since, by this process or another, and check that it continues the chain."""
        while (path := self._path(len(self._charges) + 1)).exists():
            data = path.read_bytes()
            charge = _from_bytes(data, len(self._charges) + 1)
            if charge.seq != len(self._charges) + 1 or charge.prev != self._head or charge.order_hash in self._by_order:
                raise _broken(len(self._charges) + 1)
            self._charges.append(charge)
            self._by_order[charge.order_hash] = charge
            self._releases.add(charge.release_id)
            self._answers[charge.run] += 1
            self._mu_squared += charge.cost
            self._in_run[charge.run] = self._in_run.get(charge.run, Fraction(0)) + charge.cost
            self._head = hashlib.sha256(data).hexdigest()
            self._heads.add(self._head)

    def _path(self, seq: int) -> Path:
        return self._folder / f"{seq:08d}.json"


def _charge(order: Order, order_hash: str, seq: int, prev: str) -> Charge:
    """The entry for ``order``; its cost in integers of the grid, so that sums are exact whatever the order."""
    terms, private = order.privacy, order.privacy.mechanism == "gaussian"
    clip, sigma = (clip_steps(terms), sigma_steps(terms)) if private else (0, 0)
    if private and sigma == 0:
        raise CafeError("CAFE-312", "The order asks for a private answer without noise, which has no finite cost.", "Choose an epsilon.")
    return Charge(
        seq=seq,
        prev=prev,
        order_hash=order_hash,
        release_id=order.release_id,
        stage=order.stage,
        mechanism=terms.mechanism,
        trust=terms.trust,
        unit=terms.unit,
        clip_steps=clip,
        sigma_steps=sigma,
        mu_squared=(clip**2, sigma**2) if private else None,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _to_bytes(charge: Charge) -> bytes:
    return json.dumps(asdict(charge), sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _from_bytes(data: bytes, seq: int) -> Charge:
    try:
        fields = json.loads(data)
        if fields["mu_squared"] is not None:
            fields["mu_squared"] = tuple(fields["mu_squared"])
        charge = Charge(**fields)
        fits = charge.mu_squared is None or charge.mu_squared == (charge.clip_steps**2, charge.sigma_steps**2)
    except (ValueError, TypeError, KeyError):
        raise _broken(seq) from None
    if not fits or _to_bytes(charge) != data:
        raise _broken(seq)
    return charge


def _broken(seq: int) -> CafeError:
    return CafeError(
        "CAFE-318",
        f"The site's ledger does not hold together at charge {seq}: a file was changed, removed or added.",
        "Restore the ledger folder from a backup; until then this site answers nothing.",
    )


def _disk(error: OSError) -> CafeError:
    return CafeError(
        "CAFE-135",
        f"The site's ledger cannot be read or written ({error.strerror}), so nothing was sent.",
        "Free disk space, or move the site's folder to a disk that allows hard links.",
    )
