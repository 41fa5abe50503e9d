"""Calls servers with an OpenAI-compatible API: vLLM, llama.cpp, SGLang or a proxy."""

from __future__ import annotations

import asyncio
import json
import math
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from http import HTTPStatus
from itertools import accumulate
from typing import Any

from pydantic import Field, JsonValue

from saeval.plugin import (
    LLM,
    FillReply,
    FillRequest,
    InputError,
    LLMError,
    LogprobReply,
    LogprobRequest,
    Reply,
    Request,
    Usage,
    check_address,
    credential,
)
from saeval_plugins.llms._bounds import not_followed, parse_reply, read_bounded
from saeval_plugins.llms.error_bodies import error_data, message_and_code
from saeval_plugins.llms.openai_chat import (
    chat_body,
    error_from_status,
    is_success,
    is_transient,
    object_from,
    one_line,
    reply_from_chat,
    said_without,
    usage_from,
)
from saeval_plugins.llms.retry_after import wait_asked_for
from saeval_plugins.llms.server_quirks import ServerQuirks
from saeval_plugins.llms.streams import body_from_stream

_MOST = 20  # maximum alternatives per token that servers return
_CORRECT_PROXY = "correct HTTP_PROXY or HTTPS_PROXY, or add the host to NO_PROXY"
_LOG_IN_TO_PROXY = "put user and password into HTTP_PROXY or HTTPS_PROXY, or add the host to NO_PROXY"


class OpenAICompatible(LLM):
    """Calls a server over HTTP, with a tenth of litellm's CPU time.

    The key, if the server requires one, comes from the environment variable in `api_key_env`. Proxies come from
    `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`; redirects are not followed. If a server refuses a system turn, saeval
    moves its text to the start of the first user turn; if it only streams, saeval requests a stream.
    """

    name = "openai_compatible"
    scores_singly = True

    api_base: str = Field(pattern=r"^https?://")
    """Address of the server, up to and including `/v1`."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key, ending in `_API_KEY` (`--allow-env` allows others). If it is unset, no
    key is sent. The key of a known provider is sent only to its own addresses and to this machine (`--allow-host`
    allows others)."""
    scores: bool = False
    """Whether the server's `/completions` returns log-probabilities of the prompt (`echo`, as vLLM does). Each prompt
    with each continuation is then one call."""
    extra: dict[str, Any] = {}
    """Further fields of the request body, such as `{top_p: 0.9}`."""
    identity: str | None = None
    """A name for the server that replaces its address: roles with the same name share answers and results, even if the
    address changes."""

    def fingerprint(self) -> JsonValue:
        """Return what answers depend on; includes the address only if `identity` is not set."""
        options = self.model_dump(mode="json")
        return [self.name, {**options, "api_base": self.identity or self.api_base}, []]

    @property
    def can_score(self) -> bool:
        """Whether the option `scores` is set."""
        return self.scores

    @property
    def follows_schemas(self) -> bool:
        """Whether replies follow schemas: true until the server refuses one."""
        return self._quirks.follows_schemas

    @property
    def merges_system_turn(self) -> bool:
        """Whether the server refused a system turn, so that its text is sent in the first user turn."""
        return self._quirks.merges_system_turn

    def check(self) -> None:
        """Check that the address is valid and that the key may be sent there."""
        check_address(self.api_base)
        self._key  # noqa: B018 - raises if the key may not be sent

    @cached_property
    def _key(self) -> str | None:
        """The key to send. None if `api_key_env` is not set and the address may not receive OpenAI's key."""
        try:
            return credential(self.api_key_env, self.api_base)
        except InputError:
            if "api_key_env" in self.model_fields_set:
                raise
            return None

    @cached_property
    def _quirks(self) -> ServerQuirks:
        return ServerQuirks()

    @cached_property
    def _proxy(self) -> str | None:
        """The proxy for this address, from the environment."""
        scheme, _, rest = self.api_base.partition("://")
        host = rest.partition("/")[0]
        return None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(scheme)

    @cached_property
    def _sessions(self) -> dict[asyncio.AbstractEventLoop, Any]:
        return {}

    def _session(self) -> Any:
        """The connection pool of the running event loop."""
        import aiohttp

        loop = asyncio.get_running_loop()
        if loop not in self._sessions:
            # The gateway limits concurrency and time.
            self._sessions[loop] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._sessions[loop]

    async def aclose(self) -> None:
        """Close the running loop's connections."""
        if (session := self._sessions.pop(asyncio.get_running_loop(), None)) is not None:
            await session.close()

    @cached_property
    def _urls(self) -> dict[str, Any]:
        """Parsed URLs by path, cached because parsing takes longer than the rest of preparing a request."""
        from yarl import URL

        return {path: URL(self.api_base.rstrip("/") + path) for path in ("/chat/completions", "/completions")}

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        import aiohttp

        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = json.dumps({**body, **self.extra}).encode()
        call = self._session().post(
            self._urls[path], data=data, headers=headers, proxy=self._proxy, allow_redirects=False
        )
        try:
            async with call as response:
                answer = await self._read(response)
        except aiohttp.ClientSSLError as error:
            what = f"{self.model}: {self.api_base} has no valid certificate ({one_line(error)})"
            raise LLMError(
                f"{what}; to trust its certificate authority, set SSL_CERT_FILE to a file with it", lasting=True
            ) from None
        except aiohttp.ClientProxyConnectionError:
            # Without the proxy's address, which may contain a password.
            what = f"{self.model}: cannot reach the proxy for {self.api_base}; {_CORRECT_PROXY}"
            raise LLMError(what, retryable=True) from None
        except aiohttp.ClientHttpProxyError as error:  # the answer to CONNECT, for https
            raise self._proxy_error(error.status) from None
        except aiohttp.ClientError as error:
            kind = type(error).__name__
            what = f"the connection to {self.api_base} broke off ({kind})"
            if isinstance(error, aiohttp.ClientConnectorError):
                what = f"no connection to {self.api_base} ({kind}); start the server, or correct `api_base`"
            raise LLMError(f"{self.model}: {what}", retryable=True) from None
        if not is_success(response.status):
            raise self._error(response, answer, path)
        if "event-stream" in response.headers.get("Content-Type", ""):
            return body_from_stream(self.model, answer)
        return parse_reply(self.model, answer)

    async def _read(self, response: Any) -> bytes:
        """Return a response's body; nothing of an error's that breaks off, because its status is known."""
        import aiohttp

        try:
            return await read_bounded(self.model, response.content.iter_any())
        except aiohttp.ClientPayloadError:
            if is_success(response.status):
                raise
            return b""

    def _proxy_error(self, status: int) -> LLMError:
        needs_login = status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED
        remedy = _LOG_IN_TO_PROXY if needs_login else _CORRECT_PROXY
        what = f"{self.model}: the proxy for {self.api_base} refused with status {status}; {remedy}"
        return LLMError(what, retryable=is_transient(status), lasting=needs_login)

    def _error(self, response: Any, body: bytes, path: str) -> LLMError:
        status, text = response.status, body.decode(errors="replace")
        if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            return self._proxy_error(status)
        if 300 <= status < 400:
            return not_followed(self.model, self.api_base, one_line(response.headers.get("Location", "")))
        message, code = message_and_code(error_data(body) or response.reason)
        what = f"{self.model}: status {status}: {one_line(message)}"
        if status in (401, 403) and self._key is None:
            what += f" (no key was sent; set api_key_env, or allow {self.api_key_env} there with --allow-host)"
        if status == 404:
            what += f" (at {self._urls[path]}; api_base must be the address up to and including /v1)"
        wait = wait_asked_for(response.headers, text, status)
        return error_from_status(
            status, what, code, retryable=is_transient(status), wait=wait, said=said_without(self.model, message)
        )

    async def complete(self, request: Request) -> Reply:
        """Call `/chat/completions`; if the server's error shows that it needs another format, adapt and resend."""
        return await self._quirks.adapting(request, self._complete)

    async def _complete(self, request: Request) -> Reply:
        body = self._quirks.adapted(chat_body(self.model, request))
        return reply_from_chat(self.model, await self._post("/chat/completions", body))

    async def logprobs(self, request: LogprobRequest) -> LogprobReply:
        """Return log-probabilities of continuations, which `/completions` echoes with the prompt."""
        if not self.scores:
            return await super().logprobs(request)
        starts = [request.prefix + prompt for prompt in request.prompts]
        # One after another: the gateway asks for each part separately, and limits how many are in flight.
        bodies = [
            await self._echo(start + continuation, 1) for start in starts for continuation in request.continuations
        ]
        found = []
        with _billed(bodies) as usage:
            for i in range(len(starts)):
                row = []
                for j, continuation in enumerate(request.continuations):
                    body = bodies[i * len(request.continuations) + j]
                    row.append(tuple(float(value) for value, _ in self._end(body, continuation).values()))
                found.append(tuple(row))
        return LogprobReply(tuple(found), usage)

    async def fill(self, request: FillRequest) -> FillReply:
        """Return log-probabilities of the choices at each gap, from the echo of `/completions`.

        A choice that is not among the 20 most likely tokens gets minus infinity. Servers accept text, not tokens, so a
        choice is matched by its spelling, and a gap must begin at a token boundary of the server.
        """
        if not self.scores:
            return await super().fill(request)
        ends = [(text[0], request.filler.join(("", *text[1:], ""))) for text in request.texts]
        bodies = [await self._echo(request.prefix + begin + end, _MOST) for begin, end in ends]
        found = []
        with _billed(bodies) as usage:
            for text, (_, end), body in zip(request.texts, ends, bodies, strict=True):
                alternatives = {at: top for at, (_, top) in self._end(body, end).items()}
                gaps = list(accumulate((len(request.filler) + len(part) for part in text[1:]), initial=0))
                found.append(tuple(self._weights(alternatives.get(gap), request.choices) for gap in gaps))
        return FillReply(tuple(found), usage)

    def _weights(self, alternatives: Any, choices: Sequence[str]) -> tuple[float, ...]:
        if not isinstance(alternatives, Mapping):
            raise LLMError(
                f"{self.model}: the server returned no alternatives at a gap, or merged it with the previous token"
            )
        if not any(choice in alternatives for choice in choices):
            raise LLMError(
                f"{self.model}: none of the choices {', '.join(choices)} is among the {_MOST} most likely tokens"
            )
        return tuple(float(alternatives.get(choice, -math.inf)) for choice in choices)

    async def _echo(self, prompt: str, alternatives: int) -> Mapping[str, Any]:
        body = {"model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "echo": True}
        return object_from(self.model, await self._post("/completions", {**body, "logprobs": alternatives}))

    def _end(self, body: Mapping[str, Any], end: str) -> dict[int, tuple[float, Any]]:
        """Return log-probability and alternatives of the echoed tokens that form the text `end`, by position in it.

        Tokens are matched from the end, because servers differ in whether text offsets count BOS.
        """
        try:
            data = body["choices"][0]["logprobs"]
            tops = data.get("top_logprobs") or [None] * len(data["tokens"])
            echoed = list(zip(data["tokens"], data["token_logprobs"], tops, strict=True))
            del echoed[len(echoed) - int(body["usage"]["completion_tokens"]) :]
            found: dict[int, tuple[float, Any]] = {}
            rest = end
            while rest:
                token, value, top = echoed.pop()
                if not rest.endswith(token):
                    raise LLMError(
                        f"{self.model}: cannot find the continuation's tokens in the echo: prompt and continuation "
                        f"share a token, or the server returns tokens in another spelling ({token!r})"
                    )
                rest = rest.removesuffix(token)
                found[len(rest)] = float(value), top
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise LLMError(
                f"{self.model}: the server returned no log-probabilities of the prompt; set scores: false"
            ) from None
        return dict(sorted(found.items()))


@contextmanager
def _billed(bodies: Sequence[Mapping[str, Any]]) -> Iterator[Usage]:
    """Yield the usage of responses; an error in reading them has it, too, because they are billed anyway."""
    usage = Usage(usd=None)
    for body in bodies:
        usage += usage_from(body.get("usage"))
    try:
        yield usage
    except LLMError as error:
        error.usage = usage
        raise
