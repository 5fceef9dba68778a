"""A federation on real data: the banking domain of CLINC150, 16 sites by a label-skewed Dirichlet split, 4 of them strong.

Writes the folder and, with ``--run``, runs it with stage 1 private and not, and prints what came out side by side:

    python -m benchmarks.clinc150 --data PATH/clinc150 --out FOLDER [--run]

``PATH/clinc150`` holds ``train.jsonl.gz``, ``test.jsonl.gz`` and ``domains.json`` (Larson et al. 2019, CC BY 3.0), which this
project does not carry. The public examples that the generator is shown are invented here; none is from the data set.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

SITES, STRONG, ALPHA, SEED = 16, 4, 0.2, 42
EXAMPLES = {
    "account_blocked": ("my account got locked, why is that", "i cannot use my account, is there a hold on it"),
    "balance": ("how much do i have in savings right now", "tell me what is left in my checking account"),
    "bill_balance": ("what do i owe on my electricity bill", "how much is my phone bill this time"),
    "bill_due": ("by which day must i pay the water bill", "when is my internet bill due"),
    "freeze_account": ("please put a freeze on my savings", "lock my checking account for now"),
    "interest_rate": ("which interest do i get on my savings", "what rate does my account earn"),
    "min_payment": ("what is the least i can pay on my card", "tell me the smallest payment for the gas bill"),
    "order_checks": ("i ran out of checks, send me a new book", "how do i get more checks"),
    "pay_bill": ("pay my rent from checking", "take care of the cable bill for me"),
    "pin_change": ("i want another pin for my card", "how do i set a new pin"),
    "report_fraud": ("somebody bought things with my card and it was not me", "there is a charge that i never made"),
    "routing": ("what is the routing number of my bank", "i need the routing number for my checking"),
    "spending_history": ("how much did i spend on restaurants in may", "what went out for clothes lately"),
    "transactions": ("show me what i bought yesterday", "list the latest movements on my card"),
    "transfer": ("move fifty dollars from checking to savings", "send a hundred to my other account"),
}
YAML = """\
name: {name}
task:
  kind: classification
  description: what a customer of a bank wants
  text: text
  label: intent
  labels: labels.txt
  examples: examples.jsonl
base_model: smollm2-135m-instruct
sites:
{sites}
test: test.jsonl
privacy: {privacy}
stage1: {{rounds: 2}}
stage2: {{rounds: 5}}
"""


def write(data: Path, out: Path) -> dict[str, Path]:
    """The federation's files; returns "private" and "open" → their YAML."""
    out.mkdir(parents=True, exist_ok=True)
    labels = sorted(json.loads((data / "domains.json").read_text(encoding="utf-8"))["banking"])
    assert set(labels) == set(EXAMPLES), set(labels) ^ set(EXAMPLES)
    train, test = (_rows(data / f"{part}.jsonl.gz", labels) for part in ("train", "test"))
    names = [f"site{number:02d}" for number in range(SITES)]
    for name, rows in zip(names, _split(train, labels), strict=True):
        _save(out / f"{name}.jsonl", rows)
    _save(out / "test.jsonl", test)
    _save(out / "examples.jsonl", [{"text": text, "intent": label} for label, texts in EXAMPLES.items() for text in texts])
    (out / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    sites = "\n".join(f"  - {{name: {name}, kind: {'gpu' if i < STRONG else 'cpu'}, data: {name}.jsonl}}" for i, name in enumerate(names))
    written = {}
    for kind, privacy in (("private", "{stage1: {epsilon: 8, delta: 1.0e-5}, stage2: off}"), ("open", "off")):
        written[kind] = out / f"{kind}.yaml"
        written[kind].write_text(YAML.format(name=f"clinc-{kind}", sites=sites, privacy=privacy), encoding="utf-8")
    return written


def _rows(path: Path, labels: list[str]) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [{"text": row["text"], "intent": row["intent"]} for row in rows if row["intent"] in labels]


def _split(rows: list[dict[str, str]], labels: list[str]) -> list[list[dict[str, str]]]:
    """Each label's rows dealt out by Dirichlet(ALPHA) shares over the sites; drawn anew until every site has ten rows."""
    rng = np.random.default_rng(SEED)
    while True:
        sites: list[list[dict[str, str]]] = [[] for _ in range(SITES)]
        for label in labels:
            own = [row for row in rows if row["intent"] == label]
            owners = rng.choice(SITES, size=len(own), p=rng.dirichlet([ALPHA] * SITES))
            for row, owner in zip(own, owners, strict=True):
                sites[owner].append(row)
        if min(map(len, sites)) >= 10:
            return sites


def _save(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _shown(results: dict[str, Any]) -> str:
    scores = {"zero-shot": results["zero_shot"], "synthetic only": results["synthetic_only"], "federated": results["federated"]}
    stage1 = results["privacy"]["stage1"]
    told = f"epsilon {stage1['epsilon']}" if isinstance(stage1, dict) else "no formal guarantee"
    by_round = " ".join(f"{score['accuracy']:.3f}" for score in results["rounds"])
    return (
        f"stage 1: {told} | " + " | ".join(f"{name} {score['accuracy']:.3f}" for name, score in scores.items())
        + f" | rounds {by_round} | n {results['federated']['n']} | seconds {results['seconds']}"
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CLINC150")
    parser.add_argument("--out", type=Path, required=True, help="folder for the federation and its runs")
    parser.add_argument("--run", action="store_true", help="run it, private and open")
    asked = parser.parse_args()
    for kind, config in write(asked.data, asked.out).items():
        print(kind, config)
        if asked.run:
            command = [
                sys.executable,
                "-m",
                "pipeline.cli",
                "run",
                str(config),
                "--out",
                str(asked.out / f"run-{kind}"),
                "--format",
                "json",
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            print(_shown(json.loads(done.stdout)) if done.returncode == 0 else done.stdout + done.stderr, flush=True)


if __name__ == "__main__":
    main()
