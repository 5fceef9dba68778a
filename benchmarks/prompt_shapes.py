"""Compares ways of asking a language model for synthetic text, by measurement on a public corpus.

The corpus is a laboratory (``benchmarks/laboratory.py``): it judges fidelity, votes for the survivors that are varied and
tests what was made. The generator sees only the task's description, its labels and invented examples. Either ``--data``
FOLDER with CLINC150's files (banking domain, the examples below), or ``--config`` with a run's YAML::

    python -m benchmarks.prompt_shapes --data CLINC_FOLDER --shapes list_three,chat_plain --temperature 0.7 --show 5
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

from cafe_kit.embed import Embedder
from cafe_kit.records import read
from cafe_kit.task import Record, Task

from benchmarks.laboratory import Laboratory, read_corpus
from benchmarks.shapes import PROPOSE, VARY
from pipeline import models, prompts, settings
from pipeline.generator import Generator, ModelServer
from pipeline.prompts import Ask

INVENTED = {  # three a class, written for this file
    "account_blocked": (
        "why can't i get into my account anymore",
        "my account seems to be on hold, what happened",
        "the app says that i am blocked, how come",
    ),
    "balance": (
        "how much do i have in savings right now",
        "tell me what's in my checking account",
        "do i still have 300 dollars in the bank",
    ),
    "bill_balance": ("how much is my phone bill this time", "what do i owe the water company", "add up all my bills for june"),
    "bill_due": ("when does my credit card have to be paid", "what day is the rent due", "how long do i have left to pay the gas company"),
    "freeze_account": (
        "lock my account right now",
        "put a freeze on my savings please",
        "nobody should be able to use my account, stop it",
    ),
    "interest_rate": (
        "what interest do i get on my savings",
        "tell me the rate of my mortgage",
        "how high is the interest on this account",
    ),
    "min_payment": (
        "what is the least i can pay on my card this month",
        "tell me the minimum payment for my visa",
        "is there a smaller amount that i may pay on the loan",
    ),
    "order_checks": ("i'm out of checks, send me some", "order two new checkbooks", "how can i get more checks for my account"),
    "pay_bill": (
        "pay my electricity bill",
        "please send 80 dollars to the cable company for my bill",
        "take care of my rent from checking",
    ),
    "pin_change": ("i need a different pin", "change the pin of my debit card", "i can't remember my pin, set a new one"),
    "report_fraud": (
        "somebody used my card in another country",
        "i want to report a charge that i never made",
        "there's a fake transaction on my statement",
    ),
    "routing": ("what's my routing number", "which routing number do i give my employer", "find the routing number of my credit union"),
    "spending_history": (
        "how much did i spend on food last week",
        "what have i paid for clothes this year",
        "show me what i usually spend on travel",
    ),
    "transactions": (
        "show my last five purchases",
        "list what went through my account on monday",
        "did the payment to the dentist go through",
    ),
    "transfer": ("move 50 dollars from checking to savings", "send my brother 200 dollars", "i'd like to wire money to my other bank"),
}


def bench(options: argparse.Namespace) -> tuple[Laboratory, Task, list[Record]]:
    """The corpus to measure against, the public task and its invented examples."""
    embedder = Embedder(models.embedder(options.embedder).path, options.threads)
    if options.config:
        run = settings.load(options.config)
        task = run.public_task()
        train = [record for site in run.sites for record in read(run.source(site), task)]
        return Laboratory(train, run.test_records(), task.labels, embedder), task, run.examples()
    task = Task("classification", "what customers say to their bank", tuple(INVENTED), "Message", "Wish")
    corpus = [list(read_corpus(options.data, split, "intent", task.labels)) for split in ("train", "test")]
    examples = [Record(text, label) for label, texts in INVENTED.items() for text in texts]
    return Laboratory(corpus[0], corpus[1], task.labels, embedder), task, examples


def asked(name: str, task: Task, examples: list[Record], seeds: list[Record], each: int, rng: random.Random) -> list[Ask]:
    """``v_``: a variation of each survivor in turn; ``e_``: expansion of survivors and examples; else first proposals."""
    if name.startswith("v_"):
        own = {label: [seed for seed in seeds if seed.answer == label] for label in task.labels}
        turns = [own[label][i % len(own[label])] for label in own if own[label] for i in range(each)]
        return [VARY[name](task, seed, [*seeds, *examples], rng) for seed in turns]
    shape = PROPOSE[name.removeprefix("e_")]
    shown = [*seeds, *examples] if name.startswith("e_") else examples
    return [shape(task, label, shown, rng) for label in task.labels for _ in range(each)]


def write(generator: Generator, asks: list[Ask], options: argparse.Namespace) -> tuple[list[str], float]:
    start = time.monotonic()
    texts = generator.complete([ask.prompt for ask in asks], max_tokens=options.max_tokens, temperature=options.temperature,
                               top_p=options.top_p, stop=asks[0].stop, seed=options.seed)  # fmt: skip
    return texts, time.monotonic() - start


def row(name: str, figures: dict[str, float]) -> str:
    return f"| {name} | " + " | ".join(f"{value:.2f}" if value < 3 else f"{value:.1f}" for value in figures.values()) + " |"


def compare(options: argparse.Namespace, generator: Generator) -> None:
    from tokenizers import Tokenizer

    lab, task, examples = bench(options)
    tokens = Tokenizer.from_file(str(models.base_model(options.base_model).path / "tokenizer.json"))
    rows = options.first.read_text("utf-8").splitlines() if options.first else []
    first = [Record(**json.loads(line)) for line in rows]  # the pool in which the corpus votes
    print("| shape | yield | dup | echo | fid | d1 | d2 | cos | near | emb | bow | words | tok/s | s |\n| --- |" + " ---: |" * 13)
    same = random.Random(0).sample(lab.train, min(len(lab.train), options.each * len(task.labels)))
    print(row("real, same size", {"yield": 1, "dup": 0, "echo": 0} | lab.measure(same)))
    if examples:
        print(row("the examples alone", {"yield": 1, "dup": 0, "echo": 0} | lab.measure(examples)), flush=True)
    for name in options.shapes.split(","):
        seeds = lab.survivors(first, 4) if name[:2] in ("v_", "e_") else []
        asks = asked(name, task, examples, seeds, options.each, random.Random(options.seed))
        texts, seconds = write(generator, asks, options)
        sieve = prompts.Filter(task, [*seeds, *examples])
        parsed = [prompts.parse(task, ask, text) for ask, text in zip(asks, texts, strict=True)]
        made = [record for record in parsed if record and sieve.keep(record)]
        first = first or made
        shares = {reason: sieve.counts[reason] / len(asks) for reason in ("kept", "duplicate", "echo")}
        speed = {"tok/s": sum(len(tokens.encode(text).ids) for text in texts) / seconds, "s": seconds}
        print(row(name, shares | lab.measure(made) | speed) if made else f"| {name} | 0 |", flush=True)
        sieve = prompts.Filter(task, [*seeds, *examples], embed=lab.vectors)
        fitting = [record for record in made if sieve.keep(record)]
        if len({record.answer for record in fitting}) > 1:
            print(row(f"{name}, fitting", {**shares, "kept": len(fitting) / len(asks)} | lab.measure(fitting)), flush=True)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps({"text": record.text, "answer": record.answer}) + "\n" for record in made]
            (options.out / f"{name}.jsonl").write_text("".join(lines), "utf-8")
        for record in random.Random(1).sample(made, min(options.show, len(made))):
            print(f"    {record.answer}: {record.text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    corpus = parser.add_mutually_exclusive_group(required=True)
    corpus.add_argument("--data", type=Path, help="folder with CLINC150's train.jsonl[.gz] and test.jsonl[.gz]")
    corpus.add_argument("--config", type=Path, help="a run's YAML, the demo's for instance; its sites' records are read here")
    parser.add_argument("--base-model", default=models.DEFAULT_BASE)
    parser.add_argument("--embedder", default=models.DEFAULT_EMBEDDER)
    parser.add_argument("--shapes", default=",".join([*PROPOSE, *VARY]))
    parser.add_argument("--each", type=int, default=14, help="texts a class")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", type=int, default=0, help="texts to print for each shape")
    parser.add_argument("--first", type=Path, help="a file of --out: what was proposed, for shapes that need survivors of a vote")
    parser.add_argument("--out", type=Path, help="folder for what was made, as JSON lines")
    options = parser.parse_args()
    with ModelServer(models.base_model(options.base_model).path, threads=options.threads) as server:
        compare(options, server.generator())


if __name__ == "__main__":
    main()
