"""Whether an order is meant for this site, asks about what was agreed, and names only places where this site looks.

Knows names, tasks, paths and hosts. Does not know who signed the order, what it may cost, or what lies at a place. The transport is
unsigned: whoever is on the way may write anything into it, so nothing is followed that leads out of what both sides share.
"""

from __future__ import annotations

from pathlib import Path

from cafe_kit.errors import CafeError
from cafe_kit.links import is_link
from cafe_kit.orders import PROTOCOL, SERVER_SEATS, Order, Transport
from cafe_kit.policy import Policy
from cafe_kit.seat_config import SeatConfig
from cafe_kit.task import Task
from cafe_kit.work import INPUTS, PROBE


class Address:
    """The site that ``config`` tells of."""

    def __init__(self, config: SeatConfig) -> None:
        self._config = config
        self._home, self._data = Path(config.home).resolve(), config.source().path.resolve()
        self._reach = None if config.reach is None else [Path(folder).resolve() for folder in config.reach]

    def check(self, order: Order, transport: Transport, policy: Policy) -> None:
        """Whether the order may be looked at.

        Raises:
            CafeError: CAFE-103 protocol, 104 another site's, 105 inputs, 344 another task, 345 and 131 places.
        """
        if order.protocol != PROTOCOL:
            raise CafeError("CAFE-103", f"The order speaks protocol {order.protocol}, this kit speaks {PROTOCOL}.", "Update the older one.")
        if order.site != self._config.site and not self._is_proxy(order):
            raise CafeError("CAFE-104", "The order is for another site.", "Check which site this kit was made for.")
        wanted = INPUTS[order.kind] | ({"records"} if order.site != self._config.site else set())
        wanted |= PROBE.get(order.kind, set()) & order.inputs.keys()
        if set(order.inputs) != wanted or set(transport.inputs) != wanted:
            raise CafeError("CAFE-105", f"These are not the inputs of a {order.kind} order.", "Kit and server must be of one version.")
        if not self._is_agreed(order.task):
            raise CafeError("CAFE-344", "The order is about another task than the one that this site joined for.", "Make a new kit for it.")
        self._check_places(order, transport, policy)

    def in_whose_name(self, order: Order) -> str:
        """In which an order is refused: a proxy's, where this seat stands in for it, else the site's own."""
        return order.site if self._config.stands_in and order.site.startswith(SERVER_SEATS) else self._config.site

    def _check_places(self, order: Order, transport: Transport, policy: Policy) -> None:
        links = [where for where in (*transport.inputs.values(), transport.output) if is_link(where)]
        looks = all(where in links or self._reaches(where) for where in transport.inputs.values())
        if not looks or not all(policy.allows_link(where) for where in links):
            raise CafeError(
                "CAFE-345", "The order names a place where this site does not look.", "Check the exchange folder, or the store."
            )
        if order.kind not in ("hello", "result") and not self._may_write(transport.output):
            raise CafeError(
                "CAFE-131",
                "The answer may not be put there: it is no absolute path, or the site's own folder or data.",
                "Check the server's exchange folder.",
            )

    def _is_proxy(self, order: Order) -> bool:
        """An order on public records, for which this seat stands in."""
        seat = self._config.stands_in and order.site.startswith(SERVER_SEATS)
        return seat and order.kind == "train" and order.privacy.mechanism == "none"

    def _is_agreed(self, task: Task) -> bool:
        """Other labels would ask other questions of the data: which label a record does not have is an answer, too."""
        own = self._config.task
        return own is None or (task.kind, sorted(task.labels)) == (own.kind, sorted(own.labels))

    def _reaches(self, where: str) -> bool:
        if self._reach is None:
            return True
        try:
            place = Path(where).resolve()
        except (OSError, RuntimeError, ValueError):  # a loop of links, a NUL
            return False
        return any(folder in place.parents for folder in self._reach)

    def _may_write(self, output: str) -> bool:
        if not output or is_link(output):
            return True
        if "\0" in output or not Path(output).is_absolute() or not self._reaches(output):
            return False
        place = Path(output).resolve()
        return place != self._data and self._home not in place.parents
