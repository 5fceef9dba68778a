"""Is the demo hard enough, and learnable? Keyword rules, the base model as it is, and LoRA on all real data.

Run ``python -m benchmarks.demo_difficulty``; see ``benchmarks/README.md``. Exits with 1 when one of the three misses its
target. Knows nothing of stages or privacy: the "all real" score is what a federation could reach at best.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cafe_kit.records import read
from cafe_kit.task import Record, Task

from pipeline import demo, settings

if TYPE_CHECKING:
    from cafe_kit.base_model import BaseModel

# The departments' names, their stems, and what anybody would think of first; the most hits win, then the first in the list.
KEYWORDS: dict[str, tuple[str, ...]] = {
    "front_desk": ("front", "desk", "reception", "appointment", "book"),
    "nurse_line": ("nurse", "line", "symptom", "pain", "sick", "fever"),
    "pharmacy": ("pharm", "prescription", "medic", "drug", "tablet", "pill"),
    "laboratory": ("lab", "blood", "test", "sample", "result"),
    "imaging": ("imag", "x-ray", "scan", "mri", "ultrasound", "picture"),
    "billing": ("bill", "pay", "paid", "charge", "cost", "insur", "fee"),
    "records": ("record", "copy", "file", "history", "document", "report"),
    "rehabilitation": ("rehab", "exercise", "physio", "therapy", "stretch"),
    "wellbeing": ("wellbeing", "well-being", "mood", "stress", "anxi", "sad"),
    "device_clinic": ("device", "pacemaker", "sensor", "pump", "machine"),
}
STEPS = 200


def keyword_accuracy(records: Sequence[Record]) -> float:
    """Share of records that counting keyword hits routes rightly."""
    return sum(_by_keywords(record.text) == record.answer for record in records) / len(records)


def _by_keywords(text: str) -> str:
    return max(KEYWORDS, key=lambda department: sum(word in text.casefold() for word in KEYWORDS[department]))


def model_accuracies(config: settings.RunSettings, steps: int, seed: int) -> tuple[float, float]:
    """Accuracy by label likelihood on the test set: zero-shot, and after ``steps`` of LoRA on all sites' real records."""
    from cafe_kit.base_model import BaseModel
    from cafe_kit.orders import TrainParams
    from cafe_kit.train import train

    from pipeline import adapters, models

    stage2, task = config.stage2, config.public_task()
    folder = models.base_model(config.base_model).path
    base = BaseModel.load(folder)
    params = TrainParams(steps, stage2.batch_size, stage2.learning_rate, stage2.lora_rank, stage2.lora_alpha, stage2.target_modules, seed)
    zero_shot = _accuracy(base, task, config.test_records())
    real = [record for site in config.sites for record in read(config.source(site), task)]
    adapter = adapters.first_adapter(adapters.schema(folder, params.target_modules, params.lora_rank), False, seed)
    delta = train(params, task, base, adapter, {"all": real}, _progress)["all"]
    base.set_adapter({name: adapter[name] + delta[name] for name in adapter}, params.lora_alpha)
    return zero_shot, _accuracy(base, task, config.test_records())


def _accuracy(base: BaseModel, task: Task, records: Sequence[Record]) -> float:
    scores = base.label_logprobs([task.prompt(r.text) for r in records], [task.completion(label) for label in task.labels])
    return sum(task.labels[best] == r.answer for best, r in zip(scores.argmax(axis=1), records, strict=True)) / len(records)


def _progress(site: str, done: int, steps: int) -> None:
    if sys.stderr.isatty():
        print(f"\rtraining on all real data: step {done} of {steps}", end="\n" if done == steps else "", file=sys.stderr)


def main() -> int:
    """Print the three numbers beside their targets; 0 when all are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the demo's data and of the training")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps on all real data")
    parser.add_argument("--keywords-only", action="store_true", help="leave the model out")
    asked = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        config = settings.load(demo.write(Path(folder), asked.seed))
        rows = [("keyword rules", keyword_accuracy(config.test_records()), "<=", 0.50)]
        if not asked.keywords_only:
            zero_shot, all_real = model_accuracies(config, asked.steps, asked.seed)
            rows += [("zero-shot", zero_shot, "<=", 0.45), (f"all real data, {asked.steps} steps", all_real, ">=", 0.85)]
    met = [value <= target if sign == "<=" else value >= target for _, value, sign, target in rows]
    for (name, value, sign, target), good in zip(rows, met, strict=True):
        print(f"{name:<26} {value:6.1%}   target {sign} {target:.0%}   {'met' if good else 'MISSED'}")
    print(f"seed {asked.seed}, {time.monotonic() - began:.0f} s")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
