"""Secrets lie encrypted, open with this home's key alone, and not under another name."""

from __future__ import annotations

from pathlib import Path

import pytest
from cafe_kit.errors import CafeError

from pipeline.vault import Vault

TOKEN = {"token": "a-very-secret-token"}


def test_what_was_put_comes_back_and_is_readable_nowhere(tmp_path: Path) -> None:
    Vault(tmp_path).put("globus", TOKEN)
    assert Vault(tmp_path).get("globus") == TOKEN
    assert not any(b"a-very-secret-token" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "keys").iterdir())


def test_what_is_not_there_or_was_dropped(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    assert vault.get("globus") is None
    vault.put("globus", TOKEN)
    vault.drop("globus")
    assert vault.get("globus") is None


@pytest.mark.parametrize("damage", ["altered", "moved", "other key"])
def test_a_secret_that_does_not_open_is_said(tmp_path: Path, damage: str) -> None:
    vault, name = Vault(tmp_path), "globus"
    vault.put(name, TOKEN)
    path = tmp_path / "vault" / "globus.sealed"
    if damage == "altered":
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    elif damage == "moved":
        path.rename(path.with_name("other.sealed"))
        name = "other"
    else:
        (tmp_path / "keys" / "vault.key").write_bytes(bytes(32))
    with pytest.raises(CafeError, match="CAFE-688"):
        vault.get(name)
