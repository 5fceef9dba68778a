"""What must hold of every site, as functions that pass on the real code and must fail on every mutant of ``site_bugs``.

Each takes an empty folder and raises AssertionError. Every name is looked up at the moment of the call.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from cafe_kit import limits, outbox
from cafe_kit.ledger import SiteLedger
from cafe_kit.orders import Order, PrivacyTerms, Reply, order_hash
from cafe_kit.policy import TEMPLATE
from cafe_kit.release import body_from_bytes
from cafe_kit.seat import Seat
from cafe_kit.seat_config import SeatConfig

from tests.fakes import BY_SERVER, BY_SITE, NO_NOISE, TASK, TinyEngine, TinyServer

VOTES = ((6,), "int64")


class Site:
    """A site in ``folder``, with limits of its own."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.server = TinyServer(folder)
        told = self.server.seat_config("north")
        self.config = SeatConfig.model_validate(told | {"task": TASK, "reach": [str(folder)]})
        self.home = Path(self.config.home)
        self.home.mkdir(mode=0o700, parents=True)
        self.allow(**settings)

    def allow(self, **settings: object) -> None:
        (self.home / "policy.toml").write_text(limits.edited(TEMPLATE, settings))

    def order(self, terms: PrivacyTerms = BY_SITE, **changes: object) -> Order:
        return self.server.order("north", "vote", terms, **changes)

    def ask(self, order: Order, **transport: str) -> Reply:
        asked = self.server.ask(order)
        asked["transport"] |= transport
        seat = Seat(self.config)
        return seat.answer(asked["order"], asked["signature"], asked["transport"], TinyEngine(), lambda *_: None)[0]

    @property
    def charges(self) -> int:
        return SiteLedger(self.home / "ledger").verify()

    def is_out(self, order: Order) -> bool:
        return self.server.output(order).exists()


def a_reviewed_answer_waits(folder: Path) -> None:
    site = Site(folder, outbox="review")
    order = site.order()
    for _ in range(2):
        assert site.ask(order).code == "CAFE-328" and not site.is_out(order)
    outbox.approve(site.home, order_hash(order))
    assert site.ask(order).status == "ok" and site.is_out(order)


def an_answer_kept_in_never_leaves(folder: Path) -> None:
    site = Site(folder, outbox="review")
    order = site.order()
    site.ask(order)
    outbox.refuse(site.home, order_hash(order))
    site.allow()
    assert site.ask(order).code == "CAFE-342" and not site.is_out(order) and site.charges == 1


def a_dry_run_sends_and_charges_nothing(folder: Path) -> None:
    site = Site(folder, outbox="dry-run")
    for terms in (BY_SITE, BY_SERVER, NO_NOISE):
        order = site.order(terms, run=f"{terms.mechanism}-{terms.trust}")
        assert site.ask(order).code == "CAFE-330" and not site.is_out(order)
    assert site.charges == 0


def what_leaves_is_told_before(folder: Path) -> None:
    """With every answer a file that says what is in it: exactly what is in it."""
    site = Site(folder)
    for terms in (BY_SITE, BY_SERVER):
        order = site.order(terms, run=terms.trust)
        assert site.ask(order).status == "ok"
        told = site.home / "outbox" / order_hash(order) / "contents.json"
        assert told.exists(), "nothing was written for people"
        steps = [line["steps"] for line in json.loads(told.read_text())["votes"]]
        assert steps == body_from_bytes(site.server.open(order), {"q": VOTES})["q"].tolist()


def a_ledger_that_was_set_back_spends_nothing(folder: Path) -> None:
    site = Site(folder)
    head = site.ask(site.order()).numbers.ledger_head
    for number in (2, 3):  # the server's may be an older one, where a reply was lost
        assert site.ask(site.order(round=number), seen_head=head).status == "ok"
    assert site.ask(site.order(round=4), seen_head="ab" * 32).code == "CAFE-329" and site.charges == 3


def one_run_has_a_limit(folder: Path) -> None:
    site = Site(folder, max_epsilon=100.0, max_epsilon_per_run=3.0)
    codes = [site.ask(site.order(round=number)).code for number in range(1, 5)]
    assert codes == ["", "", "CAFE-313", "CAFE-313"] and site.charges == 2
    assert site.ask(site.order(run="other")).status == "ok"


def all_runs_have_a_limit(folder: Path) -> None:
    site = Site(folder, max_epsilon=3.0)
    codes = [site.ask(site.order(run=f"run-{number}")).code for number in range(1, 5)]
    assert codes == ["", "", "CAFE-313", "CAFE-313"] and site.charges == 2


def a_limit_lowered_meanwhile_counts(folder: Path) -> None:
    """The admin lowers a limit, or another process takes the last slot, while this one computes: asked again when it is charged."""
    site = Site(folder)

    class Slow(TinyEngine):
        def vote(self, *given):  # type: ignore[no-untyped-def]
            site.allow(max_epsilon=0.1)
            return super().vote(*given)

    order, seat = site.order(), Seat(site.config)
    asked = site.server.ask(order)
    reply = seat.answer(asked["order"], asked["signature"], asked["transport"], Slow(), lambda *_: None)[0]
    assert reply.code == "CAFE-313" and site.charges == 0 and not site.is_out(order)


def one_statistic_has_one_answer(folder: Path) -> None:
    site = Site(folder)
    assert site.ask(site.order()).status == "ok"
    other = site.order(replace(BY_SITE, noise_multiplier=9.0))
    assert site.ask(other).code == "CAFE-317" and not site.is_out(other) and site.charges == 1


def only_the_agreed_task_is_asked_about(folder: Path) -> None:
    site = Site(folder)
    for labels in (("billing",), ("billing", "HIV"), ()):
        assert site.ask(site.order(task=replace(TASK, labels=labels))).code == "CAFE-344"
    assert site.charges == 0


def nothing_is_told_of_the_data_but_that_they_do_not_fit(folder: Path) -> None:
    site = Site(folder)
    lines = Path(site.config.data.path).read_text().splitlines()
    Path(site.config.data.path).write_text("\n".join([*lines, json.dumps({"text": "x", "label": "HIV"})]) + "\n")
    reply = site.ask(site.order())
    assert reply.code == "CAFE-213" and str(len(lines) + 1) not in reply.sentence


def no_path_leads_out_of_what_is_shared(folder: Path) -> None:
    site = Site(folder / "shared")
    outside = folder / "body"
    order = site.order()
    assert site.ask(order, output=str(outside)).code == "CAFE-131" and not outside.exists()
    asked = site.server.ask(order)["transport"]["inputs"]
    (folder / "candidates").write_bytes((site.server.folder / "candidates").read_bytes())
    assert site.ask(order, inputs=asked | {"candidates": str(folder / "candidates")}).code == "CAFE-345"  # type: ignore[arg-type]


ALL = (
    a_reviewed_answer_waits,
    an_answer_kept_in_never_leaves,
    a_dry_run_sends_and_charges_nothing,
    what_leaves_is_told_before,
    a_ledger_that_was_set_back_spends_nothing,
    one_run_has_a_limit,
    all_runs_have_a_limit,
    a_limit_lowered_meanwhile_counts,
    one_statistic_has_one_answer,
    only_the_agreed_task_is_asked_about,
    nothing_is_told_of_the_data_but_that_they_do_not_fit,
    no_path_leads_out_of_what_is_shared,
)
