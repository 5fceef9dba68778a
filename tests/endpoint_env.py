"""A real globus-compute-endpoint in a virtual environment of its own: ``python -m tests.endpoint_env [FOLDER]``.

Its pins (click) do not go together with ours, so it never lives in ``.venv``. Installed is what a kit installs
(``client_kits/templates/endpoint/requirements.txt``). The folder is CAFE_TEST_ENDPOINT_VENV or build/endpoint-venv; a finished one is
used again. The endpoint finds a stand-in of the web service at one fixed address only; ``pointed_at`` makes a command that finds it
elsewhere, so that several tests may run at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "client_kits" / "templates" / "endpoint" / "requirements.txt"
_COMMAND = """#!{python}
# The endpoint's own command, with the web service at an address of the test's choice.
import sys

from globus_compute_sdk.sdk import client

client.get_web_service_url = lambda *_: {url!r}

from globus_compute_endpoint.cli import cli_run

sys.exit(cli_run())
"""


def default_folder() -> Path:
    """Where the environment lies unless somebody says otherwise; outside the version control."""
    return Path(os.environ.get("CAFE_TEST_ENDPOINT_VENV") or ROOT / "build" / "endpoint-venv")


def prepare(folder: Path) -> Path:
    """The environment, installed if need be (a minute). An interrupted installation goes on where it was.

    Raises:
        subprocess.CalledProcessError: pip failed; its own words are on standard error.
    """
    finished, wanted = folder / "finished", REQUIREMENTS.read_text()
    if finished.is_file() and finished.read_text() == wanted:
        return folder
    if not (folder / "bin" / "python").exists():
        venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True, stdout=sys.stderr)
    finished.write_text(wanted)
    return folder


def pointed_at(url: str, environment: Path, folder: Path) -> Path:
    """Something like an environment, whose endpoint finds the web service at ``url``: for CAFE_ENDPOINT_VENV."""
    command = folder / "bin" / "globus-compute-endpoint"
    command.parent.mkdir(parents=True, exist_ok=True)
    command.write_text(_COMMAND.format(python=environment / "bin" / "python", url=url))
    command.chmod(0o755)
    return folder


if __name__ == "__main__":
    print(prepare(Path(sys.argv[1]) if sys.argv[1:] else default_folder()))
