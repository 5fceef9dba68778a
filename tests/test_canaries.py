"""A thousand random strings as a site's records, and everything that can go wrong: not one of them is found in what left the site.

What left: the request to join, every answer and every sign of progress, every body (opened with the server's key), standard output of
``cafe-site answer``, every file in the shared folder, the doctor's report for the operator.
"""

from __future__ import annotations

import base64
import functools
import gzip
import json
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cafe_kit import answering, enrolment, limits, site_folder
from cafe_kit.engine import Engine
from cafe_kit.errors import CafeError
from cafe_kit.orders import PrivacyTerms, order_hash
from cafe_kit.policy import TEMPLATE
from cafe_kit.release import Box
from cafe_kit.task import Record

from tests.fakes import BY_SERVER, BY_SITE, NO_NOISE, TASK, TinyEngine
from tests.site_place import Place, make_place
from tests.test_seat import FAILPOINTS

ROOT = Path(__file__).resolve().parents[1]
_CHANCE = random.Random(20261120)
CANARIES = [f"zq7x{_CHANCE.getrandbits(48):012x}" for _ in range(1000)]
FIRST = CANARIES[0]


@dataclass
class Site:
    """A joined site whose every record is a canary, and all that has left it so far."""

    place: Place
    left: list[bytes] = field(default_factory=list)
    orders: int = 0

    @property
    def own(self) -> Path:
        return self.place.exchange / f"{self.place.info.serial}.site"

    def message(self, terms: PrivacyTerms = BY_SITE, kind: str = "vote") -> dict[str, Any]:
        """An order that was never there before."""
        self.orders += 1
        order = self.place.server.order("north", kind, terms, run=f"run-{self.orders}")
        asked = self.place.server.ask(order)
        asked["transport"]["output"] = "" if kind == "hello" else str(self.own / "bodies" / order_hash(order))
        return asked

    def answer(self, asked: dict[str, Any], engine: Engine | None = None) -> dict[str, Any]:
        """What the site says; all of it has left."""
        settings = site_folder.joined(self.place.home)
        told = answering.answer(self.place.home, settings, asked, engine or TinyEngine(), self.sees)
        self.left.append(json.dumps(told).encode())
        return told

    def sees(self, *progress: Any) -> None:
        self.left.append(json.dumps(progress).encode())

    def code(self, told: dict[str, Any]) -> str:
        said = told.get("reply") or told["problem"]
        return "" if said.get("status") == "ok" else said["code"]

    def apart(self, act: Callable[[], dict[str, Any]]) -> tuple[int, dict[str, Any] | None]:
        """Do it in a process of its own; how it ended, and what it said."""
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            with os.fdopen(write, "wb") as pipe:
                pipe.write(json.dumps(act()).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            said = pipe.read()
        status = os.waitpid(child, 0)[1]
        self.left.append(said)
        return status, json.loads(said) if said else None

    def collected(self) -> list[bytes]:
        """Everything that left: what was said, and what lies in the shared folder, sealed or opened."""
        found = list(self.left)
        for path in self.place.exchange.rglob("*"):
            if path.is_file() and self.place.server.folder not in path.parents:
                found.append(path.read_bytes())
                if path.parent.name == "bodies":
                    found.append(self.opened(path))
        return found

    def opened(self, path: Path) -> bytes:
        data = path.read_bytes()
        try:
            return Box.open(data, self.place.server.sealing, path.name.encode())
        except CafeError:
            return data  # noised, hence in the open

    def write(self, text: str | bytes) -> None:
        self.place.data.write_bytes(text if isinstance(text, bytes) else text.encode())


def table(rows: Sequence[str] = CANARIES) -> str:
    return "message,department\n" + "".join(f"{row} wrote this,{TASK.labels[number % 2]}\n" for number, row in enumerate(rows))


def hits(blobs: Sequence[bytes]) -> list[str]:
    """The canaries that stand in any of these, plainly or in the usual disguises."""
    everything = b"\n".join(blobs)
    alike = [everything, everything.lower(), everything.replace(b"\0", b"")]  # the last: UTF-16
    for blob in blobs:
        if blob[:2] == b"\x1f\x8b":
            alike.append(gzip.decompress(blob))
    found = []
    for canary in CANARIES:
        plain = canary.encode()
        forms = [plain[4:], plain.hex().encode()[8:], *(base64.b64encode(b"x" * shift + plain)[4:-4] for shift in range(3))]
        if any(form in blob for form in forms for blob in alike):
            found.append(canary)
    return found


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Joined with the canaries as data, and what left by joining."""
    monkeypatch.setattr(enrolment, "_code_key", functools.cache(enrolment._code_key))
    place = make_place(tmp_path)
    made = Site(place)
    made.write(table())
    joined = place.join()
    assert joined.returncode == 3, joined.stderr
    made.left += [path.read_bytes() for path in place.exchange.glob("*.request.json")]
    place.approve()
    assert place.join().returncode == 0
    (place.home / "policy.toml").write_text(limits.edited(TEMPLATE, {"max_epsilon": None}))
    (made.own / "bodies").mkdir(parents=True, exist_ok=True)
    return made


# --- what goes wrong -------------------------------------------------------------------------------------------------------


def text_of(records: Sequence[Record]) -> str:
    return " ".join(record.text for record in records)


def raising(make: Callable[[str], BaseException]) -> type[TinyEngine]:
    """An engine like a library that quotes what it chokes on."""

    class Quotes(TinyEngine):
        def vote(self, *given: Any) -> np.ndarray:
            raise make(text_of(given[2]))

        def train(self, *given: Any) -> Any:
            raise make(text_of(next(iter(given[4].values()))))

    return Quotes


def returning(make: Callable[[str], np.ndarray]) -> type[TinyEngine]:
    class Returns(TinyEngine):
        def vote(self, *given: Any) -> np.ndarray:
            return make(text_of(given[2]))

        def train(self, *given: Any) -> Any:
            return {site: {"layer": make(text_of(records))} for site, records in given[4].items()}

    return Returns


def chained(text: str) -> BaseException:
    try:
        raise ValueError(text)
    except ValueError as cause:
        found = RuntimeError(f"while tokenising {text}")
        found.__cause__ = cause
        found.add_note(text)
        return found


ENGINES: dict[str, type[TinyEngine]] = {
    "ValueError": raising(ValueError),
    "KeyError": raising(KeyError),
    "RuntimeError": raising(lambda text: RuntimeError(f"expected a tensor, got {text}")),
    "TypeError": raising(TypeError),
    "AssertionError": raising(AssertionError),
    "MemoryError": raising(MemoryError),
    "OSError": raising(lambda text: OSError(2, text, text)),
    "FileNotFoundError": raising(lambda text: FileNotFoundError(2, "no such model", text)),
    "UnicodeDecodeError": raising(lambda text: UnicodeDecodeError("utf-8", text.encode(), 0, 1, text)),
    "JSONDecodeError": raising(lambda text: json.JSONDecodeError(text, text, 0)),
    "CalledProcessError": raising(lambda text: subprocess.CalledProcessError(1, [text], text, text)),
    "StopIteration": raising(StopIteration),
    "an exception of several": raising(lambda text: ExceptionGroup(text, [ValueError(text)])),
    "a chain with a note": raising(chained),
    "a warning made an error": raising(UserWarning),
    "texts for numbers": returning(lambda text: np.array(text.split())),
    "objects for numbers": returning(lambda text: np.array([{"text": text}], dtype=object)),
    "bytes for numbers": returning(lambda text: np.array([text.encode()])),
    "nothing": returning(lambda text: None),  # type: ignore[arg-type, return-value]
}

LINES = "\n".join(f'{{"message": "{canary}", "department": "card"}}' for canary in CANARIES)
DATA: dict[str, str | bytes] = {
    "empty": "",
    "a header alone": "message,department\n",
    "one row": f"message,department\n{FIRST},card\n",
    "Latin-1": table().encode() + f"{FIRST} caf\xe9,card\n".encode("latin-1"),
    "UTF-16": table().encode("utf-16"),
    "a PDF": b"%PDF-1.7\n" + table().encode(),
    "a pickle": b"\x80\x04\x95" + table().encode(),
    "packed": gzip.compress(table().encode()),
    "no header": "".join(f"{canary},card\n" for canary in CANARIES),
    "a canary as header": f"{FIRST},department\n{FIRST},card\n",
    "a column twice": f"message,message,department\n{FIRST},{FIRST},card\n",
    "semicolons": table().replace(",", ";"),
    "a field too many": table() + f"{FIRST},{FIRST},card\n",
    "a field too few": table() + f"{FIRST}\n",
    "a quote that does not end": table() + f'"{FIRST},card\n',
    "text after a quote": table() + f'"{FIRST}"{FIRST},card\n',
    "a huge field": table() + f"{FIRST}{'x' * 200_000},card\n",
    "a canary as label": table() + f"x,{FIRST}\n",
    "an empty label": table() + f"{FIRST},\n",
    "JSON lines": LINES,
    "a JSON array": "[" + LINES.replace("\n", ",") + "]",
    "a web page": f"<!doctype html><title>{FIRST}</title>",
}

LOADERS: dict[str, str] = {
    "a loader that raises": "def load():\n    raise ValueError(TEXT)\n",
    "a loader that raises later": "def load():\n    yield {'text': TEXT, 'label': 'card'}\n    raise KeyError(TEXT)\n",
    "a loader that ends": "def load():\n    raise SystemExit(TEXT)\n",
    "a loader of texts": "def load():\n    return [TEXT]\n",
    "a loader of other labels": "def load():\n    yield {'text': 'x', 'label': TEXT}\n    yield {'text': TEXT, 'label': 'card'}\n",
    "a loader of numbers": "def load():\n    yield {'text': 1, 'label': TEXT}\n",
    "a loader that cannot be read": "def load(:\n    TEXT",
}


def fails_in_the_engine(site: Site) -> int:
    for name, engine in ENGINES.items():
        for kind in ("vote", "train"):
            told = site.answer(site.message(BY_SERVER if kind == "vote" else NO_NOISE, kind), engine())
            assert site.code(told) == "CAFE-109", (name, kind, told)
    return 2 * len(ENGINES)


def fails_in_the_data(site: Site) -> int:
    for name, text in DATA.items():
        site.write(text)
        for kind in ("hello", "vote"):
            code = site.code(site.answer(site.message(BY_SERVER if kind == "vote" else NO_NOISE, kind)))
            assert code.startswith("CAFE-2"), (name, code)
    site.write(table())
    return 2 * len(DATA)


def fails_in_the_loader(site: Site) -> int:
    settings, loader = site_folder.joined(site.place.home), site.place.data.with_name("loader.py")
    data = settings.data.model_copy(update={"path": str(loader), "columns": {}})
    site_folder.save(site.place.home, settings.model_copy(update={"data": data}))
    for name, text in LOADERS.items():
        loader.write_text(f"TEXT = {FIRST!r}\n" + text)
        code = site.code(site.answer(site.message()))
        assert code.startswith("CAFE-2"), (name, code)
    site_folder.save(site.place.home, settings)
    return len(LOADERS)


def killed(site: Site) -> int:
    """At every failpoint, with the noise on either side; asked again afterwards."""
    for point in FAILPOINTS:
        for terms in (BY_SERVER, BY_SITE):
            asked = site.message(terms)

            def act(asked: dict[str, Any] = asked, point: str = point) -> dict[str, Any]:
                os.environ["CAFE_FAILPOINT"] = point
                return site.answer(asked)

            status, _ = site.apart(act)
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, point
            assert site.code(site.answer(asked)) == ""
    return 2 * len(FAILPOINTS)


def disk_refuses(site: Site) -> int:
    """No file may grow beyond so many bytes: ledger, contents, body and reply fail one after the other."""
    sizes = (0, 1, 20, 100, 250, 300, 400, 450)
    for size in sizes:
        asked = site.message(BY_SITE)

        def act(asked: dict[str, Any] = asked, size: int = size) -> dict[str, Any]:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            return site.answer(asked)

        _, told = site.apart(act)
        assert told is not None and site.code(told) in ("CAFE-135", "CAFE-305", "CAFE-131"), (size, told)
    return len(sizes)


def test_not_one_canary_has_left(site: Site) -> None:
    assert site.code(site.answer(site.message(NO_NOISE))) == site.code(site.answer(site.message(NO_NOISE, "hello"))) == ""
    provoked = [act(site) for act in (fails_in_the_engine, fails_in_the_data, fails_in_the_loader, killed, disk_refuses)]
    assert sum(provoked) >= 60, provoked
    report = site.place.folder / "report.json"
    site.place.run("doctor", "--report", str(report))
    site.left.append(report.read_bytes())
    left = site.collected()
    assert sum(len(blob) for blob in left) > 50_000 and len(left) > sum(provoked)
    assert hits(left) == []


def test_the_site_itself_has_them(site: Site) -> None:
    """Where the search is known to find something: the data, and nothing else that the site keeps."""
    assert len(hits([site.place.data.read_bytes()])) == len(CANARIES) == len(set(CANARIES)) == 1000
    site.answer(site.message(), ENGINES["ValueError"]())
    kept = [path.read_bytes() for path in site.place.home.rglob("*") if path.is_file()]
    assert hits(kept) == [], "not even the site's own log quotes a record"


class Careless(TinyEngine):
    """A kit's own refusal that quotes a record: such sentences do leave."""

    def vote(self, *given: Any) -> np.ndarray:
        raise CafeError("CAFE-402", f"The text '{given[2][7].text}' is too long.", "")


@pytest.mark.parametrize(
    "disguise",
    [
        lambda text: text.encode(),
        lambda text: text.encode("utf-16-le"),
        lambda text: text.upper().encode(),
        lambda text: base64.b64encode(b"ab" + text.encode()),
        lambda text: text.encode().hex().encode(),
        lambda text: gzip.compress(text.encode()),
    ],
)
def test_the_search_finds_what_is_hidden(disguise: Callable[[str], bytes]) -> None:
    assert hits([b"before", disguise(f"a text with {FIRST} in it")]) == [FIRST]


def test_a_planted_leak_is_found(site: Site) -> None:
    site.answer(site.message(), Careless())
    assert len(hits(site.collected())) == 1


def test_what_libraries_print_does_not_get_into_the_answer(site: Site, tmp_path: Path) -> None:
    """The real process: prints, warnings and logs of records go to standard error, which stays at the site."""
    (tmp_path / "loud.py").write_text(
        "import logging, os, sys, warnings\nfrom tests.fakes import TinyEngine\n\n\nclass Loud(TinyEngine):\n"
        "    def vote(self, *given):\n        text = ' '.join(record.text for record in given[2])\n"
        "        print(text)\n        print(text, file=sys.stderr)\n        os.write(1, text.encode())\n"
        "        warnings.warn(text)\n        logging.error(text)\n"
        "        if os.environ.get('LOUD') == 'ends':\n            raise SystemExit(text)\n"
        "        if os.environ.get('LOUD') == 'stops':\n            raise KeyboardInterrupt(text)\n"
        "        raise ValueError(text)\n"
    )
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    known = site.place.environment(None) | {"CAFE_KIT_ENGINE": "loud:Loud", "PYTHONPATH": path}
    line = [sys.executable, "-m", "cafe_kit.cli", "answer"]
    for how in ("raises", "ends", "stops"):
        asked = json.dumps(site.message()).encode()
        done = subprocess.run(
            line, input=asked, env=known | {"LOUD": how}, cwd=site.place.folder, capture_output=True, timeout=60, check=False
        )
        assert len(hits([done.stderr])) == 1000 and hits([done.stdout]) == [], how
        site.left.append(done.stdout)
    assert hits(site.collected()) == []
