"""The operator's page and those of the sites' admins, done together: from nothing to three sites and their adapter, through a folder.

Every command is the page's, word for word (``doc_pages`` has the rules); what a page shows as output is compared. One run for all of it.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cafe_kit import endpoint_settings

from server_store.ledger import Ledger
from tests.doc_pages import Block, Story, blocks, missing
from tests.doc_places import Admin, Operator, words
from tests.shell import CTRL_C, Running, Typed

pytestmark = pytest.mark.runs
OPERATOR = "docs/operator.md"
NO_GPU = "docs/site-no-gpu.md"
GPU = "docs/site-gpu.md"
ENTER = ""


@pytest.fixture
def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Operator]:
    operator = Operator(tmp_path, monkeypatch)
    yield operator
    assert operator.ends() == [], "processes were left behind"


def shows(block: Block, said: str) -> None:
    """What the page shows is what was printed."""
    lines = missing(block.prints, said)
    assert lines == [], f"{block.page}, line {block.line}: not printed: {lines}. It was:\n{said}"


def test_from_nothing_to_three_sites(operator: Operator) -> None:
    page = Story(OPERATOR, "From nothing to three sites")
    north, south, lab = three_kits(operator, page)
    unzip_and_look(north)
    north_joins(north, operator, page)
    by_a_script(south, operator)
    lab_joins = Story(GPU, "On a workstation")
    a_workstation(lab, operator, lab_joins)
    settings_of_an_endpoint(lab)
    running = be_at_work(north), south.shell.start("./cafe-site start"), be_at_work_with_gpu(lab, lab_joins)
    a_run(operator, page)
    what_left_with_gpu(lab, lab_joins)
    see_what_left(north)
    decide(north)
    take_the_result(north)
    for each in running:
        each.end()
    leave(north)
    later(operator, page)
    back_up(operator)


# The operator


def three_kits(operator: Operator, page: Story) -> list[Admin]:
    operator.shell.run(page.next("mkdir -p ~/.cafe").text)
    operator.makes_it_small()
    operator.shell.run(page.next("mkdir -p /srv/cafe").filled({"/srv/cafe": str(operator.exchange)}))
    block = page.next("cafe site add")
    said = operator.shell.run(block.filled({"/srv/cafe": str(operator.exchange)}))
    shows(block, said)
    codes = re.findall(r"Join code +(\S+)", said)
    return [operator.hands_over(site, code) for site, code in zip(("north", "south", "lab"), codes, strict=True)]


def lets_north_in(operator: Operator, page: Story, said: str) -> None:
    block = page.next("cafe site receive")
    shows(block, operator.shell.run(block.text))
    block = page.next("cafe site approve")
    shows(block, operator.shell.run(block.filled({"WORD-WORD-WORD-WORD": words(said)})))


def a_run(operator: Operator, page: Story) -> None:
    for begins in ("cafe site list", "cafe site doctor"):
        block = page.next(begins)
        shows(block, operator.shell.run(block.text))
    operator.shell.run(page.next("cafe run").text, seconds=300)
    run = json.loads(operator.shell.run("cafe status --format json"))[0]["run"]
    block = page.next("cafe status")
    shows(block, operator.shell.run(block.filled({"RUN": run})))


def later(operator: Operator, page: Story) -> None:
    block = page.next("cafe site revoke")
    shows(block, operator.shell.run(block.text))
    page.ends()


def back_up(operator: Operator) -> None:
    story = Story(OPERATOR, "Backup and restore")
    operator.shell.run(story.next("tar --exclude").text)
    (archive,) = operator.folder.glob("cafe-*.tar.gz")
    with tarfile.open(archive) as packed:
        assert {"./ledger.db", "./store.db", "./keys/signing.key"} <= set(packed.getnames())
    operator.shell.run(story.next("python3 -c").text)
    copy, own = Ledger(operator.folder / "ledger-copy.db"), Ledger(operator.home / "ledger.db")
    assert copy.releases() == own.releases() and len(own.releases()) == 4  # two votes, two rounds
    story.ends()


# A site without a GPU


def unzip_and_look(north: Admin) -> None:
    story = Story(NO_GPU, "Unzip the kit and see whether it is genuine")
    block = story.next("unzip -q")
    shows(block, north.shell.run(block.text))
    story.ends()
    north.borrows_an_environment()
    story = Story(NO_GPU, "Is this machine fit?")
    block = story.next("./cafe-site doctor")
    shows(block, north.shell.run(block.text))
    assert str(north.folder) not in north.shell.run(story.next("./cafe-site doctor --report").text)
    story.ends()


def north_joins(north: Admin, operator: Operator, page: Story) -> None:
    story = Story(NO_GPU, "Join")
    block = story.next("./cafe-site join")
    waiting = ("Waiting for the operator", lambda said: lets_north_in(operator, page, said))
    shows(block, north.shell.run(block.text, [*at_the_keyboard(north), waiting, *a_first_start()]))
    story.ends()


def at_the_keyboard(site: Admin, *more: Typed, without_noise: str = ENTER) -> list[Typed]:
    """The four questions, answered as the page does."""
    data: list[Typed] = [("Join code", site.code), ("Data file", "~/notes.csv"), ("[message]", ENTER), ("[department]", ENTER)]
    limits: list[Typed] = [("right columns", ENTER), ("Total privacy", ENTER), ("At most per run", ENTER), *more]
    limits += [("Allow runs without noise", without_noise), ("how many records", ENTER)]
    return [*data, *limits, ("Your name", "Jane Roe"), ("Your role", "head of IT"), ("Reference", "IRB-2026-7"), ("I may use this", "y")]


def a_first_start() -> list[Typed]:
    return [("Start now?", ENTER), ("Ctrl-C ends this", CTRL_C)]


def be_at_work(north: Admin) -> Running:
    story = Story(NO_GPU, "Be at work")
    block = story.next("./cafe-site start")
    running = north.shell.start(block.text)
    shows(block, running.says("at work for clinic"))
    block = story.next("./cafe-site start --service")
    shows(block, north.shell.run(block.text))
    story.ends()
    return running


def see_what_left(north: Admin) -> None:
    story = Story(NO_GPU, "See what left")
    block = story.next("./cafe-site status")
    shows(block, north.shell.run(block.text))
    said = north.shell.run(story.next("./cafe-site outbox").text)
    assert "Sent clipped counts" in said and '"votes"' in said
    story.ends()


def decide(north: Admin) -> None:
    story = Story(NO_GPU, "Decide")
    block = story.next("./cafe-site limits")
    shows(block, north.shell.run(block.text))
    assert "outbox                 review" in north.shell.run(story.next("./cafe-site limits set outbox").text)
    block = story.next("./cafe-site pause")
    shows(block, north.shell.run(block.text))
    story.ends()


def take_the_result(north: Admin) -> None:
    story = Story(NO_GPU, "Take the result")
    block = story.next("./cafe-site adapter")
    shows(block, north.shell.run(block.text))
    story.ends()


def leave(north: Admin) -> None:
    story = Story(NO_GPU, "Leave")
    block = story.next("./cafe-site leave")
    shows(block, north.shell.run(block.text, [("key is deleted", "y"), ("adapters that came", ENTER)]))
    story.ends()


def by_a_script(south: Admin, operator: Operator) -> None:
    story = Story(NO_GPU, "Without anybody at the keyboard")
    south.unzips()
    (answers,) = [block.text for block in blocks(NO_GPU) if block.language == "toml"]
    (south.folder / "answers.toml").write_text(answers)
    (south.folder / south.kit / "code.txt").write_text(f"{south.code}\n")
    running = south.shell.start(story.next("read -r CAFE_JOIN_CODE").text)
    operator.lets_in("south", running.says("Waiting for the operator"))
    assert "south has joined clinic" in running.done()
    story.ends()


# A site with a GPU


def a_workstation(lab: Admin, operator: Operator, story: Story) -> None:
    block = story.next("unzip -q")
    first, last = block.text.rsplit("\n", 2)[:2]
    lab.shell.run(first)
    lab.borrows_an_environment()  # before the first command of the kit
    shows(block, lab.shell.run(last))
    block = story.next("./cafe-site join")
    waiting = ("Waiting for the operator", lambda said: operator.lets_in("lab", said))
    typed = at_the_keyboard(lab, ("Allow training", ENTER), without_noise="y")
    shows(block, lab.shell.run(block.text, [*typed, waiting, *a_first_start()]))


def settings_of_an_endpoint(lab: Admin) -> None:
    """What a site does before its first start, where orders come through Globus Compute; ``test_docs_globus`` has the rest."""
    story = Story(GPU, "Through Globus Compute")
    lab.shell.run(story.next("cp endpoint/endpoint.toml").text)
    story.ends()
    assert endpoint_settings.load(lab.home, lab.folder / "none").kind == "plain"
    story = Story(GPU, "A cloud machine")
    block = story.next("./cafe-site start --service")
    shows(block, lab.shell.run(block.text))
    story.ends()


def be_at_work_with_gpu(lab: Admin, story: Story) -> Running:
    block = story.next("./cafe-site start")
    running = lab.shell.start(block.text)
    shows(block, running.says("at work for clinic"))
    return running


def what_left_with_gpu(lab: Admin, story: Story) -> None:
    block = story.next("./cafe-site log --explain")
    shows(block, lab.shell.run(block.text))
    story.ends()
