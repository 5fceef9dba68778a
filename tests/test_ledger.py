"""The server's ledger: append-only, charged once, told from an altered or older copy, one winner among many writers."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from server_store import chain
from server_store.ledger import Ledger, LedgerError, LedgerRelease

ROOT = Path(__file__).resolve().parent.parent
COST = Fraction(1, 16)
SHA = "a" * 64


def reserve(ledger: Ledger, round: int = 0, run: str = "run", **changes: Any) -> LedgerRelease:
    usual = {"terms": {"clip_steps": 1, "sigma_steps": 4}, "inputs": {"north": "0" * 64}, "charges": {"north": COST, "south": COST}}
    return ledger.reserve(f"{run}/1/1/{round}/votes", run, 1, 1, round, "votes", **(usual | changes))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.db")


def test_the_life_of_a_release(ledger: Ledger) -> None:
    row = reserve(ledger)
    assert (row.state, row.sha256, row.seq, row.inputs) == ("reserved", None, 1, {"north": "0" * 64})
    assert reserve(ledger) == row, "repeating a reservation is free"
    assert [(c.site, c.mu2, c.rid) for c in ledger.charges()] == [("north", COST, row.rid), ("south", COST, row.rid)]
    sealed = ledger.seal(row.rid, SHA, 7)
    assert (sealed.state, sealed.sha256, sealed.size) == ("sealed", SHA, 7) and ledger.seal(row.rid, SHA, 7) == sealed
    lost = ledger.lose(row.rid)
    assert (lost.state, lost.sha256) == ("lost", SHA) and ledger.lose(row.rid) == lost
    assert len(ledger.charges()) == 2, "a charge is never refunded"
    ledger.verify()


def test_refusals(ledger: Ledger) -> None:
    rid = reserve(ledger).rid
    for code, call in {
        "CAFE-662": lambda: reserve(ledger, terms={"clip_steps": 1, "sigma_steps": 5}),
        "CAFE-663": lambda: reserve(ledger, inputs={"north": "1" * 64}),
        "CAFE-664": lambda: ledger.seal("unknown", SHA, 1),
        "CAFE-665": lambda: ledger.get("unknown"),
    }.items():
        with pytest.raises(LedgerError, match=code):
            call()
    for charges in ({"north": COST}, {"north": COST, "south": COST * 2}, {"north": COST, "south": None}):
        with pytest.raises(LedgerError, match="CAFE-662"):
            reserve(ledger, charges=charges)
    with pytest.raises(LedgerError, match="CAFE-665"):
        ledger.lose("unknown")
    ledger.seal(rid, SHA, 7)
    with pytest.raises(LedgerError, match="CAFE-664"):
        ledger.seal(rid, "b" * 64, 7)
    ledger.lose(rid)
    with pytest.raises(LedgerError, match="CAFE-664"):
        ledger.seal(rid, SHA, 7)
    assert len(ledger.charges()) == 2 and ledger.find("unknown") is None


def test_what_may_be_asked(ledger: Ledger) -> None:
    reserve(ledger)
    reserve(ledger, round=1, charges={"north": None})
    reserve(ledger, run="other")
    assert [r.round for r in ledger.releases("run")] == [0, 1] and len(ledger.releases()) == 3
    assert [c.mu2 for c in ledger.charges(site="north", run="run")] == [COST, None]
    assert len(ledger.charges(stage=1)) == 5 and ledger.charges(stage=2) == []
    assert len(ledger.charges(site="north")) == 3, "a budget belongs to the site, over all runs"
    entries = json.loads(json.dumps(ledger.export("run")))
    assert [entry["state"] for entry in entries] == ["reserved", "reserved"]
    assert entries[0]["release"]["charges"] == {"north": "1/16", "south": "1/16"}
    assert entries[1]["release"]["charges"] == {"north": None}


def test_the_export_alone_proves_the_chain(ledger: Ledger) -> None:
    """Somebody else's ten lines: recompute every hash from the exported JSON."""
    rid = reserve(ledger).rid
    ledger.seal(rid, SHA, 7)
    previous = "0" * 64
    for e in ledger.export("run"):
        assert e["prev"] == previous
        previous = chain.entry_hash(previous, e["seq"], e["rid"], e["state"], e["sha256"], e["size"], e["time"], e.get("release"))
        assert e["hash"] == previous
    assert previous == ledger.head()


def test_the_program_in_the_documentation_checks_an_export(ledger: Ledger, tmp_path: Path) -> None:
    """docs/privacy.md prints a program that needs nothing of ours; it must agree, and see a changed cost."""
    program = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    ledger.seal(reserve(ledger).rid, SHA, 7)
    reserve(ledger, round=1, charges={"north": COST * 3, "zürich": None})
    lines = [json.dumps(entry) + "\n" for entry in ledger.export("run")]
    (tmp_path / "good.jsonl").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "bad.jsonl").write_text("".join(lines).replace("1/16", "1/64"), encoding="utf-8")
    good, bad = (
        subprocess.run(
            [sys.executable, "-c", program, tmp_path / name], text=True, capture_output=True, check=False, env={"PYTHONUTF8": "1"}
        )
        for name in ("good.jsonl", "bad.jsonl")
    )
    assert good.stdout.splitlines() == ["north mu = 0.5000", "south mu = 0.2500", "zürich no formal guarantee"], good.stderr
    assert bad.returncode == 1 and "entry 1 was altered" in bad.stderr


def _edit(ledger: Ledger, *statements: str, triggers: bool = False) -> None:
    db = sqlite3.connect(ledger.path, isolation_level=None)
    if not triggers:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        db.execute(statement)
    db.close()


@pytest.mark.parametrize("table", ["releases", "charges", "entries"])
def test_nothing_is_updated_or_deleted(ledger: Ledger, table: str) -> None:
    ledger.seal(reserve(ledger).rid, SHA, 7)
    for statement in (f"UPDATE {table} SET rid = rid", f"DELETE FROM {table}"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            _edit(ledger, statement, triggers=True)


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("UPDATE charges SET mu2_denominator = 1600 WHERE rid LIKE '%/1/votes' AND site = 'north'", "Entry 3 "),
        ("DELETE FROM charges WHERE rid LIKE '%/1/votes' AND site = 'south'", "Entry 3 "),
        ("INSERT INTO charges VALUES ('run/1/1/1/votes', 'zoe', 1, 2)", "Entry 3 "),
        ("UPDATE releases SET terms = '{}' WHERE round = 0", "Entry 1 "),
        ("UPDATE releases SET inputs = '{}' WHERE round = 2", "Entry 5 "),
        ("UPDATE entries SET sha256 = 'b' WHERE seq = 2", "Entry 2 "),
        ("UPDATE entries SET time = '2020' WHERE seq = 4", "Entry 4 "),
        ("UPDATE entries SET state = 'lost', sha256 = NULL, size = NULL WHERE seq = 2", "Entry 2 "),
        ("DELETE FROM entries WHERE seq = 2", "Entry 3 "),
        ("DELETE FROM entries WHERE seq = 5", "run/1/1/2/votes"),
        ("UPDATE entries SET hash = 'x' WHERE seq = 4", "Entry 4 "),
        ("INSERT INTO releases VALUES ('stray', 'run', 1, 1, 9, 'votes', '{}', '{}')", "stray"),
    ],
)
def test_whoever_goes_around_the_triggers_is_seen(ledger: Ledger, statement: str, named: str) -> None:
    for round in range(3):
        rid = reserve(ledger, round).rid
        if round < 2:
            ledger.seal(rid, SHA, 7)
    ledger.verify()
    _edit(ledger, statement)
    with pytest.raises(LedgerError, match="CAFE-666") as caught:
        ledger.verify()
    assert named in caught.value.message


def test_an_older_copy_is_told_by_its_head(ledger: Ledger, tmp_path: Path) -> None:
    reserve(ledger)
    older = tmp_path / "copy.db"
    older.write_bytes(ledger.path.read_bytes())
    reserve(ledger, round=1)
    ledger.verify(ledger.head())
    Ledger(older).verify()
    with pytest.raises(LedgerError, match="CAFE-667"):
        Ledger(older).verify(ledger.head())


def test_a_file_that_is_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"hello" * 1000)
    with pytest.raises(LedgerError, match="CAFE-661"):
        Ledger(tmp_path / "text")
    with pytest.raises(LedgerError, match="CAFE-661"):
        Ledger(tmp_path / "no" / "folder.db")
    newer = Ledger(tmp_path / "newer")
    _edit(newer, "PRAGMA user_version = 99", triggers=True)
    with pytest.raises(LedgerError, match="newer version"):
        Ledger(newer.path)


def test_durable_and_private(ledger: Ledger) -> None:
    reserve(ledger)
    assert ledger.path.stat().st_mode & 0o777 == 0o600
    with ledger._reading() as db:
        assert db.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
        assert db.execute("PRAGMA synchronous").fetchone()[0] == 3  # EXTRA
        assert db.execute("PRAGMA busy_timeout").fetchone()[0] == 30_000


def test_a_failed_write_charges_nothing(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("server_store.ledger.append", fails)
    with pytest.raises(LedgerError, match=r"CAFE-668.*disk is full"):
        reserve(ledger)
    monkeypatch.undo()
    assert ledger.charges() == []
    ledger.verify()


_WRITER = """
import sys
from fractions import Fraction
from pathlib import Path
from server_store.ledger import Ledger, LedgerError
ledger, me = Ledger(Path(sys.argv[1])), sys.argv[2]
sys.stdin.readline()
for round in range(5):
    rid = f"run/1/1/{round}/votes"
    ledger.reserve(rid, "run", 1, 1, round, "votes", terms={}, inputs={}, charges={"north": Fraction(1, 4)})
    try:
        ledger.seal(rid, me * 64, 1)
        print(round)
    except LedgerError as error:
        assert error.code == "CAFE-664", error
"""


def test_eight_processes_reserve_and_seal_the_same_releases(tmp_path: Path) -> None:
    """One charge and one winner for each, and the chain is whole."""
    path = tmp_path / "ledger.db"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), str(number)], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for number in range(8)
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    won = sorted(int(line) for writer in writers for line in writer.communicate(timeout=120)[0].split())
    assert [writer.returncode for writer in writers] == [0] * 8
    assert won == [0, 1, 2, 3, 4]
    ledger = Ledger(path)
    assert len(ledger.charges()) == 5 and {r.state for r in ledger.releases()} == {"sealed"}
    ledger.verify()


def test_threads_share_one_ledger(ledger: Ledger) -> None:
    threads = [threading.Thread(target=reserve, args=(ledger, number)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(r.round for r in ledger.releases()) == list(range(8))
    ledger.verify()
