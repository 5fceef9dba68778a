"""Leaving: what is deleted at the site, and what remains as proof.

Knows which files are which. Does not tell the operator: there is no way to him but the person. A ledger that is deleted takes the
memory of what was spent with it; a site that joins again then starts from nothing, which is why it is kept by default.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from cafe_kit.doctor import LOCK
from cafe_kit.policy import PAUSED
from cafe_kit.site_home import SiteHome

_ALWAYS = ("site.key", "site.toml", "request.json", "answer.json", PAUSED, LOCK, "venv")  # venv: of the kit's launcher
_PROOF = ("ledger", "outbox", "log", "policy.toml")


def leave(home: Path, keep: bool) -> list[str]:
    """Delete key, settings and papers; ledger, outbox, log and policy only if not ``keep``. What remains, by name."""
    SiteHome(home).log("left")
    for name in (*_ALWAYS, *(() if keep else _PROOF)):
        path = home / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return sorted(path.name for path in home.iterdir())
