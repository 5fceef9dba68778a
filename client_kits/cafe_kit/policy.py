"""What a site allows. The site's admin owns ``policy.toml``; it stands above every order, whoever signed it.

Knows: limits. Does not know what was spent (the ledger says) or how anything is computed.
To extend: a limit is a field with a default, a line in ``TEMPLATE`` and a check with a code of its own (CAFE-310 to 316, 320, 346).
"""

from __future__ import annotations

import os
import tomllib
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cafe_kit.documents import write_first, write_whole
from cafe_kit.errors import CafeError
from cafe_kit.ledger import Spent, epsilon
from cafe_kit.orders import Order

PAUSED = "paused"  # a file of this name in the site's folder
_MODE = Path("outbox", "mode")  # how answers left when policy.toml was last read: it outlives that file
TEMPLATE = """\
# What this site allows. You own this file: no server can change it. It is read anew for every order.

# Which orders are answered: "hello" (versions; also takes in the finished adapter), "vote" (stage 1), "train" (stage 2).
kinds = ["hello", "vote", "train"]

# The most that all answers together, over all runs, may spend: epsilon at this delta, computed by the site from its own
# ledger. It counts releases with noise (unit: all records of this site). Remove the line "max_epsilon" for no limit.
max_epsilon = 10.0
delta = 1e-5

# The most that the answers to one run may spend, at the same delta. Without a number here, only max_epsilon counts.
# max_epsilon_per_run = 5.0

# The least noise, as a multiple of the clip, that a private answer must ask for. 0.0: whatever fits max_epsilon.
min_noise_multiplier = 0.0

# Whether a run may ask without noise. Such a run carries no formal guarantee and says so on every page.
allow_without_noise = true

# Who may add the noise of a private run. "server": this site's clipped numbers leave encrypted to the server, which adds the
# noise to the sum over all sites. "local": this site adds all of it before anything leaves.
trust = ["server", "local"]

# How answers leave. "auto": at once. "review": each one waits until you approve it (cafe-site outbox). "dry-run": nothing leaves
# and nothing is charged; what would have left is written to outbox/dry-run. It counts for answers made from then on.
outbox = "auto"

# The only hosts from which this site fetches an order's inputs by a link, and to which it brings an answer by one: its operator's
# object store. Without this line any host is asked, also one of your own network, and the server learns whether it answers.
# store_hosts = ["s3.example.org"]

# The most answers to one run.
max_rounds_per_run = 200

# The fewest records with which this site takes part.
min_rows = 2
"""


class Policy(BaseModel):
    """The limits of ``policy.toml``. A file that leaves out ``max_epsilon`` sets no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    kinds: Annotated[list[Literal["hello", "vote", "train"]], Field(default_factory=lambda: ["hello", "vote", "train"])]
    max_epsilon: Annotated[float, Field(gt=0)] | None = None
    max_epsilon_per_run: Annotated[float, Field(gt=0)] | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    min_noise_multiplier: Annotated[float, Field(ge=0)] = 0.0
    allow_without_noise: bool = True
    trust: Annotated[list[Literal["server", "local"]], Field(default_factory=lambda: ["server", "local"])]
    outbox: Literal["auto", "review", "dry-run"] = "auto"
    store_hosts: list[Annotated[str, Field(pattern=r"^[a-z0-9.:-]{1,253}$")]] | None = None
    max_rounds_per_run: Annotated[int, Field(ge=1)] = 200
    min_rows: Annotated[int, Field(ge=1)] = 2

    def check(self, order: Order, spent: Spent) -> None:
        """Allow ``order``, or say why not. ``spent``: what the ledger would hold after it.

        Raises:
            CafeError: CAFE-310 kind, CAFE-311 no noise, CAFE-346 whose noise, CAFE-312 too little noise, CAFE-313 budget, CAFE-314 rounds.
        """
        ask_admin = "The site's admin decides in policy.toml."
        touches_records = order.kind not in ("hello", "result")
        if (order.kind if touches_records else "hello") not in self.kinds:
            raise CafeError("CAFE-310", f"This site does not answer orders of the kind '{order.kind}'.", ask_admin)
        if not touches_records:
            return
        if order.privacy.mechanism == "none" and not self.allow_without_noise:
            raise CafeError("CAFE-311", "This site gives nothing out without noise.", "Start a private run, or ask the site's admin.")
        if order.privacy.mechanism == "gaussian" and order.privacy.trust not in self.trust:
            raise CafeError("CAFE-346", f"This site does not allow noise by '{order.privacy.trust}'.", ask_admin)
        noise = order.privacy.noise_multiplier
        if order.privacy.mechanism == "gaussian" and (noise == 0 or noise < self.min_noise_multiplier):
            raise CafeError("CAFE-312", "The order asks for less noise than this site allows.", ask_admin)
        if _over(self.max_epsilon, spent.mu_squared, self.delta):
            raise CafeError(
                "CAFE-313",
                f"This answer would exceed the site's privacy limit, ε {self.max_epsilon:g} at delta {self.delta:g}.",
                "The site's admin may raise max_epsilon in policy.toml; what is spent stays spent.",
            )
        if _over(self.max_epsilon_per_run, spent.in_run, self.delta):
            raise CafeError(
                "CAFE-313",
                f"This answer would exceed the site's privacy limit of one run, ε {self.max_epsilon_per_run:g} at delta {self.delta:g}.",
                "The site's admin may raise max_epsilon_per_run in policy.toml; what is spent stays spent.",
            )
        if spent.answers > self.max_rounds_per_run:
            raise CafeError("CAFE-314", f"This run has asked this site {self.max_rounds_per_run} times, which is the limit.", ask_admin)

    def allows_link(self, url: str) -> bool:
        """Whether this host may be asked: it is named, or the name of a bucket stands before one that is."""
        host = urlsplit(url).hostname or ""
        return self.store_hosts is None or any(host == known or host.endswith(f".{known}") for known in self.store_hosts)

    def check_rows(self, rows: int) -> None:
        """Refuse to take part with too few records; the sentence names the limit, not the count.

        Raises:
            CafeError: CAFE-315.
        """
        if rows < self.min_rows:
            raise CafeError(
                "CAFE-315",
                f"The site has fewer than the {self.min_rows} records that its policy wants.",
                "Add data, or lower min_rows in policy.toml.",
            )


def _over(limit: float | None, mu_squared: Fraction, delta: float) -> bool:
    return limit is not None and epsilon(mu_squared, delta) > limit


def check_not_paused(home: Path) -> None:
    """Whether the admin lets this site answer at all; ``home`` holds a file ``paused`` while he does not.

    Raises:
        CafeError: CAFE-320.
    """
    if os.path.lexists(home / PAUSED):
        raise CafeError("CAFE-320", "This site is paused by its admin and answers nothing.", "It goes on after: cafe-site resume")


def last_outbox(home: Path) -> Literal["auto", "review", "dry-run"]:
    """How answers left when this site's policy was last read. Where nobody knows, each waits for the admin's word."""
    with suppress(OSError, UnicodeDecodeError):
        noted = (home / _MODE).read_text(encoding="utf-8")
        if noted in ("auto", "review", "dry-run"):
            return noted  # type: ignore[return-value]
    return "review"


def _note(note: Path, mode: str) -> None:
    """A disk that does not take it is no reason to refuse: without a note the cautious mode counts."""
    try:
        if not note.exists() or note.read_bytes() != mode.encode():
            note.parent.mkdir(mode=0o700, exist_ok=True)
            write_whole(note, mode.encode())
    except OSError:
        with suppress(OSError):
            note.unlink()


def load_policy(path: Path) -> Policy:
    """Read ``policy.toml``; write it with defaults and comments if it is not there and nobody has joined with other limits.

    Raises:
        CafeError: CAFE-316, naming the line or the setting; CAFE-116 when the policy of a site that has joined was removed.
    """
    try:
        if not path.exists():
            if (path.parent / "site.toml").exists():
                raise CafeError(
                    "CAFE-116",
                    "The site's policy.toml is gone; without the limits that were consented to, nothing is answered.",
                    "Put it back, or write these limits anew: cafe-site limits restore",
                )
            write_first(path, TEMPLATE.encode())  # a power cut that leaves the name and no text would leave no limit
        policy = Policy.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        if path.name == "policy.toml" and (path.parent / "site.toml").exists():
            _note(path.parent / _MODE, policy.outbox)
        return policy
    except ValidationError as error:
        first = error.errors()[0]
        where, known = ".".join(str(part) for part in first["loc"]), first.get("ctx", {}).get("expected", "")
        raise CafeError(
            "CAFE-316",
            f"policy.toml: the setting '{where}' is unknown or not allowed so" + (f"; it may be {known}." if known else "."),
            "Correct it, or take it away and run: cafe-site limits restore",
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise CafeError("CAFE-316", "policy.toml is not TOML.", "Correct it, or take it away and run: cafe-site limits restore") from None
    except OSError as error:
        raise CafeError(
            "CAFE-316", f"policy.toml cannot be read or written ({error.strerror}).", "Check the rights of the site's folder."
        ) from None
