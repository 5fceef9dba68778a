"""Does a site still decide? Every check passes on the real code, and each planted bug fails the checks that are there for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mutants import site_bugs, site_checks

CASES = [pytest.param(bug, check, id=f"{name}-{check.__name__}") for name, (bug, fails) in site_bugs.BUGS.items() for check in fails]


@pytest.mark.parametrize("check", site_checks.ALL, ids=lambda check: check.__name__)
def test_holds(check: Callable[[Path], None], tmp_path: Path) -> None:
    check(tmp_path)


@pytest.mark.parametrize(("bug", "check"), CASES)
def test_the_bug_is_caught(
    bug: Callable[[pytest.MonkeyPatch], None], check: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        check(tmp_path)


def test_every_check_has_a_bug_that_it_catches() -> None:
    assert {check for _, fails in site_bugs.BUGS.values() for check in fails} == set(site_checks.ALL)
