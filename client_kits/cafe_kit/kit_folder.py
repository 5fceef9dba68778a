"""The unzipped kit: is every file as the operator's server signed it, and what does the kit say of itself?

Knows ``SHA256SUMS``, its OpenSSH signature and ``federation.json``. Does not know the site's own folder. The signature says
that the server named in ``federation.json`` made this kit; that it is the *right* server, only the four words tell.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cafe_kit import ssh_signature
from cafe_kit.enrolment import KitInfo, parse
from cafe_kit.errors import CafeError
from cafe_kit.inputs import hash_file

SUMS, SIGNATURE, INFO = "SHA256SUMS", "SHA256SUMS.sig", "federation.json"
CLOCK_SLACK_S = 120
_MAX_SUMS = 2**20


@dataclass(frozen=True)
class Kit:
    """A kit whose files were found as signed."""

    folder: Path
    info: KitInfo
    unlisted: tuple[str, ...] = ()  # files beside the signed ones; nothing of the kit reads them

    @property
    def embedder(self) -> Path:
        return self.folder / "models" / "embedder"

    @property
    def sample(self) -> Path:
        return self.folder / "examples" / "sample.csv"


def find_kit(named: str | None) -> Path:
    """The kit's folder: as named, or as the launcher says (``CAFE_KIT_FOLDER``), or the current one.

    Raises:
        CafeError: CAFE-151 where there is none.
    """
    folder = Path(named or os.environ.get("CAFE_KIT_FOLDER") or ".")
    if not (folder / INFO).is_file():
        raise CafeError("CAFE-151", "There is no kit in this folder.", "Unzip the kit and start cafe-site there, or name it: --kit FOLDER")
    return folder.resolve()


def open_kit(folder: Path) -> Kit:
    """Check every file of the kit, then read what it says. Expiry and clock are asked for apart (``check_time``).

    Raises:
        CafeError: CAFE-150 naming the file that is not as signed; CAFE-101, 103 for ``federation.json``.
    """
    sums = _read(folder, SUMS)
    listed = _listed(sums)
    for name, wanted in listed.items():
        path = folder / name
        if not path.is_file() or path.is_symlink() or hash_file(path) != wanted:
            raise _altered(name)
    if INFO not in listed:
        raise _altered(INFO)
    info = parse(KitInfo, _read(folder, INFO))
    if not ssh_signature.fits(sums, _read(folder, SIGNATURE).decode("latin-1"), info.server.verify_key):
        raise _altered(SIGNATURE)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return Kit(folder, info, tuple(sorted(found - listed.keys() - {SUMS, SIGNATURE})))


def read_info(folder: Path) -> KitInfo:
    """What the kit says of itself, without looking at its other files: enough to find the site's folder.

    Raises:
        CafeError: CAFE-150, 101, 103.
    """
    return parse(KitInfo, _read(folder, INFO))


def check_time(info: KitInfo) -> None:
    """Whether the kit may be joined with now.

    Raises:
        CafeError: CAFE-153 when this machine's clock is before the kit's making, CAFE-152 when the kit has expired.
    """
    now = time.time()
    if now < info.issued - CLOCK_SLACK_S:
        raise CafeError("CAFE-153", "This machine's clock is wrong: it shows a time before the kit was made.", "Set the clock (NTP).")
    if now > info.expires:
        day = time.strftime("%d %B %Y", time.gmtime(info.expires))
        raise CafeError("CAFE-152", f"This kit could be joined with until {day}.", "Ask the operator for a new kit, or check the clock.")


def _read(folder: Path, name: str) -> bytes:
    try:
        with (folder / name).open("rb") as file:
            data = file.read(_MAX_SUMS + 1)
    except OSError:
        raise _altered(name) from None
    if len(data) > _MAX_SUMS:
        raise _altered(name)
    return data


def _listed(sums: bytes) -> dict[str, str]:
    """Name to hash. A name that leads out of the kit, or stands twice, is no name of a file of ours."""
    listed: dict[str, str] = {}
    try:
        for line in sums.decode().splitlines():
            digest, name = line[:64], line[66:]
            parts = PurePosixPath(name).parts
            if line[64:66] not in ("  ", " *") or name in listed or not parts or name.startswith("/") or ".." in parts:
                raise ValueError
            listed[name] = digest
    except ValueError:
        raise _altered(SUMS) from None
    return listed


def _altered(name: str) -> CafeError:
    shown = repr(name[:80])[1:-1]
    return CafeError(
        "CAFE-150",
        f"The kit is not as the operator made it: '{shown}' is missing or was altered.",
        "Unzip the kit again, or ask for a new one.",
    )
