"""A federation whose sites are reached through Globus Compute, with tensors in S3: everything real but the web service of Globus.

Kits as the operator hands them out, joined by the real command with links into a real object store; a real endpoint for each site, over a
real RabbitMQ. The stand-in of the service has the knobs by which it misbehaves, the fault proxy those of the way to the store.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cafe_kit.errors import CafeError

from pipeline import enrolling, storage
from pipeline.enrolling import Issued
from pipeline.vault import Vault
from tests import endpoint_env, rabbitmq
from tests.conftest import RealModels
from tests.fault_proxy import FaultProxy, fault_proxy
from tests.federation import ROOT
from tests.globus_stand_in import StandIn, stand_in
from tests.joined import Joined, Site, wait_until
from tests.seaweedfs import S3Server

SOON_S = 60.0


@dataclass(frozen=True)
class Rig:
    """Broker, service, object store and the way to it, and something like the endpoint's environment."""

    service: StandIn
    s3: S3Server
    way: FaultProxy
    environment: Path

    @property
    def settings(self) -> dict[str, str]:
        """What every process has to find, the server's and the sites'."""
        return {"CAFE_GLOBUS_LOCAL_URL": self.service.url}


@contextmanager
def rig(folder: Path, s3: S3Server) -> Iterator[Rig]:
    """All of it, as long as the block; the test is skipped where it cannot be had."""
    if not rabbitmq.is_here():
        pytest.skip("no RabbitMQ on this machine; `make system` installs it where it may")
    try:
        real = endpoint_env.prepare(endpoint_env.default_folder())
    except CafeError as error:
        pytest.skip(f"the Globus Compute endpoint cannot be installed here: {error}")
    with ExitStack() as stack:
        amqp = stack.enter_context(rabbitmq.running(folder / "broker"))
        service = stack.enter_context(stand_in(amqp))
        way = stack.enter_context(fault_proxy(s3.port))
        yield Rig(service, s3, way, endpoint_env.pointed_at(service.url, real, folder / "environment"))


class Far(Joined):
    """The federation; its sites have joined and their endpoints answer when ``start`` has returned."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, rig: Rig, models: RealModels | None = None, **settings: Any) -> None:
        self.rig, self.real = rig, models is not None
        for name, value in rig.settings.items():
            patch.setenv(name, value)
        if models is not None:
            settings |= {"base_model": str(models.base.path), "embedder": str(models.embedder.path)}
        super().__init__(folder, patch, **settings)
        self.environment = self.environment | rig.settings
        if models is not None:
            del self.environment["CAFE_MODELS"]

    def issue(self, name: str, kind: str, **how: Any) -> Issued:
        if storage.configured() is None:
            storage.set_up({"bucket": self.rig.s3.bucket, "endpoint_url": self.rig.way.endpoint}, self.rig.s3.key)
        return enrolling.issue("tiny", name, kind, via="globus", **how)  # type: ignore[arg-type]

    def surroundings(self, place: Path) -> dict[str, str]:
        return {**self.rig.settings, "CAFE_ENDPOINT_VENV": str(self.rig.environment)}

    def connect(self, site: Site) -> None:
        """The site's confidential client, as `cafe globus client` leaves it; and its command, where fakes stand for the models."""
        engine = site.environment.get("CAFE_KIT_ENGINE")
        if engine and not self.real:
            command = ["env", f"CAFE_KIT_ENGINE={engine}", f"PYTHONPATH={ROOT}", sys.executable, "-m", "cafe_kit.cli", "answer"]
            (site.home / "endpoint.toml").write_text(f"command = {json.dumps(command)}\n")
        client, secret = self.rig.service.service.new_client()
        Vault(self.home).put(f"globus.{client}", {"client_secret": secret})
        kit = enrolling.find(site.name, "tiny")
        enrolling.store().connect(kit.serial, kit.connection | {"client_id": client, "service": "local"})

    def start(self, *names: str) -> None:
        super().start(*names)
        for name in names or self.sites:
            assert wait_until(lambda name=name: self.online(name), SOON_S), (self.sites[name].home.parent / "start.log").read_text()

    def online(self, name: str) -> bool:
        endpoints = self.rig.service.service.endpoints.values()
        return any(one.online for one in endpoints if one.data.get("endpoint_name") == f"cafe-tiny-{name}")

    def left_in_store(self) -> list[str]:
        """What is still in the object store, the models apart."""
        return [one.key for one in storage.object_store().list("runs/")]
