"""What the operator hands to a site's admin: the kit's zip, the words that go with it, and his answer as a file.

Knows where these files lie and what a person at the site has to be told. Does not know the join code: that is told once, by another way.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from cafe_kit.errors import CafeError
from cafe_kit.inputs import hash_file
from cafe_kit.orders import MAX_BYTES

from pipeline.home import home
from server_store.site_kits import SiteKit

_LEAVES = {
    "cpu": "What leaves your machine are counts: how many of your records are nearest to each of some invented texts.",
    "gpu": "What leaves your machine is how the numbers of a small addition to the model changed in the training.",
}
_NEEDS = {"cpu": "Python 3.11 or newer and 1 GB of disk", "gpu": "Python 3.11 or newer, a GPU and 15 GB of disk"}


def zip_name(kit: SiteKit) -> str:
    return f"cafe-site-{kit.federation}-{kit.site}.zip"


def zip_of(kit: SiteKit) -> Path:
    """The kit's zip, byte for byte as it was made. Raises as ``zip_place`` does, and CafeError CAFE-696 when it was altered."""
    path = zip_place(kit)
    if hash_file(path) != kit.zip_sha256:
        raise CafeError(
            "CAFE-696", f"The zip of {kit.site!r} is not the one that was made: its SHA-256 differs.", "Revoke this kit and make a new one."
        )
    return path


def zip_place(kit: SiteKit) -> Path:
    """Where the zip lies. Raises CafeError CAFE-660 when it is not in this home: it was made with ``--to``, or removed."""
    path = home("kits", kit.federation) / zip_name(kit)
    if not path.is_file():
        raise CafeError("CAFE-660", f"The zip of {kit.site!r} is not here (any more).", "Where was it put when it was made?")
    return path


def answer_of(kit: SiteKit) -> Path:
    """The signed answer to this kit's site. Raises CafeError CAFE-660 when there is none."""
    path = home("kits", kit.federation) / f"{kit.site}.answer.json"
    try:
        with path.open("rb") as file:
            serial = json.loads(file.read(MAX_BYTES + 1))["document"]["serial"]
    except (OSError, ValueError, KeyError, TypeError):
        serial = ""
    if serial != kit.serial:
        raise CafeError("CAFE-660", f"There is no answer to {kit.site!r} here.", "It comes with the approval or the refusal.")
    return path


def letter(kit: SiteKit) -> str:
    """What the site's admin does, in three actions: plain text, to be sent along with the zip. Nothing in it is secret."""
    back = (
        "   The request goes into the folder that we share; the command waits for my answer there."
        if kit.exchange
        else "   It also names a file, the request: send it to me. My answer is a file, too; then run\n   ./cafe-site join --approval FILE"
    )
    return "\n".join(
        [
            f"To the admin of site {kit.site}, federation {kit.federation}",
            "",
            "Your records stay where they are.",
            _LEAVES[kit.kind],
            "You set how much it may tell in all, you see everything that leaves, and you stop when you like.",
            "README.html in the kit says more; SECURITY.html is one page for your security office.",
            "",
            f"Needed: Linux, an account without special rights, {_NEEDS[kit.kind]}.",
            "",
            f"1. Unzip {zip_name(kit)}. It came whole if sha256sum of it prints",
            f"   {kit.zip_sha256}",
            "2. In the new folder run  ./cafe-site join",
            "   It asks for the join code, which I tell you by telephone. The code works once,",
            f"   until {_day(kit.expires)}.",
            "3. Answer four questions: the data file, its columns, your limits, who consents.",
            "   You then see four words. Call me and read them to me; I approve if mine are the same.",
            back,
        ]
    )


def _day(moment: float) -> str:
    return time.strftime("%d %B %Y, %H:%M UTC", time.gmtime(moment))
