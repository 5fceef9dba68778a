"""Opens the console: Streamlit, on loopback, with the shipped ``.streamlit/config.toml``.

Knows ports, host names, the cookie secret, what Streamlit is told of Globus, and what is printed at the start. Does not know what the pages
show. ``python -m pipeline.serving`` is Streamlit's own command, but for one thing: it never asks the internet for this machine's address.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cafe_kit.errors import CafeError

from pipeline import entrance, globus_login, globus_settings, operators
from pipeline.home import home
from pipeline.keys import cookie_secret
from pipeline.vault import Vault

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "app" / "console.py"
PROXY_HEADER, OPEN = "CAFE_PROXY_HEADER", "CAFE_OPEN_BROWSER"  # how the console's process is told
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")


def serve(
    port: int,
    base_path: str = "",
    hosts: Sequence[str] = (),
    *,
    address: str = "127.0.0.1",
    behind_proxy: str = "",
    browser: bool = False,
) -> NoReturn:
    """Become the console's process: whoever ends this one ends the console, and nothing else.

    Args:
        base_path: path below which a reverse proxy offers it, such as ``cafe``.
        hosts: names under which a reverse proxy offers it, beside this machine's own.
        address: where it listens.
        behind_proxy: the header in which a reverse proxy with a login of its own names the person.
        browser: open one with the one-time link.

    Raises:
        CafeError: CAFE-681 when the port is taken; CAFE-194 for an address that is open to others without a sign-in.
    """
    check(address, base_path, hosts, behind_proxy)
    _ask_for(address, port)
    words = command(port, base_path, hosts, address)
    told = {PROXY_HEADER: behind_proxy, OPEN: "1" if browser else ""}
    environment = os.environ | {"CAFE_HOME": str(home()), "STREAMLIT_SERVER_COOKIE_SECRET": cookie_secret(home())} | told
    path = f"{base_path.strip('/')}/".lstrip("/")
    entrance.announce(home(), f"https://{hosts[0]}/{path}" if hosts else f"http://127.0.0.1:{port}/{path}")
    os.chdir(ROOT)  # where Streamlit looks for its configuration
    os.execve(words[0], words, environment)


def check(address: str, base_path: str = "", hosts: Sequence[str] = (), behind_proxy: str = "") -> None:
    """Whether the console may be offered like this.

    Raises:
        CafeError: CAFE-194.
    """
    settings = globus_settings.read(home())
    if address not in LOOPBACK and not settings.by_redirect:
        raise CafeError(
            "CAFE-194",
            f"The console does not listen on {address}: others could reach it, and no sign-in with Globus is set up.",
            "Leave --address out, or set the sign-in up first: `cafe globus setup`.",
        )
    if behind_proxy and not (_HEADER.fullmatch(behind_proxy) and hosts):
        raise CafeError(
            "CAFE-194",
            "--behind-proxy takes the name of the header in which the proxy names the person, and needs --hosts.",
            "Such as `cafe serve --hosts cafe.example.org --behind-proxy X-Remote-User`.",
        )
    if settings.by_redirect and secrets() is None:
        raise CafeError("CAFE-194", "The secret of the Globus application is not in the vault.", "Set it up again: `cafe globus setup`.")
    if settings.by_redirect and (settings.base_path != base_path.strip("/") or settings.host not in (*LOOPBACK, *hosts)):
        raise CafeError(
            "CAFE-194",
            f"Globus sends browsers back to {settings.redirect}, where this console would not be.",
            f"Serve it with --hosts {settings.host}" + (f" --base-url-path {settings.base_path}" if settings.base_path else "") + ".",
        )


def secrets() -> dict[str, Any] | None:
    """What Streamlit's own sign-in needs: built here from the home, never read from a file of its own. None where it is not set up."""
    settings = globus_settings.read(home())
    kept = Vault(home()).get(globus_settings.application_secret(settings.confidential)) if settings.by_redirect else None
    if kept is None:
        return None
    globus = {
        "client_id": settings.confidential,
        "client_secret": kept["client_secret"],
        "server_metadata_url": f"{globus_login.service()}/.well-known/openid-configuration",
        "client_kwargs": {"scope": " ".join(map(str, globus_login.WHO_SCOPES)), "prompt": "login"},
    }
    return {"auth": {"redirect_uri": settings.redirect, "cookie_secret": cookie_secret(home()), "globus": globus}}


def greeting(environment: Mapping[str, str] = os.environ) -> str:
    """What is printed when the console is up; a one-time link is good once, so each start makes one."""
    link = entrance.link(home())
    if environment.get(OPEN):
        webbrowser.open(link)
    lines = ["", f"  Café au Lait: open it with this link. It works once, for {entrance.KEY_S / 3600:.0f} hours.", "", f"  {link}", ""]
    names = [one.username for one in operators.listed(home())]
    if globus_settings.read(home()).by_redirect:
        told = (
            f"{', '.join(names)} may sign in with Globus." if names else "Who signs in with Globus after this link is the first operator."
        )
        lines.append(f"  {told}")
    lines.append("  A browser that was let in stays so; `cafe link` prints another link.")
    return "\n".join(lines)


def command(port: int, base_path: str = "", hosts: Sequence[str] = (), address: str = "127.0.0.1") -> list[str]:
    """The command line of the console's process. The secret is not on it: other users can read command lines."""
    options = [f"--server.address={address}", f"--server.port={port}", "--logger.hideWelcomeMessage=true"]
    if base_path.strip("/"):
        options.append(f"--server.baseUrlPath={base_path.strip('/')}")
    if hosts:  # the proxy passes its own name on, and the browser names it as the page's origin
        options += [f"--server.allowedHosts={name}" for name in ("localhost", "127.0.0.1", *hosts)]
        options += [f"--server.corsAllowedOrigins=https://{name}" for name in hosts]
    return [sys.executable, "-m", "pipeline.serving", "run", str(PAGE), *options]


def _ask_for(address: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
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
