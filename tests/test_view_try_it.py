"""*Try it* in its states: nothing to try, stopped, starting, failed, busy, ready; questions to a real tiny model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from streamlit.testing.v1 import AppTest

from pipeline import chat, chat_service, conversation
from pipeline.answers import Answers, Column
from server_store.desk import Desk
from tests.test_chat import HOSTILE, LABELS, RUN, wait, write_run
from tests.tiny_llama import write_model

ROOT = Path(__file__).resolve().parent.parent


def drawn(**address: str) -> AppTest:
    page = AppTest.from_file(str(ROOT / "app" / "pages.py"), default_timeout=60).run()  # before that its address is not known
    page.switch_page("views/try_it.py")
    for key, value in address.items():
        page.query_params[key] = value
    page.run()
    assert not page.exception
    return page


def words(page: AppTest) -> str:
    return "\n".join(str(part.value) for part in (*page.markdown, *page.text, *page.caption, *page.info))


def button(page: AppTest, label: str) -> Any:
    return next(one for one in page.button if one.label == label)


def asleep(home: Path, state: str, **more: Any) -> None:
    """A service's file that names this process: it is seen, but does nothing."""
    own = psutil.Process()
    service = chat_service.Service(state, "Loading the base model", time.time(), own.pid, own.create_time(), **more)  # type: ignore[arg-type]
    chat_service.write(RUN, service)


# -- states without a model --------------------------------------------------------------------------------------------


def test_nothing_to_try_yet(cafe_home: Path) -> None:
    page = drawn()
    assert page.title[0].value == "Try it"
    assert "no run has an adapter" in page.info[0].value and not page.chat_input


def test_a_run_without_an_adapter_and_one_that_is_not_there(cafe_home: Path) -> None:
    with closing(Desk(cafe_home / "store.db")) as desk:
        desk.create_run("young-1", "young", cafe_home / "runs" / "young-1")
    assert "no adapter yet (Queued)" in drawn(run="young-1").info[0].value
    for name in ("nobody", "../../etc/passwd", HOSTILE):
        page = drawn(run=name)
        assert "CAFE-655" in words(page) and not page.chat_input


@pytest.fixture
def stopped(cafe_home: Path) -> Path:
    """A finished run whose model is not loaded."""
    write_run(cafe_home)
    return cafe_home


def test_stopped_asks_to_be_started_and_takes_no_question(stopped: Path) -> None:
    page = drawn()
    assert "Model stopped" in words(page) and "15 minutes" in words(page)
    assert "Do not type patient data." in words(page) and "Prompts are stored on this server." in words(page)
    assert button(page, "Start the chat") and page.chat_input[0].disabled


def test_starting_says_how_far_it_is(stopped: Path) -> None:
    asleep(stopped, "starting")
    page = drawn(run=RUN)
    assert "Starting model" in words(page) and "About 40 s" in words(page)
    assert button(page, "Cancel") and page.chat_input[0].disabled


def test_failed_is_a_card_and_can_be_tried_again(stopped: Path) -> None:
    error = {"code": "CAFE-510", "message": f"Too little memory for {HOSTILE}", "hint": "Free some."}
    asleep(stopped, "failed", error=error)
    page = drawn()
    assert "CAFE-510" in words(page) and "<script>" not in words(page)
    assert button(page, "Try again") and page.chat_input[0].disabled


def test_a_busy_machine_is_told(stopped: Path) -> None:
    with closing(Desk(stopped / "store.db")) as desk:
        desk.create_run("other-1", "other", stopped / "runs" / "other-1")
        desk.claim("other-1", os.getpid())
    assert any("busy with run" in info.value for info in drawn().info)


def test_storing_is_turned_off_by_a_click(stopped: Path) -> None:
    page = drawn()
    button(page, "Turn off storing").click().run()
    assert "Prompts are not stored" in words(page)
    with closing(Desk(stopped / "store.db")) as desk:
        assert desk.preference("store_prompts") == "no"


# -- with a model ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("try") / "home"
    home.mkdir(mode=0o700)
    write_model(home / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAFE_HOME", str(home))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("CAFE_OPENAI_BASE_URL", raising=False)
        write_run(home)
        chat.open(RUN)
        wait(RUN, "ready")
        yield home
        chat.close(RUN)


@pytest.fixture(autouse=True)
def _clean(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "home" in request.fixturenames:
        with closing(Desk(request.getfixturevalue("home") / "store.db")) as desk:
            desk.forget_chats(RUN)
            desk.set_preference("store_prompts", "yes")


def kept(home: Path) -> list[Any]:
    with closing(Desk(home / "store.db")) as desk:
        return desk.chats(RUN)


def test_the_header_says_who_answers_and_proves_it(home: Path) -> None:
    page = drawn()
    columns = chat.Chat(RUN).columns(["base", "synthetic-only", "federated"])
    for column in columns:
        assert f"**{column.title}** = " in words(page)
        assert {column.base_sha256, column.adapter_sha256 or column.base_sha256} <= {code.value for code in page.code}
    assert not page.chat_input[0].disabled


def test_a_hostile_question_is_answered_shown_as_typed_and_survives_a_reload(home: Path) -> None:
    page = drawn()
    page.chat_input[0].set_value(HOSTILE).run()
    for shown in (page, drawn()):
        assert not shown.exception
        assert shown.text[0].value == HOSTILE
        assert [f"**{title}**" in words(shown) for title in ("Base", "Synthetic only", "Federated")] == [True] * 3
        assert "16 tokens" in words(shown) and "seed 0" in words(shown) and "the task\\'s prompt" in words(shown)
        assert list(shown.dataframe[0].value["Label"]) and set(shown.dataframe[0].value["Label"]) == set(LABELS)
    (one,) = kept(home)
    assert one.prompt == HOSTILE and [answer["state"] for answer in one.answers["answers"]] == ["done"] * 3
    assert len({answer["text"] for answer in one.answers["answers"]}) > 1


def test_an_example_of_the_public_test_set(home: Path) -> None:
    page = drawn()
    button(page, "Example from the public test set").click().run()
    (one,) = kept(home)
    assert one.answers["expected"] in LABELS
    assert "its answer there" in words(page)


def test_a_blind_question_hides_names_until_the_vote(home: Path) -> None:
    page = drawn()
    page.toggle[0].set_value(True).run()
    page.chat_input[0].set_value("my pills").run()
    assert all(f"**{letter}**" in words(page) for letter in "ABC") and "**Base**\n" not in words(page)
    assert list(page.dataframe[0].value.columns) == ["Label", "A", "B", "C"]
    (one,) = kept(home)
    button(page, "B is best").click().run()
    assert all(f"**{letter} \\= " in words(page) for letter in "ABC")
    assert kept(home)[0].answers["vote"] == one.answers["answers"][1]["name"]
    assert "of 1 votes" in words(page)


def test_without_storing_only_the_vote_is_kept(home: Path) -> None:
    with closing(Desk(home / "store.db")) as desk:
        desk.set_preference("store_prompts", "no")
    page = drawn()
    page.toggle[0].set_value(True).run()
    page.chat_input[0].set_value("a secret question").run()
    assert page.text[0].value == "a secret question" and kept(home) == []
    button(page, "No difference").click().run()
    assert page.text[0].value == "a secret question"
    (one,) = kept(home)
    assert "secret" not in json.dumps([one.prompt, one.answers]) and one.answers["vote"] == conversation.SAME
    assert not drawn().text, "another tab sees nothing of it"


@pytest.mark.system
def test_stop_keeps_what_came_and_a_killed_console_finds_it_and_the_model_again(home: Path) -> None:
    from tests.browser import Console, Operator, chromium

    pid = chat.state(RUN).pid
    with Console(os.environ) as console, chromium() as browser, Operator(browser, console) as ada:
        ada.opens("Try it", run=RUN).sees("Model ready")
        ada.page.get_by_text("Free chat").click()
        ada.waits().clicks("Sampling").fills("Tokens, at most", "2000").presses("Escape")
        ada.page.get_by_placeholder("Ask all models").fill(HOSTILE.split("\n")[0])
        ada.presses("Enter").sees(re.compile(r"[1-9]\d\d tokens · [1-9]"))
        ada.page.get_by_role("button", name="Stop script").click()
        ada.sees("stopped")
        (one,) = kept(home)
        assert {answer["state"] for answer in one.answers["answers"]} == {"stopped"}
        assert all(10 < len(answer["text"]) < 2000 for answer in one.answers["answers"])
        console.kill()
        console.start()
        ada.reloads().sees(one.prompt, "stopped", "Model ready")
        ada.complaints.clear()  # the console was away, and Streamlit looks for it below a deep link's address too
    assert chat.state(RUN).pid == pid


# -- votes and rooms ---------------------------------------------------------------------------------------------------


def test_votes_are_counted_with_their_interval() -> None:
    assert conversation.wilson(0, 0) == (0.0, 1.0)
    low, high = conversation.wilson(8, 10)
    assert low == pytest.approx(0.4902, abs=1e-3) and high == pytest.approx(0.9433, abs=1e-3)
    columns = [Column("federated", "Federated", "", "f", ""), Column("base", "Base", "", "b", "")]
    answers = Answers([(column, lambda: iter(())) for column in columns])
    asked = conversation.question(answers, template="t", seed=0, temperature=0.0, max_tokens=1, blind=True, expected="")
    votes = [asked | {"vote": vote} for vote in ("federated", "federated", "base", conversation.BAD, "")]
    assert [(line.title, line.wins, line.n) for line in conversation.tally(votes)] == [("Base", 1, 4), ("Federated", 2, 4)]
    assert sorted(conversation.shuffled(range(9))) == list(range(9))


def test_the_page_never_loads_torch(stopped: Path) -> None:
    code = (
        "import sys; from streamlit.testing.v1 import AppTest\n"
        f"page = AppTest.from_file({str(ROOT / 'app' / 'views' / 'try_it.py')!r}, default_timeout=60).run()\n"
        "print(sorted(set(sys.modules) & {'torch', 'transformers', 'peft'}), 'pipeline.chat' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True"
