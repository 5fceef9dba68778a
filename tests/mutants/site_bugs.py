"""Planted bugs of a site that no longer decides: each a small patch of the real functions.

``BUGS`` maps a name to (the patch, the checks that must fail on it). None of this is importable by the product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from cafe_kit import outbox, outgoing, policy, seat
from cafe_kit.address import Address
from cafe_kit.ledger import SiteLedger, Spent
from cafe_kit.orders import Order
from cafe_kit.outbox import Outbox
from cafe_kit.policy import Policy
from cafe_kit.seat import Seat

from tests.mutants import site_checks as checks

Patch = pytest.MonkeyPatch
_after, _check, _put_body, _over, _charge = SiteLedger.after, Policy.check, Outbox.put_body, policy._over, SiteLedger.charge


def review_bypassed_when_the_order_comes_again(patch: Patch) -> None:
    """The first delivery waits, the second finds a complete answer and hands it out."""
    patch.setattr(Outbox, "check_free", lambda self, order_hash: None)


def review_forgotten_by_a_recovered_answer(patch: Patch) -> None:
    """Whether an answer waits is lost on its way into the reply."""
    real = Outbox.put_reply
    patch.setattr(Outbox, "put_reply", lambda self, reply, signature, held: real(self, reply, signature, held=False))


def a_refusal_is_only_a_delay(patch: Patch) -> None:
    """Every word of the admin frees the answer."""
    patch.setattr(outbox, "refuse", outbox.approve)


def dry_run_noticed_after_the_charge(patch: Patch) -> None:
    real = Outbox.rehearse

    def rehearse(self: Outbox, order: Order, order_hash: str, contents: Mapping[str, bytes]) -> None:
        home = self._folder.parent
        SiteLedger(home / "ledger").charge(order, order_hash, lambda *_: None)
        real(self, order, order_hash, contents)

    patch.setattr(Outbox, "rehearse", rehearse)


def dry_run_that_sends(patch: Patch) -> None:
    """The mode is read as a comment."""
    patch.setattr(Seat, "_policy", lambda self: policy.load_policy(self._home.folder / "policy.toml").model_copy(update={"outbox": "auto"}))


def nothing_written_for_people(patch: Patch) -> None:
    patch.setattr(
        Outbox,
        "put_body",
        lambda self, order, order_hash, body, numbers, contents, held: _put_body(self, order, order_hash, body, numbers, {}, held=held),
    )


def contents_told_before_the_noise(patch: Patch) -> None:
    """The file tells of the clipped votes, the body holds the noised ones."""
    real = outgoing.made

    def made(work: Any, result: Any, clipped: Any, seal_to: Any) -> outgoing.Outgoing:
        found = real(work, result, clipped, seal_to)
        told = outgoing.contents.of_votes(work.order, work.hash, work.given["candidates"], clipped["q"], found.body, "")
        return replace(found, contents=told)

    patch.setattr(seat.outgoing, "made", made)


def head_of_the_ledger_not_compared(patch: Patch) -> None:
    patch.setattr(SiteLedger, "knows", lambda self, head: True)


def head_compared_with_the_last_one_alone(patch: Patch) -> None:
    """A reply that was lost then stops the site for ever."""
    patch.setattr(SiteLedger, "knows", lambda self, head: head in ("", self.head))


def limit_of_one_run_ignored(patch: Patch) -> None:
    patch.setattr(policy, "_over", lambda limit, mu_squared, delta: limit is not None and limit > 50 and _over(limit, mu_squared, delta))


def limit_of_all_runs_counts_each_run_anew(patch: Patch) -> None:
    """What other runs have spent is left out: a new name, a new budget."""

    def after(self: SiteLedger, order: Order, order_hash: str) -> Spent:
        found = _after(self, order, order_hash)
        return replace(found, mu_squared=found.in_run)

    patch.setattr(SiteLedger, "after", after)


def limits_asked_before_the_work_alone(patch: Patch) -> None:
    """What was allowed at the start is charged at the end, whatever has happened meanwhile."""
    patch.setattr(SiteLedger, "charge", lambda self, order, order_hash, check: _charge(self, order, order_hash, lambda *_: None))


def a_release_is_known_by_its_order_alone(patch: Patch) -> None:
    """Other terms, another order, another draw of the same counts."""

    def after(self: SiteLedger, order: Order, order_hash: str) -> Spent:
        self._releases.clear()
        return _after(self, order, order_hash)

    patch.setattr(SiteLedger, "after", after)


def labels_taken_from_the_order(patch: Patch) -> None:
    patch.setattr(Address, "_is_agreed", lambda self, task: True)


def errors_of_the_data_told_to_everybody(patch: Patch) -> None:
    patch.setattr(seat, "_told", lambda error: error.message)


def paths_followed_wherever_they_lead(patch: Patch) -> None:
    patch.setattr(Address, "_reaches", lambda self, where: True)


def cost_of_a_release_forgotten(patch: Patch) -> None:
    """Every answer is free."""

    def after(self: SiteLedger, order: Order, order_hash: str) -> Spent:
        return replace(_after(self, order, order_hash), mu_squared=Fraction(0), in_run=Fraction(0))

    patch.setattr(SiteLedger, "after", after)


BUGS: dict[str, tuple[Callable[[Patch], None], tuple[Callable[[Path], None], ...]]] = {
    bug.__name__: (bug, fails)
    for bug, *fails in (  # type: ignore[misc]
        (review_bypassed_when_the_order_comes_again, checks.a_reviewed_answer_waits, checks.an_answer_kept_in_never_leaves),
        (review_forgotten_by_a_recovered_answer, checks.a_reviewed_answer_waits),
        (a_refusal_is_only_a_delay, checks.an_answer_kept_in_never_leaves),
        (dry_run_noticed_after_the_charge, checks.a_dry_run_sends_and_charges_nothing),
        (dry_run_that_sends, checks.a_dry_run_sends_and_charges_nothing),
        (nothing_written_for_people, checks.what_leaves_is_told_before),
        (contents_told_before_the_noise, checks.what_leaves_is_told_before),
        (head_of_the_ledger_not_compared, checks.a_ledger_that_was_set_back_spends_nothing),
        (head_compared_with_the_last_one_alone, checks.a_ledger_that_was_set_back_spends_nothing),
        (limit_of_one_run_ignored, checks.one_run_has_a_limit),
        (limit_of_all_runs_counts_each_run_anew, checks.all_runs_have_a_limit),
        (cost_of_a_release_forgotten, checks.one_run_has_a_limit, checks.all_runs_have_a_limit, checks.a_limit_lowered_meanwhile_counts),
        (limits_asked_before_the_work_alone, checks.a_limit_lowered_meanwhile_counts),
        (a_release_is_known_by_its_order_alone, checks.one_statistic_has_one_answer),
        (labels_taken_from_the_order, checks.only_the_agreed_task_is_asked_about),
        (errors_of_the_data_told_to_everybody, checks.nothing_is_told_of_the_data_but_that_they_do_not_fit),
        (paths_followed_wherever_they_lead, checks.no_path_leads_out_of_what_is_shared),
    )
}
