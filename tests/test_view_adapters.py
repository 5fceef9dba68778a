"""*Adapters* in its states: nothing yet, a run that goes on, done, refused, an unknown address, a hostile name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from pipeline import catalogue, launch
from server_store.store import Store
from tests import plans
from tests.federation import Federation
from tests.plans import HOSTILE, change, move_in

Home = tuple[Path, str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    federation = Federation(tmp_path_factory.mktemp("adapters") / "f", task={"description": HOSTILE}, stage2={"rounds": 2})
    assert federation.work(federation.create()) == 0
    return federation


@pytest.fixture
def done(finished: Federation, cafe_home: Path) -> Home:
    """A copy of the finished run in this test's own home; the home and the run's id."""
    run = finished.store.runs()[0]
    move_in(finished.home, cafe_home, run.id, run.folder)
    return cafe_home, run.id


def _page(**query: str) -> AppTest:
    return plans.page("adapters", **query)


def _told(page: AppTest) -> str:
    return "\n".join(str(one.value) for kind in ("markdown", "caption", "subheader", "info", "code") for one in page.get(kind))


def _links(page: AppTest) -> list[str]:
    return [one.proto.url for one in page.get("link_button")]


def test_nothing_yet_says_what_leads_to_one(cafe_home: Path) -> None:
    page = _page()
    assert "No adapter yet" in _told(page) and not page.dataframe and _links(page) == []


def test_done_shows_everything_and_offers_the_download(done: Home) -> None:
    run = done[1]
    page = _page(run=run)
    told = _told(page)
    assert "tiny, round 2" in told and "## Lineage" in told and "no formal guarantee" in told and "9 public test records" in told
    assert f"files/runs/{run}/adapter.zip?round=2" in _links(page) and f"files/runs/{run}/export.zip" in _links(page)
    assert "PeftModel.from_pretrained" in told and "--enable-lora --max-lora-rank 8" in told and f"unzip {run}-r2.zip" in told
    assert [one.label for one in page.metric] == ["This adapter", "Base model", "Synthetic only", "Size"]
    listed = page.dataframe[0].value
    assert list(listed["Run"]) == [run] and list(listed["State"]) == ["Done"]


def test_an_earlier_round_by_address_and_by_choice(done: Home) -> None:
    run = done[1]
    page = _page(run=run, round="1")
    assert "round=1" in _links(page)[0]
    page.selectbox[0].set_value("0").run()
    assert not page.exception and "round=0" in _links(page)[0] and page.query_params["round"] in ("0", ["0"])
    assert "tiny, synthetic only" in _told(page)


def test_a_run_that_goes_on_offers_its_adapter_so_far(done: Home) -> None:
    home, run = done
    change(home, "DELETE FROM steps WHERE name='stage2/1/2/score'")
    change(home, "UPDATE runs SET state='Running', pid=?, heartbeat=strftime('%s','now')", 1)
    page = _page(run=run)
    told = _told(page)
    assert "The run goes on; this is its adapter so far, after round 1 of 2." in told
    links = _links(page)
    assert f"files/runs/{run}/adapter.zip?round=1" in links and not [one for one in links if "export" in one]


def test_a_run_before_its_first_round(done: Home) -> None:
    home, run = done
    change(home, "DELETE FROM steps WHERE name LIKE 'stage2/%'")
    change(home, "UPDATE runs SET state='Running', pid=?, heartbeat=strftime('%s','now')", 1)
    for page in (_page(run=run), _page()):
        assert "This run has no adapter yet" in _told(page) and _links(page) == []


def test_a_refused_adapter_has_no_download(done: Home) -> None:
    home, run = done
    made = catalogue.of(Store(home / "store.db"), run)
    made.adapter().folder.joinpath(catalogue.WEIGHTS).write_bytes(b"other")
    page = _page(run=run)
    assert "CAFE-687" in _told(page) and "hash differs" in _told(page)
    assert not [one for one in _links(page) if "adapter.zip" in one]


def test_an_unknown_run_is_told_and_the_others_stay(done: Home) -> None:
    page = _page(run="nobody")
    assert "CAFE-655" in _told(page) and len(page.dataframe) == 1 and _links(page) == []


def test_words_of_people_show_as_typed(done: Home) -> None:
    told = _told(_page(run=done[1]))
    assert f"`{HOSTILE}`" in told and told.count("<script>") == told.count(f"`{HOSTILE}`")


def test_of_two_runs_the_newest_is_shown_until_the_address_names_the_other(done: Home) -> None:
    home, run = done
    other = home / "runs" / "other"
    shutil.copytree(launch.store().run(run).folder, other)
    change(home, "INSERT INTO runs (id, name, state, folder, created, epoch) VALUES ('other', 'second', 'Done', ?, 1, 1)", str(other))
    change(home, "INSERT INTO steps SELECT 'other', name, sha256, facts, time FROM steps WHERE run=?", run)
    assert list(_page().dataframe[0].value["Shown"]) == ["▸", ""]
    page = _page(run="other")
    assert list(page.dataframe[0].value["Shown"]) == ["", "▸"] and "files/runs/other/adapter.zip?round=2" in _links(page)
