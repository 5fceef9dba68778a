"""Whether the people behind a joined site still take part: the members of the federation's Globus group, where it has one."""

from __future__ import annotations

from server_store.site_kits import SiteKit


def check(kit: SiteKit) -> None:
    """Raises CafeError for a site whose member is not (or no longer) active. No federation has a group yet, so everybody may."""
