"""Any provider that litellm knows."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.util import find_spec
from typing import Any

from pydantic import Field, JsonValue

from saeval.plugin import (
    LLM,
    InputError,
    LLMError,
    Refused,
    Reply,
    Request,
    cache_dir,
    check_address,
    check_receiver,
    content_hash,
    refuse_malicious,
)
from saeval_plugins.llms._as_sent import as_sent, unread_chat
from saeval_plugins.llms._bounds import bounded_httpx
from saeval_plugins.llms.batches import Batches, Progress, answered
from saeval_plugins.llms.openai_chat import (
    chat_body,
    error_from_status,
    object_from,
    one_line,
    passes,
    reply_from_chat,
    usage_from,
)
from saeval_plugins.llms.processes import Processes
from saeval_plugins.llms.retry_after import wait_asked_for
from saeval_plugins.llms.server_quirks import ServerQuirks, unwrapped

_RETRYABLE = {
    "RateLimitError", "Timeout", "APIConnectionError", "InternalServerError", "ServiceUnavailableError",
    "BadGatewayError",
    "APIError", "JSONDecodeError", "APIResponseValidationError", "RecursionError",
}  # fmt: skip
_BATCHING = ("openai", "azure", "hosted_vllm", "litellm_proxy")  # providers whose batches are in OpenAI's format
_OVER = ("completed", "expired", "failed", "cancelled")
_OWN_SERVERS = frozenset(
    (
        "hosted_vllm",
        "ollama",
        "ollama_chat",
        "lm_studio",
        "llamafile",
        "xinference",
        "openai_like",
        "litellm_proxy",
        "lemonade",
        "docker_model_runner",
        "triton",
        "oobabooga",
    )
)
"""Providers of litellm that are a server of one's own: the key in its variable is for whatever address is given."""
_OPENAI_FORMAT = _OWN_SERVERS - {"ollama", "ollama_chat", "triton", "oobabooga", "openai_like"} | frozenset(
    [
        "openai",
        "azure",
        "cerebras",
        "deepinfra",
        "deepseek",
        "fireworks_ai",
        "groq",
        "mistral",
        "nebius",
        "nvidia_nim",
        "openrouter",
        "sambanova",
        "together_ai",
        "xai",
    ]
)
"""Providers that get a request body in OpenAI's format, so that a schema can be put into it as it is. For the others,
litellm makes tools of schemas, or drops them."""
_ALIASES = {
    "text-completion-openai": "openai", "custom_openai": "openai", "azure_text": "azure",
    "anthropic_text": "anthropic", "cohere_chat": "cohere",
    "bedrock_converse": "bedrock", "vertex_ai_beta": "vertex_ai", "text-completion-codestral": "codestral",
    "palm": "gemini",
}  # fmt: skip
_LOOKED_UP = ("os.environ/", "oidc/")
_NOT_ANSWERS = ("processes", "batch")  # options that decide how answers come, and not which


class LiteLLM(LLM):
    """Asks through litellm: OpenAI, Anthropic, Gemini, Ollama, hosted vLLM and a hundred others.

    Keys come from the environment variables that litellm names for each provider. Price lists come with litellm
    itself; nothing is fetched.
    """

    name = "litellm"

    api_base: str | None = None
    """Address of the server, for providers that have more than one."""
    extra: dict[str, Any] = {}
    """Further arguments of `litellm.acompletion`, such as `{top_p: 0.9}`."""
    processes: int = Field(default=1, ge=1)
    """Processes that ask; litellm keeps one busy with some hundred calls a second."""
    batch: bool = False
    """Whether requests are gathered and sent to the provider's batch API: half the price, answers within a day."""

    @property
    def batches(self) -> bool:
        """Whether the spec says so."""
        return self.batch

    identity: str | None = None
    """A name for the server, in place of its address: roles that give the same one share answers and results."""

    def fingerprint(self) -> JsonValue:
        """Return what answers depend on; the address only where the server has no name."""
        options = self.model_dump(mode="json", exclude=set(_NOT_ANSWERS))
        return [self.name, {**options, "api_base": self.identity or self.api_base}, []]

    @property
    def follows_schemas(self) -> bool:
        """Providers with OpenAI's format do, unless one has refused a schema."""
        return self._provider in _OPENAI_FORMAT and self._quirks.follows_schemas

    @property
    def _provider(self) -> str:
        """The provider as litellm names it: the model's prefix, or OpenAI."""
        named = self.extra.get("custom_llm_provider")
        provider = str(named or self.model.partition("/")[0])
        return _ALIASES.get(provider, provider) if named or "/" in self.model else "openai"

    def check(self) -> None:
        """Check that litellm is installed, is no malicious release, and sends no key to a wrong host."""
        self._check_addresses()
        if find_spec("litellm") is None:
            raise InputError(f"{self.model}: needs litellm: pip install 'litellm>=1.83.7,<1.107'")
        refuse_malicious("litellm")

    def _check_addresses(self) -> None:
        """See that keys are sent to their provider, this machine, or where the user allows it.

        Raises:
            InputError: If the spec names another address, or a variable of the environment in litellm's way.
        """
        provider = self._provider
        for text in _texts(self.extra):
            if text.startswith(_LOOKED_UP):
                raise InputError(
                    f"extra: {text.split('/')[0]}/… would have litellm look a secret up; set the provider's own "
                    "variable"
                )
            if "://" in text:
                check_receiver(provider, text)
        if self.api_base:
            check_address(self.api_base)
            if provider not in _OWN_SERVERS or "fallbacks" in self.extra:
                check_receiver(provider, self.api_base)

    @cached_property
    def _checked(self) -> bool:
        """Whether litellm may be used; to look takes half a millisecond, which is too long for each call."""
        self.check()
        return True

    def _litellm(self) -> Any:
        """Import litellm, which takes seconds, and make it quiet."""
        self._checked  # noqa: B018 - raises where it may not be used
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        os.environ.setdefault("LITELLM_LOG", "ERROR")
        import litellm

        # It warns of each reply that has another shape than OpenAI's, and those are read here.
        warnings.filterwarnings("ignore", message="Pydantic serializer warnings")
        litellm.telemetry = False
        litellm.suppress_debug_info = True
        return litellm

    async def complete(self, request: Request) -> Reply:
        """Ask through `litellm.acompletion`; the gateway tries again, so litellm does not."""
        if self.batch:
            return await self._complete_in_batch(request)
        while True:
            used = self._quirks.found
            try:
                return await self._complete(request)
            except LLMError as error:
                if not self._quirks.learn(str(error), used, schema=request.schema is not None):
                    raise

    async def _complete(self, request: Request) -> Reply:
        arguments = {**_as_it_is(self._quirks.adapted(chat_body(self.model, request))), **self.extra}
        if self.api_base:
            arguments["api_base"] = self.api_base
        if self.processes == 1:
            body, usd = await self.ask(arguments)
        else:
            body, usd = await self._processes().ask(arguments)
        reply = reply_from_chat(self.model, body, usd, None if usd is None else "litellm")
        return reply if request.schema is None else unwrapped(reply)

    @cached_property
    def _quirks(self) -> ServerQuirks:
        return ServerQuirks.of_objects()

    async def ask(self, arguments: Mapping[str, Any]) -> tuple[Any, float | None]:
        """Call `litellm.acompletion` in this process; return the response's body, and its price where that is known."""
        litellm = self._litellm()
        with bounded_httpx(self.model) as heard:
            try:
                response = await litellm.acompletion(**arguments, num_retries=0, max_retries=0, drop_params=True)
                if arguments.get("stream"):
                    response = await _gathered(litellm, response, arguments["messages"])
            except Exception as error:  # noqa: BLE001 - litellm raises the exceptions of every provider's client
                if (unread := unread_chat(heard)) is not None:
                    return unread, self._listed_price(unread)
                raise _translated(self.model, error) from None
        return as_sent(heard, response.model_dump()), self._price(litellm, response)

    @cached_property
    def _by_loop(self) -> dict[asyncio.AbstractEventLoop, Any]:
        """What is bound to an event loop: the processes, or the batches under way."""
        return {}

    def _processes(self) -> Processes:
        loop = asyncio.get_running_loop()
        if loop not in self._by_loop:
            self._by_loop[loop] = Processes(self.processes, self.model_dump(mode="json", exclude=set(_NOT_ANSWERS)))
        found: Processes = self._by_loop[loop]
        return found

    async def aclose(self) -> None:
        """End the processes; batches go on at the provider."""
        if (bound := self._by_loop.pop(asyncio.get_running_loop(), None)) is not None:
            await bound.aclose()

    def prices(self) -> tuple[float, float] | None:
        """Return the prices of litellm's list; None for a model that is not in it, or has none."""
        try:
            listed = self._litellm().get_model_info(self.model)
            kind = "_batches" if self.batch else ""
            each = listed[f"input_cost_per_token{kind}"], listed[f"output_cost_per_token{kind}"]
            return (float(each[0]) * 1e6, float(each[1]) * 1e6) if any(each) else None
        except Exception:  # noqa: BLE001 - litellm raises what it likes for models that it does not know
            return None

    @cached_property
    def _listed(self) -> bool:
        return self.prices() is not None

    def _price(self, litellm: Any, response: Any) -> float | None:
        """Return the price from litellm's list, counting cached tokens; None for unlisted models."""
        if not self._listed:  # to look in vain takes litellm a millisecond each time
            return None
        try:
            usd = litellm.completion_cost(completion_response=response, model=self.model)
        except Exception:  # noqa: BLE001 - a missing price must not cost the answer
            return None
        return float(usd) if usd and usd > 0 else None

    def _listed_price(self, body: Mapping[str, Any]) -> float | None:
        """Return the price of a response's tokens, for responses that litellm did not read."""
        usage, prices = usage_from(body.get("usage")), self.prices()
        if prices is None or not usage.input_tokens:
            return None
        return (usage.input_tokens * prices[0] + usage.output_tokens * prices[1]) / 1e6

    # --- batches ---

    def _batches(self) -> Batches:
        loop = asyncio.get_running_loop()
        if loop not in self._by_loop:
            owner = content_hash(self.fingerprint())
            self._by_loop[loop] = Batches(cache_dir() / "batches", self.model, owner, _Batching(self))
        found: Batches = self._by_loop[loop]
        return found

    def waiting_for(self) -> str:
        """Say how far batches are."""
        return "; ".join(bound.waiting_for() for bound in self._by_loop.values() if isinstance(bound, Batches))

    async def _complete_in_batch(self, request: Request) -> Reply:
        litellm = self._litellm()
        model, provider, *_ = litellm.get_llm_provider(self.model)
        if provider not in _BATCHING:
            raise LLMError(f"{self.model}: batch works for {', '.join(_BATCHING)}, not {provider}", lasting=True)
        body = self._quirks.adapted(chat_body(model, request))
        schema = {name: body.pop(name) for name in ("response_format",) if name in body}
        options = {name: value for name, value in body.items() if name not in ("model", "messages")}
        # A batch takes a request as it is, so what litellm would do about the ways of each model is done before.
        named = litellm.get_optional_params(
            model=model, custom_llm_provider=provider, **options, **self.extra, drop_params=True
        )
        further = named.pop("extra_body", None) or {}
        named.pop("stream", None)
        body = {"model": model, "messages": body["messages"], **named, **further, **schema}
        line = await self._batches().answer(content_hash(request.content()), body)
        reply = self._reply_from_line(line)
        return reply if request.schema is None else unwrapped(reply)

    def _reply_from_line(self, line: Mapping[str, Any]) -> Reply:
        response = line.get("response") or {}
        status, body = response.get("status_code"), response.get("body")
        if not answered(line):
            inside = body.get("error") if isinstance(body, Mapping) else None
            error = inside or line.get("error")
            error = error if isinstance(error, Mapping) else {"message": error}
            what = f"{self.model}: in a batch: status {status}: {one_line(error.get('message'))}"
            raise error_from_status(status, what, error.get("code"), retryable=status is None or passes(status))
        usd = self._listed_price(object_from(self.model, body))
        return reply_from_chat(self.model, body, usd, None if usd is None else "litellm, as a batch")


class _Batching:
    """A provider's batch API, as litellm reaches it."""

    def __init__(self, llm: LiteLLM):
        self._llm = llm

    async def _call(self, name: str, **arguments: Any) -> Any:
        litellm = self._llm._litellm()
        arguments["custom_llm_provider"] = litellm.get_llm_provider(self._llm.model)[1]
        if self._llm.api_base:
            arguments["api_base"] = self._llm.api_base
        try:
            with bounded_httpx(self._llm.model):
                return await getattr(litellm, name)(**arguments)
        except Exception as error:  # noqa: BLE001 - litellm raises the exceptions of every provider's client
            raise _translated(self._llm.model, error) from None

    async def send(self, lines: str) -> str:
        """Upload the requests, and begin a batch."""
        file = await self._call("acreate_file", file=("saeval.jsonl", lines.encode()), purpose="batch")
        batch = await self._call(
            "acreate_batch", input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        return str(batch.id)

    async def look(self, batch: str) -> Progress:
        """Retrieve the batch."""
        found = await self._call("aretrieve_batch", batch_id=batch)
        counts = found.request_counts
        ended = counts.completed + counts.failed if counts else 0
        error = ""
        if found.status in ("failed", "cancelled"):
            errors = (found.errors.data if found.errors else None) or []
            error = "; ".join(one_line(e.message) for e in errors) or found.status
        files = tuple(file for file in (found.output_file_id, found.error_file_id) if file)
        return Progress(found.status, ended, counts.total if counts else 0, found.status in _OVER, error, files)

    async def read(self, file: str) -> str:
        """Download a file."""
        content = await self._call("afile_content", file_id=file)
        return str(content.text)


def _as_it_is(body: dict[str, Any]) -> dict[str, Any]:
    """Return arguments with which a schema reaches the server as it is; litellm would make a tool of it for some."""
    schema = body.pop("response_format", None)
    return body if schema is None else {**body, "extra_body": {"response_format": schema}}


async def _gathered(litellm: Any, stream: Any, messages: Any) -> Any:
    """Return the response that a stream amounts to; one that breaks off has no finish reason, so it is not whole."""
    chunks = [chunk async for chunk in stream]
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    if not reasons:
        raise LLMError("the stream broke off", retryable=True)
    return litellm.stream_chunk_builder(chunks, messages=messages)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, str):
        yield value


def _translated(model: str, error: Exception) -> LLMError:
    """Turn a provider's exception into ours, without anything in it that looks like a key."""
    inside: BaseException | None = error
    while inside is not None:
        if isinstance(inside, LLMError):
            return inside
        inside = inside.__cause__ or inside.__context__
    name = type(error).__name__
    message = f"{model}: {name}: {one_line(getattr(error, 'message', None) or error)}"
    if name == "ContentPolicyViolationError":
        return Refused(message)
    headers = getattr(error, "litellm_response_headers", None) or {}  # those of `error.response` are made up
    # An error inside a response of status 200 reaches us as a 422 that no server sent.
    inside_200 = getattr(error, "status_code", None) == 422 and getattr(error, "body", None) is None
    status = getattr(error, "status_code", None)
    return error_from_status(
        status,
        message,
        getattr(error, "code", None),
        retryable=name in _RETRYABLE or passes(status) or inside_200,
        wait=wait_asked_for(headers, str(error)),
    )
