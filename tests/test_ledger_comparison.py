"""The server's ledger beside a joined site's own: when they agree, when they differ, and which figure is used."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from cafe_kit.ledger import epsilon

from pipeline.ledger_comparison import compare
from server_store.ledger import Ledger
from server_store.rows import OrderRow
from server_store.site_kits import SiteKit
from server_store.store import Store
from tests import ledgers

OTHER = "another-20260102-030405-abcd"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with_runs = Store(tmp_path / "store.db")
    yield with_runs
    with_runs.close()


def kit(charges: int | None = None, mu_squared: float | None = None, **changes: Any) -> SiteKit:
    seen = {} if charges is None else {"charges": charges, "mu_squared": mu_squared, "ledger_head": "ab" * 32}
    plain = SiteKit("00" * 16, "demo", "north", "cpu", 0.0, 0.0, "approved", "", "", "", seen=seen)
    return replace(plain, **changes)


def mu2(ledger: Ledger, site: str = "north") -> float:
    return float(sum((charge.mu2 or Fraction(0) for charge in ledger.charges(site=site)), Fraction(0)))


def under_way(store: Store, *rounds: int, run: str = ledgers.RUN, state: str = "answered") -> None:
    """A run that goes on, in which these rounds were asked of the site."""
    store.create_run(run, run.rsplit("-", 3)[0], Path("/nowhere"), "")
    store.claim(run, 1)
    epoch = store.run(run).epoch
    for number in rounds:
        store.order_sent(run, epoch, OrderRow(f"{number:064x}", "north", 1, 1, number, "vote", state, None, "", "", {}, time.time(), None))


# --- they agree --------------------------------------------------------------------------------------------------------


def test_the_same_answers_at_the_same_cost(tmp_path):
    ledger = ledgers.server(tmp_path, 4.0)
    found = compare(kit(2, mu2(ledger)), ledger)
    assert found.agrees and found.site == found.server == found.used and found.server.charges == 2
    assert found.sentence == "north and this server agree: 2 answers, ε 4 at δ 1e-5."


def test_nothing_was_asked_yet(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db")
    for one in (kit(), kit(0, 0.0)):
        found = compare(one, ledger)
        assert found.agrees and found.used.epsilon == 0.0 and found.used.charges == 0
    assert "has not said yet" in compare(kit(), ledger).sentence


def test_a_site_that_told_nothing_is_counted_by_the_server(tmp_path):
    found = compare(kit(), ledgers.server(tmp_path, 4.0))
    assert found.agrees and found.site is None and found.used.epsilon == 4.0 and "counted 2 releases, ε 4" in found.sentence


def test_runs_without_noise_are_answers_that_cost_nothing(tmp_path):
    ledgers.server(tmp_path, None, (1, 2, 3))
    ledger = ledgers.server(tmp_path, 4.0, (4, 5))
    assert compare(kit(5, mu2(ledger)), ledger).agrees
    assert not compare(kit(2, mu2(ledger)), ledger).agrees  # the three are missed, though they cost nothing
    assert compare(kit(3, 0.0), ledgers.server(tmp_path, None, (6, 7, 8), run="demo-20260102-030405-ffff")).server.charges == 8


def test_answers_without_noise_have_no_epsilon_and_that_is_said(tmp_path):
    ledger = ledgers.server(tmp_path, None, (1, 2, 3))
    found = compare(kit(3, 0.0), ledger)
    assert found.agrees and found.spent == "no formal guarantee"
    assert found.sentence == ("north and this server agree: 3 answers without noise, for which there is no formal guarantee and no ε.")
    differ, silent = compare(kit(5, 0.0), ledger), compare(kit(), ledger)
    nobody = compare(kit(2, 0.0, site="east"), ledger)  # its round was never released
    for one in (differ, silent, nobody):
        assert one.spent == "no formal guarantee" and "ε 0" not in one.sentence and "without noise" in one.sentence
    assert not differ.agrees and "this server counted no release" in nobody.sentence


def test_of_answers_with_and_without_noise_the_figure_covers_those_with(tmp_path):
    ledgers.server(tmp_path, None, (1, 2, 3))
    ledger = ledgers.server(tmp_path, 4.0, (4, 5))
    found = compare(kit(5, mu2(ledger)), ledger)
    assert found.spent == "no formal guarantee" and found.site.bare == found.server.bare == 3
    assert found.sentence.endswith("5 answers, ε 4 at δ 1e-5, 3 of them without noise and so with no formal guarantee.")
    (tmp_path / "noised").mkdir()
    noised = ledgers.server(tmp_path / "noised", 4.0)
    more = compare(kit(4, mu2(noised)), noised)
    assert more.site.bare == 2 and more.spent == "no formal guarantee", "two more answers cost nothing, so they had no noise"
    dearer = compare(kit(4, 2 * mu2(noised)), noised)
    assert dearer.site.bare == 0 and dearer.spent == f"ε {dearer.site.epsilon:g} at δ 1e-5"


def test_nothing_spent_is_no_figure(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db")
    assert {compare(one, ledger).spent for one in (kit(), kit(0, 0.0))} == {"nothing"}
    assert compare(kit(0, 0.0), ledger).sentence == "north and this server agree: no answer."


def test_other_sites_and_other_federations_do_not_count(tmp_path):
    ledgers.server(tmp_path, 2.0, run=OTHER)
    ledger = ledgers.server(tmp_path, 4.0)
    found = compare(kit(2, mu2(ledger) - _of_run(ledger, OTHER)), ledger)
    assert found.agrees and found.server.epsilon == 4.0
    assert compare(kit(0, 0.0, site="east"), ledger).agrees


def _of_run(ledger: Ledger, run: str) -> float:
    return float(sum((charge.mu2 or Fraction(0) for charge in ledger.charges(site="north", run=run)), Fraction(0)))


def test_a_site_charges_before_its_round_closes(tmp_path, store):
    ledger = ledgers.server(tmp_path, 4.0)
    each = mu2(ledger) / 2
    under_way(store, 1, 2, 3)
    ahead = kit(3, 3 * each)
    found = compare(ahead, ledger, store)
    assert found.agrees and found.used == found.site and "1 of them in a round that has not closed" in found.sentence
    assert not compare(ahead, ledger).agrees, "nobody said that a round is under way"
    assert not compare(kit(4, 4 * each), ledger, store).agrees, "one round cannot be two answers"
    assert not compare(kit(3, each), ledger, store).agrees, "more answers do not cost less"
    ledgers.server(tmp_path, 4.0, (3,))
    assert compare(ahead, ledger, store).agrees and not compare(kit(4, 4 * each), ledger, store).agrees


def test_a_round_of_a_run_that_ended_is_not_under_way(tmp_path, store):
    ledger = ledgers.server(tmp_path, 4.0)
    under_way(store, 3)
    store.finish(ledgers.RUN, store.run(ledgers.RUN).epoch, "Failed", {"code": "CAFE-121", "message": "", "hint": ""})
    assert not compare(kit(3, 1.5 * mu2(ledger)), ledger, store).agrees


# --- they differ -------------------------------------------------------------------------------------------------------


def test_the_sites_larger_figure_is_used(tmp_path):
    ledger = ledgers.server(tmp_path, 4.0)
    found = compare(kit(3, 1.5 * mu2(ledger)), ledger)
    assert not found.agrees and found.used == found.site
    assert found.site.epsilon == pytest.approx(epsilon(Fraction(1.5 * mu2(ledger)), 1e-5), rel=1e-3) and found.site.epsilon > 4.0
    assert "3 answers" in found.sentence and "2 releases, ε 4 " in found.sentence and "The site's figure is used." in found.sentence


def test_the_servers_larger_figure_is_used_and_the_difference_is_said(tmp_path):
    """The site did not answer one round, or its ledger was begun anew."""
    ledger = ledgers.server(tmp_path, 4.0)
    for told in (kit(1, 0.5 * mu2(ledger)), kit(0, 0.0)):
        found = compare(told, ledger)
        assert not found.agrees and found.used == found.server and found.used.epsilon == 4.0
        assert "This server's figure is used, the larger one." in found.sentence and "begun anew" in found.sentence


def test_as_many_entries_that_cost_differently(tmp_path):
    ledger = ledgers.server(tmp_path, 4.0)
    for factor, used in ((0.9, "server"), (1.1, "site")):
        found = compare(kit(2, factor * mu2(ledger)), ledger)
        assert not found.agrees and found.used == getattr(found, used) and "cost differently" in found.sentence
    assert compare(kit(2, mu2(ledger) * (1 + 1e-12)), ledger).agrees, "a float of an exact sum"


def test_the_delta_is_that_of_the_sites_limit(tmp_path):
    ledger = ledgers.server(tmp_path, 4.0)
    found = compare(kit(2, mu2(ledger), request={"limits": {"delta": 1e-3}}), ledger)
    assert found.delta == 1e-3 and found.server.epsilon < 4.0 and "δ 0.001" in found.sentence
    for nonsense in ({"limits": {"delta": "x"}}, {"limits": None}, {"limits": {"delta": 0}}, None):
        assert compare(kit(2, mu2(ledger), request=nonsense), ledger).delta == 1e-5


@pytest.mark.parametrize("charges", [None, "2", 2.5])
def test_figures_that_are_none_are_not_taken(tmp_path, charges):
    ledger = ledgers.server(tmp_path, 4.0)
    assert compare(kit(seen={"charges": charges, "mu_squared": 1.0}), ledger).site is None
    for absurd in (float("inf"), float("nan"), -1.0, 1e300, "1"):
        assert compare(kit(2, absurd), ledger).site is None


@pytest.mark.parametrize("mu_squared", [1e-300, 1e12, 1e18])
def test_an_odd_figure_is_shown(tmp_path, mu_squared):
    found = compare(kit(2, mu_squared), ledgers.server(tmp_path, 4.0))
    assert not found.agrees and found.sentence
