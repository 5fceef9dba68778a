"""*Runs* in its states: none yet, running, failed, done; each tab by its address; two compared; one deleted; hostile words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Button

from server_store.ledger import Ledger
from server_store.store import Store
from tests import plans
from tests.federation import Federation
from tests.plans import HOSTILE, change, move_in

PRIVACY = {"stage1": {"epsilon": 8, "delta": 1e-5}, "accept_noise": True}
Home = tuple[Path, str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    federation = Federation(tmp_path_factory.mktemp("runs") / "f", stage2={"rounds": 2}, privacy=PRIVACY)
    assert federation.work(federation.create()) == 0
    return federation


@pytest.fixture
def done(finished: Federation, cafe_home: Path) -> Home:
    """A copy of the finished run in this test's own home; the home and the run's id."""
    run = finished.store.runs()[0]
    move_in(finished.home, cafe_home, run.id, run.folder)
    return cafe_home, run.id


def _second(home: Path, run: str, **settings: str) -> str:
    """Another run, a copy of the first in which some lines of the settings differ."""
    folder = home / "runs" / "second"
    shutil.copytree(Path(Store(home / "store.db").run(run).folder), folder)
    text = (folder / "config.yaml").read_text()
    for old, new in settings.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "config.yaml").write_text(text)
    change(home, "INSERT INTO runs (id, name, state, folder, created, epoch) VALUES ('second', 'tiny', 'Done', ?, 1, 1)", str(folder))
    change(home, "INSERT INTO metrics SELECT 'second', name, phase, round, value, n FROM metrics WHERE run=? AND round < 2", run)
    return "second"


def _page(**query: str) -> AppTest:
    return plans.page("runs", **query)


def _told(page: AppTest) -> str:
    found = [str(one.value) for kind in ("markdown", "caption", "subheader", "info", "code") for one in page.get(kind)]
    return "\n".join(found).replace("\\", "").replace("\u2060", "")


def _links(page: AppTest) -> list[str]:
    return [one.proto.url for one in page.get("link_button")]


def _button(page: AppTest, label: str) -> Button:
    return next(one for one in page.button if one.label == label)


def test_no_run_yet(cafe_home: Path) -> None:
    page = _page()
    assert "No run yet." in _told(page) and not page.dataframe


def test_the_table_comes_first_and_says_what_was_spent(done: Home) -> None:
    run = done[1]
    page = _page()
    listed = page.dataframe[0].value
    assert list(listed["Run"]) == [run] and list(listed["State"]) == ["Done"] and len(page.dataframe) == 1
    spent = listed["Privacy spent"][0]
    assert spent.startswith(("ε 8 ", "ε 7.9")) and "stage 2: no formal guarantee" in spent
    assert "(n = 9)" in listed["Last score"][0] and listed["What it does"][0] == "The adapter is ready."


@pytest.mark.parametrize(
    ("tab", "seen"),
    [
        ("", "Accuracy, latest"),
        ("Overview", "Accuracy, latest"),
        ("Charts", "Where the time went"),
        ("Sites", "Seconds are those that the sites told"),
        ("Log", "It holds codes, phases and what the libraries say"),
        ("Config as run", "from its own file"),
        ("Files", "They lie on this machine in"),
    ],
)
def test_every_tab_has_an_address(done: Home, tab: str, seen: str) -> None:
    page = _page(run=done[1], **({"tab": tab} if tab else {}))
    assert seen in _told(page) + " ".join(one.label for one in page.metric)
    assert not [one for one in page.markdown if "CAFE-" in one.value], "no card"


def test_sites_and_files_of_a_finished_run(done: Home) -> None:
    run = done[1]
    sites = _page(run=run, tab="Sites").dataframe[1].value
    asked = {(row["Site"], row["Who worked"].split(",")[0]): (row["Asked"], row["Answered"]) for _, row in sites.iterrows()}
    assert asked["weak0", "the site"] == (3, 3) and asked["strong0", "the site"] == (2, 2) and asked["weak0", "the server"] == (2, 2)
    page = _page(run=run, tab="Files")
    files = page.dataframe[1].value
    assert {"results.json", "ledger.jsonl", "config.yaml"} <= set(files["File"]) and all(len(one) == 64 for one in files["sha256"])
    assert f"files/runs/{run}/export.zip" in _links(page)


def test_the_config_is_the_runs_own_file(done: Home) -> None:
    home, run = done
    file = Path(Store(home / "store.db").run(run).folder) / "config.yaml"
    page = _page(run=run, tab="Config as run")
    assert page.code[0].value.strip() == file.read_text().strip()
    file.unlink()
    assert "CAFE-603" in _told(_page(run=run, tab="Config as run"))


def test_logs_of_every_process(done: Home) -> None:
    home, run = done
    logs = Path(Store(home / "store.db").run(run).folder) / "log"
    (logs / "worker.log").write_text(HOSTILE)
    (logs / "weak0.log").write_text("chatter of weak0")
    page = _page(run=run, tab="Log")
    assert page.code[0].value == HOSTILE and f"files/runs/{run}/log" in _links(page)
    page.selectbox[0].set_value("weak0").run()
    assert page.code[0].value == "chatter of weak0"


def test_events_by_level(done: Home) -> None:
    home, run = done
    Store(home / "store.db").event(run, HOSTILE, level="error", site="weak0")
    page = _page(run=run, tab="Log")
    assert page.dataframe[1].value["What"][0] == HOSTILE
    page.get("button_group")[0].set_value(["error"]).run()
    assert set(page.dataframe[1].value["Level"]) == {"error"}


def test_a_run_that_goes_on_can_be_stopped_but_not_deleted(done: Home) -> None:
    home, run = done
    change(home, "UPDATE runs SET state='Running', pid=?, heartbeat=strftime('%s','now')", 1)
    page = _page(run=run)
    labels = [one.label for one in page.button]
    assert "Stop after this round" in labels and "Delete run…" not in labels
    assert page.dataframe[0].value["State"][0] == "Running"


def test_a_failed_run_says_why(done: Home) -> None:
    home, run = done
    error = json.dumps({"code": "CAFE-121", "message": HOSTILE, "hint": "Mend the site."})
    change(home, "UPDATE runs SET state='Failed', operator=?, error=?", HOSTILE, error)
    page = _page(run=run)
    row = page.dataframe[0].value.iloc[0]
    assert row["State"] == "Failed" and row["What it does"] == f"CAFE-121 {HOSTILE}" and row["Started by"] == HOSTILE
    raw = "\n".join(str(one.value) for kind in ("markdown", "caption") for one in page.get(kind))
    assert HOSTILE in _told(page) and "<script>" not in raw and "**x**" not in raw and "](http" not in raw
    assert "Resume" in [one.label for one in page.button]


def test_a_lost_run_is_not_shown_as_running(done: Home) -> None:
    home, run = done
    change(home, "UPDATE runs SET state='Running', pid=999999999, heartbeat=1")
    assert _page(run=run).dataframe[0].value["State"][0] == "Lost contact"


def test_an_unknown_run(done: Home) -> None:
    for query in ({"run": HOSTILE}, {"run": done[1], "with": "nobody"}):
        page = _page(**query)
        assert "No run with this id." in _told(page) and len(page.dataframe) == 1
        _button(page, "See all runs").click().run()
        assert "No run with this id." not in _told(page) and "run" not in page.query_params


def test_two_runs_side_by_side(done: Home) -> None:
    home, run = done
    other = _second(home, run, **{"learning_rate: 0.001": "learning_rate: 0.005"})
    page = _page(run=run, **{"with": other})
    listed, scores, settings = (one.value for one in page.dataframe)
    assert len(listed) == 2
    assert list(settings["Setting"]) == ["stage2.learning_rate"] and list(settings.iloc[0])[1:] == ["0.001", "0.005"]
    assert list(scores[""]) == ["base model", "synthetic only", "round 1", "round 2"] and scores[other].iloc[-1] == "–"
    _button(page, "Close the comparison").click().run()
    assert "with" not in page.query_params and page.query_params["run"] in (run, [run])


def test_equal_settings_say_so(done: Home) -> None:
    home, run = done
    assert "None: both ran with the same settings." in _told(_page(run=run, **{"with": _second(home, run)}))


def test_deleting_wants_the_id_typed_and_leaves_the_charges(done: Home) -> None:
    home, run = done
    folder = Path(Store(home / "store.db").run(run).folder)
    page = _page(run=run)
    _button(page, "Delete run…").click().run()
    assert "Its charges stay in the privacy ledger" in _told(page)
    assert _button(page, "Delete").disabled
    page.text_input[0].set_value(run)
    _button(page, "Delete run…").click().run()  # AppTest draws whole pages only: the dialog is opened again for each act in it
    _button(page, "Delete run…").click()
    _button(page, "Delete").click().run()
    assert not page.exception and not folder.exists() and Store(home / "store.db").runs() == []
    ledger = Ledger(home / "ledger.db")
    ledger.verify()
    assert len(ledger.charges(run=run)) == 3 * 3 + 2 * 2


def test_a_ledger_that_cannot_be_read_does_not_hide_the_runs(done: Home) -> None:
    home, run = done
    (home / "ledger.db").write_bytes(b"nothing of the kind" * 300)
    assert list(_page().dataframe[0].value["Run"]) == [run]
