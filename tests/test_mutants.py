"""Do the checks see anything? Each planted privacy bug must fail the very checks that the real code passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import accounting
from tests.mutants import bugs, checks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "0.5", "8.0"):
        (tmp_path / name).mkdir()
    return tmp_path


CASES = [pytest.param(bug, check, id=f"{name}-{check.__name__}") for name, (bug, fails) in bugs.BUGS.items() for check in fails]


@pytest.fixture(autouse=True)
def _nothing_remembered_from_a_mutant() -> Iterator[None]:
    accounting.calibrate.cache_clear()
    yield
    accounting.calibrate.cache_clear()


@pytest.mark.parametrize(("bug", "check"), CASES)
def test_the_bug_is_caught(
    bug: Callable[[pytest.MonkeyPatch], None], check: Callable[[Path], None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        check(folder)


def test_every_check_has_a_bug_that_it_catches() -> None:
    assert {check for _, fails in bugs.BUGS.values() for check in fails} == set(checks.ALL)
