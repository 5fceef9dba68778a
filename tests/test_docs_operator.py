"""What else the operator's page and README tell to type: the console, and a federation of this machine's own data. Word for word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.request import HTTPCookieProcessor, ProxyHandler, build_opener

import pytest

from tests.doc_pages import Story, blocks
from tests.doc_places import Operator, write_records
from tests.rabbitmq import free_port

OPERATOR = "docs/operator.md"
README = "README.md"


@pytest.fixture
def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Operator]:
    operator = Operator(tmp_path, monkeypatch)
    yield operator
    assert operator.ends() == [], "processes were left behind"


@pytest.mark.runs
def test_the_console_opens_with_the_link_that_is_printed(operator: Operator) -> None:
    story, port = Story(OPERATOR, "Start"), free_port()
    console = operator.shell.start(story.next("cafe doctor").filled({"8502": str(port)}))
    said = console.says(f"http://127.0.0.1:{port}/")
    assert "FAIL" not in said and "It works once" in said
    link = next(line.strip() for line in said.splitlines() if line.strip().startswith(f"http://127.0.0.1:{port}/"))
    browser = build_opener(HTTPCookieProcessor(), ProxyHandler({}))
    with browser.open(link, timeout=20) as page:  # the link leads to the console, whose cookie it gives
        assert (page.status, page.geturl()) == (200, f"http://127.0.0.1:{port}/")
    story.ends()


@pytest.mark.runs
def test_the_federation_of_the_readme(operator: Operator) -> None:
    story = Story(README, "Try it")
    story.next("make run")  # the first page of all says nothing of tests; test_docs_commands has the reason
    (example,) = [block.text for block in blocks(README) if block.language == "yaml"]
    for name in ("north", "lab", "examples", "test"):
        write_records(operator.folder / f"{name}.jsonl", name, 12, label="intent")
    file = operator.folder / "banking.yaml"
    file.write_text(example)
    operator.makes_it_small(file)
    assert "adapter" in operator.shell.run(story.next(".venv/bin/cafe run banking.yaml").text, seconds=300)
    story.ends()
