"""The plan of the house, held by reading the code: arrows between rooms, no loops, and what no room may do.

The checks are plain functions of a folder, so that each is also tried on a small house in which something is wrong.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import rooms

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"app": "app", "pipeline": "pipeline", "server_store": "server_store", "cafe_kit": "client_kits/cafe_kit"}
ARROWS = {
    "app": {"pipeline", "server_store", "cafe_kit"},
    "pipeline": {"cafe_kit", "server_store"},
    "server_store": set(),
    "cafe_kit": set(),
}
MOST_LINES = 400
TABLES = {"pipeline.demo_grammar"}  # word lists, not code: they may be longer
HEAVY = {"torch", "transformers", "peft"}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "unittest.mock", "mock"}
UNSAFE_NAMES = {"eval", "exec", "__import__"}
UNSAFE_CALLS = {"torch.load", "pickle.load", "pickle.loads", "pandas.read_pickle", "pd.read_pickle"}
UNSAFE_KEYWORDS = {("trust_remote_code", True), ("allow_pickle", True), ("weights_only", False)}

Modules = dict[str, Path]  # dotted name -> file


def modules(root: Path) -> Modules:
    """Every module of the four rooms."""
    found: Modules = {}
    for room, folder in ROOMS.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            found[".".join((room, *(part for part in parts if part != "__init__")))] = path
    return found


def imports(path: Path, name: str) -> Iterator[str]:
    """Dotted names that a file imports, inside functions too; what only the type checker sees does not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            hidden |= {id(inner) for child in node.body for inner in ast.walk(child)}
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def graph(root: Path) -> dict[str, set[str]]:
    """Module -> modules of ours that it imports."""
    known = modules(root)
    return {
        name: {other for other in imports(path, name) if other in known and other not in (name, *ROOMS)} for name, path in known.items()
    }


def wrong_arrows(root: Path) -> list[str]:
    """Imports that run upward, or between rooms that do not know each other."""
    wrong = []
    for name, path in modules(root).items():
        room = name.partition(".")[0]
        for other in sorted({target.partition(".")[0] for target in imports(path, name)} & set(ROOMS)):
            if other != room and other not in ARROWS[room]:
                wrong.append(f"{name} imports {other}")
    return wrong


def loops(root: Path) -> list[str]:
    """Modules that reach themselves, by following imports."""
    edges = graph(root)

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(edges[start])
        while waiting:
            at = waiting.pop()
            if at not in seen:
                seen.add(at)
                waiting += edges[at]
        return seen

    return [name for name in edges if name in reach(name)]


def unsafe(path: Path) -> list[str]:
    """What is never done in this project, wherever: code out of data, and mocks."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [f"imports {name}" for name in imports(path, "x.y") if name in UNSAFE_MODULES]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in UNSAFE_CALLS or (isinstance(node.func, ast.Name) and called in UNSAFE_NAMES):
                found.append(f"calls {called}")
            for keyword in node.keywords:
                if isinstance(keyword.value, ast.Constant) and (keyword.arg, keyword.value.value) in UNSAFE_KEYWORDS:
                    found.append(f"passes {keyword.arg}={keyword.value.value!r}")
    return [f"{path.name}: {what}" for what in found]


def outside_their_room(root: Path) -> list[str]:
    """SQL outside the store; torch in the console."""
    wrong = []
    for name, path in modules(root).items():
        room, imported = name.partition(".")[0], {target.partition(".")[0] for target in imports(path, name)}
        if "sqlite3" in imported and room != "server_store":
            wrong.append(f"{name} imports sqlite3")
        if room == "app":
            wrong += [f"{name} imports {heavy}" for heavy in sorted(imported & HEAVY)]
    return wrong


def full_inits(root: Path) -> list[str]:
    return [name for name, path in modules(root).items() if path.name == "__init__.py" and path.stat().st_size]


def too_long(root: Path) -> list[str]:
    counted = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules(root).items()}
    return [f"{name}: {lines} lines" for name, lines in counted.items() if lines > MOST_LINES and name not in TABLES]


# Our house


def test_arrows_point_down() -> None:
    assert wrong_arrows(ROOT) == []


def test_no_loops() -> None:
    assert loops(ROOT) == []


def test_everything_in_its_room() -> None:
    assert outside_their_room(ROOT) == []


def test_nothing_unsafe_anywhere() -> None:
    files = [
        path
        for folder in ("app", "pipeline", "server_store", "client_kits", "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(files) > 20
    assert [what for path in files for what in unsafe(path)] == []


def test_inits_are_empty_and_files_are_short() -> None:
    assert full_inits(ROOT) == []
    assert too_long(ROOT) == []


def test_no_file_is_called_utils() -> None:
    assert [name for name in modules(ROOT) if name.rpartition(".")[2] in ("utils", "helpers", "common", "misc")] == []


def test_the_console_never_loads_torch() -> None:
    """Not by anything that it imports from us, either."""
    wanted = sorted(
        {other for name, others in graph(ROOT).items() if name.startswith("app.") for other in others if not other.startswith("app.")}
    )
    code = f"import sys, {', '.join(wanted)}; print(sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert wanted and done.stdout.strip() == "[]"


# A house in which something is wrong


@pytest.fixture
def small_house(tmp_path: Path) -> Path:
    for room in ROOMS.values():
        (tmp_path / room).mkdir(parents=True)
        (tmp_path / room / "__init__.py").touch()
    (tmp_path / "pipeline" / "worker.py").write_text("from server_store import store\nfrom cafe_kit.vote import vote\n")
    (tmp_path / "server_store" / "store.py").write_text("import sqlite3\n")
    (tmp_path / "client_kits" / "cafe_kit" / "vote.py").write_text("import numpy\n")
    (tmp_path / "app" / "console.py").write_text("import pipeline.worker\n")
    return tmp_path


def test_a_sound_small_house_passes(small_house: Path) -> None:
    assert wrong_arrows(small_house) + loops(small_house) + outside_their_room(small_house) + full_inits(small_house) == []
    assert graph(small_house)["pipeline.worker"] == {"server_store.store", "cafe_kit.vote"}


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [
        ("client_kits/cafe_kit/vote.py", "def f():\n    from pipeline import worker\n", "cafe_kit.vote imports pipeline"),
        ("server_store/store.py", "import cafe_kit.vote\n", "server_store.store imports cafe_kit"),
        ("pipeline/worker.py", "try:\n    import app.console as c\nexcept ImportError:\n    pass\n", "pipeline.worker imports app"),
        ("client_kits/cafe_kit/vote.py", "from server_store import store\n", "cafe_kit.vote imports server_store"),
    ],
)
def test_an_arrow_upward_is_found(small_house: Path, file: str, line: str, found: str) -> None:
    (small_house / file).write_text(line)
    assert wrong_arrows(small_house) == [found]


def test_an_import_for_the_type_checker_alone_is_no_arrow(small_house: Path) -> None:
    guarded = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pipeline import worker\n"
    (small_house / "client_kits" / "cafe_kit" / "vote.py").write_text(guarded)
    assert wrong_arrows(small_house) == []


def test_a_loop_is_found(small_house: Path) -> None:
    (small_house / "pipeline" / "a.py").write_text("from . import b\n")
    (small_house / "pipeline" / "b.py").write_text("def f():\n    from pipeline.c import g\n")
    (small_house / "pipeline" / "c.py").write_text("import pipeline.a\n")
    (small_house / "pipeline" / "d.py").write_text("import pipeline.a\n")
    assert loops(small_house) == ["pipeline.a", "pipeline.b", "pipeline.c"]


def test_what_is_in_the_wrong_room_is_found(small_house: Path) -> None:
    (small_house / "pipeline" / "worker.py").write_text("import sqlite3\n")
    (small_house / "app" / "console.py").write_text("def f():\n    import torch.nn\n")
    assert outside_their_room(small_house) == ["app.console imports torch", "pipeline.worker imports sqlite3"]
    (small_house / "pipeline" / "__init__.py").write_text("from pipeline.worker import *\n")
    assert full_inits(small_house) == ["pipeline"]
    (small_house / "pipeline" / "worker.py").write_text("x = 1\n" * (MOST_LINES + 1))
    assert too_long(small_house) == ["pipeline.worker: 401 lines"]


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from unittest import mock",
        "from unittest.mock import patch",
        "torch.load('x')",
        "eval('1')",
        "exec(code)",
        "f(trust_remote_code=True)",
        "np.load('x', allow_pickle=True)",
        "torch.anything(weights_only=False)",
        "def f():\n    import dill",
    ],
)
def test_what_is_unsafe_is_found(tmp_path: Path, line: str) -> None:
    path = tmp_path / "x.py"
    path.write_text(line + "\n")
    assert len(unsafe(path)) >= 1


def test_what_only_looks_unsafe_is_not(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("model.eval()\nf(trust_remote_code=False)\n# torch.load('x')\nfrom unittest import TestCase\njson.load(file)\n")
    assert unsafe(path) == []


def test_the_architecture_names_every_file_with_its_first_sentence() -> None:
    """`docs/architecture.md` is a map: a file that is new, gone or has changed its noun must show there."""
    page = rooms.FILE.read_text(encoding="utf-8")
    assert page == rooms.page(page), "run: .venv/bin/python -m pipeline.rooms"
    assert all(sentence and "|" not in sentence for _, sentence in rooms._files(ROOT / "app"))
