"""*Privacy ledger* in its states: nothing spent, charges, no noise, a difference, a damaged ledger, unknown addresses."""

from __future__ import annotations

import sqlite3
from fractions import Fraction
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from pipeline import enrolling, federations, ledger_book, ledger_comparison, statement
from pipeline.home import home
from server_store.ledger import Ledger
from server_store.store import Store
from tests import ledgers, plans
from tests.ledgers import RUN
from tests.plans import HOSTILE
from tests.test_enrolling import Site

OTHER = "demo-20260203-040506-beef"


def _page(**query: str) -> AppTest:
    return plans.page("privacy", **query)


def _told(page: AppTest) -> str:
    """All words of the page, with the marks that keep words of people harmless taken away."""
    found = [str(one.value) for kind in ("markdown", "caption", "subheader", "info", "warning", "code", "title") for one in page.get(kind)]
    found += [one.proto.text for one in page.get("progress")]
    return "\n".join(found).replace("\\", "").replace("\u2060", "")


def _links(page: AppTest) -> list[str]:
    return [one.proto.url for one in page.get("link_button")]


def test_nothing_spent_yet(cafe_home: Path) -> None:
    page = _page()
    assert "Nothing was spent yet." in _told(page) and not page.dataframe and _links(page) == []


def test_every_charge_and_every_site(cafe_home: Path) -> None:
    ledgers.server(cafe_home, 4.0)
    ledgers.site(cafe_home, "north", 4.0, limit="max_epsilon = 8.0\n")
    page = _page()
    told = _told(page)
    assert "The chain of hashes over 2 releases is unbroken." in told
    assert [one.value for one in page.metric] == ["4", "4"]
    assert "ε 4 of its own limit 8, both at the site's δ 1e-5." in told and [one.proto.value for one in page.get("progress")] == [50]
    assert "The site's own ledger says the same." in told and "This site has set no limit of its own." in told
    charges = page.dataframe[0].value
    assert list(charges["Round"]) == [2, 1] and set(charges["Sites"]) == {"2: north, south"} and set(charges["State"]) == {"sealed"}
    assert "files/ledger.csv" in _links(page) and "files/site-statement.html?federation=demo&site=north" in _links(page)


def test_the_address_narrows_the_charges(cafe_home: Path) -> None:
    ledgers.server(cafe_home, 4.0)
    ledgers.server(cafe_home, 1.0, run=OTHER, sites=("south",))
    page = _page(run=RUN, site="south")
    assert set(page.dataframe[0].value["Run"]) == {RUN} and len(page.metric) == 1
    assert "Of it in the chosen run: ε 4." in _told(page)
    assert f"files/runs/{RUN}/statement.html" in _links(page) and f"files/ledger.csv?run={RUN}&site=south" in _links(page)
    page.selectbox[0].set_value("all").run()
    assert not page.exception and set(page.dataframe[0].value["Run"]) == {RUN, OTHER} and "run" not in page.query_params


def test_without_noise_there_is_no_guarantee(cafe_home: Path) -> None:
    ledgers.server(cafe_home, None, stage=2)
    page = _page()
    assert not page.metric and "No formal guarantee: 2 releases without noise." in _told(page)
    assert set(page.dataframe[0].value["μ² per site"]) == {"no formal guarantee"}


def test_a_difference_is_a_banner(cafe_home: Path) -> None:
    ledgers.server(cafe_home, 4.0, rounds=(1,))
    ledgers.site(cafe_home, "north", 4.0)
    page = _page()
    assert len(page.warning) == 1
    assert "Site north reports ε 4, this server counted 2.695. The site's figure is used." in _told(page)
    assert [one.value for one in page.metric] == ["4", "2.695"]


def test_an_altered_ledger_is_a_card_and_shows_no_totals(cafe_home: Path) -> None:
    ledgers.server(cafe_home, 4.0)
    with sqlite3.connect(cafe_home / "ledger.db") as db:
        db.execute("DROP TRIGGER entries_no_update")
        db.execute("UPDATE entries SET time = 'never'")
        db.execute("UPDATE entries SET time = '2026-01-01T00:00:00+00:00'")
    page = _page(run=RUN)
    assert "CAFE-666" in _told(page) and not page.metric and len(page.dataframe) == 1
    assert not [one for one in _links(page) if "statement" in one], "nothing is stated from it"


def test_a_file_that_is_no_ledger_is_a_card(cafe_home: Path) -> None:
    (cafe_home / "ledger.db").write_bytes(b"no ledger at all, for a thousand bytes" * 30)
    page = _page()
    assert "CAFE-661" in _told(page) and not page.dataframe


@pytest.mark.parametrize("run", ["nobody", HOSTILE])
def test_an_unknown_run_is_told_and_the_ledger_stays(cafe_home: Path, run: str) -> None:
    ledgers.server(cafe_home, 4.0)
    page = _page(run=run)
    assert "CAFE-655" in _told(page) and len(page.metric) == 2
    page.button[-1].click().run()
    assert "run" not in page.query_params and "CAFE-655" not in _told(page)


def test_a_run_without_charges_says_so(cafe_home: Path) -> None:
    Store(cafe_home / "store.db").create_run("quiet", "demo", cafe_home / "runs" / "quiet")
    ledgers.server(cafe_home, 4.0)
    assert "Run quiet (Queued) has charged nothing so far." in _told(_page(run="quiet"))


def test_names_show_as_typed(cafe_home: Path) -> None:
    ledgers.server(cafe_home, 4.0, sites=(HOSTILE,))
    page = _page()
    raw = "\n".join(str(one.value) for kind in ("markdown", "caption", "warning") for one in page.get(kind))
    assert "<script>" not in raw and "**x**" not in raw and "](http" not in raw and HOSTILE in _told(page)
    assert HOSTILE in page.dataframe[0].value["Sites"][0], "a cell is no Markdown"


def test_many_sites_stand_in_a_table(cafe_home: Path) -> None:
    ledgers.server(cafe_home, 4.0, sites=tuple(f"site{n:02}" for n in range(40)))
    page = _page()
    assert not page.metric and len(page.dataframe) == 2 and len(page.dataframe[0].value) == 40


def _joined(tmp_path: Path) -> str:
    """A site of another machine, which was let in; its kit's serial."""
    made = federations.create("clinics", "classification", "messages to a clinic")
    federations.save("clinics", {**made.data, "task": {**made.data["task"], "labels": ["billing", "records"]}})
    site = Site(enrolling.issue("clinics", "hpc", "gpu"))
    enrolling.receive(site.ask(tmp_path / "request"))
    enrolling.approve(site.info.serial, site.words)
    return site.info.serial


ELSEWHERE = "clinics-20260101-000000-abcd"


def _says(serial: str, charges: int, mu_squared: float) -> None:
    enrolling.store().saw(serial, {"time": 1.0, "charges": charges, "mu_squared": mu_squared})


def _cost(ledger: Ledger) -> float:
    return float(sum((charge.mu2 or Fraction(0) for charge in ledger.charges(site="hpc")), Fraction(0)))


def _on_sites(store: Store, serial: str) -> ledger_comparison.Comparison:
    return ledger_comparison.compare(enrolling.find(serial), Ledger(home() / "ledger.db"), store)


@pytest.mark.parametrize(("charges", "share", "used"), [(2, 1.0, "server"), (3, 1.5, "site"), (1, 0.5, "server"), (0, 0.0, "server")])
def test_of_a_site_elsewhere_the_larger_figure_counts_here_and_on_sites(
    cafe_home: Path, tmp_path: Path, charges: int, share: float, used: str
) -> None:
    serial = _joined(tmp_path)
    ledger = ledgers.server(cafe_home, 4.0, run=ELSEWHERE, sites=("hpc",))
    _says(serial, charges, share * _cost(ledger))
    page, store = _page(), Store(cafe_home / "store.db")
    compared = _on_sites(store, serial)
    assert compared.used == getattr(compared, used) and [one.value for one in page.metric] == [f"{compared.used.epsilon:g}"]
    (total,) = ledger_book.read(store).sites
    assert total.spent == total.at_limit == compared.used.epsilon and (total.spent > 4.0) == (used == "site")
    assert bool(page.warning) == (charges != 2) and ("says the same" in _told(page)) == (charges == 2)
    assert f"ε {compared.used.epsilon:g} of its own limit 3" in _told(page)
    assert total.own_word in statement.site_html("clinics", "hpc").replace("&#x27;", "'")


def test_a_site_elsewhere_that_answered_without_noise_has_no_guarantee(cafe_home: Path, tmp_path: Path) -> None:
    serial = _joined(tmp_path)
    _says(serial, 2, 0.0)  # to a round that was never released
    page = _page()
    assert not page.metric and "No formal guarantee: 2 releases without noise." in _told(page)
    assert "holds 2 answers: no formal guarantee" in _told(page) and "ε 0" not in _told(page).split("Spent per site")[1]
    ledgers.server(cafe_home, None, run=ELSEWHERE, sites=("hpc",), stage=2)
    page = _page()
    assert not page.metric and not page.warning and "the same, by its last answer" in _told(page)


def test_more_answers_at_the_same_cost_had_no_noise(cafe_home: Path, tmp_path: Path) -> None:
    serial = _joined(tmp_path)
    ledger = ledgers.server(cafe_home, 4.0, run=ELSEWHERE, sites=("hpc",))
    _says(serial, 5, _cost(ledger))
    page = _page()
    assert [one.value for one in page.metric] == ["4"] and "3 more without noise: no formal guarantee for these" in _told(page)
    assert "says the same" not in _told(page) and "holds 5 answers: ε 4." in _told(page)


def test_a_site_elsewhere_has_the_limit_that_it_consented_to_and_its_own_figure(cafe_home: Path, tmp_path: Path) -> None:
    made = federations.create("clinics", "classification", "messages to a clinic")
    federations.save("clinics", {**made.data, "task": {**made.data["task"], "labels": ["billing", "records"]}})
    site = Site(enrolling.issue("clinics", "hpc", "gpu"))
    enrolling.receive(site.ask(tmp_path / "request"))
    enrolling.approve(site.info.serial, site.words)
    terms = {"clip_steps": 1, "sigma_steps": 2, "unit": "client", "trust": "server"} | {"mechanism": "gaussian", "grid": 1, "length": 3}
    run = "clinics-20260101-000000-abcd"
    Ledger(cafe_home / "ledger.db").reserve("r1", run, 2, 1, 1, "train", terms=terms, inputs={}, charges={"hpc": Fraction(1, 4)})
    told = _told(_page())
    assert "of its own limit 3, both at the site's δ 1e-5" in told and "has set no limit" not in told and not _page().warning
    enrolling.store().saw(site.info.serial, {"time": 1.0, "charges": 3, "mu_squared": 0.75})
    assert "hpc and this server differ" in _told(_page()) and "The site's figure is used" in _told(_page())
