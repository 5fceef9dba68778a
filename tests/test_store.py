"""The store: real SQLite in a temporary folder."""

import os
import subprocess
import sys
import time

import pytest

from server_store.blobs import Blobs
from server_store.errors import StoreError
from server_store.rows import Metric, OrderRow
from server_store.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store.db")


def order(order_hash="a" * 64, site="north"):
    return OrderRow(order_hash, site, 1, 1, 0, "vote", "sent", None, "", "", {}, 0.0, None)


def test_one_active_run_per_name(store, tmp_path):
    store.create_run("r1", "clinic", tmp_path / "1")
    with pytest.raises(StoreError, match="CAFE-654"):
        store.create_run("r2", "clinic", tmp_path / "2")
    epoch = store.claim("r1", os.getpid())
    store.finish("r1", epoch, "Done")
    assert store.create_run("r2", "clinic", tmp_path / "2").state == "Queued"


def test_twelve_starts_at_once_give_one_run(tmp_path):
    Store(tmp_path / "store.db")
    code = (
        "import sys; from pathlib import Path; from server_store.store import Store; from server_store.errors import StoreError\n"
        "s = Store(Path(sys.argv[1]))\n"
        "try: s.create_run(sys.argv[2], 'clinic', Path('/x') / sys.argv[2]); print('won')\n"
        "except StoreError: pass\n"
    )
    starts = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "store.db"), f"r{i}"], stdout=subprocess.PIPE) for i in range(12)
    ]
    assert b"".join(p.communicate()[0] for p in starts).count(b"won") == 1


def test_an_overtaken_worker_changes_nothing(store, tmp_path):
    store.create_run("r1", "clinic", tmp_path / "1")
    old = store.claim("r1", os.getpid())
    new = store.claim("r1", os.getpid())
    for act in (
        lambda: store.save_step("r1", old, "x", None, {}),
        lambda: store.finish("r1", old, "Done"),
        lambda: store.heartbeat("r1", old),
        lambda: store.order_sent("r1", old, order()),
        lambda: store.metric("r1", old, Metric("accuracy", "round", 1, 0.5, 3)),
    ):
        with pytest.raises(StoreError, match="CAFE-656"):
            act()
    store.save_step("r1", new, "x", None, {"a": 1})
    assert store.run("r1").state == "Running"


def test_a_step_is_kept_once(store, tmp_path):
    store.create_run("r1", "clinic", tmp_path / "1")
    epoch = store.claim("r1", os.getpid())
    store.save_step("r1", epoch, "stage1/1/0", "s1", {"a": 1})
    assert store.save_step("r1", epoch, "stage1/1/0", "s2", {"a": 2}).sha256 == "s1"
    assert [s.name for s in store.steps("r1", "stage1/")] == ["stage1/1/0"]
    assert store.steps("r1", "stage%") == []  # a prefix is text, not a pattern


def test_the_first_body_of_an_order_wins(store, tmp_path):
    store.create_run("r1", "clinic", tmp_path / "1")
    epoch = store.claim("r1", os.getpid())
    store.order_sent("r1", epoch, order())
    assert store.order_ended("r1", epoch, "a" * 64, "answered", body="b1")
    assert store.order_ended("r1", epoch, "a" * 64, "answered", body="b1")  # a duplicate delivery
    assert not store.order_ended("r1", epoch, "a" * 64, "answered", body="b2")  # equivocation
    assert store.orders("r1")[0].body == "b1"


def test_lost_contact_is_never_shown_as_running(store, tmp_path):
    store.create_run("r1", "clinic", tmp_path / "1")
    assert store.run("r1").shown_state == "Queued"
    gone = subprocess.Popen(["true"])
    gone.wait()
    store.claim("r1", gone.pid)
    assert store.run("r1").state == "Running"
    assert store.run("r1").shown_state == "Lost contact"
    store.claim("r1", os.getpid())
    assert store.run("r1").shown_state == "Running"
    store._db.execute("UPDATE runs SET heartbeat=?", (time.time() - 100,))
    assert store.run("r1").shown_state == "Lost contact"


def test_a_worker_that_died_under_its_follower_is_lost_at_once(store, tmp_path):
    """A terminal that follows a run is its worker's parent: a killed worker stays in the process table until it is waited for."""
    store.create_run("r1", "clinic", tmp_path / "1")
    worker = subprocess.Popen(["sleep", "60"])
    store.claim("r1", worker.pid)
    assert store.run("r1").shown_state == "Running"
    worker.kill()
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # dead, and not taken off the table
    assert store.run("r1").shown_state == "Lost contact"
    worker.wait()


def test_events_metrics_progress(store, tmp_path):
    store.create_run("r1", "clinic", tmp_path / "1")
    epoch = store.claim("r1", os.getpid())
    store.event("r1", "round 1 closed", site="north")
    store.metric("r1", epoch, Metric("accuracy", "round", 1, 0.5, 30))
    store.set_progress("r1", "votes", 1, 6)
    started = store.progress("r1").started
    store.set_progress("r1", "votes", 2, 6)
    assert store.progress("r1").started == started and store.progress("r1").done == 2
    assert store.events("r1")[0].site == "north" and store.events("r1", after=1) == []
    assert store.metrics("r1") == [Metric("accuracy", "round", 1, 0.5, 30)]
    store.delete("r1")
    assert store.events("r1") == [] and store.runs() == []


def test_an_unreadable_store_says_so(tmp_path):
    (tmp_path / "store.db").write_bytes(b"not a database at all, only some bytes of text" * 100)
    with pytest.raises(StoreError, match="CAFE-651"):
        Store(tmp_path / "store.db")


def test_blobs_are_whole_and_checked(tmp_path):
    blobs = Blobs(tmp_path / "blobs")
    sha = blobs.put(b"adapter")
    assert blobs.put(b"adapter") == sha and blobs.get(sha) == b"adapter"
    assert [p.name for p in blobs.folder.iterdir()] == [sha]
    blobs.path(sha).write_bytes(b"altered")
    with pytest.raises(StoreError, match="CAFE-653"):
        blobs.get(sha)


def test_a_folder_may_be_used_again_when_its_run_has_ended(store, tmp_path):
    store.create_run("r1", "clinic", tmp_path / "out")
    with pytest.raises(StoreError, match="CAFE-654"):
        store.create_run("r2", "other", tmp_path / "out")
    store.finish("r1", store.claim("r1", os.getpid()), "Stopped")
    store.create_run("r3", "clinic", tmp_path / "out")
    assert [run.id for run in store.runs()] == ["r3"]
