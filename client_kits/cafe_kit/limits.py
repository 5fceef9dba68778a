"""The site's limits as its admin handles them: shown, lowered freely, raised only by somebody who types it at the site.

Knows which direction of a setting gives more away. Does not know what the settings mean for an order (``policy.py``). The file is
edited line by line, so that its comments and whatever else the admin wrote stay.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cafe_kit.enrolment import Limits
from cafe_kit.errors import CafeError
from cafe_kit.policy import PAUSED, Policy, load_policy
from cafe_kit.release import seal_file
from cafe_kit.site_folder import to_toml


def _unlimited(value: float | None) -> float:
    return float("inf") if value is None else value


def _less(value: float) -> float:
    return -value


# setting -> how much it gives away: a larger figure is a raise
_GIVES: dict[str, Callable[[Any], float]] = {
    "max_epsilon": _unlimited,
    "max_epsilon_per_run": _unlimited,
    "delta": float,
    "max_rounds_per_run": float,
    "allow_without_noise": float,
    "min_noise_multiplier": _less,
    "min_rows": _less,
    "outbox": ("dry-run", "review", "auto").index,
}
_LISTS = ("kinds", "trust", "store_hosts")  # one word more is a raise, and no list at all more still


def edited(text: str, changes: Mapping[str, Any]) -> str:
    """``text`` with each setting at its new value, in its own line; None comments the line out."""
    for name, value in changes.items():
        line = re.compile(rf"^(?:# )?{name} = .*$", re.MULTILINE)
        written = "" if value is None else to_toml({name: value})
        if value is None:
            text = re.sub(rf"^({name} = .*)$", r"# \1", text, flags=re.MULTILINE)
        elif found := line.search(text):
            text = text[: found.start()] + written.rstrip("\n") + text[found.end() :]
        else:
            text = f"{text.rstrip()}\n{written}"
    return text


def wanted(settings: list[str]) -> dict[str, Any]:
    """``name=value`` words as typed; a value is written as in the file, ``none`` removes a limit.

    Raises:
        CafeError: CAFE-157 for a setting that does not exist.
    """
    changes: dict[str, Any] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in Policy.model_fields:
            raise CafeError("CAFE-157", f"There is no limit '{name[:40]}'.", f"The limits are: {', '.join(Policy.model_fields)}.")
        try:
            changes[name] = None if value.lower() == "none" else tomllib.loads(f"x = {value}")["x"]
        except tomllib.TOMLDecodeError:
            changes[name] = value.split(",") if name in _LISTS else value
    return changes


def change(home: Path, changes: Mapping[str, Any], confirmed: Callable[[list[str]], bool]) -> Policy:
    """Write the limits; those that give more away only if ``confirmed`` says so, given their names.

    Raises:
        CafeError: CAFE-157 (not allowed so), CAFE-316 (the file as it is), CAFE-341 (a raise that nobody confirmed).
    """
    path = home / "policy.toml"
    before = load_policy(path)
    text = edited(path.read_text(encoding="utf-8"), changes)
    beside = home / "policy.new.toml"
    try:
        seal_file(beside, text.encode())
        after = load_policy(beside)
    except CafeError as error:
        raise CafeError("CAFE-157", error.message, "Nothing was changed. cafe-site limits shows what there is.") from None
    finally:
        beside.unlink(missing_ok=True)
    more = raised(before, after)
    if more and not confirmed(more):
        raise CafeError(
            "CAFE-341",
            f"Not changed: this would raise {', '.join(more)}.",
            "A limit is raised by typing it in a terminal here at the site.",
        )
    seal_file(path, text.encode())
    return after


def raised(before: Policy, after: Policy) -> list[str]:
    """The settings that give more away than before."""
    more = [name for name, gives in _GIVES.items() if gives(getattr(after, name)) > gives(getattr(before, name))]
    return more + [name for name in _LISTS if _wider(getattr(before, name), getattr(after, name))]


def _wider(before: list[str] | None, after: list[str] | None) -> bool:
    return before is not None and (after is None or bool(set(after) - set(before)))


def in_words(value: Any) -> str:
    """A limit's value for a person."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(value)
    return "no limit" if value is None else ("no", "yes")[value] if isinstance(value, bool) else f"{value:g}"


def told(policy: Policy) -> Limits:
    """The limits as the join request tells them."""
    return Limits(
        max_epsilon=policy.max_epsilon,
        max_epsilon_per_run=policy.max_epsilon_per_run,
        delta=policy.delta,
        kinds=tuple(policy.kinds),
        max_rounds_per_run=policy.max_rounds_per_run,
        allow_without_noise=policy.allow_without_noise,
    )


def pause(home: Path) -> bool:
    """Nothing is answered any more; False when that was so already."""
    there = is_paused(home)
    seal_file(home / PAUSED, b"Made by cafe-site pause. The site answers nothing while this file is here.\n")
    return not there


def resume(home: Path) -> bool:
    """Orders are answered again; False when they were."""
    there = is_paused(home)
    (home / PAUSED).unlink(missing_ok=True)
    return there


def is_paused(home: Path) -> bool:
    return (home / PAUSED).exists()
