"""A whole run with the real models, both stages: from a YAML to an adapter that PEFT loads, and nothing private on the way.

Tiny settings: what is tested is that everything is there and true, not that it is good.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cafe_kit.records import DataSource, read
from ruamel.yaml import YAML

from pipeline.accounting import shown
from pipeline.demo import write
from pipeline.settings import load

pytestmark = pytest.mark.heavy
ROOT = Path(__file__).resolve().parents[1]
CANARY = "zanzibar-quokka-7741"


@pytest.fixture(scope="module")
def finished(real_models, tmp_path_factory):
    """One tiny private run of four of the demo's sites, with a canary in every private record of one site."""
    folder = tmp_path_factory.mktemp("main-path")
    home = folder / "home"
    home.mkdir()
    (home / "models").symlink_to(real_models.base.path.parent)
    config = write(folder / "demo", 0)
    for name in ("riverside", "kingsbridge"):
        file = config.parent / f"{name}.jsonl"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        file.write_text("".join(json.dumps({**row, "text": f"{row['text']} {CANARY}"}) + "\n" for row in rows), encoding="utf-8")
    test = config.parent / "test.jsonl"
    test.write_text("".join(line + "\n" for line in test.read_text(encoding="utf-8").splitlines()[:24]), encoding="utf-8")
    yaml = YAML()
    data = yaml.load(config.read_text(encoding="utf-8"))
    data["sites"] = [site for site in data["sites"] if site["name"] in ("riverside", "hillcrest", "oakdale", "kingsbridge")]
    data["privacy"] = {"stage1": {"epsilon": 8, "delta": 1e-5}, "stage2": "off", "accept_noise": True}
    data["stage1"] = {"rounds": 2, "candidates_per_label": 3, "survivors_per_label": 1, "synthetic_per_label": 3, "max_tokens": 24}
    data["stage2"] = {"rounds": 2, "steps": 2, "batch_size": 4, "warm_start_steps": 4}
    with (config.parent / "tiny.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(data, file)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "run", config.parent / "tiny.yaml", "--out", folder / "out", "--format", "json"],
        env=os.environ | {"CAFE_HOME": str(home)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads(done.stdout), load(config.parent / "tiny.yaml")


def test_results_say_everything(finished):
    _, results, _settings = finished
    assert results["schema_version"] == 1
    for key in ("zero_shot", "synthetic_only", "federated"):
        assert results[key]["n"] == 24 and 0 <= results[key]["accuracy"] <= 1
    assert [score["round"] for score in results["rounds"]] == [1, 2]
    stage1 = results["privacy"]["stage1"]
    assert 7.5 < stage1["epsilon"] <= 8 and stage1["delta"] == 1e-5 and stage1["unit"] == "client" and stage1["trust"] == "server"
    assert results["privacy"]["stage2"] == "off" and results["privacy"]["sites_without_guarantee"] == ["kingsbridge"]
    assert results["seconds"]["total"] > 0 and {"generate", "vote", "warm start", "train", "evaluate"} <= set(results["seconds"])
    assert {site["name"]: site["answered"] for site in results["sites"]} == {"riverside": 2, "hillcrest": 2, "oakdale": 2, "kingsbridge": 2}


def test_the_synthetic_set_is_read_back_by_the_kit(finished):
    _, results, settings = finished
    records = read(DataSource(Path(results["synthetic"]), settings.task.columns), settings.public_task())
    assert len(records) >= 12 * 2 and {record.answer for record in records} == set(settings.public_task().labels)
    card = Path(results["synthetic"]).with_name("README.md").read_text(encoding="utf-8")
    assert f"differential privacy with ε = {shown(results['privacy']['stage1']['epsilon'])}, δ = 1e-5" in card


def test_peft_loads_the_adapter_and_it_answers_as_ours_does(finished, real_models):
    import torch
    from cafe_kit.base_model import BaseModel
    from peft import PeftModel
    from safetensors.numpy import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, results, settings = finished
    folder, prompts = Path(results["adapter"]), [settings.public_task().prompt(r.text) for r in settings.test_records()[:4]]
    options = [settings.public_task().completion(label) for label in settings.public_task().labels]
    tokenizer = AutoTokenizer.from_pretrained(real_models.base.path)
    plain = AutoModelForCausalLM.from_pretrained(real_models.base.path, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, folder).eval()
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "smollm2-135m-instruct"

    def score(prompt, option):
        ids, start = tokenizer(prompt + option, return_tensors="pt").input_ids, len(tokenizer(prompt).input_ids)
        with torch.no_grad():
            logprobs = model(ids).logits.log_softmax(-1)[0, start - 1 : -1]
        return float(logprobs.gather(1, ids[0, start:, None]).sum())

    theirs = np.array([[score(prompt, option) for option in options] for prompt in prompts])
    base = BaseModel.load(real_models.base.path, "float32")
    base.set_adapter(load_file(folder / "adapter_model.safetensors"), settings.stage2.lora_alpha)
    ours = base.label_logprobs(prompts, options)
    np.testing.assert_allclose(ours, theirs, atol=2e-2)
    base.set_adapter(None)
    assert np.abs(base.label_logprobs(prompts, options) - ours).max() > 0.05  # the adapter does something


def test_no_private_text_is_anywhere_but_in_the_sites_own_data(finished):
    """Every byte that the run wrote, on the server's side and in the sites' homes, searched for what only the records hold."""
    folder, _, _ = finished
    found = []
    for path in [*(folder / "home").rglob("*"), *(folder / "out").rglob("*")]:
        if path.is_file() and "models" not in path.relative_to(folder).parts and CANARY.encode() in path.read_bytes():
            found.append(path)
    assert found == []
    assert CANARY in (folder / "demo" / "riverside.jsonl").read_text(encoding="utf-8")  # the search would have found it


def test_no_un_noised_body_stays_on_the_server(finished):
    folder, results, _ = finished
    assert list((folder / "out" / "inbox").glob("*")) == []
    from server_store.ledger import Ledger

    ledger = Ledger(folder / "home" / "ledger.db")
    ledger.verify()
    assert {row.state for row in ledger.releases(results["run"])} == {"sealed"}
