"""The demo federation's data: rich, deterministic, without leaks between its files, skewed, and beyond keyword rules."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.demo_difficulty import keyword_accuracy
from pipeline import demo, settings
from pipeline.demo_grammar import EXAMPLES, SLOTS, TOPICS, expand

SEED_0_SHA256 = "51f7bdca697d9f249935058b8d504baa4267aa53e61be41883dee588af83346e"
STRONG = [style.site for style in demo.STYLES if style.kind == "gpu"]
WEAK = [style.site for style in demo.STYLES if style.kind == "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.write(tmp_path_factory.mktemp("demo"), seed=0).parent


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def digest(folder: Path) -> str:
    """Over names and bytes of all files."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def test_one_seed_gives_the_same_bytes_everywhere(folder: Path, tmp_path: Path) -> None:
    assert digest(folder) == SEED_0_SHA256
    assert digest(demo.write(tmp_path, seed=0).parent) == SEED_0_SHA256  # and again over the files of an earlier call
    assert digest(demo.write(tmp_path, seed=0).parent) == SEED_0_SHA256
    assert digest(demo.write(tmp_path / "other", seed=1).parent) != SEED_0_SHA256


def test_the_settings_load_and_say_what_was_written(folder: Path) -> None:
    config = settings.load(folder / "demo.yaml")
    assert len(config.names("cpu")) == 6 and len(config.names("gpu")) == 2
    assert config.public_task().labels == tuple(TOPICS) and 10 <= len(TOPICS) <= 12
    assert config.public_task().prompt("Hi") == "Message: Hi\nDepartment:"
    assert len(config.test_records()) == 300
    assert config.privacy.stage1 is not None and config.privacy.stage1.epsilon <= 8 and config.privacy.stage2 is None
    assert not any(str(folder) in (folder / name).read_text(encoding="utf-8") for name in ("demo.yaml", "labels.txt"))


def test_the_grammar_is_rich_and_its_templates_are_well_formed() -> None:
    rng = random.Random(0)
    messages = set()
    for topics in TOPICS.values():
        assert 6 <= len(topics) <= 10
        for templates in topics.values():
            texts = {expand(rng.choice(templates), rng) for _ in range(200)}
            assert len(texts) >= 40, templates
            messages |= texts
    assert len(messages) >= 3000
    assert not [text for text in messages if set(text) & set("{}[]|") or "  " in text or text != text.strip()]


def test_every_slot_is_used() -> None:
    grammar = repr(TOPICS) + repr(SLOTS)
    assert all(f"{{{slot}}}" in grammar for slot in SLOTS)


def test_no_text_is_in_two_files_or_twice_in_one(folder: Path) -> None:
    texts = [row["text"].casefold() for name in (*STRONG, *WEAK, "test", "examples") for row in rows(folder, name)]
    assert len(texts) == len(set(texts))


def test_no_message_differs_from_another_by_its_style_alone() -> None:
    bodies = demo.Bodies(random.Random(0))
    drawn = [bodies.draw(department).casefold() for department in TOPICS for _ in range(100)]
    assert len(drawn) == len(set(drawn))
    assert not set(drawn) & {text.casefold() for texts in EXAMPLES.values() for text in texts}


def test_every_department_is_in_the_test_set_alike_and_in_the_examples(folder: Path) -> None:
    assert set(Counter(row["department"] for row in rows(folder, "test")).values()) == {300 // len(TOPICS)}
    assert {row["department"] for row in rows(folder, "examples")} == set(TOPICS)
    assert {row["department"] for site in (*STRONG, *WEAK) for row in rows(folder, site)} == set(TOPICS)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_strong_sites_together_know_the_departments_and_the_weak_are_skewed(seed: int, tmp_path: Path) -> None:
    folder = demo.write(tmp_path, seed).parent
    together = Counter(row["department"] for site in STRONG for row in rows(folder, site))
    assert len([department for department in together if together[department] >= 20]) >= 10
    for site in WEAK:
        counts = Counter(row["department"] for row in rows(folder, site))
        assert 60 <= counts.total() <= 150
        assert sum(count for _, count in counts.most_common(3)) >= 0.5 * counts.total()
    assert all(200 <= len(rows(folder, site)) <= 300 for site in STRONG)


def test_sites_differ_in_style(folder: Path) -> None:
    typed_small = {site: all(row["text"] == row["text"].lower() for row in rows(folder, site)) for site in (*STRONG, *WEAK)}
    assert [site for site, small in typed_small.items() if small] == ["riverside"]
    openings = {site: {row["text"].split()[0] for row in rows(folder, site)} for site in (*STRONG, *WEAK)}
    assert "Dear" in openings["hillcrest"] and not any("Dear" in openings[site] for site in openings if site != "hillcrest")


def test_messages_are_short(folder: Path) -> None:
    lengths = [len(row["text"].split()) for site in (*STRONG, *WEAK) for row in rows(folder, site)]
    assert sum(lengths) / len(lengths) <= 20 and max(lengths) <= 40


def test_keyword_rules_are_not_enough_but_better_than_chance(folder: Path) -> None:
    accuracy = keyword_accuracy(settings.load(folder / "demo.yaml").test_records())
    assert 1 / len(TOPICS) < accuracy <= 0.50
