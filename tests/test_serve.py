"""``cafe serve`` and the shipped configuration: loopback only, quiet, with protection on, readable in both themes."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline import entrance
from pipeline.keys import cookie_secret
from pipeline.serving import PAGE, command

ROOT = Path(__file__).resolve().parent.parent
SHIPPED: dict[str, Any] = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
REQUIRED = {
    "server.address": "127.0.0.1",
    "server.port": 8501,
    "server.headless": True,
    "server.showEmailPrompt": False,
    "server.allowedHosts": ["localhost", "127.0.0.1"],
    "server.enableCORS": True,
    "server.enableXsrfProtection": True,
    "server.maxUploadSize": 50,
    "server.websocketPingInterval": 20,
    "server.fileWatcherType": "none",
    "server.enableAgentApi": False,
    "browser.gatherUsageStats": False,
    "client.toolbarMode": "viewer",
    "client.showErrorDetails": "none",
    "client.showErrorLinks": False,
    "runner.magicEnabled": False,
}


Running = tuple[subprocess.Popen[bytes], int, list[bytes], str]  # process, port, who was called outside, a browser's cookie


# What is shipped


def test_the_shipped_configuration_holds_what_is_promised() -> None:
    found = {name: SHIPPED[name.partition(".")[0]][name.partition(".")[2]] for name in REQUIRED}
    assert found == REQUIRED


def test_streamlit_knows_every_name_in_it() -> None:
    from streamlit import config

    known = set(config.get_config_options())
    named = {f"{section}.{key}" for section, values in SHIPPED.items() for key, value in values.items() if not isinstance(value, dict)}
    named |= {f"theme.{part}.{key}" for part in ("light", "dark") for key in SHIPPED["theme"][part]}
    assert named <= known, named - known
    assert "cookieSecret" not in SHIPPED["server"]


def contrast(one: str, other: str) -> float:
    """As WCAG 2.1 defines it, for two colours as #RRGGBB."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def faded(text: str, ground: str, share: float = 0.6) -> str:
    """A caption's colour: the text's at 60 % over the background."""
    mixed = (round(share * int(text[at : at + 2], 16) + (1 - share) * int(ground[at : at + 2], 16)) for at in (1, 3, 5))
    return "#" + "".join(f"{part:02X}" for part in mixed)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_texts_are_readable(name: str) -> None:
    theme = SHIPPED["theme"][name]
    for ground in (theme["backgroundColor"], theme["secondaryBackgroundColor"]):
        assert contrast(theme["textColor"], ground) >= 7
        assert contrast(theme["linkColor"], ground) >= 4.5
        assert contrast(theme["primaryColor"], ground) >= 3  # as the edge of a control
    assert contrast(faded(theme["textColor"], theme["backgroundColor"]), theme["backgroundColor"]) >= 4.5
    assert contrast(theme["codeTextColor"], theme["codeBackgroundColor"]) >= 7
    assert contrast("#FFFFFF", theme["primaryColor"]) >= 4.5  # the word on a primary button
    assert all(contrast(colour, theme["backgroundColor"]) >= 1.9 for colour in SHIPPED["theme"]["chartCategoricalColors"])


# What is started


def test_the_cookie_secret_is_kept_and_is_nobody_elses(cafe_home: Path) -> None:
    secret = cookie_secret(cafe_home)
    assert re.fullmatch("[0-9a-f]{64}", secret) and cookie_secret(cafe_home) == secret
    assert stat.S_IMODE((cafe_home / "keys" / "console.key").stat().st_mode) == 0o600
    assert not any(secret in word for word in command(8501, "cafe", ["cafe.example.org"]))


def test_options_of_a_reverse_proxy() -> None:
    plain, behind = command(8501), command(8502, "/cafe/", ["cafe.example.org"])
    assert not any("allowedHosts" in word or "baseUrlPath" in word for word in plain)
    assert plain[-4:-1] == [str(PAGE), "--server.address=127.0.0.1", "--server.port=8501"]
    assert "--server.baseUrlPath=cafe" in behind and "--server.corsAllowedOrigins=https://cafe.example.org" in behind
    assert [word for word in behind if "allowedHosts" in word] == [
        f"--server.allowedHosts={name}" for name in ("localhost", "127.0.0.1", "cafe.example.org")
    ]


def test_a_taken_port_is_told(cafe_home: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        words = [sys.executable, "-m", "pipeline.cli", "serve", "--port", str(other.getsockname()[1])]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "CAFE-681" in done.stderr and "`cafe explain CAFE-681` says more." in done.stderr and "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """``cafe serve`` on a free port, with a proxy for everything that would leave the machine: it notes who calls."""
    calls: list[bytes] = []
    proxy = socket.create_server(("127.0.0.1", 0))

    def note() -> None:
        while True:
            try:
                caller, _ = proxy.accept()
            except OSError:
                return
            calls.append(caller.recv(200))
            caller.close()

    threading.Thread(target=note, daemon=True).start()
    outside = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), f"http://127.0.0.1:{proxy.getsockname()[1]}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "pipeline.cli", "serve", "--port", str(port)]
    home = tmp_path_factory.mktemp("home")
    environment = os.environ | outside | {"CAFE_HOME": str(home), "NO_PROXY": "", "no_proxy": ""}
    server = subprocess.Popen(
        words, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(300):
            try:
                get(port, "/_stcore/health").close()
                break
            except OSError:
                assert server.poll() is None, "the console ended"
                time.sleep(0.1)
        yield server, port, calls, f"{entrance.cookie_name(home)}={entrance.write_cookie(home, entrance.by_link())}"
    finally:
        os.killpg(server.pid, 9)
        server.wait()
        proxy.close()


def get(port: int, path: str) -> Any:
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://127.0.0.1:{port}{path}", timeout=5)


def test_it_listens_on_loopback_alone(console: Running) -> None:
    server, port, _, _ = console
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    listening = {one.laddr for process in family for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN}
    assert listening == {("127.0.0.1", port)}
    elsewhere = {one.address for addresses in psutil.net_if_addrs().values() for one in addresses if one.family == socket.AF_INET}
    for address in elsewhere - {"127.0.0.1"}:
        with socket.socket() as probe:
            probe.settimeout(2)
            assert probe.connect_ex((address, port)) != 0


def knock(port: int, host: str, origin: str, cookie: str) -> int:
    """The status with which the page's socket answers a browser that calls it ``host`` and shows a page of ``origin``."""
    lines = [f"GET /_stcore/stream HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\nConnection: Upgrade\r\nUpgrade: websocket"]
    lines.append(f"Cookie: {cookie}")
    lines.append("Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall("\r\n".join(lines).encode())
        return int(connection.recv(100).split()[1])


def test_foreign_names_and_pages_are_refused_and_nobody_outside_is_asked(
    console: Running,
) -> None:
    _, port, calls, cookie = console
    assert knock(port, f"127.0.0.1:{port}", f"http://127.0.0.1:{port}", cookie) == 101
    assert knock(port, f"localhost:{port}", f"http://localhost:{port}", cookie) == 101
    assert knock(port, f"evil.example:{port}", f"http://evil.example:{port}", cookie) == 403  # DNS rebinding
    assert knock(port, f"127.0.0.1:{port}", "http://evil.example", cookie) == 403
    assert knock(port, f"127.0.0.1:{port}", f"http://127.0.0.1:{port}", "") == 403  # nobody signed in
    assert calls == []
