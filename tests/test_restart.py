"""Kill -9 at any point, then go on: no round lost, no second charge, no second body, the same adapter, no orphans.

Real worker and kit processes, a real store, a real ledger; tiny fakes in place of the models. What is checked is seen
from outside: the ledger's file, the sites' outboxes, the process table.
"""

import os
import random
from collections import Counter
from contextlib import contextmanager

import pytest

from pipeline.machine import choose
from pipeline.settings import load
from tests.federation import Federation

pytestmark = pytest.mark.runs

FAILPOINTS = (
    "worker.claimed", "worker.after_candidates", "round.before_ask", "round.after_gather", "round.after_closed",
    "door.before_reserve", "door.after_reserve", "door.after_draw", "seal.before_write", "seal.half_written", "seal.before_rename",
    "seal.after_rename", "door.after_seal", "door.after_mark", "round.after_release", "worker.after_adapter", "worker.before_results",
    "site.before_work", "site.before_charge", "site.after_charge", "site.after_seal", "site.before_publish", "site.after_publish",
)  # fmt: skip
PRIVATE = {"privacy": {"epsilon": 8, "delta": 1e-5, "accept_noise": True}}


def killed_and_resumed(folder, kills, rng, **settings):
    """Runs that are killed ``kills`` times in all, at named failpoints and at random times, then carried to their end."""
    federation = Federation(folder, stage1={"quorum": 3}, stage2={"quorum": 2}, **settings)  # all of them: equal bodies close a round
    runs, seen, fired, number = [federation.create()], set(), Counter(), 0
    while fired.total() < kills:
        run = runs[-1]
        if number % 4 == 3:
            code = federation.work(run, kill_after_s=rng.uniform(0.5, 3.0))
            fired["random time"] += code != 0
        else:
            name = FAILPOINTS[(number - number // 4) % len(FAILPOINTS)]
            code = federation.work(run, failpoint=f"{name}:{rng.choice((1, 1, 2))}", CAFE_TINY_SECONDS="0.01")
            # a failpoint in a site kills the site, which the worker starts again; one in the worker kills the worker
            fired[name] += code == -9 or any(federation.folder.glob("once-*"))
        for once in federation.folder.glob("once-*"):
            once.unlink()
        assert federation.wait_for_no_processes(), "an orphan survived its worker"
        seen |= federation.bodies(run)
        state = federation.store.run(run).state
        if state == "Failed":
            federation.store.queue(run)
        if state == "Done":
            runs.append(federation.create())
        number += 1
        assert number < 4 * kills, fired
    assert federation.work(runs[-1]) == 0, federation.store.run(runs[-1]).error
    assert federation.wait_for_no_processes()
    return federation, runs, seen | federation.bodies(runs[-1]), fired


def check_invariants(federation, run, seen):
    settings_rounds = {1: 3, 2: 4}
    assert federation.store.run(run).state == "Done"
    assert [score["round"] for score in federation.results(run)["rounds"]] == [1, 2, 3, 4]
    releases = federation.ledger.releases(run)
    assert Counter(row.stage for row in releases) == settings_rounds  # no round lost, none twice
    assert {row.state for row in releases} == {"sealed"}
    charges = Counter((charge.site, charge.stage) for charge in federation.ledger.charges(run=run))
    assert charges == {**{(f"weak{n}", 1): 3 for n in range(3)}, **{(f"strong{n}", 2): 4 for n in range(2)}}
    federation.ledger.verify()
    bodies = Counter(name for name, _ in seen)
    assert max(bodies.values()) == 1, f"two bodies for one release: {[n for n, k in bodies.items() if k > 1]}"
    inbox = list((federation.home / "runs" / run / "inbox").glob("*"))
    assert not inbox, "bodies stayed in the inbox"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    federation = Federation(tmp_path_factory.mktemp("calm") / "f")
    run = federation.create()
    assert federation.work(run) == 0
    return federation.adapter(run)


def test_ten_kills_without_noise_end_on_the_same_adapter(tmp_path, undisturbed):
    federation, runs, seen, fired = killed_and_resumed(tmp_path / "f", 10, random.Random(1))
    for run in runs:
        check_invariants(federation, run, seen)
        assert federation.adapter(run) == undisturbed
    assert fired.total() >= 10, fired


def test_ten_kills_with_noise_charge_once_and_keep_one_body(tmp_path):
    federation, runs, seen, fired = killed_and_resumed(tmp_path / "f", 10, random.Random(2), **PRIVATE)
    for run in runs:
        check_invariants(federation, run, seen)
        assert 7.0 < federation.results(run)["privacy"]["maximum"]["epsilon"] <= 8.0
    assert fired.total() >= 10, fired


@contextmanager
def one_core():
    """What this process starts sees a smaller machine than this process."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs a machine with two cores")
def test_a_run_that_goes_on_with_other_cores_is_the_same_run(tmp_path, undisturbed):
    federation = Federation(tmp_path / "f", machine={"compute_slots": 0, "threads": 0})
    run = federation.create()
    assert federation.work(run, failpoint="round.after_release:2") == -9
    before = federation.store.step(run, "machine").facts
    with one_core():
        assert choose(load(federation.config)).facts() != before
        assert federation.work(run) == 0
    assert federation.store.step(run, "machine").facts == before
    check_invariants(federation, run, federation.bodies(run))
    assert federation.adapter(run) == undisturbed


def test_two_workers_at_once_give_one(tmp_path):
    import subprocess
    import sys

    from tests.federation import ROOT

    federation = Federation(tmp_path / "f")
    run = federation.create()
    command = [sys.executable, "-m", "pipeline.worker", run]
    workers = [subprocess.Popen(command, env=federation.environment | {"CAFE_TINY_SECONDS": "0.05"}, cwd=ROOT) for _ in range(3)]
    codes = sorted(worker.wait(timeout=200) for worker in workers)
    assert codes == [0, 3, 3]
    assert federation.store.run(run).epoch == 1


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(int(os.environ.get("CAFE_SOAK_RUNS", "10"))))
def test_soak_twenty_kills_a_run(tmp_path, seed, undisturbed):
    rng = random.Random(f"soak/{seed}")
    private = PRIVATE if seed % 2 else {}
    federation, runs, seen, _ = killed_and_resumed(tmp_path / "f", 20, rng, **private)
    for run in runs:
        check_invariants(federation, run, seen)
        assert private or federation.adapter(run) == undisturbed
