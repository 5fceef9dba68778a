"""The ledger as people read it: totals equal the accountant's, differences between site and server show, damage is told."""

from __future__ import annotations

import csv
import io
import json
import math
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from app import downloads
from pipeline import ledger_book, ledger_export
from pipeline.accounting import epsilon_spent
from server_store import chain
from server_store.errors import StoreError
from server_store.ledger import Ledger
from server_store.store import Store
from tests import ledgers
from tests.ledgers import RUN


@pytest.fixture
def store(cafe_home: Path) -> Iterator[Store]:
    opened = Store(cafe_home / "store.db")
    yield opened
    opened.close()


def total(store: Store, site: str = "north", **asked: object) -> ledger_book.SiteTotal:
    return next(one for one in ledger_book.read(store, **asked).sites if one.site == site)  # type: ignore[arg-type]


def independent(mu2: float, delta: float) -> float:
    """Epsilon of Gaussian releases by the published formula in plain floating point: a second opinion on the accountant."""
    phi, mu = NormalDist().cdf, math.sqrt(mu2)
    low, high = 0.0, 50.0
    for _ in range(100):
        middle = (low + high) / 2
        over = phi(mu / 2 - middle / mu) - math.exp(middle) * phi(-mu / 2 - middle / mu) > delta
        low, high = (middle, high) if over else (low, middle)
    return high


def test_nothing_spent_makes_no_ledger(store: Store, cafe_home: Path) -> None:
    book = ledger_book.read(store)
    assert (book.entries, book.sites, book.problem, book.delta) == ((), (), None, 1e-5)
    assert not (cafe_home / "ledger.db").exists()


def test_totals_are_the_accountants(store: Store, cafe_home: Path) -> None:
    ledgers.server(cafe_home, 4.0)
    other = "demo-20260203-040506-beef"
    ledger = ledgers.server(cafe_home, 1.0, run=other)
    found = total(store, run=other)
    assert found.federation == "demo", "also of runs that the store does not know any more"
    assert found.counted == found.spent == epsilon_spent(ledger.charges(site="north"), 1e-5)
    together = float(sum(charge.mu2 or 0 for charge in ledger.charges(site="north")))
    assert found.counted == pytest.approx(independent(together, 1e-5), rel=1e-3)
    assert found.this_run == 1.0, "calibrated to 1 at 1e-5, told to four digits and rounded up"
    assert 4.0 < found.spent < 5.0, "events add up, epsilons do not"
    assert (found.releases, found.runs, found.without_noise) == (4, 2, 0)
    at_other = total(store, delta=1e-3)
    assert at_other.counted == epsilon_spent(ledger.charges(site="north"), 1e-3) < found.counted


def test_what_one_site_spent_is_not_anothers(store: Store, cafe_home: Path) -> None:
    ledgers.server(cafe_home, 2.0, sites=("north",))
    ledgers.server(cafe_home, None, sites=("east",), stage=2)
    north, east = total(store), total(store, "east")
    assert north.spent == 2.0 and north.guaranteed
    assert east.spent == 0.0 and not east.guaranteed and east.sentence == "no formal guarantee: 2 releases without noise."


def test_a_limit_is_compared_at_its_own_delta(store: Store, cafe_home: Path) -> None:
    ledgers.server(cafe_home, 4.0)
    ledgers.site(cafe_home, "north", 4.0, limit="max_epsilon = 8.0\ndelta = 1e-3\n")
    found = total(store)
    assert found.limit == 8.0 and found.share == found.at_limit / 8.0 < 0.5
    assert found.at_limit < found.spent, "a larger delta is a smaller epsilon for the same charges"
    assert "its own limit 8" in found.limit_sentence and "δ 0.001" in found.limit_sentence
    assert total(store, "south").share is None, "no limit, no bar"


def test_a_planted_difference_shows_and_the_larger_figure_is_used(store: Store, cafe_home: Path) -> None:
    ledgers.server(cafe_home, 4.0, rounds=(1,))
    ledgers.site(cafe_home, "north", 4.0, rounds=(1, 2))
    ledgers.site(cafe_home, "south", 4.0, rounds=())
    north, south = total(store), total(store, "south")
    assert (north.only_site, north.only_server) == (1, 0) and north.reported == north.spent == 4.0
    assert f"Site north reports ε 4, this server counted {north.counted:g}. The site's figure is used." in north.difference
    assert (south.only_site, south.only_server) == (0, 1) and south.spent == south.counted > 0
    assert f"Site south reports ε 0, this server counted {south.counted:g}. This server's figure is used" in south.difference


def test_agreement_says_nothing(store: Store, cafe_home: Path) -> None:
    ledgers.server(cafe_home, 4.0)
    ledgers.site(cafe_home, "north", 4.0)
    assert total(store).difference == "" and total(store).reported == total(store).counted == 4.0
    assert total(store, "south").reported is None, "a site elsewhere has not reported"


def test_a_run_under_way_is_no_difference_yet(store: Store, cafe_home: Path) -> None:
    store.create_run(RUN, "demo", cafe_home)
    ledgers.server(cafe_home, 4.0, rounds=(1,))
    ledgers.site(cafe_home, "north", 4.0, rounds=(1, 2))
    assert total(store).difference == "" and total(store).spent == 4.0


def test_a_site_that_this_server_never_charged_is_named(store: Store, cafe_home: Path) -> None:
    ledgers.site(cafe_home, "west", 4.0)
    west = total(store, "west")
    assert (west.spent, west.only_site) == (4.0, 2) and "The site's figure is used." in west.difference


def test_a_sites_broken_ledger_is_its_own_problem(store: Store, cafe_home: Path) -> None:
    ledgers.server(cafe_home, 4.0)
    ledgers.site(cafe_home, "north", 4.0)
    (cafe_home / "sites/demo/north/ledger/00000001.json").write_text("{}")
    found = total(store)
    assert found.problem is not None and found.problem.code == "CAFE-318" and found.counted == found.spent == 4.0


def test_looking_makes_neither_limits_nor_ledgers(store: Store, cafe_home: Path) -> None:
    ledgers.server(cafe_home, 4.0)
    ledger_book.read(store)
    assert not list((cafe_home / "sites").rglob("*"))


def test_an_altered_ledger_is_told_and_nothing_is_computed_from_it(store: Store, cafe_home: Path) -> None:
    ledgers.server(cafe_home, 4.0)
    with sqlite3.connect(cafe_home / "ledger.db") as db:
        db.execute("DROP TRIGGER charges_no_update")
        db.execute("UPDATE charges SET mu2_numerator = 1")
    book = ledger_book.read(store)
    assert book.problem is not None and book.problem.code == "CAFE-666"
    assert book.sites == () and len(book.entries) == 2


@pytest.mark.parametrize("at", [0, 4096])
def test_a_damaged_file_is_told_by_its_code(store: Store, cafe_home: Path, at: int) -> None:
    ledgers.server(cafe_home, 4.0)
    whole = (cafe_home / "ledger.db").read_bytes()
    (cafe_home / "ledger.db").write_bytes(whole[:at] + b"\xff" * (len(whole) - at))
    with pytest.raises(StoreError, match=r"CAFE-66[18]"):
        ledger_book.read(store)


def test_words(store: Store, cafe_home: Path) -> None:
    ledger = ledgers.server(cafe_home, 4.0, rounds=(1,), seal=False)
    ledgers.server(cafe_home, None, stage=2, rounds=(1,))
    votes, deltas = ledger_book.read(store).entries
    assert votes.what == "votes for 80 candidate texts" and deltas.what == "changes of 80 trained numbers"
    assert "clip 1 (L2), grid 1/65536, added by the server" in votes.noise and deltas.noise == "without noise: no formal guarantee"
    assert votes.release.state == "reserved" and votes.mu2 == ledger.charges()[0].mu2 and deltas.mu2 is None
    assert ledger_book.highest(ledger.charges(), {}) == "ε 2.695 (stage 2: no formal guarantee)"
    assert ledger_book.highest(ledger.charges(stage=2), {}) == "no formal guarantee" and ledger_book.highest([], {}) == "nothing spent"


# --- the export ------------------------------------------------------------------------------------------------------


def test_the_csv_has_a_row_for_each_site_of_a_release(store: Store, cafe_home: Path) -> None:
    ledger = ledgers.server(cafe_home, 4.0, answered=("north",))
    ledgers.server(cafe_home, None, run="=1+1", stage=2, rounds=(1,))
    rows = list(csv.DictReader(io.StringIO(ledger_export.to_csv(ledger_book.read(store)))))
    assert len(rows) == 6 and [row["site"] for row in rows[:2]] == ["north", "south"]
    assert [row["answered"] for row in rows[:2]] == ["True", "False"]
    assert rows[0]["mu_squared"] == chain.as_text(ledger.charges()[0].mu2) and rows[-1]["mu_squared"] == ""
    assert rows[-1]["run"] == "'=1+1", "no cell is a formula"
    assert len(ledger_export.to_csv(ledger_book.read(store), run=RUN, site="south").splitlines()) == 3


def test_the_json_is_enough_to_recompute_the_chain(store: Store, cafe_home: Path) -> None:
    ledger = ledgers.server(cafe_home, 4.0)
    ledgers.server(cafe_home, None, stage=2)
    told = json.loads(ledger_export.to_json(ledger_book.read(store)))
    previous = chain.GENESIS
    for entry in told["entries"]:
        covered = [entry.get(key) for key in told["hash_covers"]]
        assert entry["prev"] == previous and chain.entry_hash(*covered) == entry["hash"]
        previous = entry["hash"]
    assert previous == told["head"] == ledger.head() and told["chain"] == "unbroken"


def test_the_addresses_of_the_export(store: Store, cafe_home: Path) -> None:
    client = TestClient(Starlette(routes=downloads.routes("")), base_url="http://127.0.0.1:8501")
    assert client.get("/files/ledger.csv").text.count("\n") == 1, "only the head line before anything was spent"
    ledgers.server(cafe_home, 4.0)
    answer = client.get("/" + downloads.house_url("ledger.csv", run=RUN, site="south"))
    assert answer.status_code == 200 and answer.headers["content-disposition"] == 'attachment; filename="ledger.csv"'
    assert answer.headers["content-type"].startswith("text/csv") and answer.text.count("\n") == 3
    assert json.loads(client.get("/files/ledger.json").text)["head"] == Ledger(cafe_home / "ledger.db").head()
    assert client.get("/files/ledger.csv", headers={"host": "evil.example"}).status_code == 403
