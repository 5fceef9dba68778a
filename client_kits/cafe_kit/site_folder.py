"""What joining leaves at the site: ``site.toml`` (who, where, which data, who consented) and how far the joining has come.

Knows the files and where the site's folder is. Does not know the key (``site_home.py``), the limits (``policy.py``), or how
joining goes. ``seat_config`` is the seam to whoever starts the seat.
"""

from __future__ import annotations

import json
import os
import time
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cafe_kit import nearest
from cafe_kit.enrolment import Approval, KitInfo, Serial, check_approval
from cafe_kit.errors import CafeError
from cafe_kit.orders import Hash, Name
from cafe_kit.records import DataSource, clean
from cafe_kit.release import seal_file
from cafe_kit.seat_config import DataConfig, SeatConfig, ServerKeys
from cafe_kit.site_home import SiteHome
from cafe_kit.task import Task

ShareRows = Literal["no", "rounded", "exact"]
_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)
LEAVE = "leave.json"  # its own farewell, kept with the ledger
_HEAD = "# Written by cafe-site join. The limits are in policy.toml; what was spent and sent is in ledger/ and outbox/.\n"


class Consent(BaseModel):
    """Who said that the data may be used for this purpose."""

    model_config = _STRICT
    name: Annotated[str, Field(min_length=1, max_length=200)]
    role: Annotated[str, Field(min_length=1, max_length=200)]
    reference: Annotated[str, Field(max_length=200)] = ""
    agreed: bool = False


class SiteSettings(BaseModel):
    """``site.toml``."""

    model_config = _STRICT
    federation: Name
    site: Name
    kind: Literal["cpu", "gpu"]
    serial: Serial
    site_key: Hash
    share_rows: ShareRows = "no"
    exchange: str = ""  # the folder that both sides reach; "" where files are handed over
    links: str = ""  # for joining through an object store, sealed to the site's own key
    kit: str = ""  # where the kit was unzipped when the site last joined or started
    data: DataConfig
    server: ServerKeys
    consent: Consent
    stands_in: bool = False
    task: Task  # as the kit named it: what the doctor reads the data by

    def source(self) -> DataSource:
        return DataSource(path=Path(self.data.path), format=self.data.format, columns=dict(self.data.columns))

    def seat_config(self, home: Path) -> SeatConfig:
        """What a seat is started with for this site: the kit's models are on its shelf, and what was fetched before.

        Orders are about the task that was consented to, and name no file outside of the exchange folder.
        """
        shelf = ([str(Path(self.kit) / "models")] if self.kit else []) + [str(home / "models")]
        about: dict[str, Any] = {
            "task": self.task,
            "stands_in": self.stands_in,
            "reach": [self.exchange] if self.exchange else [],
            "shelf": shelf,
        }
        return SeatConfig(site=self.site, kind=self.kind, home=str(home), data=self.data, server=self.server, **about)


def site_home(kit: KitInfo | None) -> Path:
    """The site's folder: ``CAFE_SITE_HOME``, or the federation's under ``~/.cafe-site``, or the only one there.

    Raises:
        CafeError: CAFE-156 where it cannot be told.
    """
    if named := os.environ.get("CAFE_SITE_HOME"):
        return Path(named).absolute()
    shelf = Path.home() / ".cafe-site"
    if kit is not None:
        return shelf / kit.federation
    found = [path.parent for path in shelf.glob("*/site.toml")]
    if len(found) != 1:
        raise CafeError(
            "CAFE-156", "Which site is meant cannot be told here.", "Start cafe-site in the kit's folder, or set CAFE_SITE_HOME."
        )
    return found[0]


def load(home: Path) -> SiteSettings | None:
    """``site.toml``; None before joining.

    Raises:
        CafeError: CAFE-136, naming the setting.
    """
    try:
        return SiteSettings.model_validate_json(json.dumps(tomllib.loads((home / "site.toml").read_text(encoding="utf-8"))))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        where = f"'{nearest.first(error)}'.{nearest.meant(error, SiteSettings)}"
    except (ValueError, OSError):
        where = "the file."
    raise CafeError("CAFE-136", f"site.toml is not as agreed: {where}", "Correct it, or leave and join again (the ledger stays).")


def joined(home: Path) -> SiteSettings:
    """``site.toml`` of a site that is set up, or waits for the operator.

    Raises:
        CafeError: CAFE-156, CAFE-136.
    """
    settings = load(home)
    if settings is None and (home / LEAVE).is_file():
        raise CafeError(
            "CAFE-156",
            "This site has left its federation.",
            f"What it sent is told by ledger, outbox and log in {home}. To come back, join with a new kit.",
        )
    if settings is None:
        raise CafeError("CAFE-156", "This site has not joined yet.", "Start with: ./cafe-site join")
    return settings


def save(home: Path, settings: SiteSettings) -> None:
    seal_file(home / "site.toml", (_HEAD + to_toml(settings.model_dump(mode="json", exclude_none=True))).encode())


def check_key(home: Path, settings: SiteSettings) -> None:
    """Raises CAFE-134 when the site's key is not the one that it joined with."""
    if not (home / "site.key").is_file() or SiteHome(home).verify_key != settings.site_key:
        raise CafeError("CAFE-134", "The site's key is not the one that it has joined with.", "Restore site.key, or leave and join again.")


def answer(home: Path, settings: SiteSettings) -> Approval | None:
    """The operator's answer as it was kept, checked again; None while there is none.

    Raises:
        CafeError: as ``check_approval``.
    """
    path = home / "answer.json"
    if not path.is_file():
        return None
    return check_approval(path.read_bytes(), settings.server.verify_key, settings.serial, settings.site_key)


def check_let_in(approval: Approval) -> None:
    """Whether the operator lets this site take part, and still does.

    Raises:
        CafeError: CAFE-154, with his reason, where the answer is no; CAFE-115 when it was yes for a time that is over.
    """
    if not approval.approved:
        reason = f" Reason: {one_line(approval.reason)}" if approval.reason else ""
        raise CafeError(
            "CAFE-154", f"The operator has not let this site in.{reason}", "Ask him; a new kit is joined after: cafe-site leave"
        )
    if approval.expires is not None and time.time() > approval.expires:
        day = time.strftime("%d %B %Y", time.gmtime(approval.expires))
        raise CafeError("CAFE-115", f"The operator let this site in until {day}.", "Ask him for a new kit, or check this machine's clock.")


def let_in(home: Path, settings: SiteSettings) -> Approval:
    """The operator's yes, which every start and every answer needs.

    Raises:
        CafeError: CAFE-155 while there is no answer; as ``check_let_in``; as ``check_approval``.
    """
    approval = answer(home, settings)
    if approval is None:
        raise CafeError("CAFE-155", "The operator has not let this site in yet.", "Run cafe-site join again: it continues.")
    check_let_in(approval)
    return approval


def one_line(text: str) -> str:
    """Text from a person, as one harmless line."""
    return " ".join(clean(text).split())


def to_toml(tree: dict[str, Any], above: str = "") -> str:
    """Texts, numbers, booleans, lists of texts, and tables of these."""
    plain = [f"{_text(name)} = {_value(value)}\n" for name, value in tree.items() if not isinstance(value, dict)]
    tables = []
    for name, value in tree.items():
        if isinstance(value, dict):
            tables.append(f"\n[{above}{_text(name)}]\n{to_toml(value, f'{above}{_text(name)}.')}")
    return "".join(plain + tables)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _text(value, quoted=True)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value)


def _text(text: str, quoted: bool = False) -> str:
    """A bare key where it may be one, else a basic string; JSON's form is TOML's but for DEL."""
    if not quoted and text.isascii() and text.replace("_", "").replace("-", "").isalnum():
        return text
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
