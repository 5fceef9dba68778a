"""The folder in which this machine keeps models, runs and databases.

Knows where it is (``CAFE_HOME``, else ``~/.cafe``) and that nobody else may read it. Does not know what lies in it.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from cafe_kit.errors import CafeError


def home(*below: str) -> Path:
    """The home folder, or a folder below it, made with mode 0700 if it is not there.

    Raises:
        CafeError: CAFE-671, when it cannot be made or written.
    """
    path = Path(os.environ.get("CAFE_HOME") or "~/.cafe").expanduser().absolute()
    try:
        for part in ("", *below):
            path = path / part
            path.mkdir(parents=True, mode=0o700, exist_ok=True)
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "it may not be written")
    except OSError as error:
        raise CafeError(
            "CAFE-671",
            f"The home folder {path} cannot be used: {error.strerror}.",
            "Set CAFE_HOME to a folder that you may write.",
        ) from None
    return path
