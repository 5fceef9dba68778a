"""Which Globus applications this home uses: their ids, the address that was registered, and who is signed in for the command line.

Knows ``CAFE_HOME/globus.json``. Their secrets lie in the vault, never here. Does not talk to Globus.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from urllib.parse import urlsplit

from cafe_kit.errors import CafeError

from server_store.blobs import write_whole

FILE = "globus.json"
CALLBACK = "/oauth2callback"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class GlobusSettings:
    """Empty where nothing is set up.

    Args:
        public: id of the application without a secret; people sign in with it by pasting a code.
        confidential: id of the application with a secret; browsers are sent back by it, and this server acts with it where no person does.
        redirect: the address that is registered with it: ``https://HOST/PATH/oauth2callback``.
        account: identity id of who signed in at a terminal, or by code from a console that was opened with the one-time link.
    """

    public: str = ""
    confidential: str = ""
    redirect: str = ""
    account: str = ""

    @property
    def by_redirect(self) -> bool:
        """People can sign in by going to Globus and being sent back."""
        return bool(self.confidential and self.redirect)

    @property
    def host(self) -> str:
        return urlsplit(self.redirect).hostname or ""

    @property
    def base_path(self) -> str:
        return urlsplit(self.redirect).path.removesuffix(CALLBACK).strip("/")


def read(home: Path) -> GlobusSettings:
    """What is set up in this home.

    Raises:
        CafeError: CAFE-194 when the file is damaged.
    """
    try:
        found = json.loads((home / FILE).read_text(encoding="utf-8"))
        return GlobusSettings(**{one.name: str(found.get(one.name, "")) for one in fields(GlobusSettings)})
    except FileNotFoundError:
        return GlobusSettings()
    except (ValueError, AttributeError):
        raise CafeError("CAFE-194", f"{FILE} in the home folder cannot be read.", "Set Globus up again: `cafe globus setup`.") from None


def write(home: Path, settings: GlobusSettings) -> GlobusSettings:
    """Keep the settings.

    Raises:
        CafeError: CAFE-194 for what cannot be right.
    """
    for word in (settings.public, settings.confidential):
        if word and not _UUID.fullmatch(word):
            raise CafeError(
                "CAFE-194", f"{word[:60]!r} is no id of a Globus application.", "It is shown at app.globus.org, under Developers."
            )
    if settings.redirect:
        _check_redirect(settings.redirect)
    write_whole(home / FILE, (json.dumps(asdict(settings), indent=1) + "\n").encode())
    return settings


def remember_account(home: Path, identity: str) -> None:
    """Who acts for the command line from now on; "" for nobody."""
    write(home, replace(read(home), account=identity))


def application_secret(application: str) -> str:
    """The name under which the vault keeps the secret of a confidential application."""
    return f"globus.{application}"


def _check_redirect(address: str) -> None:
    parts = urlsplit(address)
    safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
    if not safe or not parts.hostname or not parts.path.endswith(CALLBACK) or parts.query or parts.fragment:
        raise CafeError(
            "CAFE-194",
            f"{address[:100]!r} cannot be where Globus sends browsers back to.",
            f"It is the console's https address and {CALLBACK}, as registered with Globus: https://cafe.example.org{CALLBACK}.",
        )
