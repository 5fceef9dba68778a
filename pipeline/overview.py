"""A run as a person looks at it: what it does now, who is waited for, how long it may take, what needs the operator.

Knows the store's rows and a run's own settings. Decides nothing and keeps nothing: every look reads the store anew, so
that a page that was reloaded, or another tab, says the same. The words of a state are those of ``Run.shown_state``.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from cafe_kit.errors import CafeError

from pipeline.settings import PROXIES, PROXY, RunSettings, load
from server_store.rows import Metric, Progress, Run, SiteProgress, Step
from server_store.store import Store

_ASKED = re.compile(r"stage (?P<stage>[12]): (?:(?:vote|round) (?P<round>\d+) of \d+)?")
_SILENT_S = 600.0


@dataclass(frozen=True)
class SiteNow:
    """What one site, or the server in its place, does now. ``age_s``: since it told so last."""

    name: str
    kind: str  # cpu | gpu
    doing: str  # asked, vote, train, sent, refused, failed, late; "" where nothing was asked yet
    done: int
    of: int
    age_s: float
    by_server: bool  # the proxy that trains on the site's behalf

    @property
    def open(self) -> bool:
        """Whether an answer is still awaited."""
        return self.doing not in ("", "sent", "refused", "failed", "late")


@dataclass(frozen=True)
class Score:
    """One point of the curve: round 0 is the adapter of the synthetic set alone; None the base model."""

    round: int | None
    value: float
    n: int


@dataclass(frozen=True)
class Overview:
    """One look at a run. ``settings`` is None where the run's own file cannot be read any more."""

    run: Run
    state: str
    settings: RunSettings | None
    stage: int  # 0: before and between the stages
    phase: str
    share: float | None  # of the phase, at most 0.99; None: not known
    round: int
    rounds: int
    sentence: str
    waiting_for: str
    eta_s: float | None
    sites: tuple[SiteNow, ...]
    attempt: int
    awaits_approval: bool
    metric: str  # accuracy | loss
    scores: tuple[Score, ...]
    updated: float

    @property
    def best(self) -> Score | None:
        """The best of the federated rounds."""
        rounds = [score for score in self.scores if score.round]
        better = max if self.metric == "accuracy" else min
        return better(rounds, key=lambda score: score.value) if rounds else None

    @property
    def last(self) -> Score | None:
        return self.scores[-1] if self.scores else None


@dataclass(frozen=True)
class Need:
    """Something that waits for the operator."""

    run: str
    what: str  # approval | failure | lost | silent
    sentence: str


def look(store: Store, run_id: str) -> Overview:
    """One run now. Raises StoreError CAFE-655 for an unknown id."""
    run = store.run(run_id)
    state, progress, steps = run.shown_state, store.progress(run_id), store.steps(run_id)
    settings = settings_of(run)
    names = {step.name: step for step in steps}
    attempt = attempt_of(names)
    stage, number = _where(run, progress, names, attempt)
    rounds = 0 if settings is None or not stage else (settings.stage1.rounds if stage == 1 else settings.stage2.rounds)
    awaits = not run.active and waits_for_approval(names, attempt, settings)
    sites = _sites(settings, store.site_progress(run_id), run)
    metric, scores = _scores(store.metrics(run_id))
    phase = _phase(progress)
    share = min(0.99, progress.done / progress.of) if progress and progress.of else None
    waiting = _waiting(sites) if run.active else ""
    return Overview(
        run=run,
        state=state,
        settings=settings,
        stage=stage,
        phase=phase,
        share=share if run.active else None,
        round=number,
        rounds=rounds,
        sentence=_sentence(run, state, phase, awaits, attempt),
        waiting_for=waiting,
        eta_s=_eta(run, progress, share, stage, number, rounds, steps) if state == "Running" else None,
        sites=sites,
        attempt=attempt,
        awaits_approval=awaits,
        metric=metric,
        scores=scores,
        updated=max([run.heartbeat or run.created, run.finished or 0.0, progress.updated if progress else 0.0]),
    )


def needs(store: Store) -> list[Need]:
    """What waits for the operator, over all runs, the newest first."""
    found = []
    for run in store.runs():
        seen = look(store, run.id) if run.state in ("Failed", "Stopped") or run.active else None
        if seen is None:
            continue
        if seen.awaits_approval:
            found.append(Need(run.id, "approval", "The synthetic set waits for your approval."))
        elif seen.state == "Failed":
            found.append(Need(run.id, "failure", (run.error or {}).get("message", "The run failed.")))
        elif seen.state == "Lost contact":
            found.append(Need(run.id, "lost", "Its worker is gone or silent. Resume it; nothing that was done is done again."))
        found += [
            Need(run.id, "silent", f"Site {site.name} has been silent for {site.age_s / 60:.0f} minutes.")
            for site in seen.sites
            if run.active and site.open and site.age_s > _SILENT_S
        ]
    return found


def active(store: Store) -> Run | None:
    """The run that a status line shows: one that is carried now, else the newest."""
    runs = store.runs()
    return next((run for run in runs if run.active), runs[0] if runs else None)


def attempt_of(names: dict[str, Step]) -> int:
    """The attempt at a synthetic set that the run is at: one more than were rejected."""
    attempt = 1
    while (word := names.get(f"stage1/{attempt}/approval")) is not None and not word.facts["approved"]:
        attempt += 1
    return attempt


def waits_for_approval(names: dict[str, Step], attempt: int, settings: RunSettings | None) -> bool:
    """Whether a set was made that nobody has decided on."""
    asked = settings is not None and settings.stage1.approve == "operator"
    return asked and f"stage1/{attempt}/synthetic" in names and f"stage1/{attempt}/approval" not in names


def behind(seat: str) -> tuple[str, bool]:
    """The site that a seat is of, and whether the server sits there in its place."""
    if seat.startswith(PROXIES):  # the warm start
        return "all sites without a GPU", True
    return seat.removeprefix(PROXY), seat.startswith(PROXY)


def settings_of(run: Run) -> RunSettings | None:
    """As the run was started, from its own file; None where that cannot be read any more."""
    try:
        return load(Path(run.folder) / "config.yaml")
    except CafeError:
        return None


def _phase(progress: Progress | None) -> str:
    return progress.phase if progress else "starting"


def _where(run: Run, progress: Progress | None, names: dict[str, Step], attempt: int) -> tuple[int, int]:
    """Stage and round that the run is in."""
    if progress and (found := _ASKED.match(progress.phase)):
        stage = int(found["stage"])
        if found["round"]:
            return stage, int(found["round"])
    else:
        stage = 2 if f"stage2/{attempt}/fresh" in names else 1 if f"stage1/{attempt}/1/candidates" in names else 0
    done = [name for name in names if re.fullmatch(rf"stage{stage}/{attempt}/\d+/(adapter|votes/closed)", name)]
    return stage, len(done)


def _sites(settings: RunSettings | None, told: list[SiteProgress], run: Run) -> tuple[SiteNow, ...]:
    now = time.time() if run.active else (run.finished or time.time())
    kinds = {site.name: site.kind for site in settings.sites} if settings else {}
    by_name = {one.site: one for one in told}
    rows = []
    for name, kind in kinds.items():
        one = by_name.get(name)
        rows.append(_site(name, kind, one, now, by_server=False))
    for one in told:
        weak, by_server = behind(one.site)
        if by_server and kinds:
            rows.append(_site(weak, "cpu", one, now, by_server=True))
    return tuple(rows)


def _site(name: str, kind: str, one: SiteProgress | None, now: float, *, by_server: bool) -> SiteNow:
    if one is None:
        return SiteNow(name, kind, "", 0, 0, 0.0, by_server)
    return SiteNow(name, kind, one.phase, one.done, one.of, max(0.0, now - one.updated), by_server)


def _waiting(sites: tuple[SiteNow, ...]) -> str:
    """Who has not answered, and what he does."""
    awaited = [site for site in sites if site.open]
    if not awaited:
        return ""
    told = [f"{'the server for ' if site.by_server else ''}{site.name} ({_doing(site)})" for site in awaited[:4]]
    more = f" and {len(awaited) - 4} more" if len(awaited) > 4 else ""
    return ", ".join(told) + more


def _doing(site: SiteNow) -> str:
    if site.doing == "asked":
        return "was asked, has not begun"
    return f"{site.doing} {site.done} of {site.of}" if site.of else site.doing


def _scores(metrics: list[Metric]) -> tuple[str, tuple[Score, ...]]:
    """The public scores in the order of the curve."""
    own = [metric for metric in metrics if metric.name in ("accuracy", "loss")]
    order = {"zero_shot": -1, "synthetic_only": 0}
    place = {metric: order.get(metric.phase, metric.round) for metric in own}
    found = [
        Score(None if metric.phase == "zero_shot" else place[metric], metric.value, metric.n)
        for metric in sorted(own, key=place.__getitem__)
    ]
    return (own[0].name if own else "accuracy"), tuple(found)


def _sentence(run: Run, state: str, phase: str, awaits: bool, attempt: int) -> str:
    """What is going on, in one sentence."""
    if awaits:
        again = f" (attempt {attempt})" if attempt > 1 else ""
        return f"The synthetic set{again} is made and waits for your approval."
    if state == "Queued":
        return "The worker starts."
    if state == "Lost contact":
        return "Its worker is gone or has been silent for a minute. Resume it; nothing that was done is done again."
    if state == "Stopping":
        return f"Stops after this round; now: {phase}."
    if state == "Failed":
        return (run.error or {}).get("message", "")
    if state == "Stopped":
        return "Stopped by the operator; it can be resumed from where it stood."
    return "The adapter is ready." if state == "Done" else f"{phase[:1].upper()}{phase[1:]}."


def _eta(run: Run, progress: Progress | None, share: float | None, stage: int, number: int, rounds: int, steps: list[Step]) -> float | None:
    """Seconds to the end of the stage. From this stage's finished rounds, else from the share of the phase; None: too early."""
    if progress is None:
        return None
    ends = [step.time for step in steps if stage == 2 and re.fullmatch(r"stage2/\d+/\d+/score", step.name)]
    if len(ends) >= 2:
        each = (ends[-1] - ends[0]) / (len(ends) - 1)
        left = max(0, rounds - (len(ends) - 1)) * each
        return max(1.0, left - (time.time() - ends[-1]))
    if share is not None and share > 0.1:
        spent = progress.updated - progress.started
        return spent * (1 - share) / share
    return None
