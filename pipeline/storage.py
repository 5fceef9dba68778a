"""Where this home keeps objects that sites fetch and deliver: an S3 bucket, set up once, tried out in plain words.

Knows the setting (``storage.json``) and where its access key comes from: the vault, a profile, or what the machine offers. No secret
is in the setting. Does not know S3 (``server_store/object_store.py``), whose library is loaded only when the store is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cafe_kit.errors import CafeError
from cafe_kit.links import is_link
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.home import home
from pipeline.vault import Vault
from server_store.blobs import write_whole
from server_store.errors import StoreError

if TYPE_CHECKING:
    from server_store.object_store import ObjectStore

FILE = "storage.json"
SECRET = "storage"  # its name in the vault
_DAMAGED = "Set it up anew: `cafe storage set --bucket NAME --endpoint https://HOST`; or drop it: `cafe storage forget`."
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"


class Storage(BaseModel):
    """A place in an S3 store. ``endpoint_url`` "": AWS. ``profile``: of ``~/.aws``. ``keep_results``: after each run, see ``archive``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")]
    endpoint_url: str = ""
    prefix: Annotated[str, Field(pattern=rf"^({_PART}(/{_PART}){{0,8}})?$")] = "cafe-au-lait"
    region: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,40}$")] = "us-east-1"
    profile: Annotated[str, Field(pattern=r"^[^\x00-\x1f]{0,100}$")] = ""
    keep_results: bool = False

    @field_validator("endpoint_url")
    @classmethod
    def _is_address(cls, value: str) -> str:
        if value and (not is_link(value) or "?" in value or "#" in value):
            raise ValueError("no address of an S3 service: https://HOST, or http:// on this very machine")
        return value.rstrip("/")


@dataclass(frozen=True)
class Check:
    """One thing that was tried: ``sentence`` says what was seen, ``meaning`` what it means for a run, empty when all is well."""

    name: str
    state: Literal["ok", "warn", "failed"]
    sentence: str
    meaning: str = ""


def configured() -> Storage | None:
    """The setting of this home; None where nothing was set.

    Raises:
        CafeError: CAFE-693 when it cannot be used, naming the field.
    """
    try:
        return Storage.model_validate_json((home() / FILE).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise _unusable(error, _DAMAGED) from None
    except OSError as error:
        raise CafeError("CAFE-693", f"{FILE} in the home folder cannot be read ({error.strerror}).", _DAMAGED) from None


def set_up(fields: dict[str, Any], secret: tuple[str, str] | None = None) -> Storage:
    """Keep the setting, changed by ``fields``, and the access key with its secret, if one is given.

    A key in the vault goes before a profile, so naming a profile drops it. A setting that is damaged is begun anew where ``fields`` name a
    bucket, since nothing less says what was meant.

    Raises:
        CafeError: CAFE-693, naming the field. StoreError: CAFE-652 where it cannot be written.
    """
    now = None if fields.get("bucket") and _is_damaged() else configured()
    try:
        wanted = Storage.model_validate((now.model_dump() if now else {}) | fields)
    except ValidationError as error:
        raise _unusable(error) from None
    if secret is not None:
        wanted = wanted.model_copy(update={"profile": ""})
        Vault(home()).put(SECRET, {"access_key": secret[0], "secret_key": secret[1]})
    elif wanted.profile:
        Vault(home()).drop(SECRET)
    write_whole(home() / FILE, wanted.model_dump_json(indent=2).encode() + b"\n")
    return wanted


def forget() -> None:
    """Drop the setting and the key that is kept here. Objects stay where they are."""
    try:
        (home() / FILE).unlink(missing_ok=True)
    except OSError as error:
        told = f"{FILE} in the home folder cannot be deleted ({error.strerror})."
        raise CafeError("CAFE-652", told, "Look at the folder and its rights.") from None
    Vault(home()).drop(SECRET)


def key_source(storage: Storage) -> str:
    """Where the access key comes from, in words."""
    if Vault(home()).get(SECRET) is not None:
        return "kept in this home, encrypted"
    return f"profile {storage.profile} of ~/.aws" if storage.profile else "what the machine offers (environment, ~/.aws, its role)"


def object_store(patience_s: float = 60.0) -> ObjectStore:
    """The store of this home.

    Raises:
        CafeError: CAFE-693 when none is set up, or not rightly; 694 without an access key.
    """
    from server_store.object_store import Keys, ObjectStore, Place

    storage = configured()
    if storage is None:
        raise CafeError("CAFE-693", "No object store is set up.", "Name one: `cafe storage set --bucket NAME --endpoint https://HOST`.")
    kept = Vault(home()).get(SECRET)
    place = Place(storage.bucket, storage.prefix, storage.region, storage.endpoint_url)
    try:
        return ObjectStore(place, Keys(**kept) if kept else None, profile=storage.profile, patience_s=patience_s)
    except StoreError as error:
        raise CafeError(error.code, error.message, error.hint) from None


def checks(store: ObjectStore) -> Iterator[Check]:
    """Everything that a run relies on, tried on this store: one after the other, some seconds in all. Cleans up after itself."""
    from server_store.object_conformance import examine

    return (Check(one.name, one.state, one.sentence, one.meaning) for one in examine(store))


def check(store: ObjectStore) -> list[Check]:
    """All ``checks``."""
    return list(checks(store))


def _is_damaged() -> bool:
    try:
        configured()
    except CafeError:
        return True
    return False


def _unusable(error: ValidationError, hint: str = "Set it: `cafe storage set`.") -> CafeError:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or FILE
    said = {"missing": "it is missing", "string_pattern_mismatch": "it has letters, or a length, that cannot stand there"}
    why = said.get(first["type"], str(first["msg"]).removeprefix("Value error, ")[:120])
    return CafeError("CAFE-693", f"The object store's setting '{field}' cannot be used: {why}.", hint)
