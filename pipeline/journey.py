"""The way of one federation from its sites to an adapter that was tried, in five steps, and what is to be done next.

Knows what a run has made and what it does now; computes words and numbers for *Home*. Draws nothing, keeps nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline import catalogue, overview
from pipeline.catalogue import Made
from pipeline.federations import Federation
from pipeline.overview import Overview
from server_store.desk import Desk
from server_store.rows import Run

NOT_YET, NOT_NEEDED, SO_FAR = "Not yet", "Not needed", "So far"

# phase of a run, as its worker tells it → what a person should know about it; the first that fits
_GUIDE = (
    (r"starting", "The worker starts. You may close this page at any time: the run goes on by itself."),
    (r"sites", "Every site is asked whether it is there and can read its own data."),
    (r"evaluate: zero shot", "The untouched base model takes the public test first, so that you see later what the training brought."),
    (r"stage 1: propose", "The server's model writes candidate texts from public words alone. No site has been asked for anything yet."),
    (r"stage 1: vote", "Now the sites without a GPU vote for the candidates that are nearest to their own records. {votes}"),
    (r"stage 1: vary", "The winners of the vote are kept, and the model writes variations of them for the next vote."),
    (r"stage 1: expand", "After the last vote the model writes more texts like the winners. This costs no privacy."),
    (r"stage 2: warm start", "The model learns from the synthetic texts alone, before any site trains."),
    (r"evaluate: synthetic only", "The adapter of the synthetic texts alone takes the public test: the score to beat."),
    (r"stage 2: round", "{training} All updates together become the next adapter."),
    (r"evaluate", "The new adapter takes the public test. A higher score each round is a good sign; a small dip is normal."),
    (r"stage \d", "The run is at work."),
    (r"", "The models are set up for this machine, once; that may take some minutes. No site has been asked for anything yet."),
)
_WEAK = "the server trains on the synthetic texts in place of the sites without one"
_STRONG = "Now the sites with a GPU train on their own records"


@dataclass(frozen=True)
class Step:
    """One of the five. ``state``: a state word, or *Not yet*, *Not needed*. ``page``: where its button leads."""

    title: str
    state: str
    number: str
    button: str
    page: str  # sites | generate | datasets | train | adapters | try_it | runs
    next: bool = False

    @property
    def done(self) -> bool:
        return self.state in ("Done", NOT_NEEDED)


@dataclass(frozen=True)
class Journey:
    """Where a federation stands. ``seen`` and ``made`` are None before its first run; ``questions``: asked in the chat."""

    federation: Federation | None
    seen: Overview | None
    made: Made | None
    steps: tuple[Step, ...]
    sites: int
    rows: int | None
    questions: int

    @property
    def next(self) -> Step | None:
        return next((step for step in self.steps if step.next), None)


def run_of(store: Desk, federation: Federation | None) -> Run | None:
    """The newest run of this federation; without one, the newest of all."""
    return next((run for run in store.runs() if federation is None or run.name == federation.name), None)


def look(store: Desk, federation: Federation | None) -> Journey:
    """Where this federation's newest run stands now."""
    run = run_of(store, federation)
    seen = overview.look(store, run.id) if run else None
    made = catalogue.made(store, run.id) if run else None
    sites = _sites(federation, seen)
    rows = made.synthetic[-1].rows if made and made.synthetic else None
    questions = len(store.chats(run.id, 1000)) if run else 0
    joined = len(store.steps(run.id, "site/")) if run else 0
    steps = _with_next(
        [
            _joined(seen, sites, joined),
            _synthetic(store, seen, made, rows),
            _training(seen, made),
            _adapter(seen, made),
            _tried(made, questions),
        ],
        seen,
    )
    return Journey(federation, seen, made, tuple(steps), sites, rows, questions)


def guide(seen: Overview) -> str:
    """One or two sentences about what happens now, for somebody who has read nothing."""
    sentence = next(text for pattern, text in _GUIDE if re.match(pattern, seen.phase))
    settings = seen.settings
    kinds = {site.kind for site in settings.sites} if settings else {"cpu", "gpu"}
    noised = settings is not None and settings.privacy.stage1 is not None
    training = f"{_STRONG}, and {_WEAK}." if len(kinds) > 1 else f"{_STRONG}." if "gpu" in kinds else f"Now {_WEAK}."
    votes = "No record leaves a site: only its counted votes do" + (", and noise hides what any one site said." if noised else ".")
    return sentence.format(votes=votes, training=training)


# -- the five steps ----------------------------------------------------------------------------------------------------


def _sites(federation: Federation | None, seen: Overview | None) -> int:
    if seen and seen.settings and (seen.run.active or federation is None):
        return len(seen.settings.sites)
    return len(federation.data.get("sites") or []) if federation else 0


def _joined(seen: Overview | None, sites: int, joined: int) -> Step:
    if seen is None:
        return Step("Sites joined", "Draft", _count(sites, "site"), "Open sites" if sites else "Add a site", "sites")
    asked = len(seen.settings.sites) if seen.settings else sites
    state = "Done" if joined >= asked > 0 else _now(seen)
    return Step("Sites joined", state, f"{joined} of {asked}", "Open sites", "sites")


def _synthetic(store: Desk, seen: Overview | None, made: Made | None, rows: int | None) -> Step:
    title = "Synthetic data"
    if seen is None:
        return Step(title, "Draft", "–", "Plan and start", "generate")
    if seen.settings and not seen.settings.names("cpu"):
        return Step(title, NOT_NEEDED, "no site without a GPU", "Open Generate", "generate")
    if seen.awaits_approval:
        return Step(title, seen.state, _count(rows or 0, "row"), "Approve or reject", "datasets")
    word = store.step(seen.run.id, f"stage1/{seen.attempt}/approval")
    if word is not None and word.facts["approved"]:
        return Step(title, "Done", _count(rows or 0, "row"), "Read them", "datasets")
    begun = made is not None and seen.stage == 1
    number = f"vote {min(max(seen.round, 1), seen.rounds)} of {seen.rounds}" if begun and seen.rounds else "–"
    return Step(title, _now(seen), number, "Watch", "generate")


def _training(seen: Overview | None, made: Made | None) -> Step:
    rounds = seen.settings.stage2.rounds if seen and seen.settings else 0
    done = made.newest.round if made and made.newest else 0
    number = f"round {done} of {rounds}" if rounds else "–"
    if made and made.final:
        return Step("Training", "Done", number, "See the curve", "train")
    state = _now(seen) if seen and seen.stage == 2 else NOT_YET
    return Step("Training", state, number, "Watch" if state != NOT_YET else "Open Train", "train")


def _adapter(seen: Overview | None, made: Made | None) -> Step:
    if made is None or made.newest is None:
        return Step("Adapter", NOT_YET, "–", "Open Adapters", "adapters")
    state = "Done" if made.final else SO_FAR
    return Step("Adapter", state, made.newest.score.shown, "Look at it", "adapters")


def _tried(made: Made | None, questions: int) -> Step:
    state = "Done" if questions else NOT_YET
    number = _count(questions, "question") if questions else "–"
    return Step("Tried", state, number, "Try it", "try_it")


def _now(seen: Overview) -> str:
    """The run's state for the step that it is in; a run that is done has no such step."""
    return NOT_YET if seen.state == "Done" else seen.state


def _with_next(steps: list[Step], seen: Overview | None) -> list[Step]:
    """Mark the one step that is to be done now; behind it, what has no result of its own is *Not yet*."""
    at = next((number for number, step in enumerate(steps) if not step.done), len(steps))
    if seen is None and steps[0].number != "0 sites":
        at = 1  # sites are there: the form comes next
    marked = []
    for number, step in enumerate(steps):
        state = NOT_YET if number > at and not step.done and step.title != "Adapter" else step.state
        marked.append(Step(step.title, state, step.number, step.button, step.page, next=number == at))
    return marked


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
