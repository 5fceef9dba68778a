"""A site's own loader: a Python file written at the site, for data that no table format fits.

The contract: the file defines ``load()``, without arguments, which returns or yields mappings with the *role* columns
(text, label; or instruction, output and perhaps input), every value a ``str``. It is the site's own code, run in the
site's own process with the rights of the account that runs the kit; the server never sends one. Its folder is not put
on the import path. When it fails, only the name of the exception's class is told: its message may quote the data.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

from cafe_kit.errors import CafeError

_MODULE = "cafe_site_loader"


def load_rows(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    """The loader's rows, each with its place ("row 17").

    Raises:
        CafeError: CAFE-215: no ``load``, an exception inside it, or something that is no mapping with text keys.
    """
    module = _import(path)
    if not callable(getattr(module, "load", None)):
        raise CafeError("CAFE-215", f"The loader '{path.name}' defines no function load().", _HINT)
    for number, row in enumerate(_yielded(module, path), start=1):
        if not isinstance(row, Mapping) or not all(isinstance(key, str) for key in row):
            raise CafeError("CAFE-215", f"Row {number} of the loader is no mapping of names to texts.", _HINT)
        yield f"row {number}", row


def _yielded(module: ModuleType, path: Path) -> Iterator[object]:
    try:
        yield from module.load()
    except (Exception, SystemExit) as error:  # SystemExit: a loader may not end the site's process
        raise _failed(path, error) from None


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    if spec is None or spec.loader is None:
        raise CafeError("CAFE-215", f"The loader '{path.name}' is not a Python file.", "Give the loader a name that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module  # dataclasses inside the loader look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _failed(path, error) from None
    return module


def _failed(path: Path, error: BaseException) -> CafeError:
    return CafeError("CAFE-215", f"The loader '{path.name}' failed with {type(error).__name__}.", f"Run it by hand to see why. {_HINT}")


_HINT = "A loader defines load(), which yields one mapping of role names to texts for each record."
