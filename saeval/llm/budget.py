"""Enforces the spending limit of a run."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Callable

from saeval._util import BudgetExceeded
from saeval.records import Usage

_FIRST = 4  # calls of a role in flight before any is billed
_GROWTH = 2  # calls in flight per billed call, so that a few cheap bills do not let many expensive calls through

log = logging.getLogger("saeval")


def known_dollars(usage: Usage) -> float:
    """Return the cost of a call in dollars; 0 if it is unknown, negative or not finite."""
    return usage.usd if usage.usd is not None and 0.0 < usage.usd < math.inf else 0.0


class Budget:
    """The spending limit of a run, shared by all its roles.

    A role's calls in flight count with the most that they can cost by their prompts and token limits, or as if each
    cost as much as the role's most expensive call so far, if that is more. A call starts only if it fits beside them.
    If none is in flight, one is made although it may exceed the limit. Each role's first calls are few (see
    `_GROWTH`), because prices may be unknown, or servers may ignore token limits.

    Args:
        limit: Dollars; None for no limit.
        spent: Dollars spent in earlier sessions of the run, and in other runs under the same limit.
        workers: Number of processes that spend the limit together, each with such an object; each may spend an equal
            share of what is left.

    Attributes:
        calls: Number of calls in this session.
        unknown: Number of calls of unknown price; the limit does not cover them.
    """

    def __init__(self, limit: float | None, spent: float = 0.0, *, workers: int = 1):
        self.limit = limit
        self.spent = self._told = spent
        self._workers = workers
        self.calls = 0
        self.unknown = 0
        self._roles: list[RoleSpending] = []

    def role(self, *, free: bool = False) -> RoleSpending:
        """Return a new role's share of the spending.

        Args:
            free: Whether its calls wait for no others: they cost nothing, or are sent together.
        """
        found = RoleSpending(self, free=free)
        self._roles.append(found)
        return found

    def check(self) -> None:
        """Check that another call may be made.

        Raises:
            BudgetExceeded: If the spending has reached the limit.
        """
        if self.limit is not None and self.spent >= self.limit:
            raise self.exceeded()

    def exceeded(self) -> BudgetExceeded:
        """Return the error that stops the run."""
        return BudgetExceeded(
            f"${self.spent:.4f} spent of ${self.limit or 0.0:.4f} allowed; rerun with a higher --max-cost to resume"
        )

    def add(self, usage: Usage, model: str, known: float = 0.0) -> None:
        """Add the cost of a call; at the first call of unknown price, warn that the limit does not cover it.

        Args:
            usage: Usage of the call.
            model: The model, as the spec names it.
            known: Dollars that it cost at least, if its price is not fully known.
        """
        self.calls += 1
        self.spent += max(known, known_dollars(usage))
        if usage.usd is None or not 0.0 <= usage.usd < math.inf:
            self.unknown += 1
            if self.unknown == 1 and self.limit is not None:
                log.warning(
                    "%s: its price is unknown, so the spending limit cannot hold it; "
                    "give the role usd_per_million_input and usd_per_million_output",
                    model,
                )

    @property
    def idle(self) -> bool:
        """Whether no call that may cost something is in flight."""
        return all(role.free or not role.in_flight for role in self._roles)

    def fits(self, role: RoleSpending, most: float = 0.0) -> bool:
        """Whether another call of a role may start now.

        Args:
            role: The role.
            most: The most dollars that the call can cost; 0 if that is unknown.
        """
        if self.limit is None:
            return True
        if self.spent >= self.limit:
            return False
        if role.free or self.idle:
            return True
        if role.in_flight >= max(_FIRST, _GROWTH * role.calls):
            return False
        others = sum(self._expected(other) for other in self._roles if other is not role)
        own = self.spent - self._told + others + self._expected(role, 1, most)
        return own <= (self.limit - self._told) / self._workers

    def update(self, spent: float) -> None:
        """Set the dollars that all workers together have spent, and let the calls through that fit now."""
        self._told = max(self._told, spent)
        self.spent = max(self.spent, spent)
        self.admit()

    def _expected(self, role: RoleSpending, more: int = 0, most: float = 0.0) -> float:
        """Return the dollars that a role's calls in flight may cost, with `more` calls that cost at most `most`."""
        if role.free:
            return 0.0
        largest = role.largest if role.calls else max(other.largest for other in self._roles)
        return max(role.reserved + most, (role.in_flight + more) * largest)

    def admit(self) -> None:
        """Let the calls through that fit now; if none ever will, let all know."""
        for role in self._roles:
            while role.waiting:
                most = role.next_most()
                fits = self.fits(role, most)
                if not (fits or self.idle):
                    break
                role.wake(most if fits else None)


class RoleSpending:
    """A role's calls in flight and what its calls cost so far.

    Create it with `Budget.role`. It only decides which calls may start; `Budget.add` counts what the run has spent.

    Attributes:
        in_flight: Number of calls in flight.
        reserved: The most dollars that they can cost together, as far as that is known.
        calls: Number of calls that were billed.
        largest: Dollars of the most expensive call so far.
        waiting: Calls that wait until others are billed, and what returns the most that each can cost.
    """

    def __init__(self, budget: Budget, *, free: bool):
        self._budget, self._free = budget, free
        self.in_flight = self.calls = 0
        self.reserved = self.largest = 0.0
        self.waiting: OrderedDict[asyncio.Future[float | None], Callable[[], float]] = OrderedDict()

    @property
    def free(self) -> bool:
        """Whether calls wait for no others; true of a role whose first calls cost nothing."""
        return self._free or (self.calls > 0 and not self.largest)

    async def enter(self, most: Callable[[], float] = lambda: 0.0) -> float:
        """Wait until another call fits the budget; `leave` has to follow once it is billed or has failed.

        Args:
            most: Returns the most dollars that the call can cost if it starts now; 0 if that is unknown.

        Returns:
            The dollars reserved for the call, which `leave` releases.

        Raises:
            BudgetExceeded: If the spending has reached the limit and nothing is in flight.
        """
        if not self.waiting:
            dollars = self._most(most)
            if self._budget.fits(self, dollars):
                self._start(dollars)
                return dollars
        if self._budget.idle:
            self._budget.check()
        place: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()
        self.waiting[place] = most
        try:
            admitted = await place
        except asyncio.CancelledError:
            self.waiting.pop(place, None)
            if place.done() and not place.cancelled() and (reserved := place.result()) is not None:
                self.leave(reserved)
            raise
        if admitted is None:
            raise self._budget.exceeded()
        return admitted

    def leave(self, reserved: float = 0.0) -> None:
        """Record that a call has ended, release what `enter` reserved for it, and let others through."""
        self.in_flight -= 1
        self.reserved = self.reserved - reserved if self.in_flight else 0.0
        self._budget.admit()

    def add(self, usage: Usage) -> None:
        """Add the cost of a call to what later calls are expected to cost."""
        self.calls += 1
        self.largest = max(self.largest, known_dollars(usage))

    def next_most(self) -> float:
        """Return the most dollars that the first call that waits can cost."""
        return self._most(next(iter(self.waiting.values())))

    def wake(self, reserved: float | None) -> None:
        """Let the first call that waits through with what it reserves, or let it know that the limit is reached."""
        place, _ = self.waiting.popitem(last=False)
        if not place.done():
            if reserved is not None:
                self._start(reserved)
            place.set_result(reserved)

    def _most(self, most: Callable[[], float]) -> float:
        return 0.0 if self._free or self._budget.limit is None else most()

    def _start(self, reserved: float) -> None:
        self.in_flight += 1
        self.reserved += reserved
