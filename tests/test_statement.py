"""The printed statement: true to the ledger, one page, everything escaped, nothing fetched; refused where the ledger is damaged."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from cafe_kit.errors import CafeError
from starlette.applications import Starlette
from starlette.testclient import TestClient

from app import downloads
from pipeline import statement
from pipeline.settings import RunSettings, build
from server_store.errors import StoreError
from server_store.store import Store
from tests import ledgers
from tests.browser import chromium
from tests.ledgers import RUN

HOSTILE = "<script>alert(1)</script>**x** :red[y] $z$ [a](http://b)"
HARMLESS = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "h1",
    "h2",
    "p",
    "ul",
    "li",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "span",
}


class Tags(HTMLParser):
    """Every tag and attribute of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def settings(folder: Path, delta: float = 1e-5) -> RunSettings:
    (folder / "test.jsonl").write_text('{"text": "a", "label": "b"}\n')
    data = {
        "name": "demo", "task": {"kind": "classification", "description": "a trial", "labels": ["b", "c"]}, "test": "test.jsonl",
        "sites": [{"name": "north", "kind": "cpu", "data": "n.jsonl"}], "privacy": {"stage1": {"epsilon": 4, "delta": delta}},
    }  # fmt: skip
    return build(data, folder)


def begin(home: Path, delta: float = 1e-5, operator: str = "dana") -> Store:
    """A run that has begun, in the name of ``operator``."""
    store = Store(home / "store.db")
    store.create_run(RUN, "demo", home / "runs" / RUN, operator)
    epoch = store.claim(RUN, 1)
    store.save_step(RUN, epoch, "frozen", None, {"settings": settings(home, delta).model_dump_json(), "base_model": "0" * 64})
    store.finish(RUN, epoch, "Done")
    return store


@pytest.fixture
def store(cafe_home: Path) -> Iterator[Store]:
    opened = begin(cafe_home, operator=HOSTILE)
    yield opened
    opened.close()


def text(page: str) -> str:
    """What a reader reads."""
    body = page.split("<body>")[1]
    return " ".join(re.sub(r"<[^>]+>", " ", body).replace("&#x27;", "'").replace("&lt;", "<").replace("&gt;", ">").split())


def test_a_run_with_both_stages(store: Store, cafe_home: Path) -> None:
    ledger = ledgers.server(cafe_home, 4.0, sites=("north", "south"), answered=("north",))
    ledgers.server(cafe_home, None, sites=("east",), stage=2, rounds=(1, 2, 3))
    told = text(statement.html(RUN))
    assert (
        "The most that a site spent with a guarantee: ε 4 at δ 1e-5, for 2 sites. 1 site took part without noise: no formal guarantee."
        in told
    )
    assert "Stage 1, votes votes for 80 candidate texts 2 2 Gaussian noise of" in told
    assert "Stage 2, training changes of 80 trained numbers 1 3 without noise: no formal guarantee" in told
    assert "north 1 2 2 ε 4 at δ 1e-5" in told and "south 1 2 0 ε 4 at δ 1e-5" in told and "east 2 3 3 no formal guarantee" in told
    assert "unit: client" in told.lower() and "zero-out of one client" in told and "dp-accounting 0." in told
    assert ledger.head() in told and ledger.releases()[-1].hash in told and "unbroken" in told


def test_who_agreed(store: Store, cafe_home: Path) -> None:
    ledgers.server(cafe_home, 4.0)
    store.save_step(RUN, 1, "stage1/1/approval", None, {"approved": False, "reason": HOSTILE, "excluded": []})
    store.save_step(RUN, 1, "stage1/2/approval", None, {"approved": True, "reason": "good", "excluded": [1, 2], "operator": "kim"})
    told = text(statement.html(RUN))
    assert f"The operator {HOSTILE} started the run" in told
    assert "(attempt 1) was rejected by the operator on" in told and f"reason: {HOSTILE}" in told
    assert "(attempt 2) was approved by the operator kim on" in told and "2 texts were left out" in told


def test_words_of_people_are_text_and_nothing_is_fetched(store: Store, cafe_home: Path) -> None:
    ledgers.server(cafe_home, 4.0, sites=(HOSTILE, "north"))
    store.save_step(RUN, 1, "stage1/1/approval", None, {"approved": True, "reason": HOSTILE, "excluded": []})
    page = statement.html(RUN)
    found = Tags(page)
    assert found.tags <= HARMLESS and found.attributes <= {"lang", "charset", "name", "content", "class", "scope"}
    assert "url(" not in page and "@import" not in page and "<script" not in page


def test_nothing_was_released(store: Store) -> None:
    told = text(statement.html(RUN))
    assert "Nothing was released in this run, and nothing was spent." in told and "Nothing left any site" in told


def test_a_reused_set_is_counted_to_the_run_that_uses_it(store: Store, cafe_home: Path) -> None:
    ledgers.server(cafe_home, 4.0, run="demo-20260101-000000-0000")
    facts = {"rows": 3, "source": "demo-20260101-000000-0000", "charged_to": "demo-20260101-000000-0000", "delta": 1e-5}
    store.save_step(RUN, 1, "stage1/1/synthetic", None, facts)
    told = text(statement.html(RUN))
    assert "ε 4 at δ 1e-5, for 2 sites" in told and "The synthetic set was made by run demo-20260101-000000-0000" in told


def test_a_site_over_all_its_runs(store: Store, cafe_home: Path) -> None:
    ledgers.server(cafe_home, 4.0)
    ledgers.server(cafe_home, 1.0, run="demo-20260203-040506-beef")
    ledgers.site(cafe_home, "north", 4.0, limit="max_epsilon = 8.0\n")
    told = text(statement.site_html("demo", "north"))
    assert "Over 2 runs: ε 4" in told and "for 4 releases with noise." in told
    assert "demo-20260203-040506-beef" in told and "ε 1 at δ 1e-5" in told and "its own limit 8" in told
    assert "Site north reports ε 4, this server counted" in told
    assert "agrees with this server" not in told
    assert "not on this machine" in text(statement.site_html("demo", "south"))
    with pytest.raises(CafeError, match="CAFE-660"):
        statement.site_html("demo", "nobody")


def test_nothing_is_stated_from_a_damaged_ledger(store: Store, cafe_home: Path) -> None:
    ledgers.server(cafe_home, 4.0)
    with sqlite3.connect(cafe_home / "ledger.db") as db:
        db.execute("DROP TRIGGER charges_no_update")
        db.execute("UPDATE charges SET mu2_numerator = 1")
    for make in (lambda: statement.html(RUN), lambda: statement.site_html("demo", "north")):
        with pytest.raises(StoreError, match="CAFE-666"):
            make()


def test_the_addresses(store: Store, cafe_home: Path) -> None:
    ledgers.server(cafe_home, 4.0)
    client = TestClient(Starlette(routes=downloads.routes("")), base_url="http://127.0.0.1:8501")
    for address in (downloads.url(RUN, "statement.html"), downloads.house_url("site-statement.html", federation="demo", site="north")):
        answer = client.get("/" + address)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert client.get("/files/runs/nobody/statement.html").status_code == 404
    assert client.get("/files/site-statement.html?federation=..&site=..").status_code == 404


@pytest.mark.system
@pytest.mark.parametrize("sites", [2, 60])
def test_it_prints_on_one_page(store: Store, cafe_home: Path, sites: int) -> None:
    names = tuple(f"hospital-number-{n}" for n in range(sites))
    ledgers.server(cafe_home, 4.0, sites=names)
    ledgers.server(cafe_home, None, sites=names[:2], stage=2)
    for attempt in (1, 2):
        store.save_step(RUN, 1, f"stage1/{attempt}/approval", None, {"approved": attempt == 2, "reason": "r" * 200, "excluded": []})
    with chromium() as browser:
        page = browser.new_page()
        page.set_content(statement.html(RUN))
        printed = page.pdf(prefer_css_page_size=True)
    assert len(re.findall(rb"/Type\s*/Page\b(?!s)", printed)) == 1
