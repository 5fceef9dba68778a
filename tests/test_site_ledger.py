"""The site's own books: charges that are exact, durable, counted once, and a policy that stands above every order."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from cafe_kit.errors import CafeError
from cafe_kit.ledger import SiteLedger, Spent, epsilon
from cafe_kit.orders import Order, PrivacyTerms, order_hash
from cafe_kit.policy import TEMPLATE, Policy, load_policy
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import BY_SERVER, NO_NOISE, TASK, VOTE

ROOT = Path(__file__).parents[1]
ANYTHING = Policy(max_rounds_per_run=10_000)


def order(round: int = 1, privacy: PrivacyTerms = BY_SERVER, run: str = "run") -> Order:
    return Order(run=run, stage=1, attempt=1, round=round, site="north", task=TASK, privacy=privacy, inputs={}, params=VOTE)


def charge(ledger: SiteLedger, asked: Order, policy: Policy = ANYTHING) -> None:
    ledger.charge(asked, order_hash(asked), policy.check)


@pytest.fixture
def ledger(tmp_path: Path) -> SiteLedger:
    return SiteLedger(tmp_path / "ledger")


# --- what a charge says --------------------------------------------------------------------------------------------


def test_a_charge_holds_the_exact_cost_in_integers(ledger, tmp_path):
    charge(ledger, order(privacy=replace(BY_SERVER, clip_norm=1.5, noise_multiplier=0.3, grid=1024)))
    written = json.loads((tmp_path / "ledger" / "00000001.json").read_bytes())
    clip, sigma = 1536, math.ceil(Fraction(0.3) * 1536)
    assert (written["clip_steps"], written["sigma_steps"]) == (clip, sigma)
    assert written["mu_squared"] == [clip**2, sigma**2]
    assert (written["seq"], written["prev"], written["release_id"]) == (1, "", "run/1/1/1/north/vote")


def test_an_answer_without_noise_is_written_without_a_cost(ledger):
    charge(ledger, order(privacy=NO_NOISE))
    assert ledger.charges[0].mu_squared is None
    assert ledger.spent(1e-5) == 0.0


def test_the_same_order_is_charged_once(ledger, tmp_path):
    for _ in range(5):
        charge(ledger, order())
        charge(SiteLedger(tmp_path / "ledger"), order())
    assert len(ledger.charges) == 1


def test_one_release_has_one_order(ledger):
    charge(ledger, order())
    before = ledger.head
    with pytest.raises(CafeError, match="CAFE-317"):
        charge(ledger, order(privacy=replace(BY_SERVER, noise_multiplier=9.0)))
    assert ledger.head == before


# --- the chain -----------------------------------------------------------------------------------------------------


def altered(folder: Path, change: str) -> None:
    second, third = folder / "00000002.json", folder / "00000003.json"
    if change == "number":
        second.write_bytes(second.read_bytes().replace(b'"stage":1', b'"stage":2'))
    elif change == "cost":
        fields = json.loads(second.read_bytes()) | {"mu_squared": [1, 10**9]}
        second.write_text(json.dumps(fields, sort_keys=True, separators=(",", ":")) + "\n")
    elif change == "removed":
        second.unlink()
    elif change == "swapped":
        old = second.read_bytes()
        second.write_bytes(third.read_bytes())
        third.write_bytes(old)
    elif change == "cut":
        third.write_bytes(third.read_bytes()[:50])
    elif change == "field":
        third.write_bytes(third.read_bytes().replace(b'"stage"', b'"state"'))


@pytest.mark.parametrize("change", ["number", "cost", "removed", "swapped", "cut", "field"])
def test_tampering_is_noticed(ledger, tmp_path, change):
    for n in range(4):
        charge(ledger, order(n))
    assert ledger.verify() == 4
    altered(tmp_path / "ledger", change)
    with pytest.raises(CafeError, match="CAFE-318"):
        ledger.verify()
    with pytest.raises(CafeError, match="CAFE-318"):
        SiteLedger(tmp_path / "ledger")


def test_the_head_names_the_history(ledger):
    heads = [ledger.head]
    for n in range(3):
        charge(ledger, order(n))
        heads.append(ledger.head)
    assert len(set(heads)) == 4


RACER = """
import sys
from pathlib import Path
from cafe_kit.ledger import SiteLedger
from cafe_kit.orders import Order, order_hash
from tests.fakes import BY_SERVER, TASK, VOTE
ledger = SiteLedger(Path(sys.argv[1]))
sys.stdin.readline()
for n in range(int(sys.argv[2]), int(sys.argv[3])):
    order = Order(run="run", stage=1, attempt=1, round=n, site="north", task=TASK, privacy=BY_SERVER, inputs={}, params=VOTE)
    ledger.charge(order, order_hash(order), lambda *_: None)
"""


def test_four_processes_lose_and_double_nothing(tmp_path):
    folder = tmp_path / "ledger"
    ranges = [(0, 25), (0, 25), (10, 35), (30, 45)]  # the same charges from several sides, and others
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, str(folder), str(low), str(high)], stdin=subprocess.PIPE, text=True, cwd=ROOT)
        for low, high in ranges
    ]
    for racer in racers:
        assert racer.stdin
        racer.stdin.write("go\n")
        racer.stdin.flush()
    assert [racer.wait() for racer in racers] == [0, 0, 0, 0]
    charges = SiteLedger(folder).charges
    assert sorted(charge.release_id for charge in charges) == sorted(order(n).release_id for n in range(45))
    assert not list(folder.glob(".*"))


def test_the_last_slot_of_a_budget_is_given_once(tmp_path):
    limited = Policy(max_rounds_per_run=1)
    first, second = SiteLedger(tmp_path), SiteLedger(tmp_path)
    assert first.after(order(1), order_hash(order(1))).answers == second.after(order(2), order_hash(order(2))).answers == 1
    charge(first, order(1), limited)
    with pytest.raises(CafeError, match="CAFE-314"):
        charge(second, order(2), limited)


# --- epsilon -------------------------------------------------------------------------------------------------------


def test_epsilon_golden():
    assert epsilon(Fraction(0), 1e-5) == 0.0
    assert epsilon(Fraction(1), 1e-5) == pytest.approx(4.3771780956812, rel=1e-12)  # Balle & Wang's analytic Gaussian
    assert epsilon(Fraction(1, 10**12), 1e-5) == 0.0  # so little that epsilon = 0 keeps delta


@pytest.mark.parametrize("mu", [Fraction(1, 10), Fraction(1, 2), Fraction(1), Fraction(3)])
def test_epsilon_agrees_with_dp_accounting_and_is_not_below_the_truth(mu):
    ours = epsilon(mu**2, 1e-5)
    loss = privacy_loss_distribution.from_gaussian_mechanism(float(1 / mu), value_discretization_interval=1e-4)
    assert ours == pytest.approx(loss.get_epsilon_for_delta(1e-5), rel=2e-3)
    assert _delta(ours, float(mu)) <= 1e-5 < _delta(ours * (1 - 1e-11), float(mu))


def _delta(eps: float, mu: float) -> float:
    from mpmath import mp, mpf, ncdf

    with mp.workdps(60):
        return ncdf(-mpf(eps) / mu + mpf(mu) / 2) - mp.exp(mpf(eps)) * ncdf(-mpf(eps) / mu - mpf(mu) / 2)


@settings(max_examples=40, deadline=None)
@given(st.fractions(min_value=Fraction(1, 100), max_value=50, max_denominator=10**6), st.sampled_from([1e-9, 1e-6, 1e-5, 1e-2]))
def test_more_cost_is_more_epsilon(mu_squared, delta):
    assert epsilon(mu_squared, delta) <= epsilon(mu_squared * 2, delta)


def test_spent_is_the_composition(ledger):
    for n in range(4):
        charge(ledger, order(n))  # noise multiplier 2: mu² = 1/4 each
    assert ledger.spent(1e-5) == epsilon(Fraction(1), 1e-5)


# --- policy --------------------------------------------------------------------------------------------------------

NOTHING = Spent(Fraction(0), 1)


def test_the_policy_file_is_written_once_and_holds_the_documented_defaults(tmp_path):
    path = tmp_path / "policy.toml"
    policy = load_policy(path)
    assert path.read_text() == TEMPLATE
    assert (policy.max_epsilon, policy.delta, policy.min_rows, policy.allow_without_noise) == (10.0, 1e-5, 2, True)
    path.write_text("min_rows = 50\n")
    assert (load_policy(path).min_rows, load_policy(path).max_epsilon) == (50, None)


@pytest.mark.parametrize("text", ["min_rows = 0", "max_epsilon = nan", 'kinds = ["shell"]', "min_row = 3", "=", "delta = 1"])
def test_a_policy_that_cannot_be_meant_is_refused(tmp_path, text):
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(CafeError, match="CAFE-316"):
        load_policy(tmp_path / "policy.toml")


@pytest.mark.parametrize(
    ("policy", "asked", "spent", "code"),
    [
        (Policy(kinds=["hello", "train"]), order(), NOTHING, "CAFE-310"),
        (Policy(allow_without_noise=False), order(privacy=NO_NOISE), NOTHING, "CAFE-311"),
        (Policy(), order(privacy=replace(BY_SERVER, noise_multiplier=0.0)), NOTHING, "CAFE-312"),
        (Policy(min_noise_multiplier=2.5), order(), NOTHING, "CAFE-312"),
        (Policy(max_epsilon=4.37), order(), Spent(Fraction(1), 1), "CAFE-313"),
        (Policy(max_rounds_per_run=5), order(), Spent(Fraction(0), 6), "CAFE-314"),
    ],
)
def test_what_a_site_does_not_allow(policy, asked, spent, code):
    with pytest.raises(CafeError, match=code):
        policy.check(asked, spent)


def test_what_a_site_allows():
    Policy(max_epsilon=4.38, max_rounds_per_run=5, min_noise_multiplier=2.0).check(order(), Spent(Fraction(1), 5))
    Policy().check(order(privacy=NO_NOISE), NOTHING)


def test_too_few_rows_name_the_limit_only():
    with pytest.raises(CafeError, match="CAFE-315") as caught:
        Policy(min_rows=50).check_rows(17)
    assert "50" in str(caught.value) and "17" not in str(caught.value)


def test_the_budget_holds_over_many_orders(ledger):
    policy = Policy(max_epsilon=5.0)
    allowed = 0
    with pytest.raises(CafeError, match="CAFE-313"):
        while True:
            charge(ledger, order(allowed), policy)
            allowed += 1
    assert ledger.spent(1e-5) <= 5.0 < epsilon(Fraction(allowed + 1, 4), 1e-5)
