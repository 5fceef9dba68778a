"""The one door from private to public: every noised number, and every number of a stage without noise, passes here.

In this order and in no other: clip once more, sum, charge the ledger durably, draw noise from the operating system, seal
the bytes, mark them sealed, and only then let anybody see them. One release has one body for ever: a retry gets the same
bytes, a crash before the seal may draw again (nothing was visible), a body that is lost is lost and its charge stays.
Fields are public, arguments are private. Does not know orders, rounds that wait, or what the numbers are used for.
Sum, never mean: whoever divides does so afterwards, by a public constant.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from cafe_kit.errors import CafeError
from cafe_kit.failpoints import failpoint
from cafe_kit.orders import PrivacyTerms
from cafe_kit.release import (
    GaussianNoise,
    Steps,
    body_from_bytes,
    body_to_bytes,
    bound,
    clip_steps,
    make_folder,
    seal_file,
    sigma_steps,
    sync_folder,
)
from numpy.typing import NDArray

from pipeline.accounting import calibrate, cost, epsilon_spent, norm_snr, run_statement, vote_snr
from server_store.ledger import Ledger, LedgerError, LedgerRelease

__all__ = ["PrivacyDoor", "Release", "Released", "aggregate", "calibrate", "epsilon_spent", "norm_snr", "run_statement", "vote_snr"]

_log = logging.getLogger("cafe.privacy")


@dataclass(frozen=True)
class Release:
    """The public description of one release.

    Args:
        statistic: "votes" (counts per candidate, never negative before noise) or "delta" (a change of trained weights).
        roster: the sites of the stage, public and fixed; every one of them is charged, whether it answered or not.
        length: number of released coordinates, d.
        cap: votes under trust "server" only: the most that one site may give one candidate, in the units of clip_norm. An
            L2 clip alone lets a dishonest site put everything on one candidate; cap / clip_norm is the share that it may.
            A quarter is a fair start with many candidates. It only shrinks, so it costs no privacy. None: no cap here.
    """

    run: str
    stage: int
    attempt: int
    round: int
    statistic: Literal["votes", "delta"]
    terms: PrivacyTerms
    roster: tuple[str, ...]
    length: int
    cap: float | None = None

    @property
    def rid(self) -> str:
        """The release's name: one name, one body."""
        return f"{self.run}/{self.stage}/{self.attempt}/{self.round}/{self.statistic}"


@dataclass(frozen=True)
class Released:
    """What everybody may see: ``values`` (d,) float64 in the statistic's own units, the *sum* over sites plus noise
    (without noise: the weighted mean, or the sum where no weights were given)."""

    values: NDArray[np.float64]
    sha256: str
    sites_charged: tuple[str, ...]


class PrivacyDoor:
    """The door to ``folder``, where the sealed bodies of releases live, with its ``ledger``."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.ledger, self.folder = ledger, folder
        make_folder(ledger.path.parent)  # what it charges is durable only with the names of the folders above it
        make_folder(folder)

    def find(self, release: Release) -> Released | None:
        """The release if it was sealed already, without any contribution; None if it still has to be made.

        Raises:
            CafeError: CAFE-662 if it was charged under other terms, CAFE-325 if its body is lost.
        """
        row = self.ledger.find(release.rid)
        if row is None:
            return None
        if row.terms != _described(release):
            raise CafeError("CAFE-662", f"Release {release.rid} was charged under other terms.", "Start a new attempt; it is charged anew.")
        if row.state == "reserved":
            row = self._adopt(row)
        return self._open(release, row) if row.state != "reserved" else None

    def release(
        self,
        release: Release,
        contributions: Mapping[str, NDArray[Any]],
        inputs: Mapping[str, str],
        weights: Mapping[str, float] | None = None,
    ) -> Released:
        """Charge, noise, seal; or the sealed release, if there is one.

        Args:
            contributions: site -> (length,): int64 grid steps under a guarantee (already noised where trust is
                "local"), floats or counts without one. A site of the roster that is missing counts as zero.
            inputs: site -> SHA-256 of the sealed body it sent, for the same sites; frozen by the first call that charges.
            weights: only without a guarantee: site -> declared size; the release is then the weighted mean.

        Raises:
            CafeError: CAFE-321 to CAFE-327, CAFE-662, CAFE-663 (other inputs than were frozen).
        """
        if (found := self.find(release)) is not None:
            return found
        _check(release, contributions, inputs, weights)
        total = aggregate(release, contributions) if release.terms.mechanism == "gaussian" else _mean(contributions, weights)
        failpoint("door.before_reserve")
        self._reserve(release, inputs)
        failpoint("door.after_reserve")
        body = _draw(release, total)
        failpoint("door.after_draw")
        path = self._path(release.rid, hashlib.sha256(body).hexdigest())
        seal_file(path, body)
        failpoint("door.after_seal")
        row = self._mark(release.rid, path, len(body))
        failpoint("door.after_mark")
        return self._open(release, row)

    def recover(self, run: str | None = None) -> None:
        """At a start: check the chain, sweep what was half-written, adopt what was sealed but not marked.

        With ``run``, also mark its sealed releases whose body is gone as lost. Never draws.

        Raises:
            CafeError: CAFE-327 if a body lies here that nobody charged. LedgerError: CAFE-666 if the ledger was altered.
        """
        self.ledger.verify()
        for beside in self.folder.glob("*.tmp"):
            beside.unlink(missing_ok=True)
        rows = {_name(row.rid): row for row in self.ledger.releases()}
        for path in sorted(self.folder.glob("*.safetensors")):
            row = rows.get(path.name.split(".")[0])
            if row is None:
                raise CafeError(
                    "CAFE-327",
                    f"The sealed body {path.name[:12]}… belongs to no release in the ledger.",
                    "Stop: either the ledger was replaced by an older copy, or a file was put here. Restore the newest ledger.",
                )
            row = self._adopt(row) if row.state == "reserved" else row
            if row.sha256 != path.name.split(".")[1]:
                path.unlink(missing_ok=True)  # drawn by a process that was overtaken; nobody ever saw it
        for row in rows.values():
            if row.run == run and row.state == "sealed" and not self._whole(self._path(row.rid, str(row.sha256))):
                self.ledger.lose(row.rid)

    # --- steps ---

    def _reserve(self, release: Release, inputs: Mapping[str, str]) -> None:
        mu2 = cost(release.terms) if release.terms.mechanism == "gaussian" else None
        try:
            self.ledger.reserve(
                release.rid,
                release.run,
                release.stage,
                release.attempt,
                release.round,
                release.statistic,
                terms=_described(release),
                inputs=inputs,
                charges=dict.fromkeys(release.roster, mu2),
            )
        except LedgerError as error:
            raise CafeError(error.code, error.message, error.hint) from error

    def _mark(self, rid: str, path: Path, size: int) -> LedgerRelease:
        """Ours is the body, unless another process was first: then ours was never visible and goes."""
        try:
            return self.ledger.seal(rid, path.name.split(".")[1], size)
        except LedgerError as error:
            if error.code != "CAFE-664":
                raise CafeError(error.code, error.message, error.hint) from error
            path.unlink(missing_ok=True)
            return self.ledger.get(rid)

    def _adopt(self, row: LedgerRelease) -> LedgerRelease:
        """A whole body of a release that is only reserved: the process died between seal and mark. Never redrawn."""
        for path in sorted(self.folder.glob(f"{_name(row.rid)}.*.safetensors")):
            if self._whole(path):
                sync_folder(self.folder)  # a kill may have come between the body's rename and its fsync
                return self._mark(row.rid, path, path.stat().st_size)
            path.unlink(missing_ok=True)
        return self.ledger.get(row.rid)

    def _open(self, release: Release, row: LedgerRelease) -> Released:
        """The released values, from the sealed bytes."""
        path = self._path(row.rid, str(row.sha256))
        if row.state == "lost" or not self._whole(path):
            self.ledger.lose(row.rid)
            raise CafeError(
                "CAFE-325",
                f"The sealed body of release {row.rid} is lost. Its charge stays, and it is never drawn again.",
                "Start a new run, which is charged anew.",
            )
        if release.terms.mechanism == "none":
            values = body_from_bytes(path.read_bytes(), {"values": ((release.length,), "float64")})["values"]
            return Released(values, str(row.sha256), ())
        steps = body_from_bytes(path.read_bytes(), {"steps": ((release.length,), "int64")})["steps"]
        return Released(steps / release.terms.grid, str(row.sha256), tuple(sorted(release.roster)))

    def _path(self, rid: str, sha256: str) -> Path:
        return self.folder / f"{_name(rid)}.{sha256}.safetensors"

    def _whole(self, path: Path) -> bool:
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest() == path.name.split(".")[1]
        except FileNotFoundError:
            return False


def aggregate(release: Release, contributions: Mapping[str, NDArray[np.int64]]) -> Steps:
    """The sum of bounded contributions in grid steps, (length,). PRIVATE: only the door and its tests call this.

    Under trust "server" every contribution is bounded once more by the function that the site used, so one site moves the
    sum by at most clip_steps in L2 norm whatever it sent. Under "local" it carries its noise: a second clip would bias it,
    so a contribution that no honest site can send (beyond clip plus 14 sigma somewhere) counts as zero instead.
    """
    total = np.zeros(release.length, dtype=np.int64)
    for site in sorted(contributions):
        total += _bounded(release, site, contributions[site])
    return total


def _bounded(release: Release, site: str, q: Steps) -> Steps:
    if release.terms.trust == "server":
        if release.statistic == "votes":
            q = np.maximum(q, 0)
        return bound(q, release.terms, release.cap)
    farthest = clip_steps(release.terms) + GaussianNoise(sigma_steps(release.terms)).bound
    if q.max() > farthest or q.min() < -farthest:
        _log.warning("CAFE-323 %s: the contribution of %s lies outside what clip and noise can give and counts as zero.", release.rid, site)
        return np.zeros_like(q)  # not an error: one site must not be able to stop everybody's round
    return q


def _mean(contributions: Mapping[str, NDArray[Any]], weights: Mapping[str, float] | None) -> NDArray[np.float64]:
    """Without a guarantee: the weighted mean over those who arrived, or their sum. Sites in order of name: equal bytes."""
    total = sum(np.asarray(contributions[site], dtype=np.float64) * (weights[site] if weights else 1.0) for site in sorted(contributions))
    return np.asarray(total) / (sum(weights[site] for site in sorted(contributions)) if weights else 1.0)


def _draw(release: Release, total: NDArray[Any]) -> bytes:
    """The one body: noise is drawn here, once, and only under trust "server"."""
    if release.terms.mechanism == "none":
        return body_to_bytes({"values": total})
    if release.terms.trust == "server":
        total = total + GaussianNoise(sigma_steps(release.terms)).draw(release.length)
    return body_to_bytes({"steps": total})


def _check(
    release: Release, contributions: Mapping[str, NDArray[Any]], inputs: Mapping[str, str], weights: Mapping[str, float] | None
) -> None:
    """Everything that can be refused is refused before anything is charged."""
    terms = release.terms
    if len(set(release.roster)) != len(release.roster) or not set(contributions) <= set(release.roster):
        raise CafeError("CAFE-321", "A contribution comes from a site that is not on the public roster of this stage.", "Check the roster.")
    if set(inputs) != set(contributions) or not all(re.fullmatch("[0-9a-f]{64}", sha) for sha in inputs.values()):
        raise CafeError(
            "CAFE-322",
            "Every contribution needs the hash of the sealed body it came from, and no other hash is welcome.",
            "Pass one SHA-256 for each site that answered.",
        )
    if terms.mechanism == "gaussian":
        if weights is not None:
            raise CafeError("CAFE-324", "Weights by size are private numbers, not to be used under a guarantee.", "Leave the weights out.")
        cost(terms)  # refuses a guarantee without noise
        if len(release.roster) * (clip_steps(terms) + GaussianNoise(sigma_steps(terms)).bound) >= 2**62:
            raise CafeError("CAFE-302", "The sum over all sites does not fit the integer grid.", "Choose a coarser grid.")
    elif not contributions or (weights is not None and not all(weights.get(site, 0) > 0 for site in contributions)):
        raise CafeError(
            "CAFE-326",
            "Without a guarantee a mean needs at least one contribution, and every weight above zero.",
            "Wait for a site to answer.",
        )
    for site, array in contributions.items():
        whole = array.dtype == np.int64 if terms.mechanism == "gaussian" else array.dtype.kind in "iuf" and bool(np.isfinite(array).all())
        if array.shape != (release.length,) or not whole:
            raise CafeError(
                "CAFE-457",
                f"The contribution of {site} is not the agreed {release.length} finite numbers.",
                "It counts as zero; the site should update its kit.",
            )


def _described(release: Release) -> dict[str, Any]:
    """The public terms as the ledger keeps them. No weights: sizes of data sets are no business of a ledger."""
    terms = release.terms
    noised = terms.mechanism == "gaussian"
    return {
        "mechanism": terms.mechanism,
        "trust": terms.trust,
        "unit": terms.unit,
        "grid": terms.grid,
        "length": release.length,
        "clip_steps": clip_steps(terms) if noised else None,
        "sigma_steps": sigma_steps(terms) if noised else None,
        "cap": release.cap,
        "roster": sorted(release.roster),
    }


def _name(rid: str) -> str:
    """A file name for a release: a hash, because names of runs and sites come from people."""
    return hashlib.sha256(rid.encode()).hexdigest()[:32]
