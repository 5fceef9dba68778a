"""Cards: every section filled, nothing of this machine, nothing that a person typed taken for markup; and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, ModelCard

from pipeline import bundles, cards, catalogue
from pipeline.catalogue import Made
from pipeline.markdown import code, fenced
from pipeline.models import DEFAULT_BASE
from server_store.store import Store
from tests.federation import Federation

pytestmark = pytest.mark.runs

GOLDEN = Path(__file__).parent / "golden" / "adapter_card.md"
HOSTILE = "<script>alert(1)</script>**x** :red[y] $z$ [a](http://b) `q` ``r``\n---\n# big | :smile:"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """A tiny run with a private first stage, a hostile description and no noise in the second."""
    privacy = {"stage1": {"epsilon": 8, "delta": 1e-5}, "stage2": "off", "accept_noise": True}
    task = {"description": HOSTILE, "text_name": "```Text"}
    federation = Federation(tmp_path_factory.mktemp("cards") / "f", privacy=privacy, task=task, stage2={"rounds": 2})
    assert federation.work(federation.create()) == 0
    return federation


@pytest.fixture
def made(done: Federation, monkeypatch: pytest.MonkeyPatch) -> Made:
    monkeypatch.setenv("CAFE_HOME", str(done.home))
    return catalogue.of(done.store, done.store.runs()[0].id)


def test_the_card_is_the_golden_one(made: Made) -> None:
    """To renew it after a wanted change: write what ``told`` holds into the file, and read it."""
    told = bundles.card_of(made, made.adapter())
    for pattern, name in (
        (made.run.id, "RUN"),
        (r"\b[0-9a-f]{64}\b", "SHA256"),
        (r"\d+\.\d %", "SCORE"),
        (r"\d+ texts", "N texts"),
        (r"ε = [\d.]+", "ε = EPSILON"),
    ):
        told = re.sub(pattern, name, told)
    assert told == GOLDEN.read_text(encoding="utf-8")


def test_the_worker_and_the_download_write_the_same_card(made: Made) -> None:
    folder = Path(made.run.folder) / "adapters" / "final"
    assert (folder / "README.md").read_text(encoding="utf-8") == bundles.card_of(made, made.adapter())
    assert cards.check(folder) == [] and bundles.refusals(made, made.adapter(), bundles.card_of(made, made.adapter())) == []


def test_the_front_matter_is_what_the_hub_wants(made: Made) -> None:
    data = ModelCard(bundles.card_of(made, made.adapter())).data.to_dict()
    assert data["base_model"] == "base" and data["base_model_relation"] == "adapter" and data["library_name"] == "peft"
    assert data["pipeline_tag"] == "text-generation" and set(data["tags"]) == {
        "lora",
        "federated",
        "synthetic-data",
        "differential-privacy",
    }
    known = catalogue._base(DEFAULT_BASE, "0" * 64)
    assert known.hub_id == "HuggingFaceTB/SmolLM2-135M-Instruct" and known.licence == "apache-2.0"
    assert catalogue._base("org/name@v1", "0" * 64).hub_id == "org/name"


def test_the_dataset_card(made: Made) -> None:
    folder = made.dataset().folder
    card = DatasetCard((folder / "README.md").read_text(encoding="utf-8"))
    assert card.data.to_dict()["task_categories"] == ["text-classification"]
    assert "differential privacy with ε" in card.text and catalogue.file_sha256(folder / "train.parquet") in card.text
    assert code(HOSTILE) in card.text and made.run.folder not in card.text


def test_an_earlier_round_says_that_it_is_one(made: Made) -> None:
    assert [one.round for one in made.adapters] == [0, 1, 2]
    first, warm = (bundles.card_of(made, made.adapter(number)) for number in (1, 0))
    assert "round 1 of 2" in first and "Not the last adapter" in first and "| **round 1** |" in first
    assert "synthetic only (before the federated rounds)" in warm and "Federated rounds:" not in warm


def test_words_of_people_are_code_and_stay_one_line() -> None:
    shown = code(HOSTILE)
    assert "\n" not in shown and "|" not in shown and shown.startswith("```") and shown.endswith("```")
    assert code("plain") == "`plain`" and code("  ") == "`(empty)`"
    assert fenced("a\n```\nb").startswith("````text\n")


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("README.md", "## Use and limits", "[More Information Needed]", "not filled in"),
        ("README.md", "## Privacy", "## Secrets", "lacks a section"),
        ("README.md", "base_model: base", "base_model: ''", "card does not name the base model"),
        ("README.md", "## Hashes", "/home/jane/x", "card holds a path"),
        ("adapter_config.json", '"base"', "null", "does not name the base model"),
        ("adapter_config.json", '"base"', '"/srv/models/base"', "config.json holds a path"),
        ("adapter_config.json", '"bias"', '"modules_to_save": ["lm_head"], "bias"', "modules_to_save"),
        ("adapter_config.json", "{", "", "no readable"),
    ],
)
def test_what_is_refused(made: Made, tmp_path: Path, file: str, old: str, new: str, said: str) -> None:
    source, folder = Path(made.run.folder) / "adapters" / "final", tmp_path / "adapter"
    folder.mkdir()
    for path in source.iterdir():
        text = path.read_bytes()
        folder.joinpath(path.name).write_bytes(text.replace(old.encode(), new.encode(), 1) if path.name == file else text)
    problems = cards.check(folder)
    assert len(problems) == 1 and said in problems[0]


def test_other_weights_than_the_runs_are_refused(made: Made) -> None:
    weights = made.adapter(1).folder / catalogue.WEIGHTS
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    try:
        assert "hash differs" in bundles.refusals(made, made.adapter(1), bundles.card_of(made, made.adapter(1)))[0]
    finally:
        weights.write_bytes(kept)


def test_the_config_always_names_its_base(made: Made) -> None:
    config = json.loads((made.adapter().folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "base" and not config["revision"]


def test_a_run_that_has_not_begun_has_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.db")
    store.create_run("r1", "r", tmp_path / "r1")
    assert catalogue.made(store, "r1") is None and catalogue.with_adapters(store) == []
