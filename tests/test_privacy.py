"""The door and its accounting on the real code: every check of tests/mutants/checks.py, golden numbers, crashes, bad input."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from cafe_kit.errors import CafeError
from cafe_kit.orders import PrivacyTerms
from cafe_kit.release import clip_steps, contribution, sigma_steps

from pipeline import accounting
from pipeline.privacy import PrivacyDoor, Release, aggregate, calibrate, epsilon_spent, norm_snr, run_statement, vote_snr
from server_store.ledger import Ledger
from tests.mutants import checks
from tests.mutants.checks import SITES, door, hashes, release, terms


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "0.5", "8.0"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize("check", checks.ALL, ids=lambda check: check.__name__)
def test_holds(check: Callable[[Path], None], folder: Path) -> None:
    check(folder)


@pytest.mark.parametrize("factor", [0.98, 1.02])
def test_the_scale_check_rejects_two_percent(factor: float) -> None:
    from cafe_kit.release import GaussianNoise

    draws = GaussianNoise(10**6).draw(200_000)
    checks.assert_scale(draws, 10**6)
    with pytest.raises(AssertionError):
        checks.assert_scale(draws, factor * 10**6)


# --- accounting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epsilon", "mus"),
    [
        (0.5, (0.3178, 0.2169, 0.1697, 0.1422, 0.1241)),
        (1, (0.5325, 0.3884, 0.3139, 0.2681, 0.2367)),
        (2, (0.8959, 0.6919, 0.5766, 0.5016, 0.4483)),
        (4, (1.4947, 1.2150, 1.0431, 0.9249, 0.8379)),
        (8, (2.4488, 2.0833, 1.8414, 1.6660, 1.5315)),
    ],
)
def test_mu_for_the_table(epsilon: float, mus: tuple[float, ...]) -> None:
    for delta, mu in zip((1e-2, 1e-3, 1e-4, 1e-5, 1e-6), mus, strict=True):
        assert accounting.mu_for(epsilon, delta) == pytest.approx(mu, abs=6e-5)
        assert accounting.delta_at(epsilon, accounting.mu_for(epsilon, delta)) == pytest.approx(delta, rel=1e-9)


@pytest.mark.parametrize(("epsilon", "z"), [(0.5, 22.2), (1, 11.8), (2, 6.30), (4, 3.42), (8, 1.90)])
def test_calibrate_the_table_for_ten_releases(epsilon: float, z: float) -> None:
    found = calibrate(epsilon, 1e-5, 10, 3.0, "server")
    assert found.noise_multiplier == pytest.approx(z, rel=4e-3)
    assert 2**16 <= clip_steps(found) < 2**17
    own = checks.charges([(clip_steps(found), sigma_steps(found))] * 10)
    assert 0.999 * epsilon < epsilon_spent(own, 1e-5) <= epsilon


@pytest.mark.parametrize("epsilon", [0.0011, 0.05, 7.99999, 12.345, 300.0])
@pytest.mark.parametrize("clip_norm", [1e-6, 0.7, 5e5])
def test_calibrate_never_prints_more_than_was_asked(epsilon: float, clip_norm: float) -> None:
    found = calibrate(epsilon, 1e-6, 3, clip_norm, "local")
    own = checks.charges([(clip_steps(found), sigma_steps(found))] * 3)
    assert 0.998 * epsilon < epsilon_spent(own, 1e-6) <= epsilon


def test_two_accountants_and_the_closed_form_agree() -> None:
    """RDP is an upper bound, PLD and the closed form are exact; they are three programs."""
    from dp_accounting import GaussianDpEvent
    from dp_accounting.rdp import RdpAccountant

    for sigma, count, delta in ((16, 10, 1e-5), (3, 1, 1e-3), (5, 40, 1e-8)):
        ours = epsilon_spent(checks.charges([(1, sigma)] * count), delta)
        upper = RdpAccountant().compose(GaussianDpEvent(float(sigma)), count).get_epsilon(delta)
        assert ours <= upper <= 1.35 * ours
        mu = math.sqrt(count) / sigma
        assert accounting.delta_at(ours, mu) <= delta < accounting.delta_at(0.998 * ours, mu)


def test_epsilon_of_unequal_releases() -> None:
    """mu adds in squares: 0.6 and 0.8 make 1; epsilon 1 and 8 make 8.12; a stage of none makes infinity."""
    both = epsilon_spent(checks.charges([(3, 5), (4, 5)]), 1e-5)
    assert both == epsilon_spent(checks.charges([(1, 1)]), 1e-5)
    assert epsilon_spent(checks.charges([(2681, 10_000), (16_660, 10_000)]), 1e-5) == pytest.approx(8.12, abs=0.01)
    none = checks.charges([(1, 1)])[0]
    assert epsilon_spent([none.__class__(*list(none.__dict__.values())[:7], None, {})], 1e-5) == math.inf
    assert epsilon_spent([], 1e-5) == 0.0


def test_a_charge_that_contradicts_its_terms_is_an_error() -> None:
    charge = checks.charges([(1, 4)])[0]
    wrong = charge.__class__(*list(charge.__dict__.values())[:8], {"clip_steps": 1, "sigma_steps": 8})
    with pytest.raises(CafeError, match="CAFE-335"):
        epsilon_spent([wrong], 1e-5)


def test_two_ways_that_disagree_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "_accounted_epsilon", lambda events, delta, interval: 1.234)
    with pytest.raises(CafeError, match="CAFE-337"):
        epsilon_spent(checks.charges([(1, 7)]), 3e-5)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((0.0, 1e-5, 1, 1.0, "server"), "CAFE-332"),
        ((-1.0, 1e-5, 1, 1.0, "server"), "CAFE-332"),
        ((math.nan, 1e-5, 1, 1.0, "server"), "CAFE-332"),
        ((math.inf, 1e-5, 1, 1.0, "server"), "CAFE-332"),
        ((1.0, 1.0, 1, 1.0, "server"), "CAFE-333"),
        ((1.0, 0.0, 1, 1.0, "server"), "CAFE-333"),
        ((1.0, math.nan, 1, 1.0, "server"), "CAFE-333"),
        ((1.0, 1e-5, 0, 1.0, "server"), "CAFE-334"),
        ((1.0, 1e-5, 1, 0.0, "server"), "CAFE-334"),
        ((1.0, 1e-5, 1, math.inf, "server"), "CAFE-334"),
        ((1.0, 1e-5, 1, 1e300, "server"), "CAFE-301"),
        ((1e-9, 1e-5, 1, 1.0, "server"), "CAFE-302"),
    ],
)
def test_calibrate_refuses(arguments: tuple[float, float, int, float, str], code: str) -> None:
    with pytest.raises(CafeError, match=code):
        calibrate(*arguments)  # type: ignore[arg-type]


def test_snr_as_published() -> None:
    """The reference's tables: 5.2 and 0.5 for votes; 0.13 and 0.43 for FFA r 8 of a small model."""
    assert vote_snr(30, 10, calibrate(4, 1e-3, 5, 1.0, "server"), 5) == pytest.approx(5.2, abs=0.06)
    assert vote_snr(30, 50, calibrate(1, 1e-3, 10, 1.0, "server"), 10) == pytest.approx(0.5, abs=0.03)
    assert norm_snr(30, 147_456, calibrate(8, 1e-5, 20, 1.0, "server"), 20) == pytest.approx(0.13, abs=0.005)
    assert norm_snr(100, 147_456, calibrate(8, 1e-5, 7, 1.0, "server"), 7) == pytest.approx(0.43, abs=0.005)
    local, server = (norm_snr(25, 100, calibrate(8, 1e-5, 7, 1.0, trust), 7) for trust in ("local", "server"))  # type: ignore[arg-type]
    assert local == pytest.approx(server / 5)
    assert vote_snr(3, 10, PrivacyTerms(mechanism="none"), 5) == math.inf


# --- the door --------------------------------------------------------------------------------------------------------


def test_without_a_guarantee_the_mean_is_plain_labelled_and_frozen(folder: Path) -> None:
    of = release(2, PrivacyTerms(mechanism="none"))
    gate = door(folder)
    sent = {"north": np.array([1.0, 2.0], np.float32), "east": np.array([3.0, 6.0], np.float32)}
    first = gate.release(of, sent, hashes(sent), {"north": 30.0, "east": 10.0})
    assert first.values.tolist() == [1.5, 3.0] and first.sites_charged == ()
    assert gate.release(of, {}, {}).sha256 == first.sha256
    assert {c.mu2 for c in gate.ledger.charges(run="run")} == {None}
    assert run_statement(gate.ledger, "run", {})["stages"]["2"]["guarantee"] == "no formal guarantee"
    unweighted = gate.release(release(2, of.terms, round=1), sent, hashes(sent))
    assert unweighted.values.tolist() == [4.0, 8.0]
    assert "30" not in json.dumps(gate.ledger.export("run")[0]["release"]["terms"]), "sizes of data sets stay out of the ledger"


def test_a_retry_needs_no_contributions_and_charges_nothing(folder: Path) -> None:
    of = release(9, terms())
    gate = door(folder)
    assert gate.find(of) is None
    sent = {site: contribution(np.ones(9), of.terms) for site in SITES}
    first = gate.release(of, sent, hashes(sent))
    again = door(folder).find(of)
    assert again is not None and again.sha256 == first.sha256 and (again.values == first.values).all()
    assert first.sites_charged == SITES
    body = next((folder / "releases").iterdir())
    assert hashlib.sha256(body.read_bytes()).hexdigest() == first.sha256 and body.stat().st_mode & 0o777 == 0o600


def test_local_trust_sums_what_arrived(folder: Path) -> None:
    of = release(4, terms(trust="local"))
    sent = {site: contribution(np.full(4, 0.1), of.terms) for site in SITES[:3]}
    assert (door(folder).release(of, sent, hashes(sent)).values * of.terms.grid == sum(sent.values())).all()


def _rank_of_the_stuffed(sites: int, cap: float | None) -> int:
    """Where one dishonest voter of ``sites`` gets the candidate that the others like least; 200 candidates, no noise."""
    plan = np.random.default_rng(sites)
    taste = plan.dirichlet(np.full(200, 0.3))
    of = release(200, terms(0.0), tuple(f"site-{i}" for i in range(sites)), statistic="votes", cap=cap)
    sent = {site: contribution(plan.multinomial(500, taste), of.terms) for site in of.roster[1:]}
    least = int(np.argmin(sum(sent.values())))
    sent[of.roster[0]] = contribution(1000.0 * (np.arange(200) == least), of.terms)
    votes = aggregate(of, sent)
    return int((votes > votes[least]).sum()) + 1


@pytest.mark.parametrize("sites", [3, 5])
def test_a_cap_takes_the_prize_from_vote_stuffing(sites: int) -> None:
    """The clip alone lets one of three or five sites crown what it likes; a cap of a quarter of the clip does not."""
    assert _rank_of_the_stuffed(sites, None) <= 4
    assert _rank_of_the_stuffed(sites, 0.25) >= 10


def test_what_no_honest_site_can_send_counts_as_zero(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Under trust "local" the noised vector is not clipped again; and one bad site does not stop the round."""
    of = release(4, terms(trust="local"))
    farthest = clip_steps(of.terms) + 14 * sigma_steps(of.terms)
    for round, bad in enumerate((farthest + 1, -farthest - 1, 2**62, -(2**63))):
        sent = {"east": contribution(np.zeros(4), of.terms), "north": np.array([0, 0, 0, bad])}
        values = checks.through(folder, release(4, of.terms, round=round), sent)
        assert (values == sent["east"]).all()
        assert "CAFE-323" in caplog.text and "north" in caplog.text
    edge = {"east": np.array([0, 0, farthest, -farthest])}
    assert (checks.through(folder, release(4, of.terms, round=9), edge) == edge["east"]).all()


def test_negative_votes_do_not_pass(folder: Path) -> None:
    of = release(2, terms(1e-3), statistic="votes")
    sent = {"east": np.array([-(2**16), 0])}
    assert abs(checks.through(folder, of, sent)).max() <= 14 * sigma_steps(of.terms)


_ZEROS = np.zeros(3, np.int64)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ({"nobody": _ZEROS}, "CAFE-321"),
        ({"east": np.zeros(4, np.int64)}, "CAFE-457"),
        ({"east": np.zeros((1, 3), np.int64)}, "CAFE-457"),
        ({"east": np.zeros(3, np.int32)}, "CAFE-457"),
        ({"east": np.zeros(3)}, "CAFE-457"),
        ({"east": np.array([1 + 2**63 - 1 - 2, 0, 0], np.uint64)}, "CAFE-457"),
    ],
)
def test_a_contribution_is_refused_before_anything_is_charged(folder: Path, sent: dict[str, np.ndarray], code: str) -> None:
    gate = door(folder)
    with pytest.raises(CafeError, match=code):
        gate.release(release(3, terms()), sent, hashes(sent))
    assert gate.ledger.charges() == [] and not list((folder / "releases").iterdir())


def test_other_refusals_before_anything_is_charged(folder: Path) -> None:
    gate, of = door(folder), release(3, terms())
    ok = {"east": _ZEROS}
    far = {"east": np.array([0, 2**62, -(2**63)])}
    for code, call in {
        "CAFE-322": lambda: gate.release(of, ok, {}),
        "CAFE-324": lambda: gate.release(of, ok, hashes(ok), {"east": 1.0}),
        "CAFE-336": lambda: gate.release(release(3, terms(0.0)), ok, hashes(ok)),
        "CAFE-326": lambda: gate.release(release(3, PrivacyTerms(mechanism="none")), {}, {}),
        "CAFE-457": lambda: gate.release(release(3, PrivacyTerms(mechanism="none")), {"east": np.array([1, math.nan, 2])}, hashes(ok)),
        "CAFE-321": lambda: gate.release(release(3, terms(), ("east", "east")), ok, hashes(ok)),
    }.items():
        with pytest.raises(CafeError, match=code):
            call()
    assert gate.ledger.charges() == []
    gate.release(of, far, hashes(far))  # trust "server": the far-off contribution is bounded, exactly


def test_another_description_of_a_charged_release_is_refused(folder: Path) -> None:
    gate, of = door(folder), release(3, terms())
    gate.release(of, {"east": _ZEROS}, hashes({"east": _ZEROS}))
    for other in (
        release(3, terms(5.0)),
        release(4, terms()),
        release(3, terms(clip_norm=2.0)),
        release(3, terms(trust="local")),
        release(3, terms(), SITES[:2]),
        release(3, terms(), cap=0.5),
    ):
        with pytest.raises(CafeError, match="CAFE-662"):
            gate.release(other, {}, {})


def test_recover_sweeps_adopts_and_stops(folder: Path) -> None:
    of, sent = release(3, terms()), {"east": _ZEROS}
    checks._cut_before_the_mark(folder, of, sent)
    gate = door(folder)
    (body,) = (folder / "releases").iterdir()
    (folder / "releases" / "half.safetensors.tmp").write_bytes(b"half")
    late = body.with_name(body.name.replace(body.name.split(".")[1], hashlib.sha256(b"late").hexdigest()))
    gate.recover("run")
    late.write_bytes(b"late")  # an overtaken process renames its file after all
    gate.recover("run")
    assert [path.name for path in (folder / "releases").iterdir()] == [body.name]
    assert gate.ledger.get(of.rid).state == "sealed"
    body.unlink()
    gate.recover()  # another run's bodies may lie in another folder: without a name nothing is marked
    assert gate.ledger.get(of.rid).state == "sealed"
    gate.recover("run")
    assert gate.ledger.get(of.rid).state == "lost"
    (folder / "releases" / body.name.replace(body.name[:4], "ffff", 1)).write_bytes(b"?")
    with pytest.raises(CafeError, match="CAFE-327"):
        gate.recover("run")


def test_a_damaged_body_is_lost_not_repaired(folder: Path) -> None:
    of, sent = release(3, terms()), {"east": _ZEROS}
    door(folder).release(of, sent, hashes(sent))
    (body,) = (folder / "releases").iterdir()
    data = bytearray(body.read_bytes())
    data[-1] ^= 1
    body.write_bytes(data)
    with pytest.raises(CafeError, match="CAFE-325"):
        door(folder).release(of, sent, hashes(sent))
    assert door(folder).ledger.get(of.rid).state == "lost"


def test_the_statement_is_the_maximum_over_sites(folder: Path) -> None:
    """Weak sites in stage 1, a strong one in stage 2, and one in both, which pays for both."""
    gate = door(folder)
    votes, deltas = calibrate(4, 1e-5, 2, 1.0, "server"), calibrate(4, 1e-5, 1, 1.0, "server")
    for round in range(2):
        gate.release(Release("run", 1, 1, round, "votes", votes, ("north", "both"), 3), {}, {})
    gate.release(Release("run", 2, 1, 0, "delta", deltas, ("lab", "both"), 3), {}, {})
    said = run_statement(gate.ledger, "run", {1: 1e-5, 2: 1e-5})
    assert said["stages"]["1"] == {
        "guarantee": "client-level differential privacy",
        "epsilon": 4.0,
        "delta": 1e-5,
        "unit": "client",
        "trust": "server",
        "adjacency": "zero-out of one client",
        "releases": 2,
        "sites": 2,
    }
    assert said["sites"]["both"]["epsilon"] == pytest.approx(5.99, abs=0.01)
    assert said["maximum"]["epsilon"] == said["sites"]["both"]["epsilon"] and said["sites"]["lab"]["epsilon"] == 4.0
    assert said["sites_without_guarantee"] == [] and json.dumps(said)
    with pytest.raises(CafeError, match="CAFE-333"):
        run_statement(gate.ledger, "run", {1: 1e-5})


# --- kill -9 ---------------------------------------------------------------------------------------------------------


def _child(folder: Path, failpoint: str = "") -> BaseProcess:
    """A process of its own that releases, and dies where it is told. Forked, so that it starts at once."""
    child = multiprocessing.get_context("fork").Process(target=_release_once, args=(folder, failpoint))
    child.start()
    return child


def _release_once(folder: Path, failpoint: str) -> None:
    os.environ["CAFE_FAILPOINT"] = failpoint
    of, sent = release(50, terms()), {site: np.zeros(50, np.int64) for site in SITES}
    gate = door(folder)
    gate.recover("run")
    sha256 = gate.release(of, sent, hashes(sent)).sha256
    (folder / f"seen-{os.getpid()}").write_text(sha256)


FAILPOINTS = (
    "door.before_reserve",
    "door.after_reserve",
    "door.after_draw",
    "seal.before_write",
    "seal.half_written",
    "seal.before_rename",
    "seal.after_rename",
    "door.after_seal",
    "door.after_mark",
)


@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_killed_anywhere_one_charge_and_one_body(folder: Path, failpoint: str) -> None:
    killed = _child(folder, failpoint)
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL and not list(folder.glob("seen-*"))
    whole = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "releases").glob("*.safetensors")}
    charged = len(Ledger(folder / "ledger.db").charges(run="run"))
    assert charged == (0 if failpoint == "door.before_reserve" else len(SITES)), "charged before anything is drawn"

    of, sent = release(50, terms()), {site: np.zeros(50, np.int64) for site in SITES}
    gate = door(folder)
    gate.recover("run")
    body = gate.release(of, sent, hashes(sent)).sha256
    assert whole <= {body}, "what was whole on the disk is the body"
    assert len(list((folder / "releases").iterdir())) == 1
    assert len(gate.ledger.charges(run="run")) == len(SITES) and gate.ledger.get(of.rid).state == "sealed"
    gate.ledger.verify()


def test_several_processes_make_one_body(folder: Path) -> None:
    """Six workers at once, each sweeping and releasing: whoever is first has sealed it, and nobody sees other bytes."""
    children = [_child(folder) for _ in range(6)]
    for child in children:
        child.join(120)
    bodies = {path.read_text() for path in folder.glob("seen-*")}
    assert len(bodies) == 1
    assert len(Ledger(folder / "ledger.db").charges(run="run")) == len(SITES)
    assert [path.name.split(".")[1] for path in (folder / "releases").iterdir()] == list(bodies)


def test_a_door_of_another_ledger_sees_nothing(folder: Path) -> None:
    gate = PrivacyDoor(Ledger(folder / "other.db"), folder / "elsewhere")
    assert gate.find(release(3, terms())) is None


@pytest.mark.parametrize(
    ("number", "words"), [(8.0, "8"), (1e-5, "1e-5"), (0.25, "0.25"), (8.000001, "8.00001"), (7.99999, "7.99999"), (12.3456789, "12.3457")]
)
def test_a_promise_is_never_written_smaller_than_it_is(number: float, words: str) -> None:
    assert accounting.shown(number) == words and float(words) >= number
