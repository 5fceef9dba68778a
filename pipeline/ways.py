"""Which way leads to a joined site: through the exchange folder, or through Globus Compute with an object store.

Knows which messenger and depot belong together. Does not know orders. Whoever asks sites of other machines gets his way here: runs,
``cafe site doctor``, ``cafe site deliver``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cafe_kit.errors import CafeError

from pipeline import members
from pipeline.depots import FolderDepot
from pipeline.messengers import FolderMessenger
from pipeline.remote_sites import RemoteSites, Way
from server_store.site_kits import SiteKit


def ways(home: Path, run: str) -> Callable[[SiteKit], Way]:
    """The way to a site, by its kit; ``run`` names what is kept in an object store on the way. One messenger serves all sites.

    Raises, when asked: CafeError CAFE-168 for a kit without a way, and what opening the way raises.
    """
    folder, opened = Way(FolderMessenger(), FolderDepot()), {}

    def of(kit: SiteKit) -> Way:
        via = kit.connection.get("via", "folder" if kit.exchange else "")
        if via == "folder" and kit.exchange:
            return folder
        if via == "globus":
            if "globus" not in opened:
                opened["globus"] = _globus(home, run)
            return opened["globus"]
        raise CafeError(
            "CAFE-168",
            f"No way leads to {kit.site!r}: its kit names neither an exchange folder nor Globus Compute.",
            "Make a new kit: `cafe site add` with --exchange or --via globus.",
        )

    return of


def joined_sites(home: Path, federation: str, run: str, keys: dict[str, str], stand_in: str | None = None) -> RemoteSites:
    """The joined sites of a federation, for one run; ``stand_in``: the one that trains for the weak sites, if any."""
    return RemoteSites(home / "store.db", federation, way=ways(home, run), may_take_part=members.check, keys=keys, stand_in=stand_in)


def _globus(home: Path, run: str) -> Way:
    from pipeline import storage
    from pipeline.globus_compute import AGAIN_S, GlobusMessenger
    from pipeline.object_depot import ObjectDepot

    again_s = float(os.environ.get("CAFE_GLOBUS_AGAIN_S", AGAIN_S))
    return Way(GlobusMessenger(home, again_s=again_s), ObjectDepot(storage.object_store(), run))
