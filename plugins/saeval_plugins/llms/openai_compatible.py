"""Calls servers with an OpenAI-compatible API: vLLM, llama.cpp, SGLang or a proxy."""

from __future__ import annotations

import asyncio
import json
import math
import urllib.request
from collections.abc import Mapping, Sequence
from functools import cached_property
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
from saeval_plugins.llms.openai_chat import (
    chat_body,
    error_from_status,
    object_from,
    one_line,
    passes,
    reply_from_chat,
    usage_from,
)
from saeval_plugins.llms.retry_after import wait_asked_for
from saeval_plugins.llms.server_quirks import ServerQuirks, unwrapped
from saeval_plugins.llms.streams import body_from_stream

_MOST = 20  # alternatives a token that servers give


class OpenAICompatible(LLM):
    """Asks a server over HTTP, with a tenth of the CPU time of litellm.

    The key, where the server wants one, comes from the environment variable that `api_key_env` names. Proxies are those
    of `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`; redirects are not followed. Servers that refuse a system turn get its
    text at the start of the first user turn, and those that only stream are asked for a stream.
    """

    name = "openai_compatible"

    api_base: str = Field(pattern=r"^https?://")
    """Address of the server, up to and including `/v1`."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key, ending in `_API_KEY` (`--allow-env` allows others); an unset one means
    no key. The key of a known provider is sent to its own addresses and to this machine only (`--allow-host` allows
    others)."""
    scores: bool = False
    """Whether the server's `/completions` gives log-probabilities of the prompt (`echo`, as vLLM does)."""
    extra: dict[str, Any] = {}
    """Further fields of the request body, such as `{top_p: 0.9}`."""
    identity: str | None = None
    """A name for the server, in place of its address: roles that give the same one share answers and results, wherever
    the server listens."""

    def fingerprint(self) -> JsonValue:
        """Return what answers depend on; the address only where the server has no name."""
        options = self.model_dump(mode="json")
        return [self.name, {**options, "api_base": self.identity or self.api_base}, []]

    @property
    def can_score(self) -> bool:
        """Whether the spec says that the server scores continuations."""
        return self.scores

    @property
    def follows_schemas(self) -> bool:
        """Servers do, unless one has refused a schema."""
        return self._quirks.follows_schemas

    def check(self) -> None:
        """See that the address is one, and that the key may be sent there."""
        check_address(self.api_base)
        self._key  # noqa: B018 - finding it is the check

    @cached_property
    def _key(self) -> str | None:
        """The key to send; none where the spec names no variable, and OpenAI's key may not go to its server."""
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
        """The proxy that the environment names for this address."""
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
            # The gateway bounds concurrency and time.
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
        """Addresses by path; reading one takes longer than all else that is done about a request."""
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
                answer = await read_bounded(self.model, response.content.iter_any())
        except aiohttp.ClientSSLError as error:
            what = f"{self.model}: {self.api_base} has no valid certificate ({one_line(error)})"
            raise LLMError(f"{what}; SSL_CERT_FILE may name the authority to trust", lasting=True) from None
        except aiohttp.ClientError as error:
            raise LLMError(
                f"{self.model}: no connection to {self.api_base} ({type(error).__name__})", retryable=True
            ) from None
        if response.status != 200:
            raise self._error(response, answer, path)
        if "event-stream" in response.headers.get("Content-Type", ""):
            return body_from_stream(self.model, answer)
        return parse_reply(self.model, answer)

    def _error(self, response: Any, body: bytes, path: str) -> LLMError:
        status, text = response.status, body.decode(errors="replace")
        if 300 <= status < 400:
            return not_followed(self.model, self.api_base, one_line(response.headers.get("Location", "")))
        message, code = _said(text)
        what = f"{self.model}: status {status}: {one_line(message)}"
        if status in (401, 403) and self._key is None:
            what += f" (no key was sent; set api_key_env, or allow {self.api_key_env} there with --allow-host)"
        if status == 404:
            what += f" (at {self._urls[path]}; api_base is the address up to and including /v1)"
        wait = wait_asked_for(response.headers, text)
        return error_from_status(status, what, code, retryable=passes(status), wait=wait)

    async def complete(self, request: Request) -> Reply:
        """Ask `/chat/completions`, again in another way where the server wants one."""
        while True:
            used = self._quirks.found
            try:
                body = self._quirks.adapted(chat_body(self.model, request))
                reply = reply_from_chat(self.model, await self._post("/chat/completions", body))
                return reply if request.schema is None else unwrapped(reply)
            except LLMError as error:
                if not self._quirks.learn(str(error), used, schema=request.schema is not None):
                    raise

    async def logprobs(self, request: LogprobRequest) -> LogprobReply:
        """Ask `/completions` to echo prompt and continuation with their log-probabilities."""
        if not self.scores:
            return await super().logprobs(request)
        starts = [request.prefix + prompt for prompt in request.prompts]
        bodies = await asyncio.gather(
            *(self._echo(start + continuation, 1) for start in starts for continuation in request.continuations)
        )
        found, usage = [], Usage(usd=None)
        for i in range(len(starts)):
            row = []
            for j, continuation in enumerate(request.continuations):
                body = bodies[i * len(request.continuations) + j]
                row.append(tuple(float(value) for value, _ in self._end(body, continuation).values()))
                usage += usage_from(body.get("usage"))
            found.append(tuple(row))
        return LogprobReply(tuple(found), usage)

    async def fill(self, request: FillRequest) -> FillReply:
        """Ask `/completions` to echo each text with the alternatives to its tokens.

        A choice that is not among the 20 likeliest gets a log-probability of minus infinity. Servers take text and
        not tokens, so a choice is known by its spelling, and a gap must not begin within a token of theirs.
        """
        if not self.scores:
            return await super().fill(request)
        ends = [(text[0], request.filler.join(("", *text[1:], ""))) for text in request.texts]
        bodies = await asyncio.gather(*(self._echo(request.prefix + begin + end, _MOST) for begin, end in ends))
        found, usage = [], Usage(usd=None)
        for text, (_, end), body in zip(request.texts, ends, bodies, strict=True):
            alternatives = {at: top for at, (_, top) in self._end(body, end).items()}
            gaps = list(accumulate((len(request.filler) + len(part) for part in text[1:]), initial=0))
            found.append(tuple(self._weights(alternatives.get(gap), request.choices) for gap in gaps))
            usage += usage_from(body.get("usage"))
        return FillReply(tuple(found), usage)

    def _weights(self, alternatives: Any, choices: Sequence[str]) -> tuple[float, ...]:
        if not isinstance(alternatives, Mapping):
            raise LLMError(f"{self.model}: the server gave no alternatives at a gap, or joins it with the token before")
        if not any(choice in alternatives for choice in choices):
            raise LLMError(
                f"{self.model}: none of the choices {', '.join(choices)} is among the {_MOST} likeliest tokens"
            )
        return tuple(float(alternatives.get(choice, -math.inf)) for choice in choices)

    async def _echo(self, prompt: str, alternatives: int) -> Mapping[str, Any]:
        body = {"model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "echo": True}
        return object_from(self.model, await self._post("/completions", {**body, "logprobs": alternatives}))

    def _end(self, body: Mapping[str, Any], end: str) -> dict[int, tuple[float, Any]]:
        """Return log-probability and alternatives of the echoed tokens that spell the end of the prompt, by position.

        They are counted from the end, for servers differ in whether BOS takes up room in their text offsets.
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
                        f"{self.model}: prompt and continuation share a token, or the server spells tokens in its own "
                        f"way ({token!r}); their log-probability cannot be told apart"
                    )
                rest = rest.removesuffix(token)
                found[len(rest)] = float(value), top
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise LLMError(
                f"{self.model}: the server gave no log-probabilities of the prompt; set scores: false"
            ) from None
        return dict(sorted(found.items()))


def _said(text: str) -> tuple[object, object]:
    """Return message and code of an error's body; servers put them under `error`, or at the top, or send plain text."""
    try:
        data = json.loads(text)
        error = data.get("error", data)
        return (error["message"], error.get("code")) if isinstance(error, Mapping) else (error, None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return text, None
