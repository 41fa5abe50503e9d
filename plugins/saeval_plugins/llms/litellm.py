"""Any provider that litellm knows."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from saeval import LLM, InputError, LLMError, Refused, Reply, Request, refuse_malicious
from saeval_plugins.llms.openai_chat import chat_body, error_from_status, one_line, reply_from_chat

_RETRYABLE = {
    "RateLimitError", "Timeout", "APIConnectionError", "InternalServerError", "ServiceUnavailableError", "BadGatewayError",
    "APIError", "JSONDecodeError", "APIResponseValidationError",
}  # fmt: skip


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

    def check(self) -> None:
        """See that litellm is installed, and not one of its malicious releases."""
        if find_spec("litellm") is None:
            raise InputError(f"{self.model}: needs litellm: pip install 'litellm>=1.83.7,<1.107'")
        refuse_malicious("litellm")

    def _litellm(self) -> Any:
        """Import litellm, which takes seconds, and make it quiet."""
        self.check()
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        os.environ.setdefault("LITELLM_LOG", "ERROR")
        import litellm

        litellm.telemetry = False
        litellm.suppress_debug_info = True
        return litellm

    async def complete(self, request: Request) -> Reply:
        """Ask through `litellm.acompletion`; the gateway tries again, so litellm does not."""
        litellm = self._litellm()
        arguments = {**chat_body(self.model, request), **self.extra}
        if self.api_base:
            arguments["api_base"] = self.api_base
        try:
            response = await litellm.acompletion(**arguments, num_retries=0, max_retries=0, drop_params=True)
        except Exception as error:  # noqa: BLE001 - litellm raises the exceptions of every provider's client
            raise _translated(self.model, error) from None
        usd = self._price(litellm, response)
        return reply_from_chat(self.model, response.model_dump(), usd, None if usd is None else "litellm")

    def prices(self) -> tuple[float, float] | None:
        """Return the prices of litellm's list; None for a model that is not in it, or has none."""
        try:
            listed = self._litellm().get_model_info(self.model)
            each = listed["input_cost_per_token"], listed["output_cost_per_token"]
            return (float(each[0]) * 1e6, float(each[1]) * 1e6) if any(each) else None
        except Exception:  # noqa: BLE001 - litellm raises what it likes for models that it does not know
            return None

    def _price(self, litellm: Any, response: Any) -> float | None:
        """Return the price by litellm's list; None for a model that is not in it."""
        try:
            usd = litellm.completion_cost(completion_response=response, model=self.model)
        except Exception:  # noqa: BLE001 - a missing price must not cost the answer
            return None
        return float(usd) if usd else None


def _translated(model: str, error: Exception) -> LLMError:
    """Turn a provider's exception into ours, without anything in it that looks like a key."""
    name = type(error).__name__
    message = f"{model}: {name}: {one_line(getattr(error, 'message', None) or error)}"
    if name == "ContentPolicyViolationError":
        return Refused(message)
    headers = getattr(error, "litellm_response_headers", None) or {}  # those of `error.response` are made up
    # An error inside a response of status 200 reaches us as a 422 that no server sent.
    inside_200 = getattr(error, "status_code", None) == 422 and getattr(error, "body", None) is None
    return error_from_status(
        getattr(error, "status_code", None),
        message,
        getattr(error, "code", None),
        retryable=name in _RETRYABLE or inside_200,
        retry_after=headers.get("retry-after"),
    )
