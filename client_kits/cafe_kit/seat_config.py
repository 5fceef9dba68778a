"""What a seat is told at its start, by the one who starts it: never by an order.

Knows: names, places and the server's public keys. Does not know what they are used for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cafe_kit.errors import CafeError
from cafe_kit.orders import Hash, Name
from cafe_kit.records import DataSource, Format
from cafe_kit.task import Task

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)


class DataConfig(BaseModel):
    """Where the records are: see ``cafe_kit.records.DataSource``."""

    model_config = _STRICT
    path: str
    format: Format | None = None
    columns: dict[str, str] = {}


class ServerKeys(BaseModel):
    """The server's public keys, raw, hexadecimal: orders are signed with one (Ed25519), bodies sealed to the other (X25519)."""

    model_config = _STRICT
    verify_key: Hash
    seal_key: Hash


class SeatConfig(BaseModel):
    """One site: its name, kind, own folder (made at first use), data and server.

    ``task``: what the data are there for; an order about other labels is refused. None: any task.
    ``stands_in``: it has no records, and trains the server's proxies on those that come with their orders, which are public.
    ``reach``: the folders below which an order's inputs may lie and its answer be put; None: anywhere (the operator's own machine).
    """

    model_config = _STRICT
    site: Name
    kind: Literal["cpu", "gpu"]
    home: str
    data: DataConfig
    server: ServerKeys
    shelf: list[str] = []  # folders that hold models; what has to be fetched is kept in the last one
    task: Task | None = None
    reach: list[str] | None = None
    stands_in: bool = False

    def source(self) -> DataSource:
        return DataSource(path=Path(self.data.path), format=self.data.format, columns=dict(self.data.columns))


class HostConfig(BaseModel):
    """What a host process serves. ``threads``: CPU threads for its models, 0 for the library's own choice."""

    model_config = _STRICT
    threads: Annotated[int, Field(ge=0)] = 0
    seats: Annotated[list[SeatConfig], Field(min_length=1)]


def load_host_config(data: Any) -> HostConfig:
    """From JSON-like data.

    Raises:
        CafeError: CAFE-136, naming the setting.
    """
    try:
        return HostConfig.model_validate_json(json.dumps(data))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "file"
        raise CafeError("CAFE-136", f"The site's configuration is not as agreed: '{where}'.", "Make the kit again.") from None
