"""The documentation says what is so: each command has a story that runs it, each code, file, setting and link is there.

The stories are in ``test_docs_folder`` and its neighbours. What cannot be run on a test machine is listed here with its reason, which
stands on the page, too; a new block without a story fails.
"""

from __future__ import annotations

import ast
import json
import re
import tomllib

import pytest
from cafe_kit.endpoint_settings import EndpointSettings
from cafe_kit.policy import Policy
from cafe_kit.questions import Answers

from pipeline import doctor, error_pages, reference
from pipeline.settings import RunSettings
from tests.doc_pages import ROOT, Block, blocks, commands, missing

OTHERS = ("reference.md", "experiments.md")  # generated; a report of trials
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md") if path.name not in OTHERS)]
SITE_PAGES = (
    "docs/site-no-gpu.md",
    "docs/site-gpu.md",
    "docs/operator.md",
    "docs/security.md",
    "docs/troubleshooting.md",
    "docs/privacy.md",
)
NOT_RUN = {  # page, section → why: all commands there that say so
    ("docs/globus-root.md", "Set it up"): "needs root",
    ("docs/operator.md", "Start"): "sets up everything, as the tests themselves do",
    ("docs/operator.md", "As a service"): "needs a user's systemd",
    ("docs/operator.md", "Model servers"): "needs a GPU",
    ("docs/site-gpu.md", "Slurm"): "needs a batch system",
    ("docs/site-gpu.md", "PBS"): "needs a batch system",
    ("docs/site-no-gpu.md", "Be at work"): "needs a user's systemd",
    ("README.md", "Try it"): "each sets up everything; .ci/run does",
}
MOST_LEFT_OUT = 10
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}


def left_out(block: Block) -> bool:
    """A story does not run it; on the first page of all, which says nothing of tests, by its first word alone."""
    return bool(block.left_out) or (block.page == "README.md" and block.command.startswith("make "))


def stories() -> set[tuple[str, str]]:
    """Page and section of every story that a test tells."""
    found = set()
    for path in (ROOT / "tests").glob("test_docs_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            node.targets[0].id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Story":
                page, section = node.args
                found.add((str(names[page.id] if isinstance(page, ast.Name) else ast.literal_eval(page)), str(ast.literal_eval(section))))
    return found


# Commands


def test_every_command_has_a_story() -> None:
    wanted = {(block.page, block.section) for page in PAGES for block in commands(page) if not left_out(block)}
    assert len(wanted) > 15
    assert wanted - stories() == set(), "no story runs these"
    assert stories() - wanted == set(), "these stories have no page"


def test_what_is_left_out_is_listed_and_says_why() -> None:
    found = [block for page in PAGES for block in commands(page) if left_out(block)]
    assert {(block.page, block.section) for block in found} == set(NOT_RUN)
    assert all(block.left_out in (NOT_RUN[block.page, block.section], "") for block in found)
    assert len(found) <= MOST_LEFT_OUT


@pytest.mark.parametrize("where", PAGES)
def test_verbs_of_the_kit_that_are_named_exist(where: str) -> None:
    named = set(re.findall(r"cafe-site ([a-z][a-z-]*)\b", "\n".join(_code(where))))
    assert named <= kit_verbs(), where


@pytest.mark.parametrize("where", PAGES)
def test_commands_of_groups_that_are_named_exist(where: str) -> None:
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    known = set(re.findall(r"^### `cafe (\w+ \w+)", text, re.MULTILINE))
    named = set(re.findall(r"(?:^|[\s`])cafe ((?:site|storage|globus|members|operators) [a-z]+)\b", "\n".join(_code(where))))
    assert named <= known, where
    options = set(re.findall(r"^\| `(--[a-z-]+)", text, re.MULTILINE)) | set(re.findall(r"`--[a-z-]+ / (--[a-z-]+)`", text))
    used = {word for line in _code(where) if re.match(r"(\.venv/bin/)?cafe [a-z]", line) for word in re.findall(r" (--[a-z][a-z-]+)", line)}
    assert used <= options, where


def _code(where: str) -> list[str]:
    """Lines of commands, and what stands between backticks."""
    lines = [line for block in commands(where) for line in block.text.splitlines() if not line.startswith("#")]
    return lines + re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```$", "", TEXTS[where], flags=re.DOTALL | re.MULTILINE))


def kit_verbs() -> set[str]:
    tree = ast.parse((ROOT / "client_kits" / "cafe_kit" / "cli.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "verb"]
    return {node.args[0].value for node in calls if isinstance(node.args[0], ast.Constant)}


# What is named


@pytest.mark.parametrize("where", PAGES)
def test_codes_that_are_named_have_a_page(where: str) -> None:
    named = set(re.findall(r"CAFE-\d{3}", TEXTS[where]))
    known = {path.stem for path in error_pages.FOLDER.glob("CAFE-*.md")}
    ends = {"CAFE-699"}  # of a range
    assert named - known - ends == set(), where


@pytest.mark.parametrize("where", PAGES)
def test_links_lead_to_pages_and_headings(where: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[where]):
        if not re.match(r"https?:|mailto:", target):
            file, _, heading = target.partition("#")
            path = (ROOT / where).parent / file if file else ROOT / where
            assert path.exists(), target
            assert not heading or heading in _anchors(path.read_text(encoding="utf-8")), target


def _anchors(text: str) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("where", PAGES)
def test_variables_of_the_environment_are_read_somewhere(where: str) -> None:
    folders = ("pipeline", "server_store", "app", "client_kits", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", "") and path.is_file()]
    code = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)
    for name in set(re.findall(r"\bCAFE_[A-Z_]+\b", TEXTS[where])):
        assert re.search(rf"\b{name}\b", code), f"{where}: {name}"


@pytest.mark.parametrize("where", PAGES)
def test_tests_that_are_named_exist(where: str) -> None:
    for file, name in re.findall(r"\b(test_\w+\.py)(?:::(\w+))?", TEXTS[where]):
        path = ROOT / "tests" / file
        assert path.is_file(), f"{where}: {file}"
        assert not name or f"def {name}(" in path.read_text(encoding="utf-8"), f"{where}: {file}::{name}"


@pytest.mark.parametrize("where", PAGES)
def test_files_of_the_house_that_are_named_exist(where: str) -> None:
    rooms = r"(?:app|pipeline|server_store|client_kits|cafe_kit|tests|docs|benchmarks|\.ci)"
    for name in re.findall(rf"`({rooms}/[\w./-]*[\w/])`", TEXTS[where]):
        assert (ROOT / name).exists() or (ROOT / "client_kits" / name).exists(), f"{where}: {name}"


@pytest.mark.parametrize("where", PAGES)
def test_settings_of_a_run_that_are_named_exist(where: str) -> None:
    """As ``section.setting`` in the text, or as YAML that is a part of a run's settings."""
    schema = RunSettings.model_json_schema()
    known = {name for section in (schema, *schema["$defs"].values()) for name in section["properties"]}
    words = re.findall(r"`(?:stage1|stage2|machine|privacy|task)((?:\.\w+)+)(?<!\.py)`", TEXTS[where])
    named = {part for word in words for part in word[1:].split(".")}
    for block in (block for block in blocks(where) if block.language == "yaml"):
        named |= set(re.findall(r"(?:^|[{,]) *(\w+):(?= )", re.sub(r"#.*", "", block.text), re.MULTILINE))
    assert named - known == set(), where


def test_every_threat_names_its_test() -> None:
    part = TEXTS["docs/security.md"].partition("## Threats")[2].partition("\n## ")[0]
    rows = [line for line in part.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 25
    assert [row.split("|")[1] for row in rows if "test_" not in row] == []


def test_limits_of_the_page_are_those_of_the_policy() -> None:
    part = TEXTS["docs/site-no-gpu.md"].partition("## Decide")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", part, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(Policy.model_fields)


def test_floors_of_the_page_are_those_of_the_doctor() -> None:
    rows = re.findall(r"^\| (\S+) \| ([\d.]+) \| (.+) \|$", TEXTS["docs/security.md"], re.MULTILINE)
    assert rows == [tuple(floor) for floor in doctor.FLOORS]


def test_settings_of_the_examples_are_accepted() -> None:
    answers, *others = [block for page in SITE_PAGES for block in blocks(page) if block.language == "toml"]
    assert Answers.model_validate_json(_as_json(answers)).consent.agreed
    assert [EndpointSettings.model_validate_json(_as_json(block)).kind for block in others] == ["slurm", "pbs", "slurm", "slurm"]


def _as_json(block: Block) -> str:
    return json.dumps(tomllib.loads(block.text))


def test_the_index_of_errors_is_what_troubleshooting_links_to() -> None:
    linked = re.findall(r"\[(CAFE-\d+)\]\(errors/(CAFE-\d+)\.md\)", TEXTS["docs/troubleshooting.md"])
    assert len(linked) > 40 and all(name == file for name, file in linked)


# Both sides of the checks


def test_what_is_shown_is_compared_in_its_fixed_words() -> None:
    said = "Kit          /home/x/kit.zip\nJoin code    ABCD-EFGH   (shown once; works once, until 2026-11-27 10:00)\n"
    said += "✅ north has joined clinic.\n"
    assert missing("Kit   …/kit.zip\nJoin code CODE (shown once; works once, until …)\nnorth has joined", said) == []
    assert missing("north has left", said) == ["north has left"]
    assert missing("north has joined\nKit …", said) == ["Kit …"]  # their order counts
    assert missing("Join code 1234 (shown once", said) == []  # and a number is any


def test_reference_names_the_groups() -> None:
    assert {"site", "storage", "globus", "members", "operators"} <= set(
        re.findall(r"^### `cafe (\w+) \w+", reference.render(), re.MULTILINE)
    )
