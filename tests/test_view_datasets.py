"""*Datasets* in its states: nothing, being made, waiting, approved, rejected, used again; and the operator's word, to its end."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from pathlib import Path

import pytest
from cafe_kit.task import Record
from cafe_kit.vote import candidates_from_bytes, candidates_to_bytes
from streamlit.testing.v1 import AppTest

from app import widgets
from pipeline import approval, datasets, launch
from server_store.blobs import Blobs
from server_store.desk import Desk
from tests.federation import ROOT, Federation

HOSTILE = "<script>alert(1)</script>**x** :red[y] $z$ [a](http://b)"
PRIVATE = {"stage1": {"epsilon": 8, "delta": 1e-5}, "stage2": "off", "accept_noise": True}
Home = tuple[Path, str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """A private run whose set waits for a word; labels and description are hostile."""
    tiny = Federation(
        tmp_path_factory.mktemp("datasets") / "f",
        task={"description": HOSTILE},
        privacy=PRIVATE,
        stage1={"approve": "operator", "synthetic_per_label": 30},
        stage2={"rounds": 1},
    )
    assert tiny.work(tiny.create()) == 0
    return tiny


@pytest.fixture
def waiting(made: Federation, cafe_home: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A copy of it in this test's own home; workers that the page starts are tiny, too."""
    shutil.copytree(made.home, cafe_home, dirs_exist_ok=True)
    _change(cafe_home, "UPDATE runs SET folder=replace(folder, ?, ?)", str(made.home), str(cafe_home))
    for name in ("CAFE_MODELS", "CAFE_KIT_ENGINE", "PYTHONPATH"):
        monkeypatch.setenv(name, made.environment[name])
    return cafe_home, made.store.runs()[0].id


@pytest.fixture
def idle(waiting: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """The same where no worker is started."""
    monkeypatch.setattr(launch, "spawn", lambda run: None)
    return waiting


def _change(home: Path, sql: str, *values: object) -> None:
    with sqlite3.connect(home / "store.db") as rows:
        rows.execute(sql, values)


def _rewrite(home: Path, run: str, change: dict[int, Record]) -> None:
    """Other rows in the run's set."""
    folder = Path(Desk(home / "store.db").run(run).folder)
    blobs, step = Blobs(folder / "blobs"), Desk(home / "store.db").step(run, "stage1/1/synthetic")
    assert step and step.sha256
    rows = [change.get(number, row) for number, row in enumerate(candidates_from_bytes(blobs.get(step.sha256)))]
    _change(home, "UPDATE steps SET sha256=? WHERE run=? AND name='stage1/1/synthetic'", blobs.put(candidates_to_bytes(rows)), run)


def _page(**query: str) -> AppTest:
    page = AppTest.from_file(str(ROOT / "app" / "pages.py"), default_timeout=60)
    page.switch_page("views/datasets.py")
    for key, value in query.items():
        page.query_params[key] = value
    return _sound(page.run())


def _sound(page: AppTest) -> AppTest:
    assert not page.exception, page.exception
    return page


def _told(page: AppTest) -> str:
    kinds = ("title", "subheader", "markdown", "caption", "text", "info", "warning", "code")
    return "\n".join(str(one.value) for kind in kinds for one in page.get(kind))


def _button(page: AppTest, key: str) -> object:
    return next(one for one in page.button if one.key == key)


def _keys(page: AppTest) -> list[str]:
    return [str(one.key) for one in (*page.button, *page.checkbox)]


# States


def test_nothing_yet_says_what_leads_to_one(cafe_home: Path) -> None:
    page = _page()
    assert "No synthetic set yet" in _told(page) and not page.dataframe


def test_a_set_that_waits_is_shown_with_its_choice(idle: Home) -> None:
    page = _page()
    told, listed = _told(page), page.dataframe[0].value
    assert list(listed["State"]) == ["Waiting for approval"] and list(listed["Privacy spent"]) == ["ε 8 per site, δ = 1e-5"]
    assert "stage 2 starts" in told and "no formal guarantee" in told and "1 to 25 of" in told
    assert {"approve", "reject"} <= set(_keys(page)) and len(page.checkbox) == 25


def test_being_made_tells_the_vote(idle: Home) -> None:
    home, run = idle
    _change(home, "DELETE FROM steps WHERE name IN ('stage1/1/synthetic', 'stage2/1/0/score')")
    _change(home, "UPDATE runs SET state='Running', pid=1, heartbeat=?", time.time())
    _change(home, "INSERT OR REPLACE INTO progress VALUES (?, ?, 1, 3, ?, ?)", run, "stage 1: vote 2 of 3", time.time(), time.time())
    for page in (_page(), _page(run=run)):
        told = _told(page)
        assert "a set is being made" in told and "No synthetic set yet" not in told and "approve" not in _keys(page)
        assert any("Vote 2 of 3" in str(one.proto) for one in page.get("progress"))


def test_a_set_that_is_scored_cannot_be_decided_on(idle: Home) -> None:
    home, run = idle
    _change(home, "UPDATE runs SET state='Running', pid=1, heartbeat=?", time.time())
    page = _page(run=run)
    assert "is scored now" in _told(page) and "approve" not in _keys(page) and not page.checkbox


def test_lost_contact_is_said(idle: Home) -> None:
    home, run = idle
    _change(home, "UPDATE runs SET state='Running', pid=1, heartbeat=1")
    page = _page(run=run)
    assert "Lost contact" in str(page.get("page_link")[-1].proto) and "approve" not in _keys(page)


def test_every_tab(idle: Home) -> None:
    run = idle[1]
    use = _told(page := _page(run=run, dataset_tab="Usefulness"))
    assert "9 public test records" in use and [one.label for one in page.metric][:2] == ["Base model", "After training on the set"]
    assert "Rows per label: 2 to 30 over 3 labels." in use and not page.checkbox
    privacy = _told(_page(run=run, dataset_tab="Privacy"))
    for part in ("ε = 8", "client", "zero-out of one client", "the server adds it once", "Not covered", "nothing private is compared"):
        assert part in privacy
    assert "## How it was made" in _told(_page(run=run, dataset_tab="Card"))
    files = _page(run=run, dataset_tab="Files")
    links = [one.proto.url for one in files.get("link_button")]
    assert links == [f"files/runs/{run}/dataset.{what}?attempt=1" for what in ("zip", "parquet", "jsonl")]
    assert list(files.dataframe[-1].value["File"]) == ["train.parquet", "train.jsonl", "README.md"]


def test_an_unknown_run_and_attempt_are_told_and_the_list_stays(idle: Home) -> None:
    run = idle[1]
    assert "CAFE-655" in _told(_page(run="nobody-1"))
    for attempt in ("7", HOSTILE):
        assert "CAFE-660" in _told(_page(run=run, attempt=attempt))


def test_a_damaged_set_is_a_card_and_not_a_traceback(idle: Home) -> None:
    home, run = idle
    desk = Desk(home / "store.db")
    Blobs(Path(desk.run(run).folder) / "blobs").path(datasets.listed(desk)[0].sha256).write_bytes(b"other\n")
    assert "CAFE-653" in _told(_page(run=run))


# Rows


def test_hostile_rows_show_as_typed(idle: Home) -> None:
    home, run = idle
    _rewrite(home, run, {0: Record(HOSTILE, "billing"), 1: Record(HOSTILE.upper(), "billing"), 2: Record("$x$ `y`", HOSTILE)})
    page = _page(run=run)
    assert [one.value for one in page.text if "script" in one.value] == [HOSTILE]  # as a text element, which reads no Markdown
    markdown = "\n".join(str(one.value) for kind in ("markdown", "caption", "info", "subheader") for one in page.get(kind))
    assert "<script>" not in markdown, [line for line in markdown.splitlines() if "script" in line]
    assert widgets.plain(HOSTILE) in markdown  # a label
    repeats = _page(run=run, dataset_tab="Usefulness")
    assert HOSTILE in list(repeats.dataframe[-1].value["Text"]) and "<script>" not in "\n".join(str(one.value) for one in repeats.markdown)


def test_search_filter_and_pages(idle: Home) -> None:
    home, run = idle
    _rewrite(home, run, {0: Record("a very singular text", "billing"), 24: Record("A very singular text!", "billing")})
    page = _page(run=run)
    page.text_input[0].set_value("SINGULAR")
    _sound(page.run())
    assert [one.value for one in page.text if "singular" in one.value] == ["a very singular text"] or "1 to 2 of 2" in _told(page)
    page.text_input[0].set_value("nothing like it")
    assert "No row is like that." in _told(_sound(page.run()))
    page.text_input[0].set_value("")
    page.selectbox[0].set_value("travel")
    _sound(page.run())
    assert all("travel" in one.value for one in page.caption if one.value.startswith("Row ")) and "Row " in _told(page)


def test_rows_are_ticked_and_stay_ticked_in_another_tab(idle: Home) -> None:
    home, run = idle
    page = _page(run=run)
    page.checkbox[3].check()
    _sound(page.run())
    assert Desk(home / "store.db").excluded(run, 1) == {3} and "1 left out" in _told(page)
    other = _page(run=run)
    assert [one.value for one in other.checkbox[:5]] == [False, False, False, True, False]
    other.checkbox[3].uncheck()
    _sound(other.run())
    assert Desk(home / "store.db").excluded(run, 1) == set()
    assert not _sound(page.run()).checkbox[3].value  # the store counts, not what this tab had ticked


def test_a_tick_that_comes_after_the_word_changes_nothing(idle: Home) -> None:
    home, run = idle
    page = _page(run=run)
    approval.decide(datasets.listed(Desk(home / "store.db"))[0], True, "", "dana")
    page.checkbox[3].check()
    _sound(page.run())
    assert Desk(home / "store.db").excluded(run, 1) == set() and "approved already" in _told(page)


def test_repeats_are_left_out_at_once(idle: Home) -> None:
    home, run = idle
    _rewrite(
        home, run, {4: Record("Say it again", "billing"), 7: Record("say it AGAIN!", "billing"), 9: Record("say it again.", "billing")}
    )
    page = _page(run=run)
    next(one for one in page.selectbox if one.label == "Show").set_value("Repeats")
    _sound(page.run())
    assert len(page.checkbox) == 2
    _sound(_button(page, "leave all").click().run())  # type: ignore[attr-defined]
    assert Desk(home / "store.db").excluded(run, 1) == {7, 9}


def test_a_label_without_a_row_is_warned_of_and_an_empty_set_not_approved(idle: Home) -> None:
    home, run = idle
    desk = Desk(home / "store.db")
    one = datasets.listed(desk)[0]
    approval.leave_out(desk, run, 1, [row for row in range(one.size) if one.rows[row].answer == "travel"])
    assert "No row is left for: travel" in _told(_page(run=run))
    approval.leave_out(desk, run, 1, range(one.size))
    page = _page(run=run)
    assert _button(page, "approve").disabled  # type: ignore[attr-defined]


# The word


def test_a_reject_asks_for_a_reason_and_the_name_and_says_what_it_costs(idle: Home) -> None:
    home, run = idle
    page = _page(run=run)
    _sound(_button(page, "reject").click().run())  # type: ignore[attr-defined]
    assert widgets.plain("asks every one of the 3 sites to spend again: ε 8 → about 1") in _told(page)
    assert _button(page, "reject now").disabled  # type: ignore[attr-defined]
    page.text_area[0].set_value(HOSTILE)
    page.text_input(key="reject name").set_value("tin")
    assert _button(_sound(page.run()), "reject now").disabled  # type: ignore[attr-defined]
    assert datasets.listed(Desk(home / "store.db"))[0].state == datasets.WAITING
    page.text_input(key="reject name").set_value("tiny")
    assert not _button(_sound(page.run()), "reject now").disabled  # type: ignore[attr-defined]
    _sound(_button(page, "reject now").click().run())  # type: ignore[attr-defined]
    one = datasets.listed(Desk(home / "store.db"))[0]
    assert one.state == datasets.REJECTED and one.told.endswith(f": {HOSTILE}")
    assert any(HOSTILE in text.value for text in page.text) and "<script>" not in "\n".join(str(one.value) for one in page.markdown)
    assert "Attempt 2 starts" in _told(page) and "attempt 2: a set is being made" in _told(page)


def test_a_second_operator_is_told_of_the_first(idle: Home) -> None:
    home, run = idle
    mine, its = _page(run=run), _page(run=run)
    _sound(_button(mine, "approve").click().run())  # type: ignore[attr-defined]
    _sound(_button(its, "approve").click().run())  # type: ignore[attr-defined]
    told = "\n".join(str(one.value) for one in its.info)
    assert "Your word came second" in told and "approved by" in told
    assert len([step for step in Desk(home / "store.db").steps(run, "stage1/") if step.name.endswith("/approval")]) == 1


@pytest.mark.runs
def test_rejected_then_made_again_and_approved_to_the_adapter(waiting: Home) -> None:
    """By clicks: a reject, the second attempt by a real worker, its approval, the adapter."""
    home, run = waiting
    page = _page(run=run)
    _sound(_button(page, "reject").click().run())  # type: ignore[attr-defined]
    page.text_area[0].set_value("reads like nonsense")
    page.text_input(key="reject name").set_value("tiny")
    _sound(page.run())
    _sound(_button(page, "reject now").click().run())  # type: ignore[attr-defined]
    assert _until(home, run) == "Stopped"
    second = _page()  # without an address the one that waits
    assert list(second.dataframe[0].value["State"]) == ["Waiting for approval", "Rejected"]
    assert "tiny, attempt 2" in _told(second) and "least" not in _told(second)
    assert "reads like nonsense" in _told(_page(run=run, attempt="1"))  # the old one stays readable
    second.checkbox[0].check()
    _sound(second.run())
    _sound(_button(second, "approve").click().run())  # type: ignore[attr-defined]
    assert _until(home, run) == "Done"
    page = _page(run=run, attempt="2", dataset_tab="Usefulness")
    assert "Approved" in _told(page) and "After training on the kept rows" in [one.label for one in page.metric]
    results = json.loads((Path(Desk(home / "store.db").run(run).folder) / "results.json").read_text())
    assert results["synthetic"].endswith("attempt-2/train.parquet") and results["privacy"]["stage1"]["epsilon"] > 11


def _until(home: Path, run: str) -> str:
    """The state in which the run's worker leaves it."""
    store, end = Desk(home / "store.db"), time.monotonic() + 120
    while store.run(run).active and time.monotonic() < end:
        time.sleep(0.2)
    return store.run(run).state
