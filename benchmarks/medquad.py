"""A federation on instruction data: questions about health and their answers, each site one institute of MedQuAD.

Writes the folder and, with ``--run``, runs it (stage 1 private, stage 2 not) and prints the losses on the public test set:

    python -m benchmarks.medquad --data PATH/medquad --out FOLDER [--run]

``PATH/medquad`` holds ``qa_with_answers.jsonl.gz`` (Ben Abacha and Demner-Fushman 2019, CC BY 4.0), which this project does not
carry. Only pairs with short answers are used: a small model on a small machine learns little from pages of text.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

LONGEST, AT_MOST, TEST, SEED = 600, 150, 120, 7  # characters of an answer; records of a site; test records in all
STRONG, WEAK = ("GARD", "GHR"), ("NIDDK", "NINDS", "MPlusHealthTopics", "NIHSeniorHealth", "CancerGov", "NHLBI")
EXAMPLES = (
    ("What are the symptoms of hay fever ?", "Sneezing, a runny nose and itchy eyes, most often in spring and summer."),
    (
        "What causes a migraine ?",
        "The exact cause is not known. Stress, lack of sleep, certain foods and bright light may bring on an attack.",
    ),
    ("How to diagnose anemia ?", "A blood test shows whether there are too few red blood cells or too little hemoglobin."),
    (
        "What are the treatments for heartburn ?",
        "Smaller meals, raising the head of the bed, and medicines that lower the acid of the stomach.",
    ),
    ("Who is at risk for osteoporosis ?", "Women after menopause, older people, smokers, and people whose parents had a broken hip."),
    ("How many people are affected by celiac disease ?", "About 1 in 100 people worldwide has it; many of them do not know."),
    ("Is sickle cell disease inherited ?", "Yes. A child has it when both parents pass on a changed gene."),
    ("What is (are) shingles ?", "A painful rash that is caused by the virus that also causes chickenpox."),
)
YAML = """\
name: medquad
task:
  kind: instruction
  description: questions that people ask about diseases, and short answers to them
  instruction: question
  output: answer
  examples: examples.jsonl
base_model: smollm2-135m-instruct
sites:
{sites}
test: test.jsonl
privacy: {{stage1: {{epsilon: 8, delta: 1.0e-5}}, stage2: off}}
stage1: {{rounds: 2, candidates_per_label: 16, survivors_per_label: 8, synthetic_per_label: 80, max_tokens: 96{generator}}}
stage2: {{rounds: 3, steps: 10, warm_start_steps: 30}}
"""


def write(data: Path, out: Path, generator: str) -> Path:
    """The federation's files; returns its YAML. ``generator``: URL and model of another server for stage 1, or nothing."""
    out.mkdir(parents=True, exist_ok=True)
    chance = random.Random(SEED)
    with gzip.open(data / "qa_with_answers.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    test: list[dict[str, str]] = []
    for source in (*STRONG, *WEAK):
        own = [row for row in rows if row["source"] == source and len(" ".join(row["answer"].split())) <= LONGEST]
        chance.shuffle(own)
        pairs = [{"question": row["question"], "answer": " ".join(row["answer"].split())} for row in own]
        held = TEST // len((*STRONG, *WEAK))
        test += pairs[:held]
        _save(out / f"{source}.jsonl", pairs[held : held + AT_MOST])
    _save(out / "test.jsonl", test)
    _save(out / "examples.jsonl", [{"question": question, "answer": answer} for question, answer in EXAMPLES])
    sites = "\n".join(f"  - {{name: {s}, kind: {'gpu' if s in STRONG else 'cpu'}, data: {s}.jsonl}}" for s in (*STRONG, *WEAK))
    url, _, model = generator.partition("=")
    other = f", generator: {{url: {url}, model: {model}}}" if generator else ""
    (out / "medquad.yaml").write_text(YAML.format(sites=sites, generator=other), encoding="utf-8")
    return out / "medquad.yaml"


def _save(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of MedQuAD")
    parser.add_argument("--out", type=Path, required=True, help="folder for the federation and its run")
    parser.add_argument("--generator", default="", help="URL=MODEL of an OpenAI-compatible server for stage 1")
    parser.add_argument("--run", action="store_true", help="run it")
    asked = parser.parse_args()
    config = write(asked.data, asked.out, asked.generator)
    print(config)
    if asked.run:
        command = [sys.executable, "-m", "pipeline.cli", "run", str(config), "--out", str(asked.out / "run")]
        sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
