"""Kit processes that die, hang, chatter or lie: every order gets exactly one answer, and only a true one counts."""

import sys

import pytest
from cafe_kit.orders import Transport, sign

from pipeline.sites import Envelope, Host, LocalSites
from tests.fakes import TinyServer


@pytest.fixture
def server(tmp_path):
    return TinyServer(tmp_path / "server")


def sites_of(server, tmp_path, mode="", resident=4, slots=2, keys=None):
    kit = (sys.executable, "-m", "tests.rogue_host", mode or "well")
    return LocalSites(tmp_path / "log", threads=1, slots=slots, resident=resident, keys={} if keys is None else keys, kit=kit)


def envelope(server, site, deadline_s=60.0, **changes):
    order = server.order(site, **changes)
    inputs = {name: str(server.folder / name) for name in order.inputs}
    return Envelope(
        order, sign(order, server.signing), Transport(inputs, str(server.folder / "inbox" / f"{site}-{order.round}"), deadline_s)
    )


def one_answer(server, tmp_path, mode, deadline_s=60.0):
    with sites_of(server, tmp_path, mode) as sites:
        sites.add(Host("north", (server.seat_config("north"),)))
        (answer,) = sites.ask([envelope(server, "north", deadline_s)])
    return answer


@pytest.mark.parametrize("mode", ["well", "chatters", "twice", "dies once"])
def test_an_answer_comes_through(server, tmp_path, mode):
    answer = one_answer(server, tmp_path, mode)
    assert answer.reply is not None and answer.reply.status == "ok", (answer.code, answer.sentence)


@pytest.mark.parametrize(
    ("mode", "code", "deadline_s"),
    [
        ("dies", "CAFE-123", 60.0),
        ("hangs", "CAFE-124", 6.0),
        ("another round", "CAFE-124", 6.0),
        ("says more", "CAFE-101", 60.0),
        ("signs badly", "CAFE-102", 60.0),
        ("names another", "CAFE-125", 60.0),
    ],
)
def test_an_ill_behaved_site_is_named_by_a_code(server, tmp_path, mode, code, deadline_s):
    answer = one_answer(server, tmp_path, mode, deadline_s)
    assert answer.reply is None and answer.code == code, (answer.code, answer.sentence)
    assert "north message" not in answer.sentence  # how the site's records begin


def test_one_that_hangs_does_not_hold_up_the_others(server, tmp_path):
    with sites_of(server, tmp_path, "hangs") as sites:
        sites.add(Host("slow", (server.seat_config("slow"),)))
        first = list(sites.ask([envelope(server, "slow", 4.0)]))
        assert first[0].code == "CAFE-124"
    with sites_of(server, tmp_path / "b") as sites:  # the same site, mended, gives the answer that it had sealed
        sites.add(Host("slow", (server.seat_config("slow"),)))
        (again,) = sites.ask([envelope(server, "slow")])
        assert again.reply is not None and again.reply.status == "ok"


def test_a_site_with_another_key_than_before_is_not_heard(server, tmp_path):
    with sites_of(server, tmp_path, keys={"north": "00" * 32}) as sites:
        sites.add(Host("north", (server.seat_config("north"),)))
        (answer,) = sites.ask([envelope(server, "north")])
    assert answer.code == "CAFE-126"


def test_no_more_processes_stay_than_may(server, tmp_path):
    names = [f"site{n}" for n in range(4)]
    with sites_of(server, tmp_path, resident=2, slots=1) as sites:
        for name in names:
            sites.add(Host(name, (server.seat_config(name),)))
        for r in (1, 2):
            answers = list(sites.ask([envelope(server, name, round=r) for name in names]))
            assert {a.order.site for a in answers if a.reply and a.reply.status == "ok"} == set(names)
            assert len(sites._running) <= 2
        running = list(sites._running.values())
    assert all(not process.alive() for process in running)
