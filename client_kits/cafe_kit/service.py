"""The site at work without anybody logged in: a systemd unit of the user, written on wish, never enabled by us.

Knows the unit's file and the commands that a person types. Does not run any of them.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from cafe_kit.release import seal_file
from cafe_kit.site_folder import SiteSettings

# what the person's own environment holds of the way out, and the service would not have; never one with a password in it
_PASSED = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "CAFE_ENDPOINT_VENV")


def name(settings: SiteSettings) -> str:
    return f"cafe-site-{settings.federation}-{settings.site}.service"


def path(settings: SiteSettings) -> Path:
    """Where systemd looks for units of this user."""
    config = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(config) / "systemd" / "user" / name(settings)


def write(home: Path, settings: SiteSettings) -> Path:
    """The unit's file, readable by this user alone.

    Raises:
        CafeError: CAFE-305 when it cannot be written.
    """
    target = path(settings)
    target.parent.mkdir(parents=True, exist_ok=True)
    seal_file(target, unit(home, settings).encode())
    return target


def unit(home: Path, settings: SiteSettings) -> str:
    """``cafe-site start``, started again when it fails, but not when it ends, and not at all once the site has left."""
    launcher = Path(settings.kit) / "cafe-site" if settings.kit else None
    command = [str(launcher), "start"] if launcher and launcher.is_file() else [sys.executable, "-I", "-m", "cafe_kit.cli", "start"]
    passed = {name: os.environ[name] for name in _PASSED if os.environ.get(name) and "@" not in os.environ[name]}
    lines = [
        "# Written by: cafe-site start --service",
        "[Unit]",
        f"Description=Site {settings.site} of the federation {settings.federation} (Café au Lait)",
        f"ConditionPathExists={_escaped(str(home / 'site.toml'))}",
        "",
        "[Service]",
        f"ExecStart={' '.join(_quoted(word, dollars=True) for word in command)}",
        *(f"Environment={_quoted(f'{name}={value}')}" for name, value in {"CAFE_SITE_HOME": str(home), **passed}.items()),
        "Restart=on-failure",
        "RestartSec=30",
        "UMask=0077",
        "LimitCORE=0",
        "NoNewPrivileges=yes",
        "",
        "[Install]",
        "WantedBy=default.target",
    ]
    return "\n".join(lines) + "\n"


def to_enable(settings: SiteSettings) -> list[str]:
    return ["systemctl --user daemon-reload", f"systemctl --user enable --now {name(settings)}", "loginctl enable-linger"]


def to_undo(settings: SiteSettings) -> list[str]:
    return [f"systemctl --user disable --now {name(settings)}", f"rm {_shell(path(settings))}", "systemctl --user daemon-reload"]


def possible() -> bool:
    """Whether this machine has systemd's command at all."""
    return shutil.which("systemctl") is not None


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "%%")


def _quoted(text: str, dollars: bool = False) -> str:
    """One word as systemd reads it."""
    text = _escaped(text).replace('"', '\\"')
    return f'"{text.replace("$", "$$") if dollars else text}"'


def _shell(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))
