"""Enforces the spending limit of a run."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque

from saeval._util import BudgetExceeded
from saeval.records import Usage

_UNPRICED = 4  # calls in flight of roles without any bill yet; every role may have one

log = logging.getLogger("saeval")


def known_dollars(usage: Usage) -> float:
    """Return the cost of a call in dollars; 0 if it is unknown, negative or not finite."""
    return usage.usd if usage.usd is not None and 0.0 < usage.usd < math.inf else 0.0


class Budget:
    """The spending limit of a run, shared by all its roles.

    Calls in flight count with the mean cost of their role's calls so far, so that the limit is exceeded by little
    however many there are. The last call before the limit is made although it may exceed it.

    Args:
        limit: Dollars; None for no limit.
        spent: Dollars spent in earlier sessions of the run, and in other runs under the same limit.

    Attributes:
        calls: Number of calls in this session.
        unknown: Number of calls of unknown price; the limit does not cover them.
    """

    def __init__(self, limit: float | None, spent: float = 0.0):
        self.limit = limit
        self.spent = spent
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

    def fits(self, role: RoleSpending) -> bool:
        """Whether another call of a role may start now."""
        if self.limit is None:
            return True
        if self.spent >= self.limit:
            return False
        if role.free or self.idle:
            return True
        if not role.calls:
            if not role.in_flight:  # so that the cost of its calls becomes known
                return True
            if sum(other.in_flight for other in self._roles if not (other.calls or other.free)) >= _UNPRICED:
                return False
        expected = self.spent + sum(other.in_flight * self._estimate(other) for other in self._roles)
        return expected + self._estimate(role) <= self.limit

    def _estimate(self, role: RoleSpending) -> float:
        """Return a call's expected dollars: its role's mean; before that is known, the highest mean of any role."""
        if role.calls or role.free:
            return role.mean
        return max(other.mean for other in self._roles)

    def admit(self) -> None:
        """Let the calls through that fit now; if none ever will, let all know."""
        for role in self._roles:
            while role.waiting and (self.idle or self.fits(role)):
                role.wake(admitted=self.fits(role))


class RoleSpending:
    """A role's calls in flight and what its calls cost so far.

    Create it with `Budget.role`. It only decides which calls may start; `Budget.add` counts what the run has spent.

    Attributes:
        in_flight: Number of calls in flight.
        calls: Number of calls that were billed.
        waiting: Calls that wait until others are billed.
    """

    def __init__(self, budget: Budget, *, free: bool):
        self._budget, self._free = budget, free
        self._dollars = 0.0
        self.in_flight = self.calls = 0
        self.waiting: deque[asyncio.Future[bool]] = deque()

    @property
    def free(self) -> bool:
        """Whether calls wait for no others; true of a role whose first calls cost nothing."""
        return self._free or (self.calls > 0 and not self._dollars)

    @property
    def mean(self) -> float:
        """Mean dollars per call so far; 0 if none is known or needs to be."""
        return self._dollars / self.calls if self.calls and not self._free else 0.0

    async def enter(self) -> None:
        """Wait until another call fits the budget; `leave` has to follow once it is billed or has failed.

        Raises:
            BudgetExceeded: If the spending has reached the limit and nothing is in flight.
        """
        if not self.waiting and self._budget.fits(self):
            self.in_flight += 1
            return
        if self._budget.idle:
            self._budget.check()
        place: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.waiting.append(place)
        try:
            admitted = await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.result():
                self.leave()
            raise
        if not admitted:
            raise self._budget.exceeded()

    def leave(self) -> None:
        """Record that a call has ended, and let others through."""
        self.in_flight -= 1
        self._budget.admit()

    def add(self, usage: Usage) -> None:
        """Add the cost of a call to what the mean is taken over."""
        self.calls += 1
        self._dollars += known_dollars(usage)

    def wake(self, *, admitted: bool) -> None:
        """Let the first call that waits through, or let it know that the limit is reached."""
        place = self.waiting.popleft()
        if not place.done():
            self.in_flight += admitted
            place.set_result(admitted)
