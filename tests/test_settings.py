"""Settings are checked at birth: what is refused, in which words, and that a run's YAML reads back to the same settings."""

import json

import pytest
from cafe_kit.errors import CafeError

from pipeline.settings import RunSettings, load, to_yaml

MINIMAL = """
name: banking
task:
  kind: classification
  description: what a customer of a bank wants
  text: text
  label: intent
  labels: labels.txt                       # one a line, public
  examples: examples.jsonl
base_model: smollm2-135m-instruct
sites:
  - {name: north, kind: cpu, data: north.jsonl}
  - {name: lab, kind: gpu, data: lab.jsonl}
test: test.jsonl
privacy: {stage1: {epsilon: 8, delta: 1.0e-5}, stage2: off}
stage1: {rounds: 2}
stage2: {rounds: 5}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "labels.txt").write_text("yes\nno\n")
    rows = [{"text": f"question {i}", "intent": "no" if i % 2 else "yes"} for i in range(4)]
    for name in ("examples.jsonl", "test.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def read(folder, text):
    (folder / "run.yaml").write_text(text)
    return load(folder / "run.yaml")


def refused(folder, text, code, *words):
    with pytest.raises(CafeError) as caught:
        read(folder, text)
    assert caught.value.code == code, str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert caught.value.hint


def test_the_smallest_configuration(folder):
    settings = read(folder, MINIMAL)
    assert settings.names("cpu") == ("north",) and settings.names("gpu") == ("lab",)
    assert settings.privacy.stage1.epsilon == 8 and settings.privacy.stage2 is None
    assert settings.test == folder / "test.jsonl" and settings.sites[0].data == folder / "north.jsonl"
    task = settings.public_task()
    assert task.labels == ("yes", "no") and (task.text_name, task.answer_name) == ("Text", "Intent")
    assert len(settings.test_records()) == 4 and len(settings.examples()) == 4
    assert settings.quorum(1) == settings.quorum(2) == 1 and not settings.ffa


def test_yaml_has_rules_of_1_2(folder):
    settings = read(folder, MINIMAL.replace("labels: labels.txt ", "labels: [no, yes, off] ").replace("1.0e-5", "1e-5"))
    assert settings.task.labels == ("no", "yes", "off")
    assert settings.privacy.stage1.delta == 1e-5


def test_what_was_run_reads_back_the_same(folder, tmp_path):
    settings = read(folder, MINIMAL)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.yaml").write_text(to_yaml(settings))
    assert load(tmp_path / "elsewhere" / "config.yaml") == settings


@pytest.mark.parametrize(
    ("privacy", "stage1", "stage2", "ffa"),
    [
        ("off", False, False, False),
        ("{epsilon: 4, delta: 1e-6}", True, True, True),
        ("{stage1: off, stage2: {epsilon: 4, delta: 1e-6}, trust: local}", False, True, True),
        ("{epsilon: 4, delta: 1e-6, stage2: off, accept_noise: true}", True, False, False),
    ],
)
def test_privacy_in_short(folder, privacy, stage1, stage2, ffa):
    settings = read(folder, MINIMAL.replace("{stage1: {epsilon: 8, delta: 1.0e-5}, stage2: off}", privacy))
    assert (settings.privacy.stage1 is not None, settings.privacy.stage2 is not None, settings.ffa) == (stage1, stage2, ffa)


@pytest.mark.parametrize(
    ("old", "new", "code", "words"),
    [
        ("name: banking", "nmae: banking", "CAFE-60", ("nmae",)),
        ("stage2: {rounds: 5}", "stage2: {round: 5}", "CAFE-601", ("stage2.round", "'rounds'")),
        ("stage2: {rounds: 5}", "stage2: {rounds: 0}", "CAFE-602", ("stage2.rounds", "0")),
        ("stage2: {rounds: 5}", "stage2: {lora_rank: 0}", "CAFE-602", ("lora_rank",)),
        ("stage2: {rounds: 5}", "stage2: {quorum: 2}", "CAFE-602", ("quorum", "above")),
        ("stage1: {rounds: 2}", "stage1: {rounds: two}", "CAFE-602", ("stage1.rounds", "must be a whole number")),
        ("stage2: off", "stage2: of", "CAFE-602", ("privacy.stage2", "may be off, or {epsilon, delta}", "'of'")),
        ("stage1: {rounds: 2}", "stage1: {survivors_per_label: 9}", "CAFE-602", ("survivors_per_label",)),
        ("epsilon: 8", "epsilon: 0", "CAFE-602", ("epsilon",)),
        ("epsilon: 8", "epsilon: -1", "CAFE-602", ("epsilon", "must be above 0")),
        ("epsilon: 8", "epsilon: .nan", "CAFE-602", ("epsilon",)),
        ("epsilon: 8", "epsilon: 1,0", "CAFE-60", ()),
        ("delta: 1.0e-5", "delta: 1", "CAFE-602", ("delta",)),
        ("delta: 1.0e-5", "delta: 0", "CAFE-602", ("delta",)),
        ("name: lab,", "name: north,", "CAFE-602", ("two sites", "north")),
        ("name: lab,", "name: North,", "CAFE-602", ("two sites",)),
        ("name: lab,", "name: a/b,", "CAFE-602", ("sites.1.name", "letters, digits, dot")),
        ("name: lab,", "name: ../lab,", "CAFE-602", ("sites.1.name",)),
        ("name: lab,", "name: proxy.north,", "CAFE-602", ("proxy",)),
        ("kind: gpu", "kind: tpu", "CAFE-602", ("sites.1.kind",)),
        ("name: banking", "name: a/b", "CAFE-602", ("name",)),
        ("name: banking", "name: ''", "CAFE-602", ("name",)),
        ("test: test.jsonl", "test: nowhere.jsonl", "CAFE-603", ("nowhere.jsonl",)),
        ("labels: labels.txt ", "labels: nowhere.txt ", "CAFE-603", ("nowhere.txt",)),
        ("test: test.jsonl\n", "", "CAFE-602", ("'test'", "missing")),
        ("task:\n", "task: [\n", "CAFE-604", ("line",)),
    ],
)
def test_what_is_refused(folder, old, new, code, words):
    assert old in MINIMAL
    with pytest.raises(CafeError) as caught:
        read(folder, MINIMAL.replace(old, new))
    assert caught.value.code.startswith(code), str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert caught.value.hint


def test_a_file_that_is_no_yaml_mapping(folder):
    refused(folder, "- just\n- a list\n", "CAFE-604")
    (folder / "run.yaml").write_bytes(b"\xff\xfe\x00 binary")
    with pytest.raises(CafeError, match=r"CAFE-60[34]"):
        load(folder / "run.yaml")
    with pytest.raises(CafeError, match="CAFE-603"):
        load(folder / "nowhere.yaml")


def test_a_label_list_needs_two_different_labels(folder):
    (folder / "labels.txt").write_text("yes\nyes\n")
    with pytest.raises(CafeError, match="CAFE-605"):
        read(folder, MINIMAL).public_task()


def test_every_setting_says_what_it_is():
    def walk(model):
        for name, field in model.model_fields.items():
            inner = field.annotation
            for kind in (inner, *getattr(inner, "__args__", ())):
                if hasattr(kind, "model_fields"):
                    yield from walk(kind)
            if not hasattr(inner, "model_fields") and name not in ("task", "sites"):
                yield f"{model.__name__}.{name}", field.description

    assert [name for name, text in walk(RunSettings) if not text] == []


def test_a_federation_without_sites_says_how_to_get_some(folder):
    start, end = MINIMAL.index("sites:"), MINIMAL.index("test: test.jsonl")
    refused(folder, MINIMAL[:start] + "sites: []\n" + MINIMAL[end:], "CAFE-602", "there is none yet", "cafe site add")


def test_what_is_wrong_in_a_public_file_is_told_with_its_name(folder):
    settings = read(folder, MINIMAL)
    for name, setting, looks in (("test.jsonl", "test", settings.test_records), ("examples.jsonl", "task.examples", settings.examples)):
        (folder / name).write_text('{"txet": "a", "intent": "yes"}\n')
        with pytest.raises(CafeError) as caught:
            looks()
        assert caught.value.code == "CAFE-206" and caught.value.message.startswith(f"{setting}, {name}: There is no column 'text'")


def test_a_file_that_cannot_be_read_is_told_in_words(folder):
    with pytest.raises(CafeError, match="cannot be read: is a directory") as caught:
        load(folder)
    assert caught.value.code == "CAFE-603"
    (folder / "labels.txt").write_bytes(b"caf\xe9\nno\n")
    with pytest.raises(CafeError, match="it is not UTF-8") as caught:
        read(folder, MINIMAL).public_task()
    assert caught.value.code == "CAFE-605"
