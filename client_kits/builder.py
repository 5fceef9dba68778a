"""The zip for one site: what it runs, what it reads, and the signature over all of it. The same order of a kit gives the same bytes.

Knows the templates, the installed ``cafe_kit`` and the format of a wheel. Does not know keys (it is handed a function that signs), join
codes or the store. Nothing in a zip is secret: ``KitInfo.sealed`` opens with the join code alone.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import distribution
from pathlib import Path

import cafe_kit.errors
from cafe_kit import ssh_signature
from cafe_kit.enrolment import KitInfo
from cafe_kit.errors import CafeError
from cafe_kit.inputs import hash_file
from cafe_kit.task import Task

TEMPLATES = Path(__file__).with_name("templates")
ENDPOINT = TEMPLATES / "endpoint"  # for sites that are reached through Globus Compute; cafe_kit.endpoint fills it at the site
EXECUTABLE = ("cafe-site",)
PYTHONS = ("3.11", "3.12", "3.13")  # for which a kit with wheels carries them: the site's Python need not be the operator's
MANYLINUX = ("2_28", "2_27", "2_24", "2_17", "2014")
_EXTRA = {"cpu": "light", "gpu": "gpu"}
_TIME = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold
_LEAVES = {  # short lines: README.txt shows them as they are
    "cpu": """The operator's server makes up texts and asks how many of your records are nearest to each. What leaves: these
counts, and with them versions, seconds and the check number of your ledger.""",
    "gpu": """Your machine trains a small addition to the language model (an adapter) on your records. What leaves: how its
numbers changed, and with them versions, seconds and the check number of your ledger.""",
}

Sign = Callable[[bytes], str]  # the bytes of SHA256SUMS -> the text of SHA256SUMS.sig
Content = bytes | Path


def folder_name(info: KitInfo) -> str:
    """The one folder in the zip."""
    return f"cafe-site-{info.federation}-{info.site}"


def build(info: KitInfo, target: Path, *, sign: Sign, embedder: Path | None = None, wheels: bool = False) -> Path:
    """Write the kit of ``info`` to ``target``: two calls with the same files at hand write the same bytes.

    ``embedder``: the folder that goes into a kit without a GPU. ``wheels``: carry what pip would fetch, for sites without a package index.

    Raises:
        CafeError: CAFE-138 when the wheels cannot be had.
    """
    with tempfile.TemporaryDirectory(prefix="cafe-kit-") as work:
        files = _files(info, embedder)
        if wheels:
            files |= _wheels("wheels", _requirements(info), Path(work))
            files |= _wheels("endpoint/wheels", [f"--requirement={ENDPOINT / 'requirements.txt'}"], Path(work))
        sums = "".join(f"{_sha256(content)}  {name}\n" for name, content in sorted(files.items())).encode()
        files |= {"SHA256SUMS": sums, "SHA256SUMS.sig": sign(sums).encode()}
        beside = target.with_name(f".{target.name}.part")
        try:
            _zip(files, folder_name(info), beside)
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
    return target


# What is in it


def _files(info: KitInfo, embedder: Path | None) -> dict[str, Content]:
    wheel, wheel_name = _own_wheel()
    words = _words(info, wheel_name, wheel)
    files: dict[str, Content] = {
        f"wheels/{wheel_name}": wheel,
        "allowed_signers": ssh_signature.allowed_signers(info.server.verify_key).encode(),
        "examples/sample.csv": _sample(info.task),
        "federation.json": json.dumps(asdict(info), indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n",
        "policy.default.toml": _filled("policy.default.toml", _limits(info)).encode(),
        "requirements.txt": "".join(f"{line}\n" for line in _requirements(info)).encode(),
        "VERSION": f"cafe-kit {distribution('cafe-kit').version}\nprotocol {info.protocol}\n".encode(),
    }
    for name in ("cafe-site", "README.txt"):
        files[name] = _filled(name, words).encode()
    for name in ("README.html", "SECURITY.html"):
        files[name] = _filled(name, {key: html.escape(value) for key, value in words.items()}).encode()
    for folder in ("LICENSES", "endpoint"):
        files |= {f"{folder}/{path.name}": path.read_bytes() for path in (TEMPLATES / folder).iterdir()}
    if embedder is not None:
        files |= {f"models/embedder/{path.name}": path for path in embedder.iterdir() if path.is_file() and path.name[0] != "."}
    return files


def _words(info: KitInfo, wheel_name: str, wheel: bytes) -> dict[str, str]:
    """What the templates say of this kit."""
    requirements = "\n".join(_requirements(info)).encode()
    return {
        "federation": info.federation,
        "site": info.site,
        "task": " ".join(info.task.description.split()) or "(the operator has not written it down)",
        "serial": info.serial,
        "issued": _day(info.issued),
        "expires": _day(info.expires),
        "fingerprint": ssh_signature.fingerprint(info.server.verify_key),
        "wheel": wheel_name,
        "installed": hashlib.sha256(wheel + requirements).hexdigest(),
        "pythons": " or ".join(PYTHONS),
        "beyond": f"3, {int(PYTHONS[-1].partition('.')[2]) + 1}",
        "leaves": _LEAVES[info.kind],
        "disk": "1 GB" if info.kind == "cpu" else "20 GB",
        "gpu_needs": "" if info.kind == "cpu" else ", and a GPU",
        "style": (TEMPLATES / "style.css").read_text(encoding="utf-8"),
        "kind_words": "without a GPU" if info.kind == "cpu" else "with a GPU",
    }


def _limits(info: KitInfo) -> dict[str, str]:
    limits = info.limits
    return {
        "max_epsilon": "# no limit is proposed" if limits.max_epsilon is None else f"max_epsilon = {limits.max_epsilon}",
        "max_epsilon_per_run": f"\n# At most per run.\nmax_epsilon_per_run = {limits.max_epsilon_per_run}\n"
        if limits.max_epsilon_per_run
        else "",
        "delta": str(limits.delta),
        "kinds": ", ".join(f'"{kind}"' for kind in limits.kinds),
        "allow_without_noise": str(limits.allow_without_noise).lower(),
        "max_rounds_per_run": str(limits.max_rounds_per_run),
    }


def _filled(name: str, words: Mapping[str, str]) -> str:
    """A template with its ``{{words}}``; one that nobody knows is a mistake in the template."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: words[found[1]], (TEMPLATES / name).read_text(encoding="utf-8"))


def _day(moment: float) -> str:
    return time.strftime("%d %B %Y, %H:%M UTC", time.gmtime(moment))


def _sample(task: Task) -> bytes:
    """Invented records of the task, for a rehearsal."""
    if task.labels:
        head = ("text", "label")
        rows = [
            (f"An invented text, number {number}, about {label.replace('_', ' ')}.", label) for label in task.labels for number in (1, 2)
        ]
    else:
        head = ("instruction", "output")
        rows = [(f"Say the number {number} in words.", word) for number, word in enumerate(("one", "two", "three", "four"), start=1)]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([head, *rows])
    return out.getvalue().encode()


# What it installs


def _requirements(info: KitInfo) -> list[str]:
    """What pip has to bring for this kind of site, as the installed package declares it."""
    extra = _EXTRA[info.kind]
    found = []
    for line in distribution("cafe-kit").requires or ():
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        if not marker or re.fullmatch(rf"extra == ['\"]{extra}['\"]", marker):
            found.append(requirement)
    return found


def _own_wheel() -> tuple[bytes, str]:
    """A wheel of the installed ``cafe_kit``, however it was installed: its sources and its own metadata."""
    installed = distribution("cafe-kit")
    package = Path(cafe_kit.errors.__file__).parent
    info = f"cafe_kit-{installed.version}.dist-info"
    files = {f"cafe_kit/{path.relative_to(package).as_posix()}": path.read_bytes() for path in package.rglob("*.py")}
    files[f"{info}/METADATA"] = (installed.read_text("METADATA") or "").encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: cafe-au-lait\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join(f"{name},sha256={_urlsafe(data)},{len(data)}\n" for name, data in sorted(files.items()))
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    out = io.BytesIO()
    _zip(files, "", out)
    return out.getvalue(), f"cafe_kit-{installed.version}-py3-none-any.whl"


def _wheels(folder: str, wanted: list[str], work: Path) -> dict[str, Content]:
    """Wheels of all that is wanted for Linux on this machine's processor, for each Python that a site may have."""
    platforms = [f"--platform=manylinux_{version}_{platform.machine()}" for version in MANYLINUX[:-1]]
    platforms.append(f"--platform=manylinux{MANYLINUX[-1]}_{platform.machine()}")
    target = work / folder
    for python in PYTHONS:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--only-binary=:all:"]
        done = subprocess.run(
            [*command, f"--python-version={python}", *platforms, f"--dest={target}", *wanted],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            reason = next((line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")), "pip failed")
            raise CafeError(
                "CAFE-138",
                f"The wheels for Python {python} cannot be had: {reason[:300]}",
                "Is the package index reachable (PIP_INDEX_URL)? A kit without --wheels lets the site fetch them itself.",
            )
    offline = f"Wheels for Linux on {platform.machine()}, Python {', '.join(PYTHONS)}. Nothing is fetched while this file is here.\n"
    return {f"{folder}/OFFLINE": offline.encode()} | {f"{folder}/{path.name}": path for path in target.glob("*.whl")}


# Bytes


def _zip(files: Mapping[str, Content], folder: str, target: Path | io.BytesIO) -> None:
    """Sorted names, one time, fixed modes, nothing compressed (what is large is dense, and zlib's versions differ)."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as out:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(f"{folder}/{name}" if folder else name, _TIME)
            entry.create_system = 3  # Unix, so that the modes below count
            entry.external_attr = (0o100755 if name in EXECUTABLE else 0o100644) << 16
            if isinstance(content, bytes):
                out.writestr(entry, content)
                continue
            entry.file_size = content.stat().st_size
            with content.open("rb") as source, out.open(entry, "w") as inside:
                while block := source.read(2**20):
                    inside.write(block)


def _sha256(content: Content) -> str:
    return hash_file(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()


def _urlsafe(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
