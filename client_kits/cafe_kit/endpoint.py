"""This site's Globus Compute endpoint: its environment, its configuration, and its process, kept up until somebody ends it.

Knows Globus's own program, in an environment of its own, and what it may be told: one function, JSON alone, nothing that whoever submits
could choose. Does not know orders: each is handed to ``cafe-site answer``, in a process of its own. The application's secret stands in
the endpoint's own environment alone: in no file, and not where the work is done.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from cafe_kit import endpoint_settings, leftovers
from cafe_kit.connection import GlobusCompute
from cafe_kit.endpoint_settings import EndpointSettings
from cafe_kit.errors import CafeError
from cafe_kit.launched import VARIABLE
from cafe_kit.release import seal_file
from cafe_kit.site_folder import SiteSettings
from cafe_kit.site_home import SiteHome

PROGRAM = "globus-compute-endpoint"
LOCAL_SERVICE = "http://localhost:5000"  # a stand-in of the service, in tests; CAFE_GLOBUS_LOCAL_URL names another
_LOOK_S, _STOP_S = 2.0, 40.0
_FIRST_WAIT_S, _MOST_WAIT_S, _LONG_S = 1.0, 60.0, 300.0
OUT, _MOST_OUT = "log/endpoint.out", 1_000_000  # what Globus's program says before its own log begins
_NO_PERMISSION, _BAD_DATA = 77, 65  # exit statuses of the program
_UNSAFE = re.compile(r"[^A-Za-z0-9_@%+=:,./-]")

Say = Callable[[str], None]


def prepare(home: Path, settings: SiteSettings, connection: GlobusCompute, kit_folder: Path | None, say: Say) -> EndpointSettings:
    """Install the endpoint if need be and write its configuration. Doing it again changes nothing.

    Raises:
        CafeError: CAFE-171 (endpoint.toml), CAFE-172 (a path that jobs cannot bear), CAFE-173 (the endpoint cannot be installed).
    """
    templates = _templates(kit_folder)
    chosen = endpoint_settings.load(home, templates / endpoint_settings.FILE)
    if chosen.kind != "plain" and _UNSAFE.search(str(home.absolute())):
        raise CafeError(
            "CAFE-172",
            "The path of the site's folder has blanks or special signs, which a batch system's scripts do not bear.",
            "Move the folder to a plain path and set CAFE_SITE_HOME to it.",
        )
    install(home, templates, say)
    _configure(home, connection, chosen, templates, kit_folder)
    return chosen


def run(home: Path, settings: SiteSettings, connection: GlobusCompute, kit_folder: Path | None, say: Say) -> int:
    """Keep the endpoint up until SIGTERM or SIGINT; one that ends by itself is started again, after a pause that grows.

    Raises:
        CafeError: as ``prepare``; CAFE-174 when Globus does not accept the application, CAFE-175 when it refuses the endpoint.
    """
    prepare(home, settings, connection, kit_folder, say)
    mark, wait_s = f"GLOBUS_COMPUTE_USER_DIR={_user_dir(home)}", _FIRST_WAIT_S
    leftovers.end(list(leftovers.marked(mark)))  # of an earlier start that was killed
    log = SiteHome(home).log
    say(f"{settings.site} answers orders of {settings.federation} through Globus Compute. Ctrl-C ends this.")
    with _asked_to_end() as ended:
        while not ended.is_set():
            began = time.monotonic()
            status = _once(home, connection, mark, ended)
            if ended.is_set():
                break
            log("endpoint ended", status=status)
            _may_go_on(status)
            wait_s = _FIRST_WAIT_S if time.monotonic() - began > _LONG_S else min(_MOST_WAIT_S, wait_s * 2)
            say(f"{time.strftime('%H:%M:%S')} The endpoint ended (exit status {status}); it is started again in {wait_s:.0f} s. See {OUT}.")
            ended.wait(wait_s)
    say("Ended. Nothing is answered until the next start.")
    return 0


def _once(home: Path, connection: GlobusCompute, mark: str, ended: threading.Event) -> int:
    """One life of the endpoint's process; its exit status. What it leaves behind is ended."""
    folder = _user_dir(home)
    _drop_stale(folder, mark)
    (home / OUT).parent.mkdir(mode=0o700, exist_ok=True)
    if (home / OUT).is_file() and (home / OUT).stat().st_size > _MOST_OUT:
        (home / OUT).unlink()
    with (home / OUT).open("ab") as out:
        process = subprocess.Popen(
            [str(_program(home)), "start", connection.endpoint_name],
            env=_environment(home, connection),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=folder,
            start_new_session=True,  # it ends its whole process group
        )
    try:
        while process.poll() is None and not ended.wait(_LOOK_S):
            leftovers.end(leftovers.orphans(mark))
            _drop_stale(folder, mark)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_STOP_S)
    finally:
        leftovers.end(list(leftovers.marked(mark)))
        status = process.wait()
        _drop_stale(folder, mark)
    return status


def _may_go_on(status: int) -> None:
    if status == _NO_PERMISSION:
        raise CafeError(
            "CAFE-174",
            "Globus does not accept the application that the operator gave to this site.",
            "Ask the operator: its secret may have been changed or withdrawn. He approves the site again with the new one.",
        )
    if status == _BAD_DATA:
        raise CafeError("CAFE-175", "Globus refuses this endpoint as it is configured.", f"{OUT} in the site's folder says why.")


def _drop_stale(folder: Path, mark: str) -> None:
    """Forget process ids of endpoints that were killed: they would be refused their start for minutes."""
    lives = leftovers.marked(mark)
    for path in folder.glob("*/daemon.pid"):
        with suppress(OSError, ValueError):
            if int(path.read_text().split()[0]) not in lives:
                path.unlink()


@contextmanager
def _asked_to_end() -> Iterator[threading.Event]:
    """Set by SIGTERM or SIGINT."""
    ended = threading.Event()

    def end(number: int, _: FrameType | None) -> None:
        ended.set()

    before = {each: signal.signal(each, end) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield ended
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


# Its environment


def install(home: Path, templates: Path, say: Say) -> None:
    """Globus's program in ``endpoint-venv``, unless it is there or CAFE_ENDPOINT_VENV names another place. Whole, or begun anew.

    Raises:
        CafeError: CAFE-173.
    """
    if named := os.environ.get("CAFE_ENDPOINT_VENV"):
        if not (Path(named) / "bin" / PROGRAM).is_file():
            raise CafeError("CAFE-173", f"CAFE_ENDPOINT_VENV names a folder without {PROGRAM}.", "Correct it, or leave it out.")
        return
    wanted = hashlib.sha256((templates / "requirements.txt").read_bytes()).hexdigest()
    folder, wheels = home / "endpoint-venv", templates / "wheels"
    done = folder / ".cafe-kit"
    if done.is_file() and done.read_text() == wanted:
        return
    say(f"Setting up the Globus Compute endpoint in {folder} (once; this takes a minute).")
    pip = [str(folder / "bin" / "python"), "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    offline = ["--no-index", "--find-links", str(wheels)] if wheels.is_dir() else []
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [*pip, *offline, "--requirement", str(templates / "requirements.txt")],
    ):
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
        if tried.returncode:
            raise CafeError("CAFE-173", f"The endpoint cannot be installed: {_reason(tried.stderr)}", "The same command begins anew.")
    done.write_text(wanted)


def _reason(words: str) -> str:
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "pip failed")[:300]


def _program(home: Path) -> Path:
    return Path(os.environ.get("CAFE_ENDPOINT_VENV") or home / "endpoint-venv").absolute() / "bin" / PROGRAM


def _user_dir(home: Path) -> Path:
    return home.absolute() / "endpoint"


def _environment(home: Path, connection: GlobusCompute) -> dict[str, str]:
    """What the endpoint's own process finds: ours but for what would lead it elsewhere, and the application."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("GLOBUS_COMPUTE_", "CAFE_JOIN_CODE"))}
    own |= _where_it_works(home) | {
        "GLOBUS_COMPUTE_CLIENT_ID": connection.client_id,
        "GLOBUS_COMPUTE_CLIENT_SECRET": connection.client_secret,
        "GLOBUS_SDK_HTTP_TIMEOUT": "20",
    }
    if connection.service == "local":
        own["GLOBUS_SDK_SERVICE_URL_AUTH"] = os.environ.get("CAFE_GLOBUS_LOCAL_URL", LOCAL_SERVICE)
    else:
        own.pop("GLOBUS_SDK_ENVIRONMENT", None)
    return own


def _where_it_works(home: Path) -> dict[str, str]:
    """What every process of the endpoint finds."""
    return {
        "GLOBUS_COMPUTE_USER_DIR": str(_user_dir(home)),
        "SPT_NOENV": "1",  # else a process that names itself overwrites the environment by which it is found again
        "PATH": f"{_program(home).parent}{os.pathsep}{os.environ.get('PATH') or os.defpath}",
    }


# Its configuration


def _templates(kit_folder: Path | None) -> Path:
    folder = kit_folder / "endpoint" if kit_folder else None
    if folder is None or not (folder / "config.yaml").is_file():
        raise CafeError("CAFE-173", "The kit's folder is not there, or holds no endpoint.", "Start cafe-site in the unzipped kit.")
    return folder


def _configure(home: Path, connection: GlobusCompute, chosen: EndpointSettings, templates: Path, kit_folder: Path | None) -> None:
    """Write the four files that Globus's program reads."""
    quick = connection.service == "local"
    work = _for_orders(home, chosen, kit_folder)
    site = endpoint_settings.in_template(chosen, work, quick)
    words = {
        "name": json.dumps(connection.endpoint_name),
        "function": connection.function_id,
        "period": str(site["period"]),
        "local": str(quick).lower(),
    }
    folder = _user_dir(home) / connection.endpoint_name
    for made in (folder.parent, folder):
        made.mkdir(mode=0o700, exist_ok=True)
    template = (templates / "user_config_template.yaml.j2").read_text(encoding="utf-8")
    config = (templates / "config.yaml").read_text(encoding="utf-8")
    environment = (templates / "user_environment.yaml").read_text(encoding="utf-8")
    files = {
        "config.yaml": re.sub(r"\{\{(\w+)\}\}", lambda found: words[found[1]], config),
        "user_config_template.yaml.j2": f"{{%- set site = {_as_jinja(site)} -%}}\n{template}",
        "user_config_schema.json": (templates / "user_config_schema.json").read_text(encoding="utf-8"),
        "user_environment.yaml": environment + "".join(f"{name}: {json.dumps(value)}\n" for name, value in sorted(work.items())),
    }
    for name, text in files.items():
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text:
            seal_file(folder / name, text.encode())


def _for_orders(home: Path, chosen: EndpointSettings, kit_folder: Path | None) -> dict[str, str]:
    """What the processes that take orders find in their environment."""
    return {
        **endpoint_settings.handed_on(),
        **_where_it_works(home),
        "CAFE_SITE_COMMAND": json.dumps(endpoint_settings.answer_command(chosen)),
        "CAFE_SITE_HOME": str(home.absolute()),
        "CAFE_KIT_FOLDER": str(kit_folder or ""),
        VARIABLE: endpoint_settings.training(chosen),
    }


def _as_jinja(site: dict[str, Any]) -> str:
    """A literal that a template reads back as the same: JSON's, but for its null."""
    return "{" + ", ".join(f"{json.dumps(name)}: {'none' if value is None else json.dumps(value)}" for name, value in site.items()) + "}"
