"""The real Globus Compute service, on wish: one endpoint of this machine answers one message. Not part of any make target.

Register a confidential client at https://app.globus.org/settings/developers, an application of its own that nothing else uses, then:

    CAFE_GLOBUS_CLIENT_ID=... CAFE_GLOBUS_CLIENT_SECRET=... .venv/bin/python -m pytest tests/globus_smoke.py

It takes a minute, installs the endpoint below build/ if need be, and deletes endpoint and function at Globus in the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cafe_kit import leftovers
from cafe_kit.errors import CafeError

from pipeline import globus_compute
from pipeline.globus_compute import GlobusMessenger
from pipeline.globus_service import account
from pipeline.vault import Vault
from server_store.site_kits import SiteKit, SiteKits
from tests import endpoint_env
from tests.endpoint_env import TEMPLATES
from tests.test_endpoint import RUN
from tests.test_globus_compute import soon

NAME, SERIAL = "cafe-smoke-test", "ab" * 16
MESSAGE = {"order": {"word": "grüezi"}, "signature": "", "transport": {"deadline_s": 60.0}}


def test_one_message_and_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client_id, secret = os.environ["CAFE_GLOBUS_CLIENT_ID"], os.environ["CAFE_GLOBUS_CLIENT_SECRET"]
    server, home, kit_folder = (tmp_path / name for name in ("server", "home", "kit"))
    for folder in (server, home, kit_folder):
        folder.mkdir(mode=0o700)
    (kit_folder / "endpoint").symlink_to(TEMPLATES)
    monkeypatch.setenv("CAFE_ENDPOINT_VENV", str(endpoint_env.prepare(endpoint_env.default_folder())))
    Vault(server).put(f"globus.{client_id}", {"client_secret": secret})
    function = globus_compute.function_id(server, client_id)
    (home / "endpoint.toml").write_text(f"command = {json.dumps([sys.executable, '-c', 'import sys; print(sys.stdin.read())'])}\n")
    with contextlib.closing(SiteKits(server / "store.db")) as kits:
        kits.issue(SiteKit(SERIAL, "smoke", "test", "cpu", time.time(), time.time() + 1e5, "issued", "", "", "00"))
        kit = kits.connect(SERIAL, {"via": "globus", "client_id": client_id, "function_id": function, "endpoint_name": NAME})
    messenger = GlobusMessenger(server)
    process = subprocess.Popen([sys.executable, "-c", RUN, str(home), str(kit_folder), client_id, secret, function, NAME])

    def sent() -> str | None:
        with contextlib.suppress(CafeError):
            return messenger.send(kit, MESSAGE)
        return None

    try:
        ticket = soon(sent, "the endpoint did not come online")
        assert soon(lambda: messenger.collect([ticket]).get(ticket), "no answer came") == MESSAGE
        assert messenger.heard(kit) is not None
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        leftovers.end(list(leftovers.marked(f"GLOBUS_COMPUTE_USER_DIR={home}/endpoint")))
        service, _ = account(server, client_id, "")._signed_in()
        with contextlib.suppress(CafeError):
            service.delete_endpoint(messenger.endpoint(kit))
        service.delete_function(function)
