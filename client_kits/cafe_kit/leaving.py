"""Leaving: what is running ends, the operator is told by a signed document, what is secret is deleted, and the proof remains.

Knows which files are which. A ledger that is deleted takes the memory of what was spent with it; a site that joins again then starts
from nothing, which is why it is kept by default.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cafe_kit import asking, instance, limits, site_folder
from cafe_kit.answering import mail_folder
from cafe_kit.doctor import LOCK
from cafe_kit.errors import CafeError
from cafe_kit.policy import PAUSED
from cafe_kit.site_folder import SiteSettings
from cafe_kit.site_home import SiteHome

_ALWAYS = (
    *("site.key", "site.toml", asking.REQUEST, asking.ANSWER, asking.SENT, LOCK, instance.LOCK),
    *("models", "endpoint", "endpoint-venv", "venv"),  # venv: of the kit's launcher
)
_PROOF = ("ledger", "outbox", "log", "policy.toml", "endpoint.toml", "adapters", site_folder.LEAVE, PAUSED)


@dataclass(frozen=True)
class Left:
    """``told``: the operator was told; else ``leave.json`` is handed to him. ``remains``: what is left in the site's folder."""

    told: bool
    remains: list[str]


def leave(home: Path, settings: SiteSettings, keep: bool) -> Left:
    """End what runs, tell the operator, delete key, settings and papers; what proves and what came only if not ``keep``.

    The site stays paused: whatever still computes for it finds that out before it charges or sends.

    Raises:
        CafeError: CAFE-117 when a start does not end; nothing is deleted then.
    """
    limits.pause(home)
    instance.end(home)
    told = False
    with suppress(CafeError):  # without its key it can tell nobody, but leave all the same
        site_folder.check_key(home, settings)
        told = asking.say_left(home, settings)
    if settings.exchange:
        _delete_own(mail_folder(settings))
    with suppress(CafeError):
        SiteHome(home).log("left")
    for name in (*_ALWAYS, *(() if keep else _PROOF)):
        _delete(home / name)
    return Left(told, sorted(path.name for path in home.iterdir()))


def _delete_own(folder: Path) -> None:
    """The site's part of the exchange folder, if it is the site's."""
    with suppress(OSError):
        if folder.lstat().st_uid == os.getuid() and not folder.is_symlink():
            shutil.rmtree(folder)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
