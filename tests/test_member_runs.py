"""Whole tiny runs of a federation with a Globus group: a member who is removed, and a service that falls silent, in the middle."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import enrolling, groups, members
from tests.globus_groups_stand_in import Globus, globus_at, signs_in
from tests.joined import KINDS, Joined, wait_until

pytestmark = pytest.mark.runs
MAILS = {"north": "bob@hospital.example", "south": "carol@clinic.example", "lab": "dan@lab.example"}
FIRST_VOTES = "stage1/1/1/votes/closed"


@pytest.fixture
def joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Joined]:
    made = Joined(tmp_path, monkeypatch)
    yield made
    made.stop()
    assert made.wait_for_no_processes(), "a process was left behind"


@pytest.fixture
def globus(joined: Joined, monkeypatch: pytest.MonkeyPatch) -> Iterator[Globus]:
    """Each of the three sites is issued to an active member of the federation's group."""
    with globus_at(joined.home, monkeypatch) as service:
        joined.environment |= service.environment
        group = groups.create(joined.home, "tiny", signs_in(service, joined.home, "ada@uni.example").id)
        for site in KINDS:
            groups.invite(joined.home, "tiny", MAILS[site])
            service.accepts(group.id, MAILS[site])
            members.bind(enrolling.find(site).serial, MAILS[site])
        joined.start()
        yield service


def told(joined: Joined, run: str) -> str:
    return "\n".join(f"{event.site or ''}: {event.text}" for event in joined.store.events(run))


def test_the_site_of_a_member_who_is_removed_stops_at_its_next_round(globus: Globus, joined: Joined) -> None:
    run = joined.create()
    worker = threading.Thread(target=joined.work, args=(run,))
    worker.start()
    assert wait_until(lambda: joined.store.step(run, FIRST_VOTES) is not None, 90)
    members.remove("tiny", MAILS["south"])
    worker.join(timeout=240)
    assert joined.store.run(run).state == "Done", told(joined, run)
    refused = [event.text for event in joined.store.events(run) if event.site == "south" and "CAFE-197" in event.text]
    assert refused and "carol@clinic.example" in refused[0] and "round 1" not in refused[0]
    answered = {site["name"]: site["answered"] for site in joined.results(run)["sites"]}
    assert answered["north"] == 3 and answered["lab"] == 4 and 1 <= answered["south"] < 3


def test_a_silent_service_is_borne_for_a_round_then_the_run_fails_and_goes_on_when_it_answers(globus: Globus, joined: Joined) -> None:
    run = joined.create()
    worker = threading.Thread(target=joined.work, args=(run,))
    worker.start()
    assert wait_until(lambda: joined.store.step(run, FIRST_VOTES) is not None, 90)
    globus.stop()
    known = joined.home / "groups" / "tiny.known"
    known.write_text(json.dumps(json.loads(known.read_text()) | {"looked": 0.0}))
    worker.join(timeout=240)
    assert joined.store.run(run).state == "Failed", told(joined, run)
    assert "CAFE-196" in told(joined, run) and "CAFE-196" in members.silence("tiny")
    assert "goes on for this round unasked" in (joined.folder / "worker.log").read_text()
    globus.start()
    members.forget("tiny")
    joined.store.queue(run)
    assert joined.work(run) == 0, told(joined, run)
    assert joined.store.run(run).state == "Done"
