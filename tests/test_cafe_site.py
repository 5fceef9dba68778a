"""The command of a site, run as its admin runs it: from the unzipped kit to the log of what was sent, and everything that is refused."""

from __future__ import annotations

import functools
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cafe_kit import doctor, enrolment, limits, questions, site_folder, ssh_signature
from cafe_kit.errors import CafeError
from cafe_kit.ledger import Spent
from cafe_kit.orders import Order
from cafe_kit.policy import TEMPLATE, Policy, load_policy
from cafe_kit.seat_config import SeatConfig
from cafe_kit.site_folder import to_toml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import BY_SERVER, BY_SITE, NO_NOISE, TASK, VOTE, TinyEngine
from tests.site_place import CODE, DAY, MARK, SERIAL, Place, make_place

_code_key = functools.cache(enrolment._code_key)


@pytest.fixture(autouse=True)
def _the_code_is_stretched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes guessing slow makes these tests slow."""
    monkeypatch.setattr(enrolment, "_code_key", _code_key)


Make = Callable[..., Place]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return partial(make_place, tmp_path)


@pytest.fixture
def place(make: Make) -> Place:
    return make()


@pytest.fixture
def joined(place: Place) -> Place:
    assert place.join().returncode == 3
    place.approve()
    assert place.join().returncode == 0
    return place


def ask(place: Place, order: Any) -> Any:
    asked = place.server.ask(order)
    return place.seat().answer(asked["order"], asked["signature"], asked["transport"], TinyEngine(), lambda *_: None)[0]


# Joining


def test_from_the_kit_to_a_site_that_answers(place: Place) -> None:
    asked = place.really("join", "--answers", str(place.answers()), "--yes", "--wait", "0")
    assert asked.returncode == 3 and "❌" not in asked.stdout
    words = re.search(r"four words: (\S+)", asked.stdout)
    request = enrolment.read_request((place.exchange / enrolment.request_name(place.info.serial)).read_bytes())
    assert words and words[1] == "-".join(enrolment.words(place.info.server.verify_key, request.site_key, request.serial))
    assert (request.records, request.consent.name, request.limits.max_epsilon) == (30, "Dr. Ärmel", 4.0)
    place.approve()
    answered = place.really("join", "--wait", "30", "--format", "json", code=None)  # nothing is asked again, not even the code
    done = json.loads(answered.stdout)
    assert (answered.returncode, done["state"], done["words"]) == (0, "joined", words[1])
    assert (place.home.stat().st_mode & 0o777, (place.home / "site.key").stat().st_mode & 0o777) == (0o700, 0o600)
    assert ask(place, place.server.order("north", "vote", BY_SITE)).status == "ok"
    assert place.json("status")["state"] == "joined"


def test_it_waits_and_goes_on_where_it_was_stopped(place: Place) -> None:
    first = subprocess.Popen(
        [sys.executable, "-m", "cafe_kit.cli", "join", "--answers", str(place.answers()), "--yes"],
        env=place.environment(), cwd=place.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a session in the background ignores it
    )  # fmt: skip
    request = place.exchange / enrolment.request_name(place.info.serial)
    assert first.stdout is not None
    lines = []
    while not any("Waiting" in line for line in lines):
        lines.append(first.stdout.readline())
        assert lines[-1], "".join(lines)
    second = place.run("join", "--wait", "0")
    assert second.returncode == 4 and "CAFE-158" in second.stderr  # one at a time
    before = request.read_bytes()
    first.send_signal(signal.SIGINT)
    assert first.wait(30) == 3
    assert place.json("join", "--wait", "0", status=3)["code"] == "CAFE-155"
    assert request.read_bytes() == before
    place.approve()
    assert place.run("join").returncode == 0
    assert place.run("join").returncode == 0  # and once more does no harm


def test_files_that_are_handed_over(make: Make) -> None:
    place = make(sealed=enrolment.seal_address({"exchange": ""}, CODE, SERIAL))
    asked = place.json("join", "--answers", str(place.answers()), "--yes", status=3)
    (place.exchange / enrolment.request_name(SERIAL)).write_bytes(Path(asked["request"]).read_bytes())
    answer = place.approve()
    assert place.run("join", "--approval", str(place.folder / "nothing.json")).returncode == 1
    assert place.run("join", "--approval", str(answer)).returncode == 0
    answer.unlink()
    assert place.json("status")["state"] == "joined"


def test_questions_at_the_prompt(place: Place) -> None:
    typed = [str(place.folder / "nothing.csv"), str(place.data), "", "", "", "4", "2", "", "", "Dr. No", "head", "", "y"]
    done = place.run("join", "--wait", "0", typed="\n".join(typed) + "\n")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "CAFE-201" in done.stdout and "[message]" in done.stdout and "[department]" in done.stdout and f"{MARK} message 0" in done.stdout
    settings = site_folder.joined(place.home)
    assert settings.data.columns == {"text": "message", "label": "department"} and settings.share_rows == "no"
    policy = load_policy(place.home / "policy.toml")
    assert (policy.max_epsilon, policy.max_epsilon_per_run, policy.allow_without_noise) == (4.0, 2.0, False)
    for file in (path for path in [*place.home.rglob("*"), *place.asked] if path.is_file() and path.name != "site.toml"):
        assert MARK not in file.read_text(errors="replace"), file


# What is refused


@pytest.mark.parametrize("name", ["federation.json", "cafe-site", "SHA256SUMS", "SHA256SUMS.sig", "models/embedder/model.onnx"])
def test_an_altered_kit(place: Place, name: str) -> None:
    file = place.kit / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    for words in (("join", "--answers", str(place.answers()), "--yes"), ("doctor",)):
        done = place.run(*words)
        assert done.returncode == 4 and "CAFE-150" in done.stderr
    assert not place.home.exists()


def test_a_kit_whose_list_was_made_again_by_somebody_else(place: Place) -> None:
    (place.kit / "VERSION").write_text("mine\n")
    done = subprocess.run(["sha256sum", "VERSION"], cwd=place.kit, capture_output=True, text=True, check=True)
    sums = re.sub(r"^.{64}  VERSION\n", done.stdout, (place.kit / "SHA256SUMS").read_text(), flags=re.MULTILINE)
    (place.kit / "SHA256SUMS").write_text(sums)
    (place.kit / "SHA256SUMS.sig").write_text(ssh_signature.sign(sums.encode(), Ed25519PrivateKey.generate()))
    assert "CAFE-150" in place.run("doctor").stderr


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "link"])
def test_a_list_that_leads_out_of_the_kit(place: Place, name: str) -> None:
    (place.kit / "link").symlink_to("/etc/passwd")
    with (place.kit / "SHA256SUMS").open("a") as file:
        file.write(f"{'0' * 64}  {name}\n")
    assert place.run("doctor").returncode == 4


def test_a_wrong_code_leaves_nothing_but_a_key(place: Place) -> None:
    done = place.join(code="ABCD-EFGH-JKMN-PQRT")
    assert done.returncode == 4 and "CAFE-140" in done.stderr
    assert not (place.home / "site.toml").exists() and not place.asked
    assert place.join().returncode == 3


def test_a_mistyped_code_is_asked_for_again(place: Place) -> None:
    done = place.join(code=None, typed="wrong\nabcd efgh jkmn pqrs\n")
    assert done.returncode == 3 and "CAFE-140" in done.stdout
    place.run("leave", "--yes")
    assert place.join(code=None, typed="a\nb\nc\nabcd efgh jkmn pqrs\n").returncode == 4


def test_a_kit_that_has_expired_and_a_clock_before_its_making(make: Make) -> None:
    place = make(issued=time.time() - 9 * DAY, expires=time.time() - 2 * DAY)
    done = place.join()
    assert done.returncode == 4 and "CAFE-152" in done.stderr


def test_a_clock_before_the_kits_making(make: Make) -> None:
    done = make(issued=time.time() + 3600).join()
    assert done.returncode == 1 and "CAFE-153" in done.stderr


@pytest.mark.parametrize(
    ("changes", "own_key", "code"),
    [
        ({}, Ed25519PrivateKey.generate(), "CAFE-102"),
        ({"site_key": "0" * 64}, None, "CAFE-148"),
        ({"serial": "0" * 32}, None, "CAFE-148"),
        ({"approved": False, "reason": "other \x1b[31m words"}, None, "CAFE-154"),
    ],
)
def test_an_answer_that_lets_nobody_in(place: Place, changes: dict[str, Any], own_key: Ed25519PrivateKey | None, code: str) -> None:
    place.join()
    place.approve(own_key, **changes)
    done = place.run("join", "--wait", "5")
    assert done.returncode == 4 and code in done.stderr and "\x1b" not in done.stderr
    assert place.json("status")["state"] == ("refused" if code == "CAFE-154" else "waiting")


def test_an_answer_that_is_still_being_copied_is_waited_for(place: Place) -> None:
    place.join()
    whole = place.approve().read_bytes()
    target = place.exchange / enrolment.answer_name(place.info.serial)
    target.write_bytes(whole[:100])
    waiting = subprocess.Popen(
        [sys.executable, "-m", "cafe_kit.cli", "join", "--wait", "30"], env=place.environment(), stdout=subprocess.PIPE, text=True
    )
    assert waiting.stdout is not None
    while "Waiting" not in waiting.stdout.readline():
        pass
    target.write_bytes(whole)
    assert waiting.wait(40) == 0


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"consent__agreed": False}, 5, "CAFE-340"),
        ({"limits__max_epsilon": 1.0}, 2, "CAFE-157"),
        ({"limits__max_epsilon": -1.0}, 2, "CAFE-157"),
        ({"limits__colour": "red"}, 2, "CAFE-157"),
        ({"data__path": "nowhere.csv"}, 1, "CAFE-201"),
        ({"data__columns": {}}, 1, "CAFE-206"),
    ],
)
def test_answers_that_cannot_be_used(place: Place, changes: dict[str, Any], status: int, code: str) -> None:
    done = place.run("join", "--answers", str(place.answers(**changes)), "--yes", "--wait", "0")
    assert done.returncode == status and code in done.stderr, done.stdout + done.stderr
    assert not place.asked


def test_the_example_of_the_help_is_a_file_of_answers(place: Place) -> None:
    path = place.folder / "example.toml"
    path.write_text(questions.EXAMPLE.partition("\n")[2])
    answers = questions.from_file(path, place.info)
    assert (answers.limits.max_epsilon, answers.limits.kinds, answers.limits.allow_without_noise) == (4.0, ("hello", "vote"), False)


def test_usage_and_places_without_a_site(place: Place) -> None:
    assert place.run("dance").returncode == 2
    assert place.run("outbox", "show").returncode == 2 and place.run("limits", "max_epsilon=1").returncode == 2
    assert "CAFE-156" in place.run("status").stderr
    assert place.run("join", "--kit", str(place.folder)).returncode == 4
    assert place.run("join").returncode == 2  # nobody answers the questions
    assert "--answers" in place.run("join", "--help").stdout


def test_another_kit_does_not_take_over_a_site(joined: Place, tmp_path: Path) -> None:
    settings = site_folder.joined(joined.home)
    site_folder.save(joined.home, settings.model_copy(update={"serial": "0" * 32}))
    assert "CAFE-158" in joined.run("join", "--wait", "0").stderr


# What the site sees and decides


def test_the_log_tells_what_left_and_what_it_cost(joined: Place) -> None:
    order = joined.server.order("north", "vote", BY_SITE)
    assert ask(joined, order).status == "ok"
    assert ask(joined, replace(order, run="other", privacy=BY_SERVER)).status == "ok"
    assert ask(joined, replace(order, run="open", privacy=NO_NOISE)).status == "ok"
    assert ask(joined, joined.server.order("north", "train", BY_SITE)).code == "CAFE-310"
    text = joined.run("log", "--explain").stdout
    assert re.search(r"Sent 6 noised counts \(\d+ bytes\) for run run, vote 1 of stage 1\. Cost ε 1\.99, total 1\.99 of 4\.", text)
    assert "encrypted to the server, which adds the noise" in text and "No formal guarantee." in text
    assert "Refused an order: CAFE-310." in text and "Joined the federation." in text
    assert [line["time"] for line in joined.json("log", "--explain")] == sorted(line["time"] for line in joined.json("log"))
    shown = joined.json("outbox", "show", "1")
    assert shown["numbers"]["how_many"] == 6 and len(shown["numbers"]["first"]) == 6 and shown["body"]["kept"]
    assert "encrypted" in joined.json("outbox")[1]["numbers"]
    assert joined.run("outbox", "show", "9").returncode == 2
    status = joined.json("status")
    assert status["answers"] == 3 and 2.9 < status["epsilon"] < 3


def test_a_paused_site_refuses_until_it_is_resumed(joined: Place) -> None:
    order, seat = joined.server.order("north", "vote", BY_SITE), joined.seat()
    asked = joined.server.ask(order)

    def answer() -> Any:
        return seat.answer(asked["order"], asked["signature"], asked["transport"], TinyEngine(), lambda *_: None)[0]

    assert joined.run("pause").returncode == 0 and joined.json("status")["paused"]
    assert (answer().status, answer().code) == ("refused", "CAFE-320")
    assert not list((joined.server.folder / "inbox").iterdir())
    joined.run("resume")
    assert answer().status == "ok"
    sent = joined.server.output(order)
    sent.unlink()
    joined.run("pause")
    assert answer().code == "CAFE-320" and not sent.exists()  # not even what was sealed before
    assert "Paused: nothing is answered." in joined.run("log", "--explain").stdout


def test_a_pause_or_a_lower_limit_reaches_an_order_that_is_being_computed(joined: Place) -> None:
    for words, code in ((("pause",), "CAFE-320"), (("limits", "set", "max_epsilon=0.5"), "CAFE-313")):

        class Interrupted(TinyEngine):
            def vote(self, *arguments: Any, words: tuple[str, ...] = words) -> Any:
                assert joined.run(*words).returncode == 0
                return super().vote(*arguments)

        asked = joined.server.ask(joined.server.order("north", "vote", BY_SITE))
        reply, _ = joined.seat().answer(asked["order"], asked["signature"], asked["transport"], Interrupted(), lambda *_: None)
        assert reply.code == code
        joined.run("resume")
    assert joined.json("status")["answers"] == 0


def test_limits_are_lowered_freely_and_raised_only_by_typing(joined: Place) -> None:
    assert joined.json("limits", "set", "max_epsilon=3", "kinds=hello")["max_epsilon"] == 3.0
    before = (joined.home / "policy.toml").read_text()
    assert "# The fewest records" in before  # comments stay
    for change in ("max_epsilon=5", "max_epsilon=none", "kinds=hello,vote", "delta=0.1", "min_rows=1"):
        done = joined.run("limits", "set", change, typed="max_epsilon\nkinds\ndelta\n")
        assert done.returncode == 5 and "CAFE-341" in done.stderr, change
    assert joined.run("limits", "set", "colour=red").returncode == 2
    assert joined.run("limits", "set", "max_epsilon=much").returncode == 2
    assert (joined.home / "policy.toml").read_text() == before
    assert typed_at_a_terminal(joined, "max_epsilon\n", "limits", "set", "max_epsilon=5") == 0
    assert typed_at_a_terminal(joined, "yes\n", "limits", "set", "max_epsilon=6") == 5
    assert load_policy(joined.home / "policy.toml").max_epsilon == 5.0


def typed_at_a_terminal(place: Place, text: str, *words: str) -> int:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cafe_kit.cli", *words],
        env=place.environment(),
        stdin=follower,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.close(follower)
    os.write(leader, text.encode())
    process.communicate(timeout=60)
    os.close(leader)
    return process.returncode


def test_a_limit_of_one_run_counts_its_answers_alone(joined: Place) -> None:
    joined.run("limits", "set", "max_epsilon_per_run=2.5")
    first, second = (joined.server.order("north", "vote", BY_SITE, round=number) for number in (1, 2))
    assert [ask(joined, order).code for order in (first, second, replace(second, run="other"))] == ["", "CAFE-313", ""]
    assert ask(joined, first).status == "ok"  # what was answered stays answered


def test_another_key_than_the_one_that_joined(joined: Place) -> None:
    (joined.home / "site.key").write_text("07" * 32 + "\n")
    assert "CAFE-134" in joined.run("join", "--wait", "0").stderr
    assert joined.run("doctor").returncode == 1
    (joined.home / "site.key").unlink()
    for words in (("doctor",), ("status",), ("pause",), ("limits", "set", "max_epsilon=1"), ("start", "--once"), ("join", "--wait", "0")):
        joined.run(*words)
        assert not (joined.home / "site.key").exists(), words  # a site that has joined never gets another one
    assert joined.json("status")["paused"] and load_policy(joined.home / "policy.toml").max_epsilon == 1.0
    assert joined.run("doctor").returncode == 1


def test_what_nobody_foresaw_says_no_text_of_its_own(joined: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError(f"{MARK} in the message")

    monkeypatch.setattr("cafe_kit.limits.pause", broken)
    done = joined.run("pause")
    assert done.returncode == 1 and "CAFE-109" in done.stderr and "RuntimeError in test_cafe_site.py" in done.stderr
    assert MARK not in done.stdout + done.stderr


def test_leaving_keeps_the_proof_and_a_site_can_come_back(joined: Place) -> None:
    ask(joined, joined.server.order("north", "vote", BY_SITE))
    key = (joined.home / "site.key").read_text()
    assert joined.run("leave", typed="n\n").returncode == 0 and (joined.home / "site.key").exists()
    assert joined.json("leave", "--yes")["remains"] == ["leave.json", "ledger", "log", "outbox", "paused", "policy.toml"]
    assert joined.run("status").returncode == 1
    (joined.exchange / enrolment.answer_name(joined.info.serial)).unlink()
    assert joined.join().returncode == 3
    assert (joined.home / "site.key").read_text() != key and joined.json("status")["answers"] == 1
    assert joined.run("leave", typed="y\nn\n").returncode == 0 and not list(joined.home.iterdir())


VERBS = (
    "doctor",
    "status",
    "log",
    "outbox",
    "limits",
    "adapter",
    "pause",
    "resume",
    "join",
    "start --once",
    "start --service",
    "leave --yes",
)


def test_every_verb_ends_with_one_json_document(joined: Place) -> None:
    for verb in VERBS:
        done = joined.run(*verb.split(), "--format", "json")
        assert done.returncode == 0, (verb, done.stderr)
        json.loads(done.stdout)
    for verb in VERBS[1:8]:  # and so does a refusal
        assert json.loads(joined.run(verb, "--format", "json").stdout)["code"] == "CAFE-156"


# The doctor


def test_the_doctor_looks_and_changes_nothing(place: Place) -> None:
    done = place.run("doctor", "--answers", str(place.answers()))
    assert done.returncode == 0, done.stdout
    assert "voted with the 4 rows of the sample" in done.stdout
    assert "34 rows, 1 left out as empty" in done.stdout and "telephone numbers: 34" in done.stdout
    assert not place.home.exists() and not place.asked


def test_the_doctor_of_a_site_that_has_joined(joined: Place) -> None:
    joined.run("pause")
    found = {(check["name"], check["code"]): check["state"] for check in joined.json("doctor")["checks"]}
    assert found["ledger", ""] == "ok" and found["limits", "CAFE-320"] == "warn"
    joined.home.chmod(0o755)
    joined.data.unlink()
    checks = joined.json("doctor", status=1)["checks"]
    assert {check["code"] for check in checks if check["state"] == "fail"} == {"CAFE-133", "CAFE-201"}


def test_nothing_private_in_what_may_be_sent(joined: Place) -> None:
    ask(joined, joined.server.order("north", "vote", BY_SITE))
    joined.data.write_text(joined.data.read_text() + f"{MARK},{MARK},{MARK}\n")  # a label that is not on the list
    assert ask(joined, replace(joined.server.order("north", "vote", BY_SITE), round=2)).code == "CAFE-213"
    report = joined.folder / "report.json"
    said = [joined.really(*words) for words in (
        ("doctor", "--report", str(report)), ("doctor", "--format", "json"), ("log",), ("log", "--explain"), ("status",), ("outbox",),
        ("outbox", "show", "1"), ("limits",), ("join", "--wait", "0"),
    )]  # fmt: skip
    texts = [done.stdout + done.stderr for done in said] + [report.read_text()]
    assert said[0].returncode == 1 and "CAFE-213" in texts[0]
    assert not [text for text in texts if MARK in text]
    assert "notes.csv" not in report.read_text() or str(joined.folder) not in report.read_text()
    assert "34" not in report.read_text().replace(joined.info.serial, "")
    assert not [
        path for path in joined.home.rglob("*") if path.is_file() and path.name != "site.toml" and MARK.encode() in path.read_bytes()
    ]


@pytest.mark.parametrize(("kind", "state"), [("gpu", "warn"), ("cpu", "ok")])
def test_a_gpu_is_asked_for_where_it_is_needed(make: Make, monkeypatch: pytest.MonkeyPatch, kind: str, state: str) -> None:
    monkeypatch.setattr("cafe_kit.machine.gpu", lambda: "")
    kit = doctor.kit_folder.open_kit(make(kind=kind).kit)
    assert {check.name: check.state for check in doctor.first_checks(kit, Path("/nowhere"))}["gpu"] == state


# Small parts


def test_columns_are_guessed() -> None:
    names = ["id", "Message", "Department", "person"]
    assert (questions.guessed("text", names), questions.guessed("label", names)) == ("Message", "Department")
    assert questions.guessed("output", ["prompt", "final_answer"]) == "final_answer" and questions.guessed("input", ["a"]) == ""


@given(
    st.dictionaries(st.text(max_size=9), st.text(max_size=20) | st.booleans() | st.integers() | st.lists(st.text(max_size=5)), max_size=5)
)
def test_toml_is_read_as_it_was_written(tree: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml({**tree, "inner table": tree})) == {**tree, "inner table": tree}


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "max_epsilon": st.none() | st.floats(0.01, 100),
            "max_epsilon_per_run": st.none() | st.floats(0.01, 100),
            "kinds": st.lists(st.sampled_from(["hello", "vote", "train"]), min_size=1, unique=True),
            "min_rows": st.integers(1, 50),
            "allow_without_noise": st.booleans(),
        },
    )
)
def test_an_edited_policy_holds_what_was_set_and_its_comments(changes: dict[str, Any]) -> None:
    text = limits.edited(TEMPLATE, changes)
    policy = Policy.model_validate(tomllib.loads(text))
    assert {name: getattr(policy, name) for name in changes} == changes
    assert [line for line in text.splitlines() if line.startswith("# The ")] == [
        line for line in TEMPLATE.splitlines() if line.startswith("# The ")
    ]
    assert limits.raised(policy, policy) == []


def test_a_limit_of_one_run() -> None:
    order = Order("run", 1, 1, 1, "north", TASK, BY_SITE, {}, VOTE)
    Policy(max_epsilon=100.0, max_epsilon_per_run=4.38).check(order, Spent(Fraction(2), 1, Fraction(1)))
    with pytest.raises(CafeError, match="CAFE-313") as caught:
        Policy(max_epsilon=100.0, max_epsilon_per_run=4.37).check(order, Spent(Fraction(2), 1, Fraction(1)))
    assert "one run" in caught.value.message


def test_the_command_loads_neither_torch_nor_the_server(tmp_path: Path) -> None:
    look = "import cafe_kit.cli, sys; print(sorted({'torch', 'transformers', 'pipeline', 'server_store', 'typer'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", look], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_seam_for_whoever_starts_the_seat(joined: Place) -> None:
    config = site_folder.joined(joined.home).seat_config(joined.home)
    assert SeatConfig.model_validate_json(config.model_dump_json()) == config
    assert config.server.verify_key == joined.info.server.verify_key
