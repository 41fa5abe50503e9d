"""Tries each language model with one tiny request, and checks that the spending limit can be enforced."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from saeval._util import InputError, LLMError, Refused
from saeval.llm.budget import Budget
from saeval.llm.ledger import Call, CallLedger, Earlier
from saeval.llm.retries import Attempts
from saeval.llm.role import RoleSettings
from saeval.plugin.base import LLM
from saeval.records import LogprobRequest, Message, Reply, Request, Usage

PROBE = "Answer with the word ok."
_SCORED = LogprobRequest(("A first",), (" word",))
_TOKENS = 16  # the fewest that every provider allows


class Asker(NamedTuple):
    """A role whose model is asked.

    Attributes:
        role: Role of the spec.
        llm: The plugin that makes the calls.
        model: Model as the spec names it.
        settings: The role's settings.
    """

    role: str
    llm: LLM
    model: str
    settings: RoleSettings


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
    """Try every model over a network that no earlier sitting of the run has tried.

    Args:
        askers: The roles.
        log: The run's ledger, which gets a line for each try.
        budget: The run's spending limit.
        earlier: Earlier sittings, from the ledger.
        patience: Seconds to wait for a server that asks for time.
        unpriced: Whether the run may begin although its limit cannot hold calls of unknown price.
        tell: Where a user is told what the run waits for.

    Raises:
        InputError: If a model does not answer, or a limit cannot hold what it costs.
    """
    asked = [asker for asker in askers if not (asker.llm.in_process or asker.llm.batches)]
    new = [asker for asker in asked if (asker.role, asker.model) not in earlier.tried]
    try:
        usages = await asyncio.gather(*(_tried(asker, log, patience, tell) for asker in new))
    finally:
        for asker in new:
            await asker.llm.aclose()
    told: dict[str, Usage] = {asker.role: usage for asker, usage in zip(new, usages, strict=True)}
    for usage in usages:
        budget.spent += usage.usd or 0.0
    if budget.limit is not None and not unpriced:
        for asker in asked:
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
    """Try a model until it answers, as calls are tried; write down how it ended, and return what it took."""
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
                return Usage(usd=None)  # something about this request; the run's own may be answered
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
    """Ask once; a refusal or an empty reply is an answer, too, since key, model and server are right."""
    llm, settings = asker.llm, asker.settings
    try:
        async with asyncio.timeout(settings.timeout):
            if llm.can_score:
                return Reply("", (await llm.logprobs(_SCORED)).usage)
            request = Request((Message("user", PROBE),), max_tokens=_TOKENS, temperature=settings.temperature)
            return await llm.complete(request)
    except TimeoutError:
        what = f"{asker.model}: no answer within {settings.timeout:g} s"
        raise LLMError(what, retryable=True) from None
    except LLMError as error:
        if isinstance(error, Refused) or error.cut or error.usage is not None:
            return Reply("", error.usage or Usage())
        raise
