"""What the README and the reference say is so: commands, files, settings, result keys, versions."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from pipeline import reference, settings
from pipeline.cli import app

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "app" / "console.py", *sorted((ROOT / "docs").glob("*.md"))]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def cafe_commands() -> set[str]:
    """The first word after ``cafe``."""
    alone = {(command.name or command.callback.__name__).replace("_", "-") for command in app.registered_commands if command.callback}
    return alone | {group.name for group in app.registered_groups if group.name}


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of one language; all fences are read, so that an end is not taken for a beginning."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [body for name, body in found if name == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = "\n".join([*re.findall(r"`([^`\n]+)`", text), *blocks(text, "bash"), text if page.suffix == ".py" else ""])
    assert set(re.findall(r"\bmake ([a-z]+)\b", named)) <= make_targets()
    assert set(re.findall(r"(?:^|[\s/])cafe ([a-z]+)\b", named)) <= cafe_commands()


def test_every_command_is_in_the_readme() -> None:
    assert {command for command in cafe_commands() if f"cafe {command}" not in README} == set()
    assert {target for target in ("run", "demo", "test", "check", "lint", "format", "clean") if f"make {target}" not in README} == set()


def test_every_file_of_the_tree_exists() -> None:
    (tree,) = [block for block in blocks(README, "") if "requirements.txt" in block]
    missing, folder, seen = [], Path(), 0
    for line in tree.splitlines():
        name = line.split()[0]
        path = folder / name if line.startswith(" ") else Path(name)
        if not line.startswith(" "):
            folder = path
        seen += 1
        if not (ROOT / path).exists():
            missing.append(str(path))
        assert len(line.split()) > 1, f"{name} has no description"
    assert seen > 30 and missing == []


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in (page for page in PAGES if page.suffix == ".md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_yaml_of_the_readme_is_accepted(tmp_path: Path) -> None:
    (example,) = blocks(README, "yaml")
    (tmp_path / "banking.yaml").write_text(example, encoding="utf-8")
    (tmp_path / "labels.txt").write_text("balance\ntransfer\n", encoding="utf-8")
    for name in ("examples", "test", "north", "lab"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "how much do I have", "intent": "balance"}\n', encoding="utf-8")
    loaded = settings.load(tmp_path / "banking.yaml")
    assert loaded.name == "banking" and loaded.privacy.stage2 is None and loaded.privacy.stage1 is not None


def test_the_reference_is_what_the_program_says() -> None:
    assert reference.FILE.read_text(encoding="utf-8") == reference.render(), "run: .venv/bin/python -m pipeline.reference"


def test_the_keys_of_results_are_described() -> None:
    tree = ast.parse((ROOT / "pipeline" / "results.py").read_text(encoding="utf-8"))
    (written,) = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "results" and isinstance(node.value, ast.Dict)
    ]
    assert [key.value for key in written.keys if isinstance(key, ast.Constant)] == list(reference.RESULTS)


def test_every_setting_has_a_meaning() -> None:
    schema = settings.RunSettings.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        for name, field in section["properties"].items():
            assert field.get("description") or "$defs" in str(field), name


def test_environment_variables_are_real() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for folder in ("pipeline", "tests") for path in (ROOT / folder).glob("*.py"))
    for name in ", ".join(reference.ENVIRONMENT).split(", "):
        assert not name.startswith("CAFE_") or code.count(name) > 1, name


def test_versions_agree() -> None:
    """The kit's pins and the server's are the same, and requirements.txt installs both packages."""
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    kit = tomllib.loads((ROOT / "client_kits" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for pin in kit["optional-dependencies"]["gpu"]:
        assert pin in requirements, pin
    assert {"-e ./client_kits[light,gpu,parquet]", "-e ."} <= set(requirements)
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"## {ours['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
