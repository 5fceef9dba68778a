"""Every error code has its page and every page its code; command line, console and store say the same words."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cafe_kit.errors import CafeError
from streamlit.testing.v1 import AppTest

from pipeline import error_pages
from server_store.store import Store

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(error_pages.FOLDER.glob("CAFE-*.md"))


# Codes and pages


def test_every_code_has_a_page_and_every_page_a_code() -> None:
    assert error_pages.mismatches() == []
    assert len(PAGES) > 150  # the scan found something


@pytest.fixture
def small_house(tmp_path: Path) -> Path:
    """A program that raises two codes and speaks of two more, and a page for each of the two."""
    for room in error_pages.ROOMS:
        (tmp_path / room).mkdir(parents=True)
    (tmp_path / "pipeline" / "a.py").write_text(
        '"""Speaks of CAFE-901."""\ntable = {"full": "CAFE-902 The disk is full."}\n\n\n'
        'def act(code="CAFE-903"):\n    """Raises CAFE-904."""\n    raise ValueError(f"{code} or")  # never CAFE-905\n'
    )
    (tmp_path / "docs").mkdir()
    for code in ("CAFE-902", "CAFE-903"):
        (tmp_path / "docs" / f"{code}.md").write_text(f"# {code}: a name\n")
    return tmp_path


def test_a_sound_small_house_passes(small_house: Path) -> None:
    assert error_pages.codes_in_source(small_house) == {"CAFE-902", "CAFE-903"}
    assert error_pages.mismatches(small_house, small_house / "docs") == []


def test_a_missing_page_and_a_stray_page_are_found(small_house: Path) -> None:
    (small_house / "app" / "view.py").write_text('raise Error("CAFE-906", "a", "b")\n')
    (small_house / "docs" / "CAFE-907.md").write_text("# CAFE-907: nobody raises it\n")
    assert error_pages.mismatches(small_house, small_house / "docs") == [
        "CAFE-906 has no page",
        "CAFE-907.md explains a code that is never raised",
    ]


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.stem)
def test_a_page_has_its_sections(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert re.match(rf"# {file.stem}: [^\n]{{4,70}}\n", text)
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")][:3] == list(error_pages.SECTIONS)
    assert all(part.strip() for part in re.split(r"^##? .*$", text, flags=re.MULTILINE)[2:])  # none of them empty
    assert "\n1. " in text and 10 <= len(text.splitlines()) <= 30
    assert text.count("`") % 2 == 0 and "$" not in re.sub(r"`[^`]*`", "", text)  # the console reads a lone $ as a formula
    assert not re.search(r"\bbudget\b|(?<!globus )(?<!confidential )\bclient\b(?! kit| secret)", text)  # Globus has its own clients


def test_pages_name_commands_and_settings_that_exist() -> None:
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    commands = set(re.findall(r"^### `cafe ([a-z]+)", reference, flags=re.MULTILINE))
    settings = set(re.findall(r"^\| `([a-z0-9_]+)` \|", reference, flags=re.MULTILINE))
    for file in PAGES:
        text = file.read_text(encoding="utf-8")
        assert set(re.findall(r"`(?:CAFE_HOME=\S+ )?cafe ([a-z]+)", text)) <= commands, file.name
        named = re.findall(r"`(?:stage1|stage2|machine|task|privacy)(?:\.([a-z0-9_]+))(?:\.([a-z0-9_]+))?", text)
        assert {name for pair in named for name in pair if name} <= settings, file.name


def test_the_index_is_up_to_date() -> None:
    written = (error_pages.FOLDER / "README.md").read_text(encoding="utf-8")
    assert written == error_pages.index(), "run: python -m pipeline.error_pages"
    assert all(f"[{file.stem}]({file.name})" in written for file in PAGES)


def test_a_page_by_its_code() -> None:
    text = (error_pages.FOLDER / "CAFE-331.md").read_text(encoding="utf-8")
    assert error_pages.page("CAFE-331") == text
    assert error_pages.explain("331") == error_pages.explain("cafe-331 ") == text
    assert [error_pages.page(code) for code in ("CAFE-999", "README", "../errors/CAFE-331", "CAFE-331\n", "")] == [None] * 5
    with pytest.raises(CafeError, match="CAFE-682"):
        error_pages.explain("CAFE-999")


# The same words everywhere


def cafe(*words: str) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, "-m", "pipeline.cli", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def _card(error: dict[str, str]) -> None:
    from app.widgets import failure_card

    failure_card(error, "x")


def test_the_command_line_says_what_the_card_shows(cafe_home: Path) -> None:
    error = {"code": "CAFE-121", "message": "2 of 6 sites answered [x]; 3 are needed.", "hint": "Mend the sites, then resume the run."}
    store = Store(cafe_home / "store.db")
    store.create_run("clinic-1", "clinic", cafe_home)
    store.finish("clinic-1", store.claim("clinic-1", 1), "Failed", error)
    told = store.run("clinic-1").error
    assert told is not None

    code, _, printed = cafe("status", "clinic-1")
    assert code == 1
    assert f"{told['code']} {told['message']} {told['hint']}" in printed
    assert "`cafe explain CAFE-121` says more." in printed
    assert json.loads(cafe("status", "clinic-1", "--format", "json")[1])[0]["error"] == told

    drawn = AppTest.from_function(_card, args=(dict(told),)).run()
    shown = "\n".join(one.value for one in [*drawn.markdown, *drawn.code])
    assert f"{told['code']} {told['message']}" in shown and told["hint"] in shown


def test_a_refusal_says_the_same_as_its_exception_and_names_its_page(cafe_home: Path) -> None:
    from pipeline.settings import load

    with pytest.raises(CafeError) as refused:
        load(cafe_home / "none.yaml")
    code, _, printed = cafe("run", str(cafe_home / "none.yaml"))
    assert code == 2 and str(refused.value) in printed
    assert printed.rstrip().endswith("`cafe explain CAFE-603` says more.")
    told = json.loads(cafe("run", str(cafe_home / "none.yaml"), "--format", "json")[1])["error"]
    assert told == {"code": refused.value.code, "message": refused.value.message, "hint": refused.value.hint}


def test_explain_prints_the_page() -> None:
    assert cafe("explain", "CAFE-313") == (0, f"{error_pages.page('CAFE-313')}\n", "")
    code, _, printed = cafe("explain", "nonsense")
    assert code == 2 and "CAFE-682" in printed
