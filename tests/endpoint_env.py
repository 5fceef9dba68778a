"""A real globus-compute-endpoint for tests, installed as a kit installs it: ``python -m tests.endpoint_env [FOLDER]``.

It never lives in ``.venv``: its pins (click) do not go together with ours. The folder is CAFE_TEST_ENDPOINT or build/endpoint, and stays
from one session to the next. The endpoint finds a stand-in of the web service at one fixed address only; ``pointed_at`` makes a command
that finds it elsewhere, so that several tests may run at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cafe_kit import endpoint

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = ROOT / "client_kits" / "templates" / "endpoint"
_COMMAND = """#!{python}
# The endpoint's own command, with the web service at an address of the test's choice.
import sys

from globus_compute_sdk.sdk import client

client.get_web_service_url = lambda *_: {url!r}

from globus_compute_endpoint.cli import cli_run

sys.exit(cli_run())
"""


def default_folder() -> Path:
    """Where it lies unless somebody says otherwise; outside the version control."""
    return Path(os.environ.get("CAFE_TEST_ENDPOINT") or ROOT / "build" / "endpoint")


def prepare(folder: Path) -> Path:
    """Its virtual environment, made if need be (a minute).

    Raises:
        CafeError: CAFE-173 when it cannot be had here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    endpoint.install(folder, TEMPLATES, lambda text: print(text, file=sys.stderr))
    return folder / "endpoint-venv"


def pointed_at(url: str, environment: Path, folder: Path) -> Path:
    """Something like an environment, whose endpoint finds the web service at ``url``: for CAFE_ENDPOINT_VENV."""
    command = folder / "bin" / endpoint.PROGRAM
    command.parent.mkdir(parents=True, exist_ok=True)
    command.write_text(_COMMAND.format(python=environment / "bin" / "python", url=url))
    command.chmod(0o755)
    return folder


if __name__ == "__main__":
    print(prepare(Path(sys.argv[1]) if sys.argv[1:] else default_folder()))
