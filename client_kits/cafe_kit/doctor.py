"""Is this machine, this kit and this data fit to take part? Findings, each with what to do; nothing is changed, nothing is sent.

Knows what to look at and in which order a person would mend things. ``Check.own`` is for the site's screen alone: counts about the
data; ``report`` leaves it out, with every hint, since a hint may name a path.
"""

from __future__ import annotations

import fcntl
import http.client
import importlib.util
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cafe_kit import asking, http_request, instance, kit_folder, machine, records, service, site_folder, starting
from cafe_kit.connection import Folder
from cafe_kit.errors import CafeError
from cafe_kit.kit_folder import Kit
from cafe_kit.ledger import SiteLedger
from cafe_kit.limits import is_paused
from cafe_kit.policy import load_policy
from cafe_kit.records import DataSource
from cafe_kit.site_folder import SiteSettings
from cafe_kit.task import Task
from cafe_kit.work import KIT_VERSION

State = Literal["ok", "warn", "fail"]
MARKS = {"ok": "✅", "warn": "⚠️ ", "fail": "❌"}
LOCK = "cafe-site.lock"
GLOBUS = "https://compute.api.globus.org/v2/version"
_NEED_GB = {"cpu": (1.0, 2.0), "gpu": (20.0, 16.0)}  # disk, memory
_PACKAGES = {"cpu": ("onnxruntime", "tokenizers"), "gpu": ("torch", "transformers", "peft")}


@dataclass(frozen=True)
class Check:
    """One finding. ``own``: a detail for the site's own eyes. ``hint``: what to do."""

    name: str
    state: State
    detail: str
    hint: str = ""
    code: str = ""
    own: str = ""


def first_checks(kit: Kit, home: Path) -> list[Check]:
    """Kit and machine: what can be said before anything is known of the data."""
    kind = kit.info.kind
    return [
        *_guard("kit", lambda: _kit(kit)),
        *_guard("clock", lambda: _clock(kit)),
        *_guard("python", lambda: _python(kind)),
        *_guard("disk", lambda: _disk(home, kind)),
        *_guard("memory", lambda: _memory(kind)),
        *_guard("gpu", lambda: _gpu(kind)),
        *_guard("folder", lambda: _folder(home)),
        *_guard("rehearsal", lambda: _rehearsal(kit)),
    ]


def data_checks(source: DataSource, task: Task) -> list[Check]:
    """The site's own data: can they be used, and what should their owner know of them."""
    return _guard("data", lambda: _data(source, task))


def site_checks(home: Path, settings: SiteSettings) -> list[Check]:
    """A site that has joined: limits, ledger, how orders come, and whether somebody answers them."""
    return [
        *_guard("key", lambda: _key(home, settings)),
        *_guard("limits", lambda: _limits(home, settings)),
        *_guard("ledger", lambda: _ledger(home)),
        *_guard("connection", lambda: _connection(home, settings)),
        *_guard("at work", lambda: _at_work(home, settings)),
    ]


def fit(checks: list[Check]) -> bool:
    return all(check.state != "fail" for check in checks)


def must_be_fit(checks: list[Check]) -> None:
    """Raises what the first failed check found."""
    for check in checks:
        if check.state == "fail":
            raise CafeError(check.code or "CAFE-156", f"{check.name.capitalize()}: {check.detail.rstrip('.')}.", check.hint)


def lines(checks: list[Check]) -> Iterator[str]:
    """As a person reads them."""
    for check in checks:
        code = f" [{check.code}]" if check.code else ""
        yield f"{MARKS[check.state]} {check.name}: {check.detail}{' ' + check.own if check.own else ''}{code}"
        if check.hint and check.state != "ok":
            yield f"     {check.hint}"


def report(checks: list[Check]) -> list[dict[str, Any]]:
    """As it may be sent to the operator: no counts of the data, no hints, no paths."""
    return [{name: value for name, value in asdict(check).items() if name not in ("own", "hint")} for check in checks]


def _guard(name: str, look: Callable[[], Iterator[Check]]) -> list[Check]:
    """The findings of one look; one that breaks is a finding itself, of which only the class is told."""
    try:
        return list(look())
    except CafeError as error:
        return [Check(name, "fail", error.message, error.hint, error.code)]
    except Exception as error:
        return [Check(name, "fail", f"could not be checked ({type(error).__name__})", "Tell the operator.")]


def _kit(kit: Kit) -> Iterator[Check]:
    info = kit.info
    yield Check("kit", "ok", f"all files are as signed; for site {info.site} of {info.federation}, version {KIT_VERSION}")
    if kit.unlisted:
        hint = "The kit does not read them. Keep your data elsewhere: a new kit replaces this folder."
        yield Check("kit", "warn", f"{len(kit.unlisted)} files in the kit's folder do not belong to it", hint)


def _clock(kit: Kit) -> Iterator[Check]:
    kit_folder.check_time(kit.info)
    yield Check(
        "clock", "ok", f"after the kit was made; it can be joined with until {time.strftime('%d %B %Y', time.gmtime(kit.info.expires))}"
    )


def _python(kind: str) -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Check("python", "ok" if sys.version_info >= (3, 11) else "fail", version, "Python 3.11 or newer is needed.")
    missing = [name for name in _PACKAGES[kind] if importlib.util.find_spec(name) is None]
    if missing:
        extra = "light" if kind == "cpu" else "gpu"
        yield Check("packages", "fail", f"not installed: {', '.join(missing)}", f"pip install 'cafe-kit[{extra}]'", "CAFE-447")


def _disk(home: Path, kind: str) -> Iterator[Check]:
    there = next(path for path in (home, *home.parents) if path.exists())
    free, need = shutil.disk_usage(there).free / 1e9, _NEED_GB[kind][0]
    yield Check("disk", "ok" if free >= need else "fail", f"{free:.1f} GB free", f"Make room: {need:g} GB are needed.")


def _memory(kind: str) -> Iterator[Check]:
    found, need = machine.memory() / 1e9, _NEED_GB[kind][1]
    yield Check("memory", "ok" if found >= need * 0.9 else "warn", f"{found:.1f} GB", f"{need:g} GB are advised.")


def _gpu(kind: str) -> Iterator[Check]:
    found = machine.gpu()
    if kind == "cpu":
        yield Check("gpu", "ok", "not needed: fine for this kit")
    else:
        yield Check(
            "gpu", "ok" if found else "warn", found or "none was found", "Training on a CPU takes very long; ask for a kit without GPU."
        )


def _folder(home: Path) -> Iterator[Check]:
    if os.geteuid() == 0:
        yield Check("user", "warn", "cafe-site runs as root", "An ordinary account is enough, and safer.")
    if not home.exists():
        yield Check("folder", "ok", "will be made when you join")
        return
    state = home.stat()
    if state.st_uid != os.getuid() or stat.S_IMODE(state.st_mode) & 0o077:
        yield Check("folder", "fail", "the site's folder belongs to somebody else or can be read by others", "chmod 700 it.", "CAFE-133")
    elif _in_use(home):
        yield Check("folder", "warn", "another cafe-site is at work in it", "Wait until it has ended.")
    else:
        yield Check("folder", "ok", "the site's own and private")


def _in_use(home: Path) -> bool:
    """Whether somebody holds the lock (``joining``)."""
    if not (home / LOCK).exists():
        return False
    with (home / LOCK).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _rehearsal(kit: Kit) -> Iterator[Check]:
    """A whole vote on the sample of the kit: read, embed, count."""
    if kit.info.kind != "cpu":
        return
    if not kit.sample.is_file() or not kit.embedder.is_dir():
        yield Check("rehearsal", "warn", "this kit has no sample or no embedder: nothing was tried", "Ask the operator for a whole kit.")
        return
    from cafe_kit.embed import Embedder
    from cafe_kit.orders import VoteParams
    from cafe_kit.vote import vote

    began, task = time.monotonic(), kit.info.task
    found = records.read(DataSource(path=kit.sample), task)
    candidates = list({task.class_of(record): record for record in found}.values()) + found[:4]
    counts = vote(VoteParams(max_votes_per_candidate=len(found)), task, found, candidates, Embedder(kit.embedder))
    seconds = time.monotonic() - began
    if int(counts.sum()) != len(found):
        yield Check("rehearsal", "fail", "the votes on the sample do not add up", "Tell the operator.")
    else:
        yield Check("rehearsal", "ok", f"voted with the {len(found)} rows of the sample in {seconds:.1f} s; nothing was sent")


def _data(source: DataSource, task: Task) -> Iterator[Check]:
    from cafe_kit.data_look import look

    found, _ = look(source, task)
    name = source.path.name
    own = f"({found.rows:,} rows, {found.left_out:,} left out as empty, {found.duplicates:,} twice, longest {found.longest:,} characters)"
    yield Check("data", "ok", f"{name} can be read; its columns are there", own=own)
    if found.duplicates * 2 > found.rows:
        yield Check("data", "warn", "more than half of the rows are duplicates", "Is it the right file?")
    if found.unusual:
        yield Check("data", "warn", "something about the rows is unusual", "Is it the right file?", own=f"({'; '.join(found.unusual)})")
    if found.identifying:
        own = f"(rows with {', '.join(f'{what}: {count:,}' for what, count in found.identifying.items())})"
        hint = "Texts stay here, but what is learnt from them is shared; consider removing such details."
        yield Check("identifiers", "warn", "texts may identify people", hint, own=own)
    else:
        yield Check("identifiers", "ok", "no usual pattern of e-mail, telephone, case or bank numbers")


def _key(home: Path, settings: SiteSettings) -> Iterator[Check]:
    site_folder.check_key(home, settings)
    yield Check("key", "ok", "the one that the site has joined with")


def _limits(home: Path, settings: SiteSettings) -> Iterator[Check]:
    policy = load_policy(home / "policy.toml")
    wants = "vote" if settings.kind == "cpu" else "train"
    if wants not in policy.kinds:
        yield Check(
            "limits", "warn", f"orders of the kind '{wants}' are refused, so this site can take no part", "cafe-site limits set kinds=..."
        )
    elif policy.max_epsilon is None:
        yield Check("limits", "warn", "there is no limit on the privacy that may be spent", "cafe-site limits set max_epsilon=10")
    elif (policy.max_epsilon_per_run or 0) > policy.max_epsilon:
        yield Check(
            "limits", "warn", "the limit of one run is higher than that of all runs", "cafe-site limits set max_epsilon_per_run=..."
        )
    else:
        yield Check("limits", "ok", f"epsilon {policy.max_epsilon:g} at delta {policy.delta:g}; {', '.join(policy.kinds)}")
    if is_paused(home):
        yield Check("limits", "warn", "the site is paused and refuses every order", "cafe-site resume", "CAFE-320")


def _ledger(home: Path) -> Iterator[Check]:
    if not (home / "ledger").is_dir():
        yield Check("ledger", "ok", "nothing was spent yet")
        return
    count = SiteLedger(home / "ledger").verify()
    yield Check("ledger", "ok", f"{count} charges, the chain holds")


def _connection(home: Path, settings: SiteSettings) -> Iterator[Check]:
    if site_folder.answer(home, settings) is None:
        yield Check("connection", "warn", "the operator has not answered yet", "cafe-site join continues.")
        return
    way = starting.way(home, settings)
    if isinstance(way, Folder):
        there = os.access(settings.exchange, os.R_OK | os.W_OK | os.X_OK)
        told = "the exchange folder is there and can be written" if there else "the exchange folder is not there, or cannot be written"
        yield Check("connection", "ok" if there else "fail", told, "Is it mounted?", "" if there else "CAFE-118")
        return
    stops = {"Globus": "" if way.service else GLOBUS, "the operator's object store": asking.link(home, settings, "answer_url")}
    for name, url in stops.items():
        if url:
            why = _unreachable(url)
            told = f"{name} cannot be reached ({why})" if why else f"{name} can be reached"
            yield Check(
                "connection",
                "fail" if why else "ok",
                told,
                "Outgoing 443 has to be open; HTTPS_PROXY names a proxy.",
                "CAFE-162" if why else "",
            )


def _unreachable(url: str) -> str:
    """The class of what went wrong on the way there, or "" for nothing; what the answer says does not matter."""
    try:
        place = http_request.split(url)
        assert place is not None
        with http_request.asked(place, "HEAD", {}):
            return ""
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__


def _at_work(home: Path, settings: SiteSettings) -> Iterator[Check]:
    process = instance.running(home)
    if process is None:
        yield Check("at work", "warn", "nobody answers orders", "cafe-site start")
    else:
        yield Check("at work", "ok", "orders are answered")
    unit = service.path(settings)
    if unit.is_file():
        enabled = (unit.parent / "default.target.wants" / unit.name).is_symlink()
        yield Check("service", "ok", "starts by itself" if enabled else "is written, but not enabled")
