"""Federations that an operator sets up by clicks: one folder each, with a ``federation.yaml`` that may be unfinished.

Knows files: the YAML, the public files beside it (labels, examples, test set), and where the demo lies. The YAML is the
same that ``cafe run`` reads; nothing else about a federation is kept. Reads a site's data only through the kit's reader.
"""

from __future__ import annotations

import fcntl
import io
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cafe_kit.errors import CafeError
from cafe_kit.records import OPTIONAL_ROLES, ROLES, DataSource, column_names, fingerprint, read
from cafe_kit.task import Task
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import demo
from pipeline.home import home
from pipeline.settings import RunSettings, SiteSettings, build
from server_store.blobs import write_whole

FILE = "federation.yaml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_PUBLIC = {"labels": "labels.txt", "examples": "examples", "test": "test"}  # what may be uploaded: public files, never a site's
_USUAL = {  # role → what its column is often called
    "text": ("message", "body", "content", "note", "question", "sentence", "utterance", "comment"),
    "label": ("class", "category", "intent", "topic", "target", "department", "answer"),
    "instruction": ("prompt", "question", "query", "message", "text"),
    "input": ("context",),
    "output": ("response", "answer", "completion", "reply"),
}
_MOST_BYTES = 50 * 2**20


@dataclass(frozen=True)
class Federation:
    """One federation. ``data``: its settings as written, perhaps unfinished."""

    name: str
    folder: Path
    data: dict[str, Any]

    @property
    def is_demo(self) -> bool:
        return (self.folder / ".demo").exists()

    @property
    def text(self) -> str:
        """The YAML, as ``cafe run`` reads it."""
        return (self.folder / FILE).read_text(encoding="utf-8")

    def settings(self) -> RunSettings:
        """Complete and checked. Raises CafeError CAFE-601 to 605 for what is missing or wrong."""
        return build(self.data, self.folder)


@dataclass(frozen=True)
class SiteCheck:
    """What a look at a site's own data file says: how many records are usable, or why none is."""

    records: int
    problem: CafeError | None

    @property
    def early(self) -> bool:
        """The file is there, but the task is not described well enough yet to count its records (no labels, say)."""
        return self.problem is not None and self.problem.code.startswith("CAFE-6")


@dataclass(frozen=True)
class PublicFiles:
    """What was read from a federation's public files. ``problems``: role → why a named file is not usable."""

    labels: tuple[str, ...]
    examples: int
    test: int
    problems: dict[str, CafeError]


def listed() -> list[Federation]:
    """All federations of this home, the last changed first. A folder without a readable YAML is left out."""
    files = sorted(home("federations").glob(f"*/{FILE}"), key=lambda file: -file.stat().st_mtime)
    found = []
    for file in files:
        try:
            found.append(get(file.parent.name))
        except CafeError:
            continue
    return found


def get(name: str) -> Federation:
    """Raises CafeError CAFE-607 for an unknown name, CAFE-604 for a YAML that cannot be read."""
    folder = _folder(name)
    if not (folder / FILE).is_file():
        raise CafeError("CAFE-607", f"There is no federation {name!r} here.", "Choose one of the list on Home, or set up a new one.")
    return Federation(name, folder, parse((folder / FILE).read_text(encoding="utf-8")))


def create(name: str, kind: str, description: str) -> Federation:
    """A new, unfinished federation. Raises CafeError CAFE-608 when the name cannot be used."""
    folder = _folder(name)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        raise CafeError("CAFE-608", f"There is a federation {name!r} already.", "Take another name, or open that one.") from None
    task = {"kind": kind, "description": description}
    return save(name, {"name": name, "task": task, "sites": [], "privacy": {"stage1": {"epsilon": 8, "delta": 1e-5}, "stage2": "off"}})


def create_demo(seed: int = 0) -> Federation:
    """The demo federation, written anew: eight pretend clinics and their messages."""
    folder = _folder("demo")
    folder.mkdir(mode=0o700, exist_ok=True)
    demo.write(folder, seed, joined=True).replace(folder / FILE)
    (folder / ".demo").touch()
    return get("demo")


def save(name: str, data: Mapping[str, Any]) -> Federation:
    """Write the settings as they are, finished or not."""
    out = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(dict(data), out)
    write_whole(_folder(name) / FILE, out.getvalue().encode())
    return get(name)


def save_text(name: str, text: str) -> Federation:
    """Write a YAML as an operator typed or loaded it: complete, checked, and of this federation. Raises CafeError CAFE-601 to 608."""
    data = parse(text)
    if data.get("name") != name:
        raise CafeError(
            "CAFE-608",
            f"This YAML is of {data.get('name')!r}, the federation is {name!r}.",
            "Change its name, or set it up under that name.",
        )
    build(data, _folder(name))
    write_whole(_folder(name) / FILE, text.encode())
    return get(name)


def put_file(name: str, role: str, filename: str, content: bytes) -> Federation:
    """Keep an uploaded public file (labels, examples or test set) beside the YAML, which then names it."""
    if len(content) > _MOST_BYTES:
        raise CafeError("CAFE-609", "The file is larger than 50 MB.", "Put it on the server's disk and name its path.")
    federation = get(name)
    suffix = Path(filename).suffix.lower()
    target = _PUBLIC[role] if role == "labels" else _PUBLIC[role] + (suffix if suffix in (".jsonl", ".csv", ".parquet") else ".jsonl")
    write_whole(federation.folder / target, content)
    data = dict(federation.data)
    if role == "test":
        data["test"] = target
    else:
        data["task"] = {**data.get("task", {}), role: target}
    return save(name, data)


def add_site(name: str, site: Mapping[str, Any]) -> Federation:
    """One more site of this machine. Raises CafeError CAFE-602 for a name that cannot be used or is taken."""
    with _alone(name):
        federation = get(name)
        sites = list(federation.data.get("sites") or [])
        if any(str(one.get("name", "")).lower() == str(site["name"]).lower() for one in sites):
            raise CafeError("CAFE-602", f"There is a site {site['name']!r} already.", "Take another name, or remove that site first.")
        _site(site, federation.folder)
        return save(name, {**federation.data, "sites": [*sites, dict(site)]})


def add_joined_site(name: str, site: str, kind: str) -> Federation:
    """A site of another machine takes part from now on; its data stays there, so its row has none. Twice is once.

    Raises CafeError CAFE-602 when a site of this machine has the name.
    """
    with _alone(name):
        federation = get(name)
        sites = list(federation.data.get("sites") or [])
        if any(str(one.get("name", "")).lower() == site.lower() and one.get("data") for one in sites):
            raise CafeError("CAFE-602", f"A site of this machine is called {site!r} already.", "Remove that one first, then approve again.")
        row = {"name": site, "kind": kind}
        others = [one for one in sites if str(one.get("name", "")).lower() != site.lower()]
        return federation if row in sites else save(name, {**federation.data, "sites": [*others, row]})


def remove_joined_site(name: str, site: str) -> None:
    """A site of another machine takes part no longer. A site of this machine with this name stays."""
    if any(one.get("name") == site and not one.get("data") for one in get(name).data.get("sites") or []):
        remove_site(name, site)


def remove_site(name: str, site: str) -> Federation:
    """Take a site out of the settings. Its data file and its own ledger stay."""
    with _alone(name):
        federation = get(name)
        return save(name, {**federation.data, "sites": [one for one in federation.data.get("sites") or [] if one.get("name") != site]})


def check_site(federation: Federation, site: Mapping[str, Any]) -> SiteCheck:
    """Read the site's data with the kit's own reader; only the number of usable records leaves this function."""
    try:
        known = _site(site, federation.folder)
        if known.data is None:
            raise CafeError(
                "CAFE-613",
                "This site joined with a kit: its records are counted there, and only there.",
                "Its admin sees them: `./cafe-site doctor`.",
            )
        fingerprint(DataSource(known.data))
        task = federation.data.get("task") or {}
        probe = build(
            {
                "name": "probe",
                "task": task,
                "sites": [{**dict(site), "data": str(known.data)}],
                "test": str(known.data),
                "privacy": "off",
            },
            federation.folder,
        )
        return SiteCheck(len(read(probe.source(probe.sites[0]), probe.public_task())), None)
    except CafeError as error:
        return SiteCheck(0, error)


def public_files(federation: Federation) -> PublicFiles:
    """What the public files say, as far as they are named and readable; needs no sites."""
    task = federation.data.get("task") or {}
    named = {role: bool(task.get(role)) for role in ("labels", "examples")} | {"test": bool(federation.data.get("test"))}
    labels: tuple[str, ...] = ()
    counts, problems = {"examples": 0, "test": 0}, {}
    for role in ("labels", "examples", "test"):
        if not named[role]:
            continue
        try:
            probe = _probe(federation, role)
            if role == "labels":
                labels = probe.public_task().labels
            else:
                counts[role] = len(probe.test_records() if role == "test" else probe.examples())
        except CafeError as error:
            problems[role] = error
    return PublicFiles(labels, counts["examples"], counts["test"], problems)


def public_task(federation: Federation) -> Task:
    """The task as sites of other machines are told it, also before the federation is complete. Raises CafeError CAFE-601 to 605."""
    return _probe(federation, "labels").public_task()


def _probe(federation: Federation, role: str) -> RunSettings:
    """The settings with this public file, its labels, and nothing else that may be missing."""
    task = {key: value for key, value in (federation.data.get("task") or {}).items() if key != "examples" or role == "examples"}
    test = federation.data.get("test") if role == "test" else FILE
    site = {"name": "probe", "kind": "cpu", "data": FILE}
    return build({"name": "probe", "task": task, "sites": [site], "test": test, "privacy": "off"}, federation.folder)


def columns(federation: Federation, data: str) -> list[str]:
    """The column names of a site's data file, and nothing else of it; none where it has none. Raises CafeError CAFE-201 to 219."""
    return column_names(DataSource((federation.folder / Path(data).expanduser()).absolute()))


def guess_columns(federation: Federation, found: Sequence[str]) -> dict[str, str]:
    """Role → column, for every role of the task: the task's own name for it, a usual name, or "" where none fits."""
    task = federation.data.get("task") or {}
    guessed = {}
    for role in ROLES.get(str(task.get("kind")), ROLES["classification"]):
        usual = [str(task.get(role) or role), role, *_USUAL[role]]
        lower = {name.lower(): name for name in reversed(found)}
        guessed[role] = next((lower[name.lower()] for name in usual if name.lower() in lower), "")
    return guessed


def is_optional(role: str) -> bool:
    """Whether data may lack this role."""
    return role in OPTIONAL_ROLES


def remove(name: str) -> None:
    """Delete a federation's folder: its YAML and public files. Runs, ledgers and sites' own files stay."""
    shutil.rmtree(get(name).folder)


def parse(text: str) -> dict[str, Any]:
    """A YAML's settings as plain data. Raises CafeError CAFE-604."""
    try:
        data = YAML(typ="safe", pure=True).load(io.StringIO(text))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" near line {mark.line + 1}" if mark else ""
        raise CafeError("CAFE-604", f"This is not YAML{line}.", "Two spaces of indent per level, a space after each colon.") from None
    if not isinstance(data, dict):
        raise CafeError("CAFE-604", "This YAML holds no settings.", "Start from the example in README.")
    return data


def _site(site: Mapping[str, Any], folder: Path) -> SiteSettings:
    """The site alone, checked by the one schema."""
    task = {"kind": "classification", "description": "probe", "labels": ["a", "b"]}
    probe = build({"name": "probe", "task": task, "sites": [dict(site)], "test": str(folder / FILE), "privacy": "off"}, folder)
    return probe.sites[0]


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Of two who change a federation's sites at once, one waits: no row is lost. Raises CafeError CAFE-607."""
    folder = get(name).folder
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _folder(name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise CafeError(
            "CAFE-608",
            "This name cannot be used.",
            "Letters, digits, dot, dash and underscore, at most 64, beginning with a letter or digit.",
        )
    return home("federations") / name
