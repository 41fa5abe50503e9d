"""Calls any provider that litellm supports."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
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
from saeval_plugins.llms._bounds import RawResponse, bounded_httpx
from saeval_plugins.llms.batches import Batches, NotFound, Progress, answered
from saeval_plugins.llms.error_bodies import message_and_code
from saeval_plugins.llms.openai_chat import (
    chat_body,
    error_from_status,
    is_transient,
    object_from,
    one_line,
    reply_from_chat,
    said_without,
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
_REPLACED = (413, 529)
"""Statuses that litellm replaces: Groq's of a request that is too large by that of a rate limit, Anthropic's of an
overload by 500."""
_NO_RESPONSE = ("Timeout", "APIConnectionError")
_BATCHING = ("openai", "azure", "hosted_vllm", "litellm_proxy")  # providers whose batches are in OpenAI's format
_ENDED = ("completed", "expired", "failed", "cancelled")
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
"""litellm providers that mean the user's own server: their key may be sent to any address in the spec."""
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
"""Providers whose requests are in OpenAI's format, so that a schema can be sent unchanged. For the others, litellm
converts schemas to tools or drops them."""
_ALIASES = {
    "text-completion-openai": "openai", "custom_openai": "openai", "azure_text": "azure",
    "anthropic_text": "anthropic", "cohere_chat": "cohere",
    "bedrock_converse": "bedrock", "vertex_ai_beta": "vertex_ai", "text-completion-codestral": "codestral",
    "palm": "gemini",
}  # fmt: skip
_LOOKED_UP = ("os.environ/", "oidc/")
_TRANSPORT_OPTIONS = ("processes", "batch")  # options that do not change answers


class LiteLLM(LLM):
    """Calls models through litellm: OpenAI, Anthropic, Gemini, Ollama, hosted vLLM and about a hundred others.

    Keys come from the environment variables that litellm defines for each provider. The price list is part of the
    litellm package; nothing is downloaded.
    """

    name = "litellm"

    api_base: str | None = None
    """Address of the server, for providers with more than one."""
    extra: dict[str, Any] = {}
    """Further arguments of `litellm.acompletion`, such as `{top_p: 0.9}`."""
    processes: int = Field(default=1, ge=1)
    """Number of worker processes; one process makes only about a hundred calls per second with litellm."""
    batch: bool = False
    """Whether requests are sent to the provider's batch API: half the price, answers within a day."""

    @property
    def batches(self) -> bool:
        """Whether the option `batch` is set."""
        return self.batch

    identity: str | None = None
    """A name for the server that replaces its address: roles with the same name share answers and results."""

    def fingerprint(self) -> JsonValue:
        """Return what answers depend on; includes the address only if `identity` is not set."""
        options = self.model_dump(mode="json", exclude=set(_TRANSPORT_OPTIONS))
        return [self.name, {**options, "api_base": self.identity or self.api_base}, []]

    @property
    def follows_schemas(self) -> bool:
        """Whether replies follow schemas: for providers with OpenAI's format, until the server refuses a schema."""
        return self._provider in _OPENAI_FORMAT and self._quirks.follows_schemas

    @property
    def merges_system_turn(self) -> bool:
        """Whether the server refused a system turn, so that its text is sent in the first user turn."""
        return self._quirks.merges_system_turn

    @property
    def _provider(self) -> str:
        """The provider's name in litellm: the model's prefix, or `openai`."""
        named = self.extra.get("custom_llm_provider")
        provider = str(named or self.model.partition("/")[0])
        return _ALIASES.get(provider, provider) if named or "/" in self.model else "openai"

    def check(self) -> None:
        """Check that litellm is installed, is not a malicious release, and sends keys to permitted hosts only."""
        self._check_addresses()
        if find_spec("litellm") is None:
            raise InputError(f"{self.model}: needs litellm: pip install 'litellm>=1.83.7,<1.107'")
        refuse_malicious("litellm")

    def _check_addresses(self) -> None:
        """Check that keys go only to their provider, this machine, or a host that the user allows.

        Raises:
            InputError: If the spec names another address, or a secret to look up in litellm's notation.
        """
        provider = self._provider
        for text in _texts(self.extra):
            if text.startswith(_LOOKED_UP):
                raise InputError(
                    f"extra: {text.split('/')[0]}/… makes litellm look up a secret, which is not allowed; set the "
                    "provider's own environment variable instead"
                )
            if "://" in text:
                check_receiver(provider, text)
        if self.api_base:
            check_address(self.api_base)
            if provider not in _OWN_SERVERS or "fallbacks" in self.extra:
                check_receiver(provider, self.api_base)

    @cached_property
    def _checked(self) -> bool:
        """True once the check has passed; cached because it takes half a millisecond, too long for each call."""
        self.check()
        return True

    def _litellm(self) -> Any:
        """Import litellm, which takes seconds, and silence its output."""
        self._checked  # noqa: B018 - raises if litellm must not be used
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        os.environ.setdefault("LITELLM_LOG", "ERROR")
        import litellm

        # litellm warns about every reply that differs from OpenAI's format; saeval reads those itself.
        warnings.filterwarnings("ignore", message="Pydantic serializer warnings")
        litellm.telemetry = False
        litellm.suppress_debug_info = True
        return litellm

    async def complete(self, request: Request) -> Reply:
        """Call `litellm.acompletion` without litellm's retries, because the gateway retries."""
        if self.batch:
            return await self._complete_in_batch(request)
        return await self._quirks.adapting(request, self._complete)

    async def _complete(self, request: Request) -> Reply:
        arguments = {**_with_raw_schema(self._quirks.adapted(chat_body(self.model, request))), **self.extra}
        if self.api_base:
            arguments["api_base"] = self.api_base
        if self.processes == 1:
            body, usd = await self.ask(arguments)
        else:
            body, usd = await self._processes().ask(arguments)
        return reply_from_chat(self.model, body, usd, None if usd is None else "litellm")

    @cached_property
    def _quirks(self) -> ServerQuirks:
        return ServerQuirks.of_objects()

    async def ask(self, arguments: Mapping[str, Any]) -> tuple[Any, float | None]:
        """Call `litellm.acompletion` in this process; return the response's body and its price, None if unknown."""
        litellm = self._litellm()
        with bounded_httpx(self.model) as raw:
            try:
                response = await litellm.acompletion(**arguments, num_retries=0, max_retries=0, drop_params=True)
                if arguments.get("stream"):
                    response = await _gathered(litellm, response, arguments["messages"])
            except Exception as error:  # noqa: BLE001 - litellm raises the exceptions of every provider's client
                if (unread := unread_chat(raw)) is not None:
                    return unread, self._listed_price(unread)
                raise _translated(self.model, error, raw) from None
        return as_sent(raw, response.model_dump()), self._price(litellm, response)

    @cached_property
    def _by_loop(self) -> dict[asyncio.AbstractEventLoop, Any]:
        """Worker processes or batches in progress, per event loop."""
        return {}

    def _processes(self) -> Processes:
        loop = asyncio.get_running_loop()
        if loop not in self._by_loop:
            self._by_loop[loop] = Processes(
                self.processes, self.model_dump(mode="json", exclude=set(_TRANSPORT_OPTIONS))
            )
        found: Processes = self._by_loop[loop]
        return found

    async def aclose(self) -> None:
        """End the worker processes; batches continue at the provider."""
        if (bound := self._by_loop.pop(asyncio.get_running_loop(), None)) is not None:
            await bound.aclose()

    def prices(self) -> tuple[float, float] | None:
        """Return input and output prices in dollars per million tokens from litellm's list; None if not listed."""
        try:
            listed = self._litellm().get_model_info(self.model)
            kind = "_batches" if self.batch else ""
            each = listed[f"input_cost_per_token{kind}"], listed[f"output_cost_per_token{kind}"]
            return (float(each[0]) * 1e6, float(each[1]) * 1e6) if any(each) else None
        except Exception:  # noqa: BLE001 - litellm raises various exceptions for unknown models
            return None

    @cached_property
    def _listed(self) -> bool:
        return self.prices() is not None

    def _price(self, litellm: Any, response: Any) -> float | None:
        """Return the price from litellm's list, counting cached tokens; None for unlisted models."""
        if not self._listed:  # litellm's lookup takes a millisecond even if it finds nothing
            return None
        try:
            usd = litellm.completion_cost(completion_response=response, model=self.model)
        except Exception:  # noqa: BLE001 - a missing price must not cost the answer
            return None
        return float(usd) if usd and usd > 0 else None

    def _listed_price(self, body: Mapping[str, Any]) -> float | None:
        """Return the price of a response that litellm did not parse; None if it is unknown."""
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
        """Describe the batches in progress."""
        return "; ".join(bound.waiting_for() for bound in self._by_loop.values() if isinstance(bound, Batches))

    async def _complete_in_batch(self, request: Request) -> Reply:
        litellm = self._litellm()
        try:
            model, provider, *_ = litellm.get_llm_provider(self.model)
        except litellm.BadRequestError as error:
            raise _translated(self.model, error) from None
        if provider not in _BATCHING:
            raise LLMError(
                f"{self.model}: batch: true supports {', '.join(_BATCHING)}, not {provider}; set batch: false",
                lasting=True,
            )
        body = self._quirks.adapted(chat_body(model, request))
        schema = {name: body.pop(name) for name in ("response_format",) if name in body}
        options = {name: value for name, value in body.items() if name not in ("model", "messages")}
        # A batch sends requests unchanged, so litellm's adaptations to each model are applied here.
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
            raise error_from_status(status, what, error.get("code"), retryable=status is None or is_transient(status))
        usd = self._listed_price(object_from(self.model, body))
        return reply_from_chat(self.model, body, usd, None if usd is None else "litellm, as a batch")


class _Batching:
    """A provider's batch API, called through litellm."""

    def __init__(self, llm: LiteLLM):
        self._llm = llm

    async def _call(self, name: str, **arguments: Any) -> Any:
        litellm = self._llm._litellm()
        arguments["custom_llm_provider"] = litellm.get_llm_provider(self._llm.model)[1]
        if self._llm.api_base:
            arguments["api_base"] = self._llm.api_base
        try:
            with bounded_httpx(self._llm.model) as raw:
                return await getattr(litellm, name)(**arguments)
        except Exception as error:  # noqa: BLE001 - litellm raises the exceptions of every provider's client
            translated = _translated(self._llm.model, error, raw)
            if getattr(error, "status_code", None) == 404:
                raise NotFound(str(translated), lasting=True) from None
            raise translated from None

    async def send(self, lines: str) -> str:
        """Upload the requests and start a batch."""
        file = await self._call("acreate_file", file=("saeval.jsonl", lines.encode()), purpose="batch")
        batch = await self._call(
            "acreate_batch", input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        return str(batch.id)

    async def look(self, batch: str) -> Progress:
        """Return the progress of the batch."""
        found = await self._call("aretrieve_batch", batch_id=batch)
        counts = found.request_counts
        ended = counts.completed + counts.failed if counts else 0
        error = ""
        if found.status in ("failed", "cancelled"):
            errors = (found.errors.data if found.errors else None) or []
            error = "; ".join(one_line(e.message) for e in errors) or found.status
        files = tuple(file for file in (found.output_file_id, found.error_file_id) if file)
        return Progress(found.status, ended, counts.total if counts else 0, found.status in _ENDED, error, files)

    async def read(self, file: str) -> str:
        """Download an answer file."""
        content = await self._call("afile_content", file_id=file)
        return str(content.text)


def _with_raw_schema(body: dict[str, Any]) -> dict[str, Any]:
    """Return arguments that send the schema unchanged; for some providers, litellm would convert it to a tool."""
    schema = body.pop("response_format", None)
    return body if schema is None else {**body, "extra_body": {"response_format": schema}}


async def _gathered(litellm: Any, stream: Any, messages: Any) -> Any:
    """Join a stream into one response.

    Raises:
        LLMError: If no part has a finish reason, which means that the stream was interrupted; retryable.
    """
    chunks = [chunk async for chunk in stream]
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    if not reasons:
        raise LLMError("the stream ended before the answer was complete", retryable=True)
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


def _no_provider(model: str) -> str:
    """Say that litellm cannot tell who serves a model, and name providers that are spelt alike."""
    import litellm

    provider, slash, rest = model.partition("/")
    if not slash:
        return (
            f"{model}: litellm does not know who serves this model; put the provider before it: openai/{model}, or "
            f"openai_compatible/{model} for a server of your own"
        )
    known = [str(getattr(each, "value", each)) for each in litellm.provider_list]
    alike = ", ".join(f"{name}/{rest}" for name in get_close_matches(provider, known, n=2))
    meant = f"did you mean {alike}?" if alike else f"put the provider before it, such as openai/{model}"
    return f"{model}: litellm knows no provider {provider!r}; {meant}"


def _translated(model: str, error: Exception, raw: RawResponse | None = None) -> LLMError:
    """Convert a provider's exception to an `LLMError`, removing anything that looks like a key.

    Args:
        model: The called model.
        error: The exception.
        raw: The server's response, from which litellm drops the error's code.
    """
    inside: BaseException | None = error
    while inside is not None:
        if isinstance(inside, LLMError):
            return inside
        inside = inside.__cause__ or inside.__context__
    if "LLM Provider NOT provided" in str(error):
        return LLMError(_no_provider(model), lasting=True)
    name = type(error).__name__
    said, code = getattr(error, "message", None) or error, getattr(error, "code", None)
    sent = raw.body if raw is not None and raw.status >= 400 else None
    if sent:
        said, code = message_and_code(sent)
    message = f"{model}: {name}: {one_line(said)}"
    if name == "ContentPolicyViolationError":
        return Refused(message)
    headers = getattr(error, "litellm_response_headers", None) or {}  # those of `error.response` are invented
    # litellm reports an error inside a response with status 200 as a 422.
    inside_200 = getattr(error, "status_code", None) == 422 and getattr(error, "body", None) is None
    status = getattr(error, "status_code", None)
    if raw is not None and raw.status in _REPLACED:
        status = raw.status
    return error_from_status(
        status,
        message,
        code,
        retryable=status != 413 and (name in _RETRYABLE or is_transient(status) or inside_200),
        wait=wait_asked_for(headers, str(error), status),
        # Without a response, litellm invents a status.
        said="" if name in _NO_RESPONSE else said_without(model, said),
    )
