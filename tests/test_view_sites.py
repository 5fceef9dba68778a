"""*Sites* in its states: no federation, no site, never asked, running, refused and late, hostile names; checks and columns."""

from __future__ import annotations

import gzip
import os
import shutil
import sqlite3
from fractions import Fraction
from pathlib import Path

import pyarrow
import pytest
from cafe_kit.errors import CafeError
from pyarrow import parquet
from streamlit.testing.v1 import AppTest

from pipeline import federations, launch, site_history
from pipeline.demo import write
from pipeline.federations import Federation as Draft
from server_store.ledger import Ledger
from server_store.rows import OrderRow
from tests.federation import ROOT

HOSTILE = "<script>alert(1)</script>**x** :red[y] $z$ [a](http://b)"
TERMS = {"clip_steps": 1, "sigma_steps": 2, "unit": "client", "trust": "server"}


@pytest.fixture
def demo(cafe_home: Path, monkeypatch: pytest.MonkeyPatch) -> Draft:
    """The demo's records and settings, each site with its data file on this machine."""
    monkeypatch.setattr(launch, "spawn", lambda run: None)
    folder = federations.create("demo", "classification", "messages").folder
    write(folder).replace(folder / federations.FILE)
    return federations.get("demo")


def _page(**query: str) -> AppTest:
    page = AppTest.from_file(str(ROOT / "app" / "pages.py"), default_timeout=30).run()
    page.switch_page("views/sites.py")
    for key, value in query.items():
        page.query_params[key] = value
    page.run()
    assert not page.exception, page.exception
    return page


def _told(page: AppTest) -> str:
    return "\n".join(str(one.value) for kind in ("markdown", "caption", "subheader", "info", "code") for one in page.get(kind))


def _order(site: str, number: int, kind: str = "vote") -> OrderRow:
    stage = 1 if kind == "vote" else 2
    return OrderRow(f"{site}-{number}", site, stage, 1, number, kind, "sent", None, "", "", {}, 0.0, None)


def test_without_a_federation_it_says_where_to_begin(cafe_home: Path) -> None:
    page = _page()
    assert "There is no federation yet" in _told(page) and not page.dataframe


def test_without_sites_it_asks_for_the_first(cafe_home: Path) -> None:
    federations.create("library", "instruction", "help desk")
    page = _page()
    assert "No sites yet" in _told(page) and "person at the site" in _told(page)
    assert [one.label for one in page.button if one.proto.type == "primary"] == ["Add a site"]


def test_before_any_run_sites_have_records_and_no_history(demo: Draft) -> None:
    page = _page(site="oakdale")
    table = page.dataframe[0].value
    assert list(table["Records"])[:3] == ["110", "90", "140"] and set(table["State"]) == {"not asked yet"}
    assert set(table["Privacy spent"]) == {"nothing"} and list(table["Kind"]).count("GPU") == 2
    assert "not asked for anything yet" in _told(page) and "It has sent nothing yet" in _told(page)


def test_large_files_are_counted_when_asked_for(demo: Draft) -> None:
    file = demo.folder / "oakdale.jsonl"
    row = '{"text": "' + "a" * 4000 + '", "department": "billing"}\n'
    label = next(iter((demo.folder / "labels.txt").read_text().split("\n")))
    file.write_text(row.replace("billing", label) * 300)
    page = _page()
    assert "not counted" in list(page.dataframe[0].value["Records"])
    page.button(key="count").click().run()
    assert not page.exception and "300" in list(page.dataframe[0].value["Records"])


def test_what_a_site_did_sent_and_spent(demo: Draft, cafe_home: Path) -> None:
    run, store = launch.start(demo.settings()), launch.store()
    epoch = store.claim(run.id, os.getpid())
    for number in (1, 2, 3):
        store.order_sent(run.id, epoch, _order("oakdale", number))
    store.order_ended(run.id, epoch, "oakdale-1", "answered", body="0" * 64, numbers={"seconds_work": 3.0})
    store.order_ended(run.id, epoch, "oakdale-2", "refused", code="CAFE-313", sentence="This answer would exceed the limit.")
    store.order_ended(run.id, epoch, "oakdale-3", "late")
    store.finish(run.id, epoch, "Stopped")
    ledger = Ledger(cafe_home / "ledger.db")
    ledger.reserve("r1", run.id, 1, 1, 1, "votes", terms=TERMS, inputs={}, charges={"oakdale": Fraction(1, 4), "lakeview": None})
    folder = cafe_home / "sites" / "demo" / "oakdale"
    (folder / "outbox" / "oakdale-1").mkdir(parents=True)
    (folder / "outbox" / "oakdale-1" / "reply.json").write_text('{"reply": {"outputs": {"body": {"sha256": "0", "size": 760}}}}')
    (folder / "policy.toml").write_text("max_epsilon = 2.5\ndelta = 1e-6\n")
    page = _page(site="oakdale")
    table = page.dataframe[0].value.set_index("Site")
    assert table.loc["oakdale", "State"] == "late (stage 1, vote 3)" and table.loc["oakdale", "Its own limit"] == "ε 2.5 at δ 1e-6"
    assert table.loc["oakdale", "Privacy spent"].startswith("ε ") and table.loc["lakeview", "Privacy spent"] == "no formal guarantee"
    assert {one.label: one.value for one in page.metric} == {
        "Answered": "1", "Refused": "1", "Failed": "0", "Late": "1", "Time at work": "3 s", "Sent": "760 B",
    }  # fmt: skip
    told = _told(page)
    assert (
        "CAFE-313" in told
        and "counted votes" in page.dataframe[2].value["Answers"][0]
        and "2 × clip" in page.dataframe[3].value["Noise"][0]
    )


def test_charges_outlive_their_run(demo: Draft, cafe_home: Path) -> None:
    run = launch.start(demo.settings())
    Ledger(cafe_home / "ledger.db").reserve("r1", run.id, 1, 1, 1, "votes", terms=TERMS, inputs={}, charges={"oakdale": Fraction(1, 4)})
    Ledger(cafe_home / "ledger.db").reserve(
        "r2", "demo2-20260101-000000-abcd", 1, 1, 1, "votes", terms=TERMS, inputs={}, charges={"oakdale": None}
    )
    launch.store().abandon(run.id)
    launch.clean(run.id)
    assert [charge.rid for charge in site_history.of(launch.store(), demo)["oakdale"].charges] == ["r1"]


def test_running_says_what_each_site_does_now(demo: Draft) -> None:
    run, store = launch.start(demo.settings()), launch.store()
    epoch = store.claim(run.id, os.getpid())
    store.set_state(run.id, epoch, "Running")
    store.set_site_progress(run.id, "oakdale", "vote", 5, 10)
    states = _page().dataframe[0].value.set_index("Site")["State"]
    assert states["oakdale"] == "vote, 5 of 10" and states["lakeview"] == "not asked yet"


def test_a_file_that_is_gone_is_a_code_and_a_card(demo: Draft) -> None:
    (demo.folder / "oakdale.jsonl").unlink()
    page = _page(site="oakdale")
    assert "CAFE-201" in list(page.dataframe[0].value["Records"]) and "CAFE-201" in _told(page)


def test_before_the_task_has_labels_a_site_may_be_added_and_is_not_counted(cafe_home: Path, tmp_path: Path) -> None:
    draft, data = federations.create("clinic", "classification", "messages"), tmp_path / "north.csv"
    data.write_text("text,label\nhello,a\nbye,b\n")
    site = {"name": "north", "kind": "cpu", "data": str(data)}
    assert federations.check_site(draft, site).early
    federations.add_site("clinic", site)
    page = _page(site="north")
    assert list(page.dataframe[0].value["Records"]) == ["not counted"] and "labels belong on Generate" in _told(page)
    assert "CAFE-" not in _told(page)


def test_an_unknown_site_is_told(demo: Draft) -> None:
    page = _page(site=HOSTILE)
    assert "There is no site" in page.info[0].value and HOSTILE not in page.info[0].value and len(page.dataframe) == 1


def test_names_that_people_wrote_show_as_typed(demo: Draft) -> None:
    shutil.move(demo.folder / "oakdale.jsonl", demo.folder / "a**b**[c](d).jsonl")
    sites = [{**one, "data": "a**b**[c](d).jsonl"} if one["name"] == "oakdale" else one for one in demo.data["sites"]]
    federations.save("demo", {**demo.data, "sites": sites})
    page = _page(site="oakdale")
    assert "a**b**[c](d).jsonl" in [one.value for one in page.code]


def test_columns_by_name_and_never_a_value(demo: Draft, tmp_path: Path) -> None:
    files = {
        "a.csv": b"message,department\nI am ill,billing\n",
        "no-header.csv": b"I am ill and cannot come in on Monday,billing\nx,y\n",
        "b.jsonl": b'{"Text": "a", "class": "b"}\n',
        "c.csv.gz": gzip.compress(b"body,label\na,b\n"),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    parquet.write_table(pyarrow.table({"note": ["a"], "topic": ["b"]}), tmp_path / "d.parquet")
    found = {name: federations.columns(demo, str(tmp_path / name)) for name in [*files, "d.parquet"]}
    assert found == {
        "a.csv": ["message", "department"], "no-header.csv": [], "b.jsonl": ["Text", "class"], "c.csv.gz": ["body", "label"],
        "d.parquet": ["note", "topic"],
    }  # fmt: skip
    assert federations.guess_columns(demo, found["a.csv"]) == {"text": "message", "label": "department"}
    assert federations.guess_columns(demo, found["b.jsonl"]) == {"text": "Text", "label": "class"}
    assert federations.guess_columns(demo, []) == {"text": "", "label": ""}
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    for name, code in (("gone.csv", "CAFE-201"), ("bad.parquet", "CAFE-218")):
        with pytest.raises(CafeError) as refused:
            federations.columns(demo, str(tmp_path / name))
        assert refused.value.code == code


def test_the_delta_in_force_is_the_largest_that_is_named() -> None:
    assert (
        site_history.delta_in_force({"privacy": {"stage1": {"epsilon": 8, "delta": 1e-6}, "stage2": {"epsilon": 1, "delta": 1e-4}}}) == 1e-4
    )
    assert site_history.delta_in_force({"privacy": {"epsilon": 1, "delta": 1e-7}}) == 1e-7
    assert site_history.delta_in_force({"privacy": "off"}) == site_history.delta_in_force({}) == 1e-5


def test_a_store_of_another_federation_is_not_mixed_in(demo: Draft, cafe_home: Path) -> None:
    run, store = launch.start(demo.settings()), launch.store()
    epoch = store.claim(run.id, os.getpid())
    store.order_sent(run.id, epoch, _order("oakdale", 1))
    with sqlite3.connect(cafe_home / "store.db") as rows:
        rows.execute("UPDATE runs SET name='other'")
    assert site_history.of(launch.store(), demo)["oakdale"].orders == ()
