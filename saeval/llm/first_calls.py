"""Sends each language model one small test request, and checks that the spending limit can be enforced."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from saeval._util import InputError, LLMError, Refused
from saeval.llm.answers import asked
from saeval.llm.budget import Budget, known_dollars
from saeval.llm.closing import close
from saeval.llm.ledger import Call, CallLedger, Earlier
from saeval.llm.retries import Attempts
from saeval.llm.role import Asker
from saeval.records import LogprobReply, LogprobRequest, Message, Reply, Request, Usage

PROBE = "Answer with the word ok."
_SCORED = LogprobRequest(("A first",), (" word",))
_TOKENS = 16  # the smallest limit that every provider accepts


async def try_models(
    askers: Sequence[Asker],
    log: CallLedger,
    budget: Budget,
    earlier: Earlier,
    *,
    patience: float,
    unpriced: bool,
    tell: Callable[[str], None],
) -> None:
    """Send a test request to every remote model that no earlier session of the run has tested.

    Args:
        askers: The roles.
        log: The run's ledger, which gets a line per test request.
        budget: The run's spending limit.
        earlier: Earlier sessions, from the ledger.
        patience: Seconds to wait for a server that answers with a retry delay.
        unpriced: Whether the run may start although its limit does not cover calls of unknown price.
        tell: Called with a message to the user when the run has to wait.

    Raises:
        InputError: If a model does not answer, or its price is unknown although there is a spending limit.
    """
    remote = [asker for asker in askers if not (asker.llm.in_process or asker.llm.batches)]
    new = [asker for asker in remote if (asker.role, asker.model) not in earlier.tried]
    try:
        usages = await asyncio.gather(*(_tried(asker, log, patience, tell) for asker in new))
    finally:
        for asker in new:
            await close(asker, tell)
    told: dict[str, Usage] = {asker.role: usage for asker, usage in zip(new, usages, strict=True)}
    for usage in usages:
        budget.spent += known_dollars(usage)
    if budget.limit is not None and not unpriced:
        for asker in remote:
            _refuse_unknown_price(asker, told, earlier)


def _refuse_unknown_price(asker: Asker, told: Mapping[str, Usage], earlier: Earlier) -> None:
    settings = asker.settings
    stated = asker.role in told and told[asker.role].usd is not None
    given = settings.usd_per_million_input is not None and settings.usd_per_million_output is not None
    if not (stated or given or (asker.role, asker.model) in earlier.priced or asker.llm.prices() is not None):
        raise InputError(
            f"{asker.role}: the price of {asker.model} is unknown, so the spending limit cannot hold it; give the role "
            "usd_per_million_input and usd_per_million_output (0 for a server of your own), or run with --unpriced"
        )


async def _tried(asker: Asker, log: CallLedger, patience: float, tell: Callable[[str], None]) -> Usage:
    """Send the test request with the usual retries, log it in the ledger, and return its usage."""
    began = time.monotonic()
    tries = Attempts(f"{asker.role} {asker.model}", asker.settings.retries, patience)
    while True:
        tries.made += 1
        try:
            answer = await _asked(asker)
            break
        except LLMError as error:
            if (seconds := tries.wait_after(error)) is None:
                if error.retryable or error.lasting:
                    raise InputError(f"{asker.role}: {error}; nothing was collected yet") from None
                return Usage(usd=None)  # the fault may lie in the test request; the run's own requests may work
            if seconds > 1:
                tell(f"{asker.role}: waiting {seconds:.0f} s for a first answer ({error})")
            await asyncio.sleep(seconds)
    took = answer.usage
    milliseconds = round(1000 * (time.monotonic() - began), 1)
    log.add(
        Call(
            asker.role,
            asker.model,
            "",
            "",
            "ok",
            False,
            tries.made,
            took,
            milliseconds,
            served=answer.served,
            fingerprint=answer.fingerprint,
            probe=True,
        )
    )
    return took


async def _asked(asker: Asker) -> Reply:
    """Ask once; a refusal or an empty reply counts as an answer, since it shows that key, model and server work."""
    llm, settings = asker.llm, asker.settings
    try:
        async with asyncio.timeout(settings.timeout):
            if llm.can_score:
                scored = await asked(asker.model, llm.logprobs, _SCORED, LogprobReply)
                return Reply("", scored.usage)
            request = Request((Message("user", PROBE),), max_tokens=_TOKENS, temperature=settings.temperature)
            return await asked(asker.model, llm.complete, request, Reply)
    except TimeoutError:
        what = f"{asker.model}: no answer within {settings.timeout:g} s"
        raise LLMError(what, retryable=True) from None
    except LLMError as error:
        if isinstance(error, Refused) or error.cut or error.usage is not None:
            return Reply("", error.usage or Usage())
        raise
