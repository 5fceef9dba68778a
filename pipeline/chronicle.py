"""What the votes and rounds of a run were: candidates, survivors, who answered, how long, which score.

Knows the durable steps and the orders of a run, all of them public. Writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cafe_kit.errors import CafeError
from cafe_kit.task import Record
from cafe_kit.vote import candidates_from_bytes

from pipeline.overview import attempt_of, settings_of
from pipeline.settings import SERVER_SEATS
from server_store.blobs import Blobs
from server_store.errors import StoreError
from server_store.rows import OrderRow, Run, Step
from server_store.store import Store


@dataclass(frozen=True)
class Answers:
    """What became of one round's orders to the sites themselves."""

    asked: int = 0
    answered: int = 0
    late: int = 0
    failed: int = 0  # refused ones too
    proxies: int = 0  # answered by the server in the place of weak sites
    seconds: float | None = None  # from the first order to the last answer


@dataclass(frozen=True)
class Vote:
    """One vote of stage 1. ``survivors`` is None until they are chosen."""

    number: int
    candidates: int
    survivors: int | None
    dropped: dict[str, int]
    answers: Answers = field(default_factory=Answers)


@dataclass(frozen=True)
class Round:
    """One finished round of stage 2; ``seconds``: the sites' and the scoring's."""

    number: int
    metric: str
    score: float
    n: int
    seconds: float | None
    answers: Answers = field(default_factory=Answers)


def votes(store: Store, run_id: str) -> list[Vote]:
    """The votes of the attempt that the run is at, in order."""
    steps = {step.name: step for step in store.steps(run_id)}
    attempt, run = attempt_of(steps), store.run(run_id)
    found: list[Vote] = []
    while (step := steps.get(f"stage1/{attempt}/{len(found) + 1}/candidates")) is not None:
        t = len(found) + 1
        chosen = f"stage1/{attempt}/{t + 1}/candidates" in steps or f"stage1/{attempt}/synthetic" in steps
        dropped = {reason: number for reason, number in step.facts["dropped"].items() if reason != "kept"}
        answers = _answers(store.orders(run_id, 1, attempt, t))
        found.append(Vote(t, step.facts["candidates"], _survivors(run, step) if chosen else None, dropped, answers))
    return found


def newest_texts(store: Store, run_id: str) -> tuple[str, list[Record]]:
    """The newest public texts of stage 1 and what they are: the candidates of a vote, or the set. Empty before the first."""
    steps = {step.name: step for step in store.steps(run_id, "stage1/")}
    attempt, run = attempt_of(steps), store.run(run_id)
    names = [name for name in steps if name.startswith(f"stage1/{attempt}/") and name.endswith(("/candidates", "/synthetic"))]
    if not names:
        return "", []
    name = names[-1]
    what = "the synthetic set" if name.endswith("/synthetic") else f"the candidates of vote {name.split('/')[2]}"
    return what, _texts(run, steps[name])


def rounds(store: Store, run_id: str) -> list[Round]:
    """The finished rounds of stage 2, in order; the warm start is round 0."""
    steps = {step.name: step for step in store.steps(run_id, "stage2/")}
    attempt = attempt_of({step.name: step for step in store.steps(run_id, "stage1/")})
    found = []
    for name, score in steps.items():
        if not (name.startswith(f"stage2/{attempt}/") and name.endswith("/score")):
            continue
        number = int(score.facts["round"])
        metric = "accuracy" if "accuracy" in score.facts else "loss"
        answers = _answers(store.orders(run_id, 2, attempt, number))
        made = steps.get(f"stage2/{attempt}/{number or 'warm'}/adapter")
        scoring = score.time - made.time if made else 0.0
        seconds = None if answers.seconds is None else answers.seconds + scoring
        found.append(Round(number, metric, float(score.facts[metric]), int(score.facts["n"]), seconds, answers))
    return sorted(found, key=lambda one: one.number)


def seconds_per_round(store: Store, name: str) -> tuple[Run, float] | None:
    """Of the newest finished run of this federation: its own mean; None where there is none."""
    for run in store.runs():
        if run.name == name and run.state == "Done":
            took = [one.seconds for one in rounds(store, run.id) if one.number and one.seconds]
            if took:
                return run, sum(took) / len(took)
    return None


def approved(store: Store, settings_name: str) -> list[Run]:
    """The runs of a federation that made an approved synthetic set of their own, the newest first."""
    found = []
    for run in store.runs():
        steps = store.steps(run.id, "stage1/") if run.name == settings_name else []
        made = any(step.name.endswith("/approval") and step.facts["approved"] for step in steps)
        if made and not any("source" in step.facts for step in steps):
            found.append(run)
    return found


def _answers(orders: Iterable[OrderRow]) -> Answers:
    own = [order for order in orders if not order.site.startswith(SERVER_SEATS)]
    by_server = [order for order in orders if order.site.startswith(SERVER_SEATS)]
    states = Counter(order.state for order in own)
    ends = [order.ended for order in (*own, *by_server) if order.ended]
    begun = [order.sent for order in (*own, *by_server)]
    return Answers(
        asked=len(own),
        answered=states["answered"],
        late=states["late"],
        failed=states["failed"] + states["refused"],
        proxies=sum(order.state == "answered" for order in by_server),
        seconds=max(ends) - min(begun) if ends else None,
    )


def _survivors(run: Run, step: Step) -> int | None:
    """As many of each class as were asked for, or as there are."""
    settings = settings_of(run)
    if settings is None:
        return None
    classes = Counter(record.answer if settings.task.kind == "classification" else "" for record in _texts(run, step))
    return sum(min(settings.stage1.survivors_per_label, number) for number in classes.values())


def _texts(run: Run, step: Step) -> list[Record]:
    try:
        return candidates_from_bytes(Blobs(Path(run.folder) / "blobs").get(str(step.sha256)))
    except (StoreError, CafeError, OSError):
        return []  # the run's folder was cleaned
