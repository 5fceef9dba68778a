"""Opens the console: Streamlit, on loopback, with the shipped ``.streamlit/config.toml``.

Knows ports, host names and the cookie secret. Does not know what the pages show. ``python -m pipeline.serving`` is
Streamlit's own command, but for one thing: it never asks the internet for this machine's address.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cafe_kit.errors import CafeError

from pipeline.home import home
from pipeline.keys import cookie_secret

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "app" / "console.py"


def serve(port: int, base_path: str = "", hosts: Sequence[str] = ()) -> NoReturn:
    """Become the console's process: whoever ends this one ends the console, and nothing else.

    Args:
        base_path: path below which a reverse proxy offers it, such as ``cafe``.
        hosts: names under which a reverse proxy offers it, beside this machine's own.

    Raises:
        CafeError: CAFE-681 when the port is taken.
    """
    _ask_for(port)
    words = command(port, base_path, hosts)
    environment = os.environ | {"CAFE_HOME": str(home()), "STREAMLIT_SERVER_COOKIE_SECRET": cookie_secret(home())}
    os.chdir(ROOT)  # where Streamlit looks for its configuration
    os.execve(words[0], words, environment)


def command(port: int, base_path: str = "", hosts: Sequence[str] = ()) -> list[str]:
    """The command line of the console's process. The secret is not on it: other users can read command lines."""
    options = ["--server.address=127.0.0.1", f"--server.port={port}"]
    if base_path.strip("/"):
        options.append(f"--server.baseUrlPath={base_path.strip('/')}")
    if hosts:  # the proxy passes its own name on, and the browser names it as the page's origin
        options += [f"--server.allowedHosts={name}" for name in ("localhost", "127.0.0.1", *hosts)]
        options += [f"--server.corsAllowedOrigins=https://{name}" for name in hosts]
    return [sys.executable, "-m", "pipeline.serving", "run", str(PAGE), *options]


def _ask_for(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise CafeError(
                "CAFE-681", f"Port {port} of this machine is in use.", "Open the console that runs there, or name another --port."
            ) from None


def main() -> None:
    """Streamlit's command line. A page of a foreign origin would make it look up this machine's public address: it may not."""
    from streamlit import net_util
    from streamlit.web import cli

    net_util._external_ip = "127.0.0.1"
    cli.main()


if __name__ == "__main__":
    main()
