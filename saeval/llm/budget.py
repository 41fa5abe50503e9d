"""Enforces the spending limit of a run."""

from __future__ import annotations

import logging
import math

from saeval._util import BudgetExceeded
from saeval.records import Usage

log = logging.getLogger("saeval")


def known_dollars(usage: Usage) -> float:
    """Return the cost of a call in dollars; 0 if it is unknown, negative or not finite."""
    return usage.usd if usage.usd is not None and 0.0 < usage.usd < math.inf else 0.0


class Budget:
    """The spending limit of a run, shared by all its roles.

    Args:
        limit: Dollars; None for no limit.
        spent: Dollars spent in earlier sessions of the run.

    Attributes:
        calls: Number of calls in this session.
        unknown: Number of calls of unknown price; the limit does not cover them.
    """

    def __init__(self, limit: float | None, spent: float = 0.0):
        self.limit = limit
        self.spent = spent
        self.calls = 0
        self.unknown = 0

    def check(self) -> None:
        """Check that another call may be made.

        Raises:
            BudgetExceeded: If the spending has reached the limit.
        """
        if self.limit is not None and self.spent >= self.limit:
            raise BudgetExceeded(
                f"${self.spent:.4f} spent of ${self.limit:.4f} allowed; rerun with a higher --max-cost to resume"
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
