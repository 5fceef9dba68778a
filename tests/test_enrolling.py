"""Letting a site in: which state follows which, a code that serves one key once, four words, and an answer that two operators agree on."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cafe_kit import enrolment
from cafe_kit.enrolment import Approval, Consent, Host, JoinRequest, KitInfo, Limits
from cafe_kit.errors import CafeError
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from pipeline import enrolling, federations
from pipeline.enrolling import Issued
from server_store.errors import StoreError
from server_store.site_kits import SiteKits
from tests.test_house import ROOT

WEEK = 7 * 86400.0


class Site:
    """What a site does with its kit, by the kit's own functions."""

    def __init__(self, issued: Issued) -> None:
        self.issued, self.key = issued, Ed25519PrivateKey.generate()
        with zipfile.ZipFile(issued.zip) as kit:
            self.info = enrolment.parse(KitInfo, kit.read(next(name for name in kit.namelist() if name.endswith("federation.json"))))

    @property
    def verify_key(self) -> str:
        return self.key.public_key().public_bytes_raw().hex()

    @property
    def seal_key(self) -> str:
        return X25519PrivateKey.from_private_bytes(self.key.private_bytes_raw()).public_key().public_bytes_raw().hex()

    @property
    def words(self) -> str:
        return " ".join(enrolment.words(self.info.server.verify_key, self.verify_key, self.info.serial))

    def ask(self, file: Path, code: str = "", **changes: object) -> Path:
        info = self.info
        host, consent = Host("Linux [red]", "3.12.1", 8, 15.5), Consent("Ada [red]", "head of ward", "IRB 7")
        request = JoinRequest(
            info.federation,
            info.serial,
            info.site,
            self.verify_key,
            time.time(),
            host,
            Limits(max_epsilon=3.0),
            consent,
            self.seal_key,
            2000,
        )
        request = replace(request, **changes)
        proved = enrolment.prove(request, enrolment.proof_key(code or self.issued.code, info.serial))
        file.write_bytes(enrolment.sign_request(proved, self.key))
        return file

    def read(self, answer: Path) -> Approval:
        return enrolment.check_approval(answer.read_bytes(), self.info.server.verify_key, self.info.serial, self.verify_key)


@pytest.fixture
def federation(cafe_home: Path) -> str:
    made = federations.create("clinics", "classification", "messages to a clinic")
    federations.save("clinics", {**made.data, "task": {**made.data["task"], "labels": ["billing", "records"]}})
    return "clinics"


@pytest.fixture
def site(federation: str) -> Site:
    return Site(enrolling.issue(federation, "hpc", "gpu"))


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets time pass."""
    now = time.time

    def pass_(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: now() + seconds)

    return pass_


def code_of(error: pytest.ExceptionInfo[CafeError | StoreError]) -> str:
    return error.value.code


def refused(act: Callable[[], object]) -> str:
    with pytest.raises((CafeError, StoreError)) as error:
        act()
    return code_of(error)


# The way in


def test_from_kit_to_answer_by_two_files(site: Site, tmp_path: Path) -> None:
    waiting = enrolling.receive(site.ask(tmp_path / "request.json"))
    assert waiting.kit.state == "requested" and " ".join(waiting.words) == site.words
    assert (waiting.request.records, waiting.request.limits.max_epsilon, waiting.request.host.cores) == (2000, 3.0, 8)
    answer = site.read(enrolling.approve(site.info.serial, site.words.upper().replace(" ", "-"), "eve"))
    assert (answer.approved, answer.site, answer.reason) == (True, "hpc", "")
    (kit,) = enrolling.listed("clinics")
    assert (kit.state, kit.decided_by, kit.site_key, kit.code_key) == ("approved", "eve", site.verify_key, "")


def test_from_kit_to_answer_through_a_folder(federation: str, tmp_path: Path) -> None:
    shared = tmp_path / "gemeinsam für alle"
    shared.mkdir()
    issued = enrolling.issue(federation, "hpc", "gpu", exchange=shared, to=tmp_path)
    site = Site(issued)
    assert issued.zip.parent == tmp_path
    assert enrolment.open_address(site.info.sealed, issued.code, site.info.serial) == {"exchange": str(shared)}
    assert enrolling.received() == ([], [])
    site.ask(shared / enrolment.request_name(site.info.serial))
    (waiting,), wrong = enrolling.received(federation)
    assert waiting.kit.site == "hpc" and wrong == []
    enrolling.approve(site.info.serial, site.words)
    assert site.read(shared / enrolment.answer_name(site.info.serial)).approved
    assert enrolling.received() == ([], [])


def test_a_kit_proposes_what_the_federation_needs(federation: str, site: Site) -> None:
    settings = federations.get(federation)
    federations.save(federation, {**settings.data, "privacy": {"epsilon": 4, "delta": 1e-6}})
    limits = Site(enrolling.issue(federation, "other", "gpu")).info.limits
    assert (limits.max_epsilon, limits.max_epsilon_per_run, limits.delta, limits.allow_without_noise) == (4.0, 4.0, 1e-6, False)
    assert site.info.limits.allow_without_noise and site.info.task.labels == ("billing", "records")


def test_nothing_in_the_zip_is_secret(site: Site, cafe_home: Path) -> None:
    zipped = site.issued.zip.read_bytes()
    keys = [path.read_bytes() for path in (cafe_home / "keys").iterdir() if path.suffix == ".key"]
    code = site.issued.code
    secret = [code.encode(), code.replace("-", "").encode(), str(cafe_home).encode(), enrolment.proof_key(code, site.info.serial)]
    secret += [form for key in keys for form in (key, key.hex().encode(), base64.b64encode(key), base64.b64encode(key)[:40])]
    secret += [enrolment.proof_key(code, site.info.serial).hex().encode()]
    assert len(keys) == 2 and [bytes(one) for one in secret if one in zipped] == []
    assert code.encode() not in (cafe_home / "store.db").read_bytes()
    assert stat.S_IMODE((cafe_home / "keys" / "signing.key").stat().st_mode) == 0o600


# What is refused


def test_another_code(site: Site, tmp_path: Path) -> None:
    assert refused(lambda: enrolling.receive(site.ask(tmp_path / "r", code="ABCD-EFGH-JKMN-PQRS"))) == "CAFE-140"
    assert enrolling.listed()[0].state == "issued"
    assert enrolling.receive(site.ask(tmp_path / "r")).kit.state == "requested"


def test_a_code_serves_one_key(site: Site, tmp_path: Path) -> None:
    enrolling.receive(site.ask(tmp_path / "r"))
    assert enrolling.receive(site.ask(tmp_path / "r", records=3000)).request.records == 3000  # the same site may correct itself
    thief = Site(site.issued)
    assert refused(lambda: enrolling.receive(thief.ask(tmp_path / "t"))) == "CAFE-143"
    enrolling.approve(site.info.serial, site.words)
    assert refused(lambda: enrolling.receive(thief.ask(tmp_path / "t"))) == "CAFE-143"
    assert enrolling.receive(site.ask(tmp_path / "r", records=9)).request.records == 3000  # what was decided on stays
    assert site.read(enrolling.approve(site.info.serial, site.words)).approved


def test_other_words(site: Site, tmp_path: Path) -> None:
    enrolling.receive(site.ask(tmp_path / "r"))
    forged = Site(site.issued).words
    for words in ("", "acorn acorn acorn acorn", forged, " ".join(reversed(site.words.split())), site.words + " acorn"):
        assert refused(lambda words=words: enrolling.approve(site.info.serial, words)) == "CAFE-144"
    assert enrolling.listed()[0].state == "requested"


def test_a_kit_that_expired(site: Site, tmp_path: Path, later: Callable[[float], None]) -> None:
    later(WEEK + 60)
    assert refused(lambda: enrolling.receive(site.ask(tmp_path / "r"))) == "CAFE-152"
    again = Site(enrolling.issue("clinics", "hpc", "gpu"))  # makes room for itself
    assert [kit.state for kit in enrolling.listed()] == ["issued", "revoked"]
    assert refused(lambda: enrolling.receive(site.ask(tmp_path / "r"))) == "CAFE-142"
    assert enrolling.receive(again.ask(tmp_path / "a")).kit.serial == again.info.serial


def test_who_asked_in_time_may_be_approved_later(site: Site, tmp_path: Path, later: Callable[[float], None]) -> None:
    enrolling.receive(site.ask(tmp_path / "r"))
    later(WEEK + 60)
    assert enrolling.receive(site.ask(tmp_path / "r")).kit.state == "requested"
    assert site.read(enrolling.approve(site.info.serial, site.words)).approved


def test_a_site_without_a_clock(site: Site, tmp_path: Path) -> None:
    for made in (0.0, time.time() - 3600, time.time() + 3600):
        assert refused(lambda made=made: enrolling.receive(site.ask(tmp_path / "r", made=made))) == "CAFE-153"


def test_a_refusal_is_told_and_final(site: Site, tmp_path: Path) -> None:
    request = site.ask(tmp_path / "r")
    enrolling.receive(request)
    answer = site.read(enrolling.refuse(site.info.serial, "The words differ.", "eve"))
    assert (answer.approved, answer.reason) == (False, "The words differ.")
    for act in (lambda: enrolling.receive(request), lambda: enrolling.approve(site.info.serial, site.words)):
        assert refused(act) == "CAFE-149"
    assert refused(lambda: enrolling.refuse(site.info.serial, "again")) == "CAFE-146"
    assert enrolling.issue("clinics", "hpc", "gpu").serial != site.info.serial


def test_a_kit_that_was_revoked(site: Site, tmp_path: Path) -> None:
    assert refused(lambda: enrolling.issue("clinics", "HPC", "gpu")) == "CAFE-145"
    assert enrolling.revoke(site.info.serial) is None  # nobody waits for an answer
    assert refused(lambda: enrolling.receive(site.ask(tmp_path / "r"))) == "CAFE-142"
    assert refused(lambda: enrolling.revoke(site.info.serial)) == "CAFE-146"
    second = Site(enrolling.issue("clinics", "hpc", "gpu"))
    enrolling.receive(second.ask(tmp_path / "s"))
    answer = enrolling.revoke(second.info.serial, "A mistake.")
    assert answer is not None and second.read(answer).reason == "A mistake."
    assert refused(lambda: enrolling.approve(second.info.serial, second.words)) == "CAFE-142"


def test_a_decision_without_a_request(site: Site) -> None:
    for act in (lambda: enrolling.approve(site.info.serial, site.words), lambda: enrolling.refuse(site.info.serial, "no")):
        assert refused(act) == "CAFE-146"
    with SiteKitsOf() as kits:
        assert refused(lambda: kits.approve(site.info.serial, site.verify_key, "", 1.0)) == "CAFE-146"
        assert refused(lambda: kits.leave(site.info.serial, 1.0)) == "CAFE-146"


def test_a_site_that_left_and_a_kit_that_was_fetched(site: Site, tmp_path: Path) -> None:
    enrolling.receive(site.ask(tmp_path / "r"))
    enrolling.approve(site.info.serial, site.words)
    with SiteKitsOf() as kits:
        kits.count_download(site.info.serial)
        assert (kits.leave(site.info.serial, 2.0e9).state, kits.kit(site.info.serial).downloads) == ("left", 1)
    assert refused(lambda: enrolling.approve(site.info.serial, site.words)) == "CAFE-142"
    assert enrolling.issue("clinics", "hpc", "gpu").serial != site.info.serial


def test_a_request_for_something_else(site: Site, tmp_path: Path) -> None:
    assert refused(lambda: enrolling.receive(site.ask(tmp_path / "r", serial="ef" * 16))) == "CAFE-147"
    assert refused(lambda: enrolling.receive(site.ask(tmp_path / "r", site="other"))) == "CAFE-148"
    assert refused(lambda: enrolling.receive(tmp_path / "nowhere")) == "CAFE-137"


def test_a_request_that_was_altered(site: Site, tmp_path: Path) -> None:
    file = site.ask(tmp_path / "r")
    document = json.loads(file.read_bytes())
    document["document"]["limits"]["max_epsilon"] = 99.0
    file.write_text(json.dumps(document))
    assert refused(lambda: enrolling.receive(file)) == "CAFE-102"
    file.write_bytes(os.urandom(70_000))
    assert refused(lambda: enrolling.receive(file)) == "CAFE-101"
    document["document"]["protocol"] = 2
    file.write_text(json.dumps(document))
    assert refused(lambda: enrolling.receive(file)) == "CAFE-103"


def test_kits_that_cannot_be_made(federation: str, tmp_path: Path) -> None:
    for name in ("", "ward 3", "../x", "a" * 65):
        assert refused(lambda name=name: enrolling.issue(federation, name, "gpu")) == "CAFE-602"
    assert refused(lambda: enrolling.issue("nobody", "a", "gpu")) == "CAFE-607"
    assert refused(lambda: enrolling.issue(federation, "a", "gpu", exchange=tmp_path / "none")) == "CAFE-137"
    assert refused(lambda: enrolling.issue(federation, "a", "gpu", to=tmp_path / "none" / "kit.zip")) == "CAFE-137"
    assert enrolling.listed() == [] and not list(tmp_path.glob("*.zip"))


# The command line


def cafe(*words: str | Path, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "site", *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.runs
def test_the_commands_from_add_to_revoke(federation: str, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    made = json.loads(cafe("add", federation, "hpc", "--kind", "gpu", "--exchange", shared, "--to", tmp_path, "--format", "json"))
    site = Site(Issued(**{**made, "zip": Path(made["zip"])}))
    assert "CAFE-145" in cafe("add", federation, "hpc", "--kind", "gpu", code=2)
    assert "No request" in cafe("receive")
    site.ask(shared / enrolment.request_name(site.info.serial))
    shown = cafe("receive")
    assert site.words.replace(" ", "-") in shown and "Linux [red]" in shown and "Ada [red], head of ward" in shown
    told = cafe("list", "--format", "json") + cafe("receive", "--format", "json")
    assert made["code"] not in told and "code_key" not in told and json.loads(cafe("receive", "--format", "json"))["errors"] == []
    assert "CAFE-144" in cafe("approve", "hpc", "--words", "acorn acorn acorn acorn", code=2)
    answer = json.loads(cafe("approve", "hpc", "--words", site.words, "--format", "json"))
    assert (answer["state"], site.read(Path(answer["answer"])).approved) == ("approved", True)
    assert "CAFE-146" in cafe("refuse", "hpc", "--reason", "late", code=2)
    assert "revoked" in cafe("revoke", site.info.serial) and "revoked" in cafe("list", federation)
    assert json.loads(cafe("approve", "nobody", "--words", "a", "--format", "json", code=2))["error"]["code"] == "CAFE-147"


def test_a_request_that_cannot_be_taken_is_told_beside_the_others(federation: str, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    good, bad = (Site(enrolling.issue(federation, name, "gpu", exchange=shared)) for name in ("good", "bad"))
    good.ask(shared / enrolment.request_name(good.info.serial))
    bad.ask(shared / enrolment.request_name(bad.info.serial), code="ABCD-EFGH-JKMN-PQRS")
    shown = cafe("receive", code=1)
    assert "good of clinics" in shown and "CAFE-140" in shown


# Two operators at once


class SiteKitsOf:
    """The store of this home, closed at the end."""

    def __enter__(self) -> SiteKits:
        self.kits = enrolling.store()
        return self.kits

    def __exit__(self, *_: object) -> None:
        self.kits.close()


def at_once(*acts: Callable[[], object]) -> list[object]:
    """What came of each, an error's code included, when all began together."""
    gate, results = threading.Barrier(len(acts)), [None] * len(acts)

    def run(number: int) -> None:
        gate.wait()
        try:
            results[number] = acts[number]()
        except (CafeError, StoreError) as error:
            results[number] = error.code

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_two_approvals_at_once_are_one(site: Site, tmp_path: Path) -> None:
    enrolling.receive(site.ask(tmp_path / "r"))
    serial, words = site.info.serial, site.words
    first, second = at_once(lambda: enrolling.approve(serial, words, "ada"), lambda: enrolling.approve(serial, words, "eve"))
    assert first == second and isinstance(first, Path) and site.read(first).approved
    assert enrolling.listed()[0].decided_by in ("ada", "eve")
    before = first.read_bytes()
    enrolling.approve(serial, words, "someone else")
    assert first.read_bytes() == before


def test_yes_and_no_at_once_is_one_of_them(site: Site, tmp_path: Path) -> None:
    enrolling.receive(site.ask(tmp_path / "r"))
    serial, words = site.info.serial, site.words
    yes, no = at_once(lambda: enrolling.approve(serial, words), lambda: enrolling.refuse(serial, "no"))
    state = enrolling.listed()[0].state
    assert (state, no) == ("approved", "CAFE-146") if isinstance(yes, Path) else (state, yes) == ("refused", "CAFE-149")


def test_two_kits_at_once_are_one(federation: str) -> None:
    made = at_once(lambda: enrolling.issue(federation, "hpc", "gpu"), lambda: enrolling.issue(federation, "hpc", "gpu"))
    assert sorted(type(one).__name__ for one in made) == ["Issued", "str"] and "CAFE-145" in made
    (kit,) = enrolling.listed()
    (issued,) = (one for one in made if isinstance(one, Issued))
    assert Site(issued).info.serial == kit.serial


def test_two_keys_with_one_code_at_once_are_one(site: Site, tmp_path: Path) -> None:
    thief = Site(site.issued)
    files = [site.ask(tmp_path / "a"), thief.ask(tmp_path / "b")]
    results = at_once(*(lambda file=file: enrolling.receive(file) for file in files))
    assert results.count("CAFE-143") == 1
