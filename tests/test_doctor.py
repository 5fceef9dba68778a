"""The doctor: what it says of a sound machine, and that it notices what is wrong."""

from __future__ import annotations

import http.server
import sqlite3
import threading
from pathlib import Path

import pytest

from pipeline import doctor
from server_store.ledger import Ledger
from server_store.store import Store


def found(home: Path) -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.checks(home)}


def test_an_empty_home_is_fine(cafe_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PORT", 9)  # nobody listens on the discard port
    checks = found(cafe_home)
    assert [name for name, check in checks.items() if not check.ok] == []
    assert all(check.hint for check in checks.values() if not check.ok)


def test_others_may_not_look_into_the_home(cafe_home: Path) -> None:
    cafe_home.chmod(0o755)
    check = found(cafe_home)["privacy of home"]
    assert not check.ok and "chmod 700" in check.hint


def test_a_damaged_model(cafe_home: Path) -> None:
    (cafe_home / "models" / doctor.DEFAULT_BASE).mkdir(parents=True)
    check = found(cafe_home)[f"model {doctor.DEFAULT_BASE}"]
    assert not check.ok and "pipeline.models" in check.hint


def test_a_lost_run_and_a_broken_store(cafe_home: Path) -> None:
    store = Store(cafe_home / "store.db")
    store.create_run("clinic-1", "clinic", cafe_home / "runs" / "clinic-1")
    store.claim("clinic-1", 2**22 + 1)
    store.close()
    check = found(cafe_home)["store"]
    assert not check.ok and check.hint == "cafe resume clinic-1"
    (cafe_home / "store.db").write_bytes(b"no database" * 500)
    assert found(cafe_home)["store"].detail.startswith("CAFE-651")


def test_a_ledger_that_was_altered(cafe_home: Path) -> None:
    path = cafe_home / "ledger.db"
    Ledger(path).reserve("r/1", "r", 1, 1, 1, "votes", terms={}, inputs={"north": "0" * 64}, charges={"north": None})
    assert found(cafe_home)["ledger"].ok
    with sqlite3.connect(path) as db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        db.execute("DELETE FROM charges")
    check = found(cafe_home)["ledger"]
    assert not check.ok and check.detail.startswith("CAFE-666")


def test_old_versions_are_named(cafe_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "FLOORS", (("numpy", "999.1", "for this test"), ("no-such-package", "1", "")))
    check = found(cafe_home)["version of numpy"]
    assert not check.ok and check.hint == "pip install 'numpy>=999.1'"
    assert doctor._numbers("2.13.0+cpu") == (2, 13, 0) > doctor._numbers("2.10")


def test_a_port_that_somebody_else_has(cafe_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(doctor, "PORT", server.server_port)
    check = found(cafe_home)[f"port {server.server_port}"]
    server.shutdown()
    server.server_close()
    assert not check.ok and "--port" in check.hint


def test_a_check_that_breaks_is_a_finding(cafe_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("private words")

    monkeypatch.setattr(doctor, "_memory", broken)
    check = found(cafe_home)["memory"]
    assert not check.ok and "private" not in check.detail
