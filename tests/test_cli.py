"""The command line, as a person and as a script use it: real processes, tiny fakes for the models."""

import json
import signal
import subprocess
import sys
import time
import zipfile

import pytest

from tests.federation import ROOT, Federation


def cafe(federation, *words, code=0, timeout=200, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *map(str, words)],
        env={**federation.environment, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == code, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.runs
def test_run_to_the_end_then_status_export_clean(tmp_path):
    federation = Federation(tmp_path / "f", stage2={"rounds": 1}, stage1={"rounds": 1})
    out = tmp_path / "out"
    results = json.loads(cafe(federation, "run", federation.config, "--out", out, "--format", "json"))
    assert results == json.loads((out / "results.json").read_text())
    assert {"schema_version", "zero_shot", "synthetic_only", "federated", "rounds", "privacy", "adapter", "synthetic", "seconds"} <= set(
        results
    )
    assert results["adapter"].startswith(str(out)) and results["synthetic"].endswith(".parquet")
    run = results["run"]
    assert run in cafe(federation, "status")
    assert json.loads(cafe(federation, "status", run, "--format", "json"))[0]["state"] == "Done"
    assert "is done" in cafe(federation, "resume", run, code=2)
    cafe(federation, "export", run, "--to", tmp_path)
    names = zipfile.ZipFile(tmp_path / f"{run}.zip").namelist()
    assert {"results.json", "adapters/final/adapter_model.safetensors", "ledger.jsonl", "events.jsonl"} <= set(names)
    assert not [name for name in names if "blobs" in name or "inbox" in name or "proxies" in name or "log" in name.split("/")]
    cafe(federation, "clean", run, "--yes")
    assert not out.exists() and run not in cafe(federation, "status")
    assert len(federation.ledger.releases(run)) == 2  # what was spent stays written


@pytest.mark.runs
def test_out_in_use_and_a_second_run_of_the_name_are_refused(tmp_path):
    federation = Federation(tmp_path / "f")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_text("mine")
    assert "CAFE-606" in cafe(federation, "run", federation.config, "--out", tmp_path / "full", code=2)
    started = json.loads(cafe(federation, "run", federation.config, "--detach", "--format", "json", CAFE_TINY_SECONDS="0.3"))
    assert "CAFE-654" in cafe(federation, "run", federation.config, code=2)
    time.sleep(1)
    cafe(federation, "stop", started["run"], "--now")
    for _ in range(100):
        if federation.store.run(started["run"]).state == "Stopped":
            break
        time.sleep(0.2)
    assert federation.store.run(started["run"]).state == "Stopped"
    assert federation.wait_for_no_processes()
    results = json.loads(cafe(federation, "resume", started["run"], "--format", "json"))
    assert len(results["rounds"]) == 4


@pytest.mark.runs
def test_stop_after_the_round(tmp_path):
    federation = Federation(tmp_path / "f", stage2={"rounds": 30})
    run = json.loads(cafe(federation, "run", federation.config, "--detach", "--format", "json", CAFE_TINY_SECONDS="0.02"))["run"]
    for _ in range(200):
        if federation.store.step(run, "stage2/1/1/score"):
            break
        time.sleep(0.1)
    looks = [sys.executable, "-m", "pipeline.cli", "status", run]
    with subprocess.Popen(looks, env=federation.environment, cwd=ROOT, stdout=subprocess.PIPE, text=True) as looking:
        assert looking.stdout is not None
        first = looking.stdout.readline()
        looking.send_signal(signal.SIGINT)  # ends the looking on, not the run
        assert "goes on" in first + looking.stdout.read() and looking.wait() == 0
    assert federation.store.run(run).command is None and federation.store.run(run).state == "Running"
    cafe(federation, "stop", run)
    for _ in range(200):
        if federation.store.run(run).state == "Stopped":
            break
        time.sleep(0.1)
    assert federation.store.run(run).state == "Stopped"
    assert not federation.store.step(run, "stage2/1/30/score")


@pytest.mark.runs
def test_bad_data_at_a_site_ends_the_start_and_is_named(tmp_path):
    federation = Federation(tmp_path / "f")
    good = (federation.folder / "weak1.jsonl").read_text()
    (federation.folder / "weak1.jsonl").write_text('{"text": "secret complaint", "label": "no such label"}\n' * 3)
    said = cafe(federation, "run", federation.config, code=1)
    assert "CAFE-2" in said and "weak1" in said and "secret" not in said and "no such label" not in said
    log = federation.home / "sites" / "tiny" / "weak1" / "log" / "site.log"
    assert f"{log} says what and where" in said and "Line 1 has a label" in log.read_text()
    (federation.folder / "weak1.jsonl").write_text(good)
    run = federation.store.runs()[0].id
    cafe(federation, "resume", run)


@pytest.mark.parametrize(
    ("change", "code", "word"),
    [
        ({"privacy": {"stage1": "off", "stage2": {"epsilon": 8, "delta": 1e-5}}}, 5, "CAFE-331"),
        ({"base_model": "no/such-model-anywhere"}, 2, "CAFE-4"),
        ({"test": "weak0.csv"}, 2, "CAFE-603"),
        ({"stage2": {"target_modules": ["no_proj"]}}, 2, "CAFE-411"),
    ],
)
def test_what_is_refused_before_a_run_exists(tmp_path, change, code, word):
    federation = Federation(tmp_path / "f", strong=2, **change)
    said = cafe(federation, "run", federation.config, code=code, HF_HUB_OFFLINE="1")
    assert word in said
    assert federation.store.runs() == []


def test_check_starts_nothing(tmp_path):
    federation = Federation(tmp_path / "f", privacy={"stage1": {"epsilon": 8, "delta": 1e-5}, "stage2": "off"})
    told = json.loads(cafe(federation, "run", federation.config, "--check", "--format", "json"))
    assert told["stage1"]["vote_snr"] > 1 and told["stage2"] == "off"
    said = cafe(federation, "run", federation.config, "--check")
    assert "Stage 1: each site spends ε 8 at δ 1e-05" in said and "Stage 2: no formal guarantee" in said
    assert federation.store.runs() == []


def test_an_error_is_json_for_machines(tmp_path):
    federation = Federation(tmp_path / "f")
    told = json.loads(cafe(federation, "run", tmp_path / "nowhere.yaml", "--format", "json", code=2))
    assert told["error"]["code"] == "CAFE-603" and told["error"]["hint"]
    assert json.loads(cafe(federation, "status", "nobody", "--format=json", code=2))["error"]["code"] == "CAFE-655"
