"""The privacy statement of a run, and of a site over all its runs: one printed page for a data-protection officer.

Says what left, from which site, how often, under which guarantee, who agreed, what is not covered, and how to check it.
Takes its figures from the ledger's book and computes none of its own; knows nothing of how a page looks (``paper``).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from importlib.metadata import version

from cafe_kit.errors import CafeError

from pipeline import ledger_book, paper
from pipeline.accounting import ADJACENCY, NO_GUARANTEE, epsilon_spent, shown
from pipeline.catalogue import taken_over
from pipeline.home import home
from pipeline.ledger_book import Book, Entry, SiteTotal
from server_store.ledger import Charge
from server_store.rows import Run, Step
from server_store.store import Store

_STAGES = {1: "Stage 1, votes", 2: "Stage 2, training"}
_UNIT = {"client": "client (all records of one site)"}
_TRUST = {
    "server": "server (the operator's server adds the noise; it sees each site's clipped contribution until the release, then deletes it)",
    "local": "local (each site adds all the noise before anything leaves it)",
}


def html(run_id: str) -> str:
    """The statement of one run.

    Raises:
        StoreError: CAFE-655 for an unknown run, CAFE-661, CAFE-666 or CAFE-668 for a ledger from which nothing can be stated.
    """
    with closing(Store(home() / "store.db")) as store:
        run, steps = store.run(run_id), store.steps(run_id)
        book = _sound(ledger_book.read(store, run=run_id))
        taken = taken_over(next((step for step in steps if step.name == "stage1/1/synthetic"), None))
        source = taken.get("charged_to", "")
        entries = [one for one in book.entries if one.release.run == run_id or (one.release.run == source and one.release.stage == 1)]
        deltas = ledger_book.deltas_of(store, run_id)
        refusals = sum(row.state == "refused" for row in store.orders(run_id))
    groups = _per_site(entries, deltas)
    return paper.page(
        f"Privacy statement, run {run_id}",
        [
            paper.title("Privacy statement", f"Run {run_id} of the federation {run.name}. {_life(run)} Made {_date(time.time())}."),
            paper.summary(_sum(groups)),
            paper.section("What left the sites", _left(entries), _reused(source)),
            paper.section("What each site spent in this run", _sites(groups)),
            paper.section("Who agreed", paper.points(_agreed(run, steps, refusals))),
            _words(entries),
            _uncovered(),
            _checking(book, run_id, max((one.release.seq for one in entries), default=0)),
        ],
    )


def site_html(federation: str, site: str) -> str:
    """The statement of one site over all its runs. Raises as ``html``, and CafeError CAFE-660 for a site that was never charged."""
    with closing(Store(home() / "store.db")) as store:
        book = _sound(ledger_book.read(store))
        known = {run.id: ledger_book.deltas_of(store, run.id) for run in store.runs()}
    entries = [one for one in book.entries if one.federation == federation and site in one.sites]
    total = next((one for one in book.sites if (one.federation, one.site) == (federation, site)), None)
    if total is None:
        raise CafeError("CAFE-660", f"The ledger has no charge for site {site!r} of {federation!r}.", "Nothing was spent by it here.")
    rows = []
    for run in dict.fromkeys(one.release.run for one in entries):
        own = [one for one in entries if one.release.run == run]
        figure = _figure(own, site, known.get(run, {}))
        rows.append((run, _date(own[0].time), *_asked(own, site), figure))
    return paper.page(
        f"Privacy statement, site {site}",
        [
            paper.title("Privacy statement of a site", f"Site {site} of the federation {federation}. Made {_date(time.time())}."),
            paper.summary(_site_sum(total)),
            paper.section("Its runs", paper.table(("run", "first release", "releases", "answered", "spent"), rows)),
            paper.section("What left this site", _left(entries)),
            paper.section("Limit and the site's own ledger", paper.points(_own(total))),
            _words(entries),
            _uncovered(all_runs=True),
            _checking(book, "", max((one.release.seq for one in entries), default=0)),
        ],
    )


def _sound(book: Book) -> Book:
    """Nothing is stated from a ledger that was altered."""
    if book.problem:
        raise book.problem
    return book


# --- what left -------------------------------------------------------------------------------------------------------


def _left(entries: Sequence[Entry]) -> str:
    """Per stage and attempt: what, from whom, how often, with which noise."""
    if not entries:
        return paper.text("Nothing left any site: no release was made.")
    parts: dict[tuple[int, int], list[Entry]] = defaultdict(list)
    for entry in entries:
        parts[entry.release.stage, entry.release.attempt].append(entry)
    rows = []
    for (stage, attempt), own in sorted(parts.items()):
        sites = sorted({site for entry in own for site in entry.sites})
        where = _STAGES.get(stage, f"Stage {stage}") + (f" (attempt {attempt})" if attempt > 1 or (stage, 2) in parts else "")
        rows.append((where, _distinct(entry.what for entry in own), str(len(sites)), str(len(own)), _distinct(one.noise for one in own)))
    told = "Counted are releases: each is one sum over the sites. Records, texts of records and embeddings never leave a site."
    return paper.table(("stage", "what left each site", "sites", "releases", "noise"), rows) + paper.text(told)


def _reused(source: str) -> str:
    return (
        paper.text(f"The synthetic set was made by run {source}; what that run charged in stage 1 is part of this statement.")
        if source
        else ""
    )


# --- what was spent --------------------------------------------------------------------------------------------------

_Group = tuple[str, str, str, str]  # stages, releases, answered, spent


def _per_site(entries: Sequence[Entry], deltas: dict[int, float]) -> dict[_Group, list[str]]:
    """Sites whose lines are equal stand in one line, so that many sites fit on the page."""
    groups: dict[_Group, list[str]] = defaultdict(list)
    for site in sorted({site for entry in entries for site in entry.sites}):
        own = [entry for entry in entries if site in entry.sites]
        stages = " and ".join(str(stage) for stage in sorted({entry.release.stage for entry in own}))
        groups[stages, *_asked(own, site), _figure(own, site, deltas)].append(site)
    return groups


def _asked(entries: Sequence[Entry], site: str) -> tuple[str, str]:
    return str(len(entries)), str(sum(site in entry.release.inputs for entry in entries))


def _figure(entries: Sequence[Entry], site: str, deltas: dict[int, float]) -> str:
    """Epsilon at delta of these releases for one site, or that there is none."""
    if any(entry.mu2 is None for entry in entries):
        return NO_GUARANTEE
    delta = max(deltas.get(entry.release.stage, ledger_book.USUAL_DELTA) for entry in entries)
    return f"ε {epsilon_spent([_charge(entry, site) for entry in entries], delta):g} at δ {shown(delta)}"


def _charge(entry: Entry, site: str) -> Charge:
    one = entry.release
    return Charge(one.rid, one.run, one.stage, one.attempt, one.round, one.statistic, site, entry.mu2, one.terms)


def _sites(groups: dict[_Group, list[str]]) -> str:
    if not groups:
        return paper.text("No site was charged.")
    rows = [(", ".join(sites), *group) for group, sites in groups.items()]
    return paper.table(("sites", "stage", "releases", "answered", "spent, each of these sites"), rows)


def _sum(groups: dict[_Group, list[str]]) -> str:
    """The run in a sentence or two."""
    if not groups:
        return "Nothing was released in this run, and nothing was spent."
    bare = sum(len(sites) for group, sites in groups.items() if group[-1] == NO_GUARANTEE)
    covered = sum(map(len, groups.values())) - bare
    parts = []
    if covered:
        most = max((group[-1] for group in groups if group[-1] != NO_GUARANTEE), key=lambda figure: float(figure.split()[1]))
        parts.append(f"The most that a site spent with a guarantee: {most}, for {covered} {'site' if covered == 1 else 'sites'}.")
    if bare:
        parts.append(f"{bare} {'site' if bare == 1 else 'sites'} took part without noise: {NO_GUARANTEE}.")
    return " ".join(parts)


def _site_sum(total: SiteTotal) -> str:
    return f"Over {total.runs} {'run' if total.runs == 1 else 'runs'}: {total.sentence}"


def _own(total: SiteTotal) -> Iterable[str]:
    yield total.limit_sentence
    yield total.problem.message if total.problem else total.difference
    if total.reported is None or total.told:
        yield f"The site's own ledger is not on this machine; ask the site for its figure. {total.own_word}".rstrip()
    elif not total.difference and not total.problem:
        yield f"The site's own ledger agrees with this server's, release by release (last charge {total.own_head[:16]}…)."


# --- who agreed, in which words, how to check ------------------------------------------------------------------------


def _agreed(run: Run, steps: Sequence[Step], refusals: int) -> Iterable[str]:
    yield f"The operator{f' {run.operator}' if run.operator else ''} started the run on {_date(run.created)}."
    yield (
        "Each site checked every order against limits of its own (policy.toml) before it answered, and signed its answer; "
        + (f"{refusals} orders were refused." if refusals else "no order was refused.")
    )
    for step in steps:
        if step.name.startswith("stage1/") and step.name.endswith("/approval"):
            yield _approval(step)


def _approval(step: Step) -> str:
    attempt, facts = step.name.split("/")[1], step.facts
    if facts.get("approved") and facts.get("reason") == "automatic":
        return f"The synthetic set (attempt {attempt}) was approved automatically, as the run's settings say, on {_date(step.time)}."
    who = f"the operator {facts['operator']}" if facts.get("operator") else "the operator"
    word = "approved" if facts.get("approved") else "rejected"
    reason = f", reason: {' '.join(str(facts['reason']).split())[:200]}" if facts.get("reason") else ""
    out = f"; {len(facts['excluded'])} texts were left out" if facts.get("excluded") else ""
    return f"The synthetic set (attempt {attempt}) was {word} by {who} on {_date(step.time)}{reason}{out}."


def _words(entries: Sequence[Entry]) -> str:
    """What the guarantee means, for those releases that have one."""
    noised = [entry.release.terms for entry in entries if entry.mu2 is not None]
    if not noised:
        return ""
    units = _distinct(_UNIT.get(str(terms["unit"]), str(terms["unit"])) for terms in noised)
    trusts = _distinct(_TRUST.get(str(terms["trust"]), str(terms["trust"])) for terms in noised)
    return paper.section(
        "What the guarantee says",
        paper.points(
            [
                f"Unit: {units}. Adjacency: {ADJACENCY}: the released numbers would look nearly the same, had one site sent zeros.",
                "ε bounds how much more certain anybody can become about a whole site's data; δ is a small chance that the bound fails.",
                f"Trust: {trusts}.",
                f"Counted with dp-accounting {version('dp-accounting')} (privacy loss distributions, every site in each release,"
                " no amplification) and by the closed form of the Gaussian mechanism; no figure is given unless both agree to 0.1 %.",
            ]
        ),
    )


def _uncovered(*, all_runs: bool = False) -> str:
    return paper.section(
        "What is not covered",
        paper.points(
            [
                "Stages without noise: they have no formal guarantee.",
                "" if all_runs else "Other runs of the same sites: what they spent adds to this (see the statement of a site).",
                "Who takes part, the public label list, examples and test set, and what the base model has seen in its own training.",
            ]
        ),
    )


def _checking(book: Book, run: str, last: int) -> str:
    found = next((entry.release.hash for entry in book.entries if entry.release.seq == last), "")
    export = f"the export {f'of run {run} ' if run else ''}(Privacy ledger, JSON)"
    return paper.section(
        "How to verify",
        paper.text(
            "The chain of hashes over all entries is unbroken.",
            f"{export[:1].upper()}{export[1:]} holds every entry with its exact cost and hash. cafe doctor checks the chain.",
        ),
        paper.hash_line("Ledger head now:", book.head or "(no entry yet)"),
        paper.hash_line(f"Last charge on this page (entry {last}):", found) if found else "",
        paper.text("Keep this page: a ledger that no longer holds these hashes was replaced or altered."),
    )


def _life(run: Run) -> str:
    ended = f", ended {_date(run.finished)}" if run.finished and not run.active else ""
    return f"{run.shown_state}{ended}; started {_date(run.started or run.created)}."


def _distinct(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(texts))


def _date(seconds: float) -> str:
    return time.strftime("%d %b %Y %H:%M %Z", time.localtime(seconds))
